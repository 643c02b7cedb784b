//! Rows of f32 to integer codes with bf16 scales.
//!
//! What is stored is defined to the bit. q8: one scale for a row, max |x| / 127; codes are x / scale. q4: for every 32
//! dims one scale, -1/8 of the element of the largest magnitude (the first of several), whose code is -8. Scales are
//! rounded to bf16 before they divide, codes to the nearest integer (even), clipped to the range. Numbers that are not
//! finite make the scale NaN and the codes 0.

use super::convert::f32_to_bf16;
use crate::config::Q4_GROUP;

/// A scale that is NaN.
const NAN: u16 = 0x7FC0;
/// 1.5 x 2^23: added to a small number, it leaves the nearest integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;
const INFINITY: u32 = f32::INFINITY.to_bits();

/// A bf16 scale and the number it is.
#[inline(always)]
fn scale_of(x: f32) -> (u16, f32) {
    let mut bits = [0];
    f32_to_bf16(&[x], &mut bits);
    (bits[0], f32::from_bits(u32::from(bits[0]) << 16))
}

/// The largest magnitude, as bits: from infinity's on, a number is not finite.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> u32 {
    x.iter().fold(0, |most, x| most.max(x.to_bits() & !(1 << 31)))
}

/// The largest magnitude as [`largest`], and the first number that has it. Without a branch for each number: their
/// order and sign are part of what is compared.
#[inline(always)]
fn first_largest(x: &[f32]) -> (u32, f32) {
    let ranked = x.iter().zip(0_u64..).fold(0, |most: u64, (x, i)| {
        let bits = u64::from(x.to_bits());
        // mutant: last_of_equal_magnitudes
        most.max((bits & !(1 << 31)) << 32 | (u64::from(u32::MAX >> 1) - i) << 1 | bits >> 31)
    });
    let most = (ranked >> 32) as u32;
    (most, f32::from_bits(most | (ranked as u32) << 31))
}

/// Nearest integers of `x / scale` between `low` and `high`, plus `offset`, an even number.
#[inline(always)]
fn codes(x: &[f32], scale: f32, (low, high): (f32, f32), offset: f32, to: &mut [u8]) {
    for (code, &x) in to.iter_mut().zip(x) {
        *code = ((x / scale).max(low).min(high) + (ROUND + offset)).to_bits() as u8;
    }
}

/// A row in q8: the codes as signed bytes. Returns the scale.
#[inline(always)]
pub(crate) fn quantise_q8(x: &[f32], to: &mut [u8]) -> u16 {
    let most = largest(x);
    let (bits, scale) = scale_of(f32::from_bits(most) / 127.0);
    if most >= INFINITY || scale == 0.0 {
        to.fill(0);
        return if most >= INFINITY { NAN } else { 0 };
    }
    codes(x, scale, (-127.0, 127.0), 0.0, to);
    bits
}

/// A row in q4: each code plus 8, in a byte; one scale for each 32 dims.
#[inline(always)]
pub(crate) fn quantise_q4(x: &[f32], to: &mut [u8], scales: &mut [u16]) {
    for ((x, to), bits) in x.chunks(Q4_GROUP).zip(to.chunks_mut(Q4_GROUP)).zip(scales) {
        let (most, first) = first_largest(x);
        let (scale_bits, scale) = scale_of(first / -8.0);
        if most >= INFINITY || scale == 0.0 {
            to.fill(8);
            *bits = if most >= INFINITY { NAN } else { 0 };
            continue;
        }
        codes(x, scale, (-8.0, 7.0), 8.0, to);
        *bits = scale_bits;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::SafeTensors;

    use super::*;
    use crate::backend::cpu::simd::Kernels;
    use crate::config::StorageType;
    use crate::cpu_features::Isa;

    /// Rows, and what an independent implementation (NumPy) makes of them, as f32: `DIM.x`, `DIM.turned`, `DIM.q8`,
    /// `DIM.q4`.
    fn rows() -> HashMap<String, Vec<f32>> {
        let bytes = std::fs::read("tests/data/quantised_rows.safetensors").unwrap();
        let numbers = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        tensors.into_iter().map(|(name, t)| (name, numbers(t.data()))).collect()
    }

    fn number(scale: u16) -> f32 {
        f32::from_bits(u32::from(scale) << 16)
    }

    fn same(what: &str, got: &[f32], want: &[f32]) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            // Minus zero is what a negative scale makes of the code 0.
            assert!(got == want || got.is_nan() && want.is_nan(), "{what}, dim {i}: {got:e} instead of {want:e}");
        }
    }

    #[test]
    fn rows_are_those_of_the_definition() {
        let rows = rows();
        let dims = [8, 16, 24, 32, 40, 64, 80, 96, 128, 256, 512];
        assert_eq!(rows.len(), 4 * dims.len());
        for (isa, dim) in Isa::all().into_iter().flat_map(|isa| dims.map(|dim| (isa, dim))) {
            let kernels = Kernels::new(isa, StorageType::Q8, StorageType::Q4);
            let of = |name: &str, row: usize| &rows[&format!("{dim}.{name}")][row * dim..(row + 1) * dim];
            for row in 0..rows[&format!("{dim}.x")].len() / dim {
                let what = format!("{isa:?}, {dim} dims, row {row}");
                let (x, mut turned) = (of("x", row), of("x", row).to_vec());
                let (mut codes, mut scales) = (vec![0; dim], vec![0; dim.div_ceil(Q4_GROUP)]);
                // SAFETY: the instruction set is available.
                unsafe { (kernels.hadamard)(&mut turned) };
                same(&format!("{what}, turned"), &turned, of("turned", row));
                // SAFETY: as above.
                let scale = number(unsafe { (kernels.quantise_q8)(x, &mut codes) });
                let got: Vec<f32> = codes.iter().map(|&c| f32::from(c.cast_signed()) * scale).collect();
                same(&format!("{what}, q8"), &got, of("q8", row));
                assert!(codes.iter().all(|&c| c != 0x80), "{what}: a code of -128");
                // SAFETY: as above.
                unsafe { (kernels.quantise_q4)(x, &mut codes, &mut scales) };
                let code = |d: usize| (f32::from(codes[d]) - 8.0) * number(scales[d / Q4_GROUP]);
                same(&format!("{what}, q4"), &(0..dim).map(code).collect::<Vec<_>>(), of("q4", row));
            }
        }
    }
}
