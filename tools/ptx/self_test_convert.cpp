// Conversions of 16-bit floats, against the processor's and against the two neighbours of a number.

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <cmath>

#include "instruction_table.hpp"
#include "random.hpp"
#include "self_test.hpp"

namespace ptx_test {
namespace {

// The processor's conversions.
#ifdef __x86_64__
float widen(u16 h) { return _cvtsh_ss(h); }
u16 narrow(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#else
float widen(u16 h) {
    __fp16 x;
    std::memcpy(&x, &h, 2);
    return static_cast<float>(x);
}
u16 narrow(float f) {
    __fp16 x = static_cast<__fp16>(f);
    u16 h;
    std::memcpy(&h, &x, 2);
    return h;
}
#endif

TEST(Convert, FromHalf) {
    for (u32 h = 0; h < 65536; ++h) {
        float mine = ptx::half_to_float(static_cast<u16>(h)), theirs = widen(static_cast<u16>(h));
        if (theirs != theirs) {
            ASSERT_NE(mine, mine) << h;
        } else {
            ASSERT_EQ(bits(mine), bits(theirs)) << h;
        }
    }
}

// The nearest of the two bf16 around a finite number; of two the even one.
u32 nearest_bf16(u32 b, float x) {
    u32 low = b & 0xffff0000u, high = low + 0x10000u;
    float below, above;
    std::memcpy(&below, &low, 4);
    std::memcpy(&above, &high, 4);
    double to_below = std::fabs(static_cast<double>(x) - below);
    double end = std::isfinite(above) ? above : std::copysign(std::ldexp(1.0, 128), above);
    double to_above = std::fabs(end - x);
    return (to_below < to_above || (to_below == to_above && !(low >> 16 & 1)) ? low : high) >> 16;
}

TEST(Convert, FromFloat) {
    skc_shim::Random random(5);
    for (u32 k = 0; k < 2000000; ++k) {
        u32 b = random.next();
        if (k % 4 == 0) b = (b & 0x87ffffff) | 0x30000000;  // where halves are subnormal
        float x;
        std::memcpy(&x, &b, 4);
        if (x != x) continue;
        ASSERT_EQ(ptx::float_to_half(x), narrow(x)) << x;
        if (!std::isfinite(x)) continue;
        ASSERT_EQ(ptx::float_to_bf16(x), nearest_bf16(b, x)) << x;
    }
}

TEST(Convert, PackedHalves) {
    // The first source is the upper half.
    EXPECT_EQ(run_lanes("cvt.rn.f16x2.f32 %r4, %r1, %r2;", {{bits(1), bits(-2), 0}})[0], 0x3c00c000u);
    EXPECT_EQ(run_lanes("cvt.rn.bf16x2.f32 %r4, %r1, %r2;", {{bits(1), bits(-2), 0}})[0], 0x3f80c000u);
}

TEST(Convert, IntegersAreCutAndExtended) {
    EXPECT_EQ(run_lanes("cvt.s32.s8 %r4, %r1;", {{0x1ff, 0, 0}})[0], 0xffffffffu);
    EXPECT_EQ(run_lanes("cvt.u32.u8 %r4, %r1;", {{0x1ff, 0, 0}})[0], 0xffu);
    EXPECT_EQ(run_lanes("cvt.rzi.s32.f32 %r4, %r1;", {{bits(-1.9f), 0, 0}})[0], 0xffffffffu);
    EXPECT_EQ(run_lanes("cvt.rzi.s32.f32 %r4, %r1;", {{bits(3e9f), 0, 0}})[0], 0x7fffffffu);
    EXPECT_EQ(run_lanes("cvt.rn.f32.s32 %r4, %r1;", {{16777217, 0, 0}})[0], bits(16777216.0f));
}

}  // namespace
}  // namespace ptx_test
