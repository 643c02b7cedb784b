// Warp-wide instructions, against host code that does not use the fragment tables.

#include <random>

#include "convert.hpp"
#include "self_test.hpp"

namespace {

struct In {
    CUdeviceptr a, b, out;
};

std::vector<float> random_values(size_t n, unsigned seed) {
    std::mt19937 generator(seed);
    std::uniform_int_distribution<int> eighths(-32, 32);
    std::vector<float> values(n);
    for (float& value : values) value = static_cast<float>(eighths(generator)) / 8;
    return values;
}

std::vector<uint16_t> to_half(const std::vector<float>& values, bool bf16) {
    std::vector<uint16_t> half;
    for (float x : values) half.push_back(bf16 ? skc_shim::f32_to_bf16(x) : skc_shim::f32_to_f16(x));
    return half;
}

std::vector<float> product(const std::vector<float>& a, const std::vector<float>& b, bool b_transposed) {
    std::vector<float> c(16 * 8);
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 8; ++j) {
            for (int k = 0; k < 16; ++k) c[i * 8 + j] += a[i * 16 + k] * (b_transposed ? b[j * 16 + k] : b[k * 8 + j]);
        }
    }
    return c;
}

const char* const kParams = "struct P { const u16* a; const u16* b; float* out; };\n";

// Fragments by the conditions in the text of PTX ISA 9.0, 9.7.14.5.8.
const char* const kFragmentsByIndex = R"(
SKC_KERNEL(32, test, P) {
    u32 group = lane() >> 2, in_group = lane() % 4;
    u16 a[8], b[4];
    for (u32 i = 0; i < 8; ++i) {
        u32 row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        u32 col = i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
        a[i] = p.a[row * 16 + col];
    }
    for (u32 i = 0; i < 4; ++i) {
        u32 row = i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
        b[i] = p.b[row * 8 + group];
    }
    u32 ra[4], rb[2];
    for (u32 i = 0; i < 4; ++i) ra[i] = a[2 * i] | (u32)a[2 * i + 1] << 16;
    for (u32 i = 0; i < 2; ++i) rb[i] = b[2 * i] | (u32)b[2 * i + 1] << 16;
    float c[4] = {};
    MMA(c, ra, rb);
    MMA(c, ra, rb);
    for (u32 i = 0; i < 4; ++i) p.out[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = c[i];
})";

// Fragments loaded from shared memory: A by ldmatrix, B by ldmatrix.trans from rows of k or by ldmatrix from rows of n.
const char* const kFragmentsByLdmatrix = R"(
SKC_KERNEL(32, test, P) {
    u16* a = (u16*)shared_memory();
    u16* b = a + 16 * 16;
    for (u32 i = lane(); i < 16 * 16; i += 32) a[i] = p.a[i];
    for (u32 i = lane(); i < 16 * 8; i += 32) b[i] = p.b[i];
    warp_sync();
    u32 ra[4], rb[2];
    load_matrix_x4(ra, a + lane() % 16 * 16 + lane() / 16 * 8);
#if ROWS_OF_N
    load_matrix_x2(rb, b + lane() % 8 * 16 + lane() / 8 % 2 * 8);
#else
    load_matrix_x2_trans(rb, b + lane() % 16 * 8);
#endif
    float c[4] = {};
    MMA(c, ra, rb);
    float* out = p.out + lane() / 4 * 8 + lane() % 4 * 2;
    out[0] = c[0]; out[1] = c[1]; out[64] = c[2]; out[65] = c[3];
})";

class WarpOps : public Device {
protected:
    std::vector<float> run(const std::string& source, bool bf16, unsigned seed) {
        In in{upload(to_half(random_values(256, seed), bf16)), upload(to_half(random_values(128, seed + 1), bf16)),
              upload(std::vector<float>(128))};
        std::string text = std::string("#define MMA mma_16816_") + (bf16 ? "bf16" : "f16") + "\n" + kParams + source;
        EXPECT_EQ(launch(kernel(text), in, 1, 32, 768), CUDA_SUCCESS);
        return download<float>(in.out, 128);
    }
};

TEST_F(WarpOps, mma_of_fragments_by_index) {
    for (bool bf16 : {false, true}) {
        std::vector<float> want = product(random_values(256, 3), random_values(128, 4), false);
        for (float& x : want) x *= 2;
        EXPECT_EQ(run(kFragmentsByIndex, bf16, 3), want);
    }
}

TEST_F(WarpOps, mma_of_fragments_by_ldmatrix) {
    for (bool bf16 : {false, true}) {
        for (bool rows_of_n : {false, true}) {
            std::string source = std::string("#define ROWS_OF_N ") + (rows_of_n ? "1" : "0") + kFragmentsByLdmatrix;
            EXPECT_EQ(run(source, bf16, 5), product(random_values(256, 5), random_values(128, 6), rows_of_n));
        }
    }
}

// ldmatrix.x4.trans of a row-major matrix equals movmatrix of ldmatrix.x4 of it; and both equal the transpose.
TEST_F(WarpOps, transpose) {
    CUfunction test = kernel(R"(
struct P { const u32* in; const u32* unused; u32* out; };
SKC_KERNEL(32, test, P) {
    u32* shared = (u32*)shared_memory();
    for (u32 i = lane(); i < 128; i += 32) shared[i] = p.in[i];
    warp_sync();
    u32 plain[4], trans[4];
    load_matrix_x4(plain, shared + lane() * 4);
    load_matrix_x4_trans(trans, shared + lane() * 4);
    for (u32 i = 0; i < 4; ++i) {
        p.out[i * 32 + lane()] = trans[i];
        p.out[128 + i * 32 + lane()] = transpose_matrix(plain[i]);
    }
})");
    std::vector<uint16_t> matrices(256);
    for (size_t i = 0; i < 256; ++i) matrices[i] = static_cast<uint16_t>(i);
    In in{upload(matrices), 0, upload(std::vector<uint32_t>(256))};
    OK(launch(test, in, 1, 32, 512));
    auto out = download<uint16_t>(in.out, 512);
    // Read as rows of 8, register i holds the transpose of matrix i: its element (r, c) was at (c, r).
    for (size_t i = 0; i < 512; ++i) {
        size_t matrix = i % 256 / 64, r = i % 64 / 8, c = i % 8;
        ASSERT_EQ(out[i], matrix * 64 + c * 8 + r) << i;
    }
}

TEST_F(WarpOps, shuffle) {
    CUfunction test = kernel(R"(
struct P { const u32* a; const u32* b; u32* out; };
SKC_KERNEL(64, test, P) {
    u32 t = thread();
    u64 wide = shuffle((u64)t << 40 | t, (lane() + 5) % 32);
    float f = shuffle_xor((float)t, 16);
    bool high = warp_any(t == 40);
    p.out[t] = wide >> 40 == (wide & 0xffffffff) ? (u32)wide : ~0u;
    p.out[64 + t] = (u32)f;
    p.out[128 + t] = high;
})");
    In in{0, 0, upload(std::vector<uint32_t>(192))};
    OK(launch(test, in, 1, 64));
    auto out = download<uint32_t>(in.out, 192);
    for (uint32_t t = 0; t < 64; ++t) {
        EXPECT_EQ(out[t], t / 32 * 32 + (t % 32 + 5) % 32);
        EXPECT_EQ(out[64 + t], t ^ 16);
        EXPECT_EQ(out[128 + t], t / 32);
    }
}

}  // namespace
