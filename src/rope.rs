//! `RoPE` angles at u64 stream positions.
//!
//! A frequency is stored as the fraction of a full rotation per token, in 64-bit fixed point. The phase of position p
//! is `p * frequency mod 2^64`, in exact wrapping integer arithmetic. So the relative angle of two tokens at distance d
//! has an error of at most d x 2^-65 rotations plus the frequency's rounding, at every stream position. (An f32 product
//! `position * inv_freq` is off by 0.06 rad at a million tokens.)

use std::f64::consts::TAU;

use crate::error::Result;
use crate::memory::{copied, with_room};

/// Rotary frequencies of one layer, one per rotated pair of dims.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Frequencies(Vec<u64>);

impl Frequencies {
    /// From angular frequencies in radians per token.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn from_radians(radians: impl ExactSizeIterator<Item = f64>) -> Result<Self> {
        let mut turns = with_room(radians.len(), "RoPE frequencies")?;
        turns.extend(radians.map(|w| fixed_turns(w / TAU)));
        Ok(Self(turns))
    }

    /// A copy.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn copied(&self) -> Result<Self> {
        Ok(Self(copied(&self.0, "RoPE frequencies")?))
    }

    /// Number of rotated pairs: half the rotary dims.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The frequencies in units of 2^-64 rotation per token.
    #[must_use]
    pub fn fixed(&self) -> &[u64] {
        &self.0
    }

    /// Whether nothing is rotated.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fills `cos` and `sin`, each of `len()` values, for stream position `position`, both multiplied by `mscale`.
    ///
    /// `position` counts modulo 2^64: `0u64.wrapping_sub(e)` gives the rotation by -e positions.
    #[inline(always)]
    pub fn fill(&self, position: u64, mscale: f32, cos: &mut [f32], sin: &mut [f32]) {
        for ((&f, c), s) in self.0.iter().zip(cos).zip(sin) {
            let (sv, cv) = sin_cos(position.wrapping_mul(f)); // mutant: float_positions
            *c = cv * mscale;
            *s = sv * mscale;
        }
    }
}

/// A frequency in rotations per token as 64-bit fixed point. Whole rotations have no effect and are dropped.
fn fixed_turns(turns: f64) -> u64 {
    // 2^64 as f64. The product is below it unless it rounds up to it.
    let scaled = turns.rem_euclid(1.0) * 18_446_744_073_709_551_616.0;
    if scaled >= 18_446_744_073_709_551_616.0 { 0 } else { scaled.round() as u64 }
}

/// Sine and cosine of a phase in units of 2^-64 rotation, correct up to f32 rounding.
#[must_use]
#[inline(always)]
pub fn sin_cos(phase: u64) -> (f32, f32) {
    // The nearest quarter rotation q, and the rest in [-1/8, 1/8) rotation: both exact in integers.
    let q = phase.wrapping_add(1 << 61) >> 62;
    let rest = phase.wrapping_sub(q << 62).cast_signed();
    let x = rest as f64 * (TAU / 18_446_744_073_709_551_616.0);
    let x2 = x * x;
    // Taylor polynomials; for |x| <= pi/4 the first omitted term is below 4e-14.
    let s = x
        * (1.0
            + x2 * (-1.0 / 6.0
                + x2 * (1.0 / 120.0
                    + x2 * (-1.0 / 5_040.0
                        + x2 * (1.0 / 362_880.0 + x2 * (-1.0 / 39_916_800.0 + x2 / 6_227_020_800.0))))));
    let c = 1.0
        + x2 * (-0.5
            + x2 * (1.0 / 24.0
                + x2 * (-1.0 / 720.0
                    + x2 * (1.0 / 40_320.0
                        + x2 * (-1.0 / 3_628_800.0 + x2 * (1.0 / 479_001_600.0 - x2 / 87_178_291_200.0))))));
    // Without branches, so that loops over this function vectorise. An odd quarter swaps the two; sine is negative in
    // quarters 2 and 3, cosine in 1 and 2.
    let (s, c) = if q & 1 == 0 { (s, c) } else { (c, s) };
    let negated = |x: f64, bit: u64| f64::from_bits(x.to_bits() ^ bit << 63);
    (negated(s, q >> 1 & 1) as f32, negated(c, (q ^ q >> 1) & 1) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quarter_turns_are_exact() {
        assert_eq!(sin_cos(0), (0.0, 1.0));
        assert_eq!(sin_cos(1 << 62), (1.0, 0.0));
        assert_eq!(sin_cos(1 << 63), (0.0, -1.0));
        assert_eq!(sin_cos(3 << 62), (-1.0, 0.0));
    }

    #[test]
    fn whole_turns_and_rounding_up_to_one_turn_are_zero() {
        assert_eq!(fixed_turns(3.0), 0);
        assert_eq!(fixed_turns(-1e-30), 0);
        assert_eq!(fixed_turns(0.5), 1 << 63);
    }

    proptest! {
        #[test]
        fn agrees_with_libm(phase: u64) {
            let x = phase as f64 / 18_446_744_073_709_551_616.0 * TAU;
            let (s, c) = sin_cos(phase);
            prop_assert!((f64::from(s) - x.sin()).abs() < 1e-7 && (f64::from(c) - x.cos()).abs() < 1e-7);
        }

        /// The angle between two tokens depends on their distance alone, bit for bit, at every position.
        #[test]
        fn distances_are_exact(p: u64, d in 0u64..1 << 40, w in 0.0f64..3.2) {
            let f = fixed_turns(w / TAU);
            let phase = |p: u64| p.wrapping_mul(f);
            prop_assert_eq!(phase(p.wrapping_add(d)).wrapping_sub(phase(p)), phase(d));
        }

        /// Compared with a 128-bit product of the exact frequency: at most d x 2^-65 rotations plus the frequency's f64
        /// rounding.
        #[test]
        fn long_distances_stay_right(d in 1u64..1 << 32, inv in 1e-7f64..1.0) {
            let turns = inv / TAU;
            // The mantissa of an f64 times a u64 is exact in 128 bits.
            let bits = turns.to_bits();
            let (m, e) = ((bits & ((1 << 52) - 1)) | (1 << 52), i64::try_from(bits >> 52).unwrap() - 1075);
            let product = u128::from(m) * u128::from(d);
            let shift = 64 + e;
            let exact = if shift >= 0 { (product << shift) as u64 } else { (product >> -shift) as u64 };
            let got = d.wrapping_mul(fixed_turns(turns));
            prop_assert!(got.wrapping_sub(exact).cast_signed().unsigned_abs() <= d / 2 + 2);
        }
    }
}
