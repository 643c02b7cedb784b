// f16 and bf16 to and from f32 as `cvt.rn` converts: to nearest, ties to even, NaN to one canonical NaN.
#pragma once

#include <cstdint>

namespace skc_shim {

inline uint32_t bits(float x) {
    uint32_t u;
    __builtin_memcpy(&u, &x, 4);
    return u;
}

inline float from_bits(uint32_t u) {
    float x;
    __builtin_memcpy(&x, &u, 4);
    return x;
}

inline float bf16_to_f32(uint16_t h) { return from_bits(static_cast<uint32_t>(h) << 16); }

// The product scales the exponent from a bias of 15 to one of 127, subnormals included, and is exact.
inline float f16_to_f32(uint16_t h) {
    uint32_t magnitude = (h & 0x7fffu) << 13;
    uint32_t scaled = bits(from_bits(magnitude) * 0x1p112f);
    uint32_t special = magnitude >= 0x7c00u << 13 ? 0x7f800000u : 0;
    return from_bits(scaled | special | (h & 0x8000u) << 16);
}

inline uint16_t f32_to_bf16(float x) {
    uint32_t u = bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline uint16_t f32_to_f16(float x) {
    uint32_t u = bits(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    uint32_t h;
    if (magnitude >= 0x477ff000u) {  // 65520, halfway between the largest finite number and 2^16
        h = 0x7c00;
    } else if (magnitude < 0x38800000u) {  // below 2^-14: a subnormal is a multiple of 2^-24
        h = bits(from_bits(magnitude) + 0.5f) - bits(0.5f);  // 0.5 has an ulp of 2^-24: the addition rounds
    } else {
        h = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    }
    return static_cast<uint16_t>(sign | h);
}

}  // namespace skc_shim
