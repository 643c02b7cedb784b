// Integers and floats against definitions of their own.

#include <cfenv>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "random.hpp"
#include "self_test.hpp"

namespace ptx_test {
namespace {

using skc_shim::Random;

std::vector<std::array<u32, 3>> random_words(u32 n, u64 seed) {
    Random random(seed);
    std::vector<std::array<u32, 3>> all;
    for (u32 i = 0; i < n; ++i) all.push_back({random.next(), random.next(), random.next()});
    return all;
}

// Compares an instruction with a function, on random words.
template <class F>
void expect_lanes(const std::string& code, F definition) {
    auto operands = random_words(320, 7);
    auto results = run_lanes(code, operands);
    for (size_t i = 0; i < operands.size(); ++i) {
        auto [a, b, c] = operands[i];
        ASSERT_EQ(results[i], definition(a, b, c)) << code << ": " << a << " " << b << " " << c;
    }
}

TEST(Arithmetic, Bits) {
    expect_lanes("and.b32 %r5, %r2, 63;\nshl.b32 %r4, %r1, %r5;",
                 [](u32 a, u32 b, u32) { return (b & 63) > 31 ? 0 : a << (b & 63); });
    expect_lanes("and.b32 %r5, %r2, 63;\nshr.s32 %r4, %r1, %r5;",
                 [](u32 a, u32 b, u32) { return static_cast<u32>(static_cast<int>(a) >> std::min(b & 63, 31u)); });
    // 0xe2: where a then b, else c.
    expect_lanes("lop3.b32 %r4, %r1, %r2, %r3, 0xca;", [](u32 a, u32 b, u32 c) { return (a & b) | (~a & c); });
    expect_lanes("shf.l.wrap.b32 %r4, %r1, %r2, 5;", [](u32 a, u32 b, u32) { return b << 5 | a >> 27; });
    expect_lanes("bfi.b32 %r4, %r1, %r2, 4, 9;",
                 [](u32 a, u32 b, u32) { return (b & ~(0x1ffu << 4)) | ((a & 0x1ff) << 4); });
    expect_lanes("bfe.s32 %r4, %r1, 3, 7;",
                 [](u32 a, u32, u32) { return static_cast<u32>(static_cast<int>(a << 22) >> 25); });
    expect_lanes("prmt.b32 %r4, %r1, %r2, 0x6501;", [](u32 a, u32 b, u32) {
        return (a >> 8 & 0xff) | (a & 0xff) << 8 | (b >> 8 & 0xff) << 16 | (b >> 16 & 0xff) << 24;
    });
    expect_lanes("mul.hi.u32 %r5, %r1, %r2;\nadd.u32 %r4, %r5, %r3;",
                 [](u32 a, u32 b, u32 c) { return static_cast<u32>(static_cast<u64>(a) * b >> 32) + c; });
}

TEST(Arithmetic, FieldsOf64Bits) {
    Random random(3);
    std::vector<std::array<u64, 3>> operands;
    for (u32 i = 0; i < 96; ++i) {
        auto wide = [&] { return static_cast<u64>(random.next()) << 32 | random.next(); };
        operands.push_back({wide(), wide(), 0});
    }
    auto high = run_wide_lanes("bfi.b64 %rd4, %rd1, %rd2, 32, 32;", operands);
    auto over = run_wide_lanes("bfi.b64 %rd4, %rd1, %rd2, 60, 9;", operands);
    for (size_t i = 0; i < operands.size(); ++i) {
        auto [a, b, c] = operands[i];
        EXPECT_EQ(high[i], a << 32 | (b & 0xffffffff));
        EXPECT_EQ(over[i], a << 60 | (b & 0x0fffffffffffffff));  // bits beyond the 63rd are left out
    }
}

TEST(Arithmetic, HalvesOfRegisters) {
    // Registers declared in braces are others than those outside, and end with them.
    std::string swap = R"(
	mov.b32 %r5, 7;
	{ .reg .b16 low, %r5; mov.b32 {low, %r5}, %r1; mov.b32 %r4, {%r5, low}; }
	add.u32 %r4, %r4, %r5;
)";
    EXPECT_EQ(run_lanes(swap, {{0x12345678, 0, 0}})[0], 0x56781234u + 7);
    std::string wide = "mov.b64 {%r1, %r2}, %rd1;\nmov.b64 %rd4, {%r2, %r1};";
    EXPECT_EQ(run_wide_lanes(wide, {{0x1122334455667788, 0, 0}})[0], 0x5566778811223344u);
    std::vector<u8> memory(64);
    EXPECT_THROW(run_body("{ .reg .b32 inner; mov.u32 inner, %r0; }\nmov.u32 %r1, inner;", memory), std::runtime_error);
}

TEST(Arithmetic, ComparisonsOfNan) {
    float nan = std::numeric_limits<float>::quiet_NaN();
    std::vector<std::array<u32, 3>> operands = {{bits(nan), bits(1), 0}, {bits(1), bits(1), 0}, {bits(1), bits(2), 0}};
    auto compared = [&](const std::string& how) {
        return run_lanes("setp." + how + ".f32 %p1, %r1, %r2;\nselp.u32 %r4, 1, 0, %p1;", operands);
    };
    using Results = std::vector<u32>;
    EXPECT_EQ(compared("eq"), (Results{0, 1, 0}));
    EXPECT_EQ(compared("ne"), (Results{0, 0, 1}));
    EXPECT_EQ(compared("neu"), (Results{1, 0, 1}));
    EXPECT_EQ(compared("ltu"), (Results{1, 0, 1}));
    EXPECT_EQ(compared("ge"), (Results{0, 1, 0}));
    EXPECT_EQ(compared("nan"), (Results{1, 0, 0}));
    EXPECT_EQ(run_lanes("max.f32 %r4, %r1, %r2;", operands), (Results{bits(1), bits(1), bits(2)}));
}

TEST(Arithmetic, RoundingToIntegers) {
    std::vector<std::array<u32, 3>> operands;
    for (float x : {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 2.4999998f, 8388609.0f, -0.0f}) operands.push_back({bits(x), 0, 0});
    std::vector<u32> expected;
    for (float x : {0.0f, 2.0f, 2.0f, -0.0f, -2.0f, 2.0f, 8388609.0f, -0.0f}) expected.push_back(bits(x));
    EXPECT_EQ(run_lanes("cvt.rni.f32.f32 %r4, %r1;", operands), expected);
}

// make ptx runs the self test with both settings.
TEST(Arithmetic, ApproximationsAreAsFarOffAsSet) {
    std::vector<std::array<u32, 3>> operands;
    for (u32 i = 0; i < 320; ++i) operands.push_back({bits(-4.0f + 0.0251f * static_cast<float>(i)), 0, 0});
    auto results = run_lanes("ex2.approx.ftz.f32 %r4, %r1;", operands);
    u32 off = 0;
    for (size_t i = 0; i < results.size(); ++i) {
        float x;
        std::memcpy(&x, &operands[i][0], 4);
        int distance = static_cast<int>(results[i] - bits(static_cast<float>(std::exp2(static_cast<double>(x)))));
        EXPECT_LE(std::abs(distance), 2) << x;
        off += distance != 0;
    }
    EXPECT_EQ(off > 0, ptx::Options::get().approx == 1);
    // Powers of two stay exact.
    EXPECT_EQ(run_lanes("ex2.approx.ftz.f32 %r4, %r1;", {{bits(-3), 0, 0}})[0], bits(0.125f));
}

// A bf16 from its parts: (128 + fraction) * 2^(exponent - 7).
u16 bf16(bool negative, int exponent, u32 fraction) {
    return static_cast<u16>(negative << 15 | (exponent + 127) << 7 | fraction);
}

// The nearest bf16 of n * 2^-60; of two the even one.
u16 nearest(__int128 n) {
    bool negative = n < 0;
    unsigned __int128 rest = negative ? -n : n;
    if (rest == 0) return 0;
    int top = 127;
    while (!(rest >> top & 1)) --top;
    int drop = top - 7;
    unsigned __int128 kept = drop > 0 ? rest >> drop : rest << -drop;
    if (drop > 0) {
        unsigned __int128 left = rest & ((static_cast<unsigned __int128>(1) << drop) - 1);
        unsigned __int128 half = static_cast<unsigned __int128>(1) << (drop - 1);
        if (left > half || (left == half && (kept & 1))) ++kept;
    }
    if (kept == 256) {
        kept = 128;
        ++top;
    }
    return bf16(negative, top - 60, static_cast<u32>(kept) & 127);
}

TEST(Arithmetic, FusedMultiplyAddOfBf16) {
    Random random(11);
    std::vector<std::array<u32, 3>> operands;
    std::vector<u32> expected;
    for (u32 i = 0; i < 3200; ++i) {
        std::array<u32, 3> packed{};
        u32 result = 0;
        for (u32 half = 0; half < 2; ++half) {
            __int128 value[3];
            for (u32 k = 0; k < 3; ++k) {
                bool negative = random.below(2);
                // An addend as large as the product in many cases, so that ties and cancellation happen.
                int exponent = static_cast<int>(random.below(k == 2 ? 16 : 8)) - 4;
                u32 fraction = random.below(3) ? random.below(128) : random.below(4) * 32;
                packed[k] |= static_cast<u32>(bf16(negative, exponent, fraction)) << 16 * half;
                value[k] = static_cast<__int128>(128 + fraction) << (23 + exponent);  // times 2^-30
                if (negative) value[k] = -value[k];
            }
            __int128 exact = value[0] * value[1] + (value[2] << 30);
            result |= static_cast<u32>(nearest(exact)) << 16 * half;
        }
        operands.push_back(packed);
        expected.push_back(result);
    }
    auto results = run_lanes("fma.rn.bf16x2 %r4, %r1, %r2, %r3;", operands);
    for (size_t i = 0; i < results.size(); ++i) {
        ASSERT_EQ(results[i], expected[i])
            << std::hex << operands[i][0] << " " << operands[i][1] << " " << operands[i][2];
    }
}

TEST(Arithmetic, FusedMultiplyAddOfBf16AtTheEdges) {
    auto one = [](float x, float y, float z) {
        auto half = [](float f) { return bits(f) >> 16; };
        return run_lanes("fma.rn.bf16x2 %r4, %r1, %r2, %r3;", {{half(x), half(y), half(z)}})[0] & 0xffff;
    };
    auto as_bf16 = [](float f) { return bits(f) >> 16; };
    float infinity = std::numeric_limits<float>::infinity();
    float tiny = std::ldexp(1.0f, -100), least = std::ldexp(1.0f, -133);
    // 261 lies between 260 and 262; what is far below decides.
    EXPECT_EQ(one(3, 87, 0), as_bf16(260));
    EXPECT_EQ(one(3, 87, tiny), as_bf16(262));
    EXPECT_EQ(one(3, 87, -tiny), as_bf16(260));
    EXPECT_EQ(one(-3, 87, -tiny), as_bf16(-262));
    // Subnormal numbers are not flushed.
    EXPECT_EQ(one(least, 1, least), as_bf16(2 * least));
    EXPECT_EQ(one(least, 0.5f, 0), 0u);
    EXPECT_EQ(one(least, 0.75f, 0), as_bf16(least));
    EXPECT_EQ(one(least, -0.25f, 0), 0x8000u);
    EXPECT_EQ(one(std::ldexp(1.0f, 127), 2, 0), as_bf16(infinity));
    EXPECT_EQ(one(std::ldexp(1.0f, 127), 2, std::ldexp(-1.0f, 127)), as_bf16(std::ldexp(1.0f, 127)));
    EXPECT_EQ(one(infinity, 0, 1), 0x7fffu);
    EXPECT_EQ(one(1, 1, -1), 0u);
    EXPECT_EQ(one(-0.0f, 1, -0.0f), 0x8000u);
}

}  // namespace
}  // namespace ptx_test
