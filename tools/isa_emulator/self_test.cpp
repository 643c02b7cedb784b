// What instructions compute, against their definitions in whole numbers (fp16) and in scalar f32 (tiles). Where the
// processor has the instructions, it is held to the same definitions, and the emulator to the processor bit by bit.

#include "self_test.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace {

using u16 = uint16_t;

// Of fp16.

enum Rounding { kNearest, kDown, kUp, kToZero };

bool is_nan(u16 x) {
    return (x & 0x7FFF) > 0x7C00;
}

bool is_infinite(u16 x) {
    return (x & 0x7FFF) == 0x7C00;
}

// A finite number in units of 2^-24.
int64_t units(u16 x) {
    int exponent = x >> 10 & 31;
    int64_t size = exponent == 0 ? x & 0x3FF : static_cast<int64_t>((x & 0x3FF) | 0x400) << (exponent - 1);
    return x >> 15 ? -size : size;
}

// A sum in units of 2^-48 as fp16.
u16 round_sum(__int128 sum, bool negative_zero, Rounding rounding) {
    if (sum == 0) return negative_zero ? 0x8000 : 0;
    bool negative = sum < 0;
    unsigned __int128 size = negative ? -sum : sum;
    // The last bit that fp16 keeps: 2^-24 for the smallest, and 11 bits in all.
    int last = 24;
    while (size >> (last + 11) != 0) ++last;
    unsigned __int128 kept = size >> last;
    unsigned __int128 rest = size - (kept << last);
    unsigned __int128 half = static_cast<unsigned __int128>(1) << (last - 1);
    bool up = false;
    switch (rounding) {
        case kNearest: up = rest > half || (rest == half && (kept & 1)); break;
        case kDown: up = negative && rest != 0; break;
        case kUp: up = !negative && rest != 0; break;
        case kToZero: break;
    }
    kept += up;
    // Exponent and mantissa are adjacent: a carry, and the step from denormal to normal, come by themselves.
    unsigned __int128 bits = kept >= 0x400 ? kept - 0x400 + (static_cast<unsigned>(last - 24 + 1) << 10) : kept;
    if (bits >= 0x7C00) {
        bool to_infinity = rounding == kNearest || rounding == (negative ? kDown : kUp);
        bits = to_infinity ? 0x7C00 : 0x7BFF;
    }
    return static_cast<u16>(bits) | (negative ? 0x8000 : 0);
}

// a * b + c. A NaN stands for all NaNs.
u16 fmadd(u16 a, u16 b, u16 c, Rounding rounding) {
    constexpr u16 kNan = 0xFE00;
    if (is_nan(a) || is_nan(b) || is_nan(c)) return kNan;
    bool product_negative = (a ^ b) >> 15;
    if (is_infinite(a) || is_infinite(b)) {
        if ((a & 0x7FFF) == 0 || (b & 0x7FFF) == 0) return kNan;
        if (is_infinite(c) && c >> 15 != product_negative) return kNan;
        return product_negative ? 0xFC00 : 0x7C00;
    }
    if (is_infinite(c)) return c;
    __int128 product = static_cast<__int128>(units(a)) * units(b);
    __int128 sum = product + (static_cast<__int128>(units(c)) << 24);
    // The sign of a zero: that of both, else minus only when rounding down.
    bool same = product == 0 && (c & 0x7FFF) == 0 && product_negative == c >> 15;
    return round_sum(sum, same ? product_negative : rounding == kDown, rounding);
}

struct Operands {
    alignas(64) u16 first[32], second[32], third[32];
    uint32_t mask;
    uint32_t mxcsr;
    void* code;
};

// A function that runs one instruction on zmm1, zmm2, zmm3 or (%rax), and k1, and notes where it is.
#define RUNS(name, instruction) \
    __attribute__((noinline)) void name(Operands& x) { \
        asm volatile("leaq 0f(%%rip), %%rax\n\t" \
                     "movq %%rax, 200(%0)\n\t" \
                     "vmovdqu64 (%0), %%zmm1\n\t" \
                     "vmovdqu64 64(%0), %%zmm2\n\t" \
                     "vmovdqu64 128(%0), %%zmm3\n\t" \
                     "vmovdqa64 %%zmm1, %%zmm17\n\t" \
                     "vmovdqa64 %%zmm2, %%zmm26\n\t" \
                     "vmovdqa64 %%zmm3, %%zmm31\n\t" \
                     "kmovd 192(%0), %%k1\n\t" \
                     "leaq 128(%0), %%rax\n\t" \
                     "leaq 256(%0), %%r13\n\t" \
                     "movq $-16, %%r12\n\t" \
                     "ldmxcsr 196(%0)\n\t" \
                     "0: " instruction "\n\t" \
                     "vmovdqu64 %%zmm1, (%0)\n\t" \
                     "ldmxcsr %1\n\t" \
                     : \
                     : "r"(&x), "m"(kUsualMxcsr) \
                     : "rax", "r12", "r13", "xmm1", "xmm2", "xmm3", "xmm17", "xmm26", "xmm31", "memory"); \
    }
const uint32_t kUsualMxcsr = 0x1F80;
static_assert(offsetof(Operands, mask) == 192 && offsetof(Operands, mxcsr) == 196 && offsetof(Operands, code) == 200);

RUNS(fmadd231, "vfmadd231ph %%zmm3, %%zmm2, %%zmm1")
RUNS(fmadd132, "vfmadd132ph %%zmm3, %%zmm2, %%zmm1")
RUNS(fmadd213, "vfmadd213ph %%zmm3, %%zmm2, %%zmm1")
RUNS(high_registers, "vfmadd231ph %%zmm31, %%zmm26, %%zmm17\n\tvmovdqa64 %%zmm17, %%zmm1")
RUNS(merging, "vfmadd231ph %%zmm3, %%zmm2, %%zmm1%{%%k1%}")
RUNS(zeroing, "vfmadd231ph %%zmm3, %%zmm2, %%zmm1%{%%k1%}%{z%}")
RUNS(ymm, "vfmadd231ph %%ymm3, %%ymm2, %%ymm1")
RUNS(xmm, "vfmadd231ph %%xmm3, %%xmm2, %%xmm1")
RUNS(from_memory, "vfmadd231ph (%%rax), %%zmm2, %%zmm1")
RUNS(from_memory_near, "vfmadd231ph -128(%%r13), %%zmm2, %%zmm1")
RUNS(from_memory_indexed, "vfmadd231ph (%%r13, %%r12, 8), %%zmm2, %%zmm1")
RUNS(from_memory_far, "vfmadd231ph 0x1000(%%r13, %%r12, 8), %%zmm2, %%zmm1")
RUNS(broadcast, "vfmadd231ph (%%rax)%{1to32%}, %%zmm2, %%zmm1")
RUNS(broadcast_near, "vfmadd231ph -126(%%r13)%{1to32%}, %%zmm2, %%zmm1%{%%k1%}")
RUNS(nearest, "vfmadd231ph %{rn-sae%}, %%zmm3, %%zmm2, %%zmm1")
RUNS(down, "vfmadd231ph %{rd-sae%}, %%zmm3, %%zmm2, %%zmm1")
RUNS(up, "vfmadd231ph %{ru-sae%}, %%zmm3, %%zmm2, %%zmm1")
RUNS(to_zero, "vfmadd231ph %{rz-sae%}, %%zmm3, %%zmm2, %%zmm1")

enum class Order { k132, k213, k231 };

struct Form {
    const char* name;
    void (*run)(Operands&);
    Order order = Order::k231;
    Rounding rounding = kNearest;
    bool masked = false, zeroing = false;
    // One element of `third` for all: its number, or -1.
    int element = -1;
    int lanes = 32;
    // For modes that MXCSR chooses.
    uint32_t mxcsr = kUsualMxcsr;
};

const Form kForms[] = {
    {"231", fmadd231},
    {"132", fmadd132, Order::k132},
    {"213", fmadd213, Order::k213},
    {"high registers", high_registers},
    {"merging", merging, Order::k231, kNearest, true},
    {"zeroing", zeroing, Order::k231, kNearest, true, true},
    {"ymm", ymm, Order::k231, kNearest, false, false, -1, 16},
    {"xmm", xmm, Order::k231, kNearest, false, false, -1, 8},
    {"memory", from_memory},
    {"memory, short displacement", from_memory_near},
    {"memory, index", from_memory_indexed},
    {"broadcast", broadcast, Order::k231, kNearest, false, false, 0},
    {"broadcast, short displacement", broadcast_near, Order::k231, kNearest, true, false, 1},
    {"rn-sae", nearest},
    {"rd-sae", down, Order::k231, kDown},
    {"ru-sae", up, Order::k231, kUp},
    {"rz-sae", to_zero, Order::k231, kToZero},
    {"MXCSR: down", fmadd231, Order::k231, kDown, false, false, -1, 32, kUsualMxcsr | 1 << 13},
    {"MXCSR: up", fmadd231, Order::k231, kUp, false, false, -1, 32, kUsualMxcsr | 2 << 13},
    {"MXCSR: to zero", fmadd231, Order::k231, kToZero, false, false, -1, 32, kUsualMxcsr | 3 << 13},
    // fp16 keeps its denormals whatever MXCSR says of them.
    {"MXCSR: denormals are zero", fmadd231, Order::k231, kNearest, false, false, -1, 32, kUsualMxcsr | 0x8040},
};

u16 expected(const Form& form, const Operands& x, int lane) {
    if (lane >= form.lanes) return 0;
    u16 a = x.first[lane], b = x.second[lane], c = x.third[form.element < 0 ? lane : form.element];
    if (form.masked && !(x.mask >> lane & 1)) return form.zeroing ? 0 : a;
    switch (form.order) {
        case Order::k132: return fmadd(a, c, b, form.rounding);
        case Order::k213: return fmadd(b, a, c, form.rounding);
        default: return fmadd(b, c, a, form.rounding);
    }
}

// Any bits; or numbers of similar size, so that sums cancel; or what is special.
u16 draw_half(std::mt19937& random) {
    static const u16 special[] = {0,      0x8000, 1,      0x8001, 0x3FF,  0x400,  0x83FF, 0x7BFF, 0xFBFF,
                                  0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7D01, 0x3C00, 0xBC00, 0x3C01, 0x1000};
    switch (random() % 8) {
        case 0: return special[random() % std::size(special)];
        case 1:
        case 2: return random();
        case 3: return (random() & 0x83FF);
        default: return (random() & 0x83FF) | (10 + random() % 10) << 10;
    }
}

// The product of the first two with the third near its negative: the case that two roundings get wrong.
void make_ties(Operands& x, std::mt19937& random) {
    for (int i = 0; i < 32; ++i) {
        x.second[i] = 0x3C00 | (random() & 0x3FF);
        x.third[i] = 0x3C00 | (random() & 0x3FF);
        x.first[i] = (random() & 0x8000) | (random() % 31) << 10 | (random() & 0x3FF);
    }
}

void hold_to_definition(const Form& form, const Operands& in, const Operands& out) {
    for (int i = 0; i < 32; ++i) {
        u16 want = expected(form, in, i);
        bool kept = form.masked && !(in.mask >> i & 1);
        bool same = is_nan(want) && !kept ? is_nan(out.first[i]) && out.first[i] & 0x200 : out.first[i] == want;
        ASSERT_TRUE(same) << form.name << ", lane " << i << std::hex << ": "
                          << in.first[i] << " " << in.second[i] << " "
                          << in.third[i] << " gives " << out.first[i] << ", not " << want;
    }
}

TEST(Fp16, MultiplyAddsAreThoseOfTheDefinition) {
    NEEDS_EMULATOR();
    bool native = self_test::processor_has_fp16();
    if (!native) std::puts("skipped: comparison to the processor, which has no AVX-512 FP16");
    for (const Form& form : kForms) {
        std::mt19937 random(7);
        std::vector<Operands> in(3000), by_processor;
        for (size_t i = 0; i < in.size(); ++i) {
            for (u16* operand : {in[i].first, in[i].second, in[i].third}) {
                for (int lane = 0; lane < 32; ++lane) operand[lane] = draw_half(random);
            }
            if (i % 2 == 1) make_ties(in[i], random);
            in[i].mask = random();
            in[i].mxcsr = form.mxcsr;
        }
        for (const Operands& x : in) {
            Operands out = x;
            form.run(out);
            if (native) by_processor.push_back(out);
            hold_to_definition(form, x, out);
            if (HasFatalFailure()) return;
        }
        for (size_t i = 0; i < by_processor.size(); ++i) {
            ASSERT_TRUE(isa_emulator_replace(by_processor[i].code)) << form.name;
            Operands out = in[i];
            form.run(out);
            ASSERT_EQ(std::memcmp(out.first, by_processor[i].first, sizeof out.first), 0)
                << form.name << ", case " << i;
        }
    }
}

// A displacement of four bytes, in a struct that is large enough.
TEST(Fp16, FarMemory) {
    NEEDS_EMULATOR();
    std::mt19937 random(8);
    struct {
        Operands x;
        u16 more[4096];
    } block;
    for (u16* operand : {block.x.first, block.x.second, block.x.third}) {
        for (int lane = 0; lane < 32; ++lane) operand[lane] = draw_half(random);
    }
    block.x.mxcsr = kUsualMxcsr;
    Operands in = block.x;
    // (%r13, %r12, 8) is the third operand.
    std::memcpy(reinterpret_cast<char*>(block.x.third) + 0x1000, in.third, sizeof in.third);
    std::memset(block.x.third, 0, sizeof block.x.third);
    from_memory_far(block.x);
    hold_to_definition({"memory, long displacement", from_memory_far}, in, block.x);
}

// The definition itself, on numbers that can be checked by eye.
TEST(Fp16, Definition) {
    EXPECT_EQ(fmadd(0x3C00, 0x4000, 0x4200, kNearest), 0x4500);
    EXPECT_EQ(fmadd(0x0001, 0x3800, 0, kNearest), 0);
    EXPECT_EQ(fmadd(0x0001, 0x3800, 0, kUp), 1);
    EXPECT_EQ(fmadd(0x7BFF, 0x3C00, 0x7BFF, kNearest), 0x7C00);
    EXPECT_EQ(fmadd(0x7BFF, 0x3C00, 0x7BFF, kToZero), 0x7BFF);
    EXPECT_EQ(fmadd(0x3C00, 0x3C00, 0xBC00, kNearest), 0);
    EXPECT_EQ(fmadd(0x3C00, 0x3C00, 0xBC00, kDown), 0x8000);
    // 1 + 2^-11 is a tie, and goes to 1; what is added decides, however small.
    EXPECT_EQ(fmadd(0x1000, 0x3C00, 0x3C00, kNearest), 0x3C00);
    EXPECT_EQ(fmadd(0x1001, 0x3C00, 0x3C00, kNearest), 0x3C01);
    EXPECT_EQ(fmadd(0x0001, 0x3C00, 0x03FF, kNearest), 0x0400);
}

// Of tiles.

struct TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// c += a * b, all of them with rows of `stride` bytes in memory.
struct Product {
    TileConfig config, stored;
    uint64_t stride;
    uint8_t *c, *a, *b;
    void* code;
};

__attribute__((noinline)) void multiply(Product& x) {
    void* code;
    // An operand of each kind: SIB with and without displacement, base of the upper registers, scaled index.
    asm volatile(
        "leaq 0f(%%rip), %0\n\t"
        "movq %5, %%r13\n\t"
        "leaq -72(%3), %%rcx\n\t"
        "0: ldtilecfg (%1)\n\t"
        "tilezero %%tmm7\n\t"
        "tileloadd 72(%%rcx, %6, 1), %%tmm2\n\t"
        "tileloadd (%4, %6, 1), %%tmm5\n\t"
        "tileloaddt1 (%%r13, %6, 1), %%tmm6\n\t"
        "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n\t"
        "tilestored %%tmm2, (%3, %6, 1)\n\t"
        "sttilecfg (%2)\n\t"
        "tilerelease\n\t"
        : "=&r"(code)
        : "r"(&x.config), "r"(&x.stored), "r"(x.c), "r"(x.a), "r"(x.b), "r"(x.stride)
        : "rcx", "r13", "memory");
    x.code = code;
}

// Denormals are zero, as operands and as results.
float flushed(float x) {
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0F, x) : x;
}

float number(u16 bf16) {
    uint32_t bits = static_cast<uint32_t>(bf16) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return flushed(x);
}

float product_and_sum(float a, float b, float c) {
    return flushed(std::fmaf(a, b, c));
}

u16 draw_bf16(std::mt19937& random, int kind) {
    static const u16 special[] = {0, 0x8000, 1, 0x807F, 0x80, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F, 0x3F80};
    if (kind == 0) return random();
    if (kind == 1 && random() % 40 == 0) return special[random() % std::size(special)];
    // Products of the third kind are about the smallest normal number.
    int exponent = kind == 2 ? 50 + random() % 20 : 120 + random() % 10;
    return (random() & 0x807F) | exponent << 7;
}

TEST(Tiles, ProductsAreThoseOfTheDefinition) {
    NEEDS_EMULATOR();
    bool native = self_test::processor_has_amx();
    if (!native) std::puts("skipped: comparison to the processor, which has no AMX, or does not let us");
    constexpr int kStride = 80;
    std::mt19937 random(9);
    struct Case {
        Product product;
        std::vector<uint8_t> a, b, c, result;
    };
    std::vector<Case> cases(400);
    auto run = [&](Case& x, std::vector<uint8_t>& result) {
        result = x.c;
        x.product.a = x.a.data();
        x.product.b = x.b.data();
        x.product.c = result.data();
        multiply(x.product);
    };
    for (size_t i = 0; i < cases.size(); ++i) {
        Case& x = cases[i];
        bool whole = i % 4 == 0;
        int rows = whole ? 16 : 1 + random() % 16;
        int columns = whole ? 16 : 1 + random() % 16;
        int depth = whole ? 16 : 1 + random() % 16;
        int kind = i % 3;
        TileConfig& config = x.product.config;
        config.row_bytes[2] = 4 * columns;
        config.rows[2] = rows;
        config.row_bytes[5] = 4 * depth;
        config.rows[5] = rows;
        config.row_bytes[6] = 4 * columns;
        config.rows[6] = depth;
        config.row_bytes[7] = 3;
        config.rows[7] = 1;
        x.product.stride = kStride;
        for (auto* matrix : {&x.a, &x.b, &x.c}) matrix->resize(16 * kStride);
        for (auto* matrix : {&x.a, &x.b}) {
            for (size_t at = 0; at < matrix->size(); at += 2) {
                u16 value = draw_bf16(random, kind);
                std::memcpy(matrix->data() + at, &value, 2);
            }
        }
        for (size_t at = 0; at < x.c.size(); at += 4) {
            float value = i % 5 == 0 ? 1e-40F : static_cast<int>(random() % 200) / 8.0F - 12.0F;
            if (kind == 2) value = 0;
            std::memcpy(x.c.data() + at, &value, 4);
        }
        run(x, x.result);
        ASSERT_EQ(std::memcmp(&x.product.stored, &config, sizeof config), 0) << "the configuration as it was loaded";
        auto bf16 = [&](const std::vector<uint8_t>& matrix, int row, int at) {
            u16 value;
            std::memcpy(&value, matrix.data() + row * kStride + 2 * at, 2);
            return number(value);
        };
        for (size_t at = 0; at < x.c.size(); at += 4) {
            int m = at / kStride, n = at % kStride / 4;
            float want, got;
            std::memcpy(&want, x.c.data() + at, 4);
            std::memcpy(&got, x.result.data() + at, 4);
            if (m < rows && n < columns) {
                float even = 0, odd = 0;
                for (int k = 0; k < depth; ++k) {
                    even = product_and_sum(bf16(x.a, m, 2 * k), bf16(x.b, k, 2 * n), even);
                    odd = product_and_sum(bf16(x.a, m, 2 * k + 1), bf16(x.b, k, 2 * n + 1), odd);
                }
                want = flushed(flushed(want) + flushed(even + odd));
            }
            bool same = std::isnan(want) ? std::isnan(got) : std::memcmp(&want, &got, 4) == 0;
            ASSERT_TRUE(same) << "case " << i << ", row " << m << ", column " << n << ": " << got << ", not " << want;
        }
    }
    if (!native) return;
    ASSERT_TRUE(isa_emulator_replace(cases[0].product.code));
    for (size_t i = 0; i < cases.size(); ++i) {
        std::vector<uint8_t> emulated;
        run(cases[i], emulated);
        EXPECT_EQ(emulated, cases[i].result) << "case " << i;
    }
}

}  // namespace
