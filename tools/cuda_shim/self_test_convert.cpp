// Conversion between f32 and the 16-bit types.

#include <cmath>

#include "convert.hpp"
#include "self_test.hpp"

namespace {

// Every bf16 and f16, and the values around the midpoint of two neighbours, against the definition of rounding.
TEST(Half, rounds_to_nearest_even) {
    using namespace skc_shim;
    for (uint32_t h = 0; h < 0x10000; ++h) {
        for (bool bf16 : {false, true}) {
            auto widen = [bf16](uint32_t x) {
                return bf16 ? bf16_to_f32(static_cast<uint16_t>(x)) : f16_to_f32(static_cast<uint16_t>(x));
            };
            auto narrow = [bf16](float x) { return bf16 ? f32_to_bf16(x) : f32_to_f16(x); };
            uint32_t infinity = bf16 ? 0x7f80 : 0x7c00, magnitude = h & 0x7fff;
            float x = widen(h);
            if (magnitude > infinity) {
                ASSERT_TRUE(std::isnan(x));
                ASSERT_EQ(narrow(x), 0x7fff);
                continue;
            }
            int exponent_bits = bf16 ? 8 : 5, mantissa_bits = bf16 ? 7 : 10, bias = (1 << (exponent_bits - 1)) - 1;
            int exponent = static_cast<int>(magnitude >> mantissa_bits);
            double fraction = magnitude & ((1u << mantissa_bits) - 1);
            double want = exponent ? std::ldexp(std::ldexp(fraction, -mantissa_bits) + 1, exponent - bias)
                                   : std::ldexp(fraction, 1 - bias - mantissa_bits);
            if (magnitude != infinity) {
                ASSERT_EQ(x, static_cast<float>(h & 0x8000 ? -want : want)) << h;
            }
            ASSERT_EQ(narrow(x), h);
            if (magnitude == infinity) continue;
            // The neighbour away from zero. Above the largest finite number it is the next power of two.
            double next =
                magnitude + 1 == infinity ? std::ldexp(1.0, bias + 1) : std::fabs(static_cast<double>(widen(h + 1)));
            float middle = static_cast<float>((std::fabs(static_cast<double>(x)) + next) / 2);
            float sign = h & 0x8000 ? -1.0f : 1.0f;
            ASSERT_EQ(narrow(sign * middle), h + (h & 1)) << h;
            ASSERT_EQ(narrow(sign * std::nextafter(middle, 0.0f)), h);
            ASSERT_EQ(narrow(sign * std::nextafter(middle, INFINITY)), h + 1);
        }
    }
}

}  // namespace
