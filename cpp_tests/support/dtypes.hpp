// Conversions between f32, f16 and bf16, written independently of the library that the tests check.
#pragma once

#include <sinkcache.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace dtypes {

inline std::uint32_t bits(float x) {
    std::uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    return u;
}

inline float from_bits(std::uint32_t u) {
    float x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

inline std::uint16_t to_bf16(float x) {
    const std::uint32_t u = bits(x);
    return static_cast<std::uint16_t>((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}

inline float from_bf16(std::uint16_t h) {
    return from_bits(std::uint32_t{h} << 16);
}

inline float from_f16(std::uint16_t h) {
    const int exponent = (h >> 10) & 31, fraction = h & 1023;
    const float sign = h >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) {
        return fraction ? from_bits(0x7FC00000) : sign * from_bits(0x7F800000);
    }
    const int significand = exponent == 0 ? fraction : fraction + 1024;
    return sign * std::ldexp(static_cast<float>(significand), (exponent == 0 ? 1 : exponent) - 25);
}

/** For zeros and values that round to normal f16 numbers; others are not handled. */
inline std::uint16_t to_f16(float x) {
    if (x == 0.0f) {
        return static_cast<std::uint16_t>(bits(x) >> 16);
    }
    int exponent;
    // |x| = fraction * 2^exponent with fraction in [0.5, 1); nearbyint rounds ties to even.
    const float fraction = std::frexp(std::fabs(x), &exponent);
    const int magnitude = ((exponent + 14) << 10) + static_cast<int>(std::nearbyint(fraction * 2048.0f)) - 1024;
    return static_cast<std::uint16_t>(magnitude | (x < 0 ? 0x8000 : 0));
}

/** Bytes of an element. */
inline std::size_t size(std::uint32_t dtype) {
    return dtype == SKC_DTYPE_F32 ? 4 : 2;
}

/** Converts f32 values to `dtype`, one of SKC_DTYPE_; returns their bytes. */
inline std::vector<std::uint8_t> encode(const std::vector<float> &x, std::uint32_t dtype) {
    std::vector<std::uint8_t> bytes(x.size() * size(dtype));
    for (std::size_t i = 0; i < x.size(); i++) {
        if (dtype == SKC_DTYPE_F32) {
            std::memcpy(&bytes[4 * i], &x[i], 4);
        } else {
            const std::uint16_t h = dtype == SKC_DTYPE_F16 ? to_f16(x[i]) : to_bf16(x[i]);
            std::memcpy(&bytes[2 * i], &h, 2);
        }
    }
    return bytes;
}

/** The inverse of encode. */
inline std::vector<float> decode(const std::vector<std::uint8_t> &bytes, std::uint32_t dtype) {
    std::vector<float> x(bytes.size() / size(dtype));
    for (std::size_t i = 0; i < x.size(); i++) {
        if (dtype == SKC_DTYPE_F32) {
            std::memcpy(&x[i], &bytes[4 * i], 4);
        } else {
            std::uint16_t h;
            std::memcpy(&h, &bytes[2 * i], 2);
            x[i] = dtype == SKC_DTYPE_F16 ? from_f16(h) : from_bf16(h);
        }
    }
    return x;
}

}  // namespace dtypes
