//! Conversions between element types.

/// f32 to bf16, rounded to nearest even; NaN stays NaN.
#[inline(always)]
pub(crate) fn f32_to_bf16(src: &[f32], dst: &mut [u16]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        let bits = src.to_bits();
        // The sum overflows for some NaNs only, whose sum is not used.
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        *dst = if src.is_nan() { (bits >> 16 | 0x40) as u16 } else { rounded as u16 };
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn every_bit_pattern_is_narrowed_as_it_should() {
        let patterns = (0..=u16::MAX)
            .flat_map(|high| [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map(|low| u32::from(high) << 16 | low));
        for bits in patterns {
            let (x, mut y) = (f32::from_bits(bits), [0]);
            f32_to_bf16(&[x], &mut y);
            assert_eq!(bf16::from_bits(y[0]).to_f32().is_nan(), x.is_nan(), "{bits:#x}");
            assert!(x.is_nan() || y[0] == bf16::from_f32(x).to_bits(), "{bits:#x}");
        }
    }
}
