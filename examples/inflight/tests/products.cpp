// Matrix products: right, and bit for bit independent of the batch, the threads and the blocks of weights.
#include "gemm.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace inflight;

/** All types of weights that a file may have: those that ggml can make from f32 and multiply. */
std::vector<ggml_type> types() {
    return {GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
            GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K,
            GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL};
}

/** Kernels of all instruction sets of this processor, and none. */
std::vector<Gemm::Kernels> kernels() {
    std::vector<Gemm::Kernels> all{{nullptr, nullptr}, {nullptr, q8_kernels()}};
    for (auto at = float_kernels(); *at; ++at) {
        all.push_back({*at, nullptr});
    }
    return all;
}

std::string name(const Gemm::Kernels &kernels) {
    return kernels.floats ? kernels.floats->name : kernels.integers ? kernels.integers->name : "ggml";
}

class Values {
public:
    explicit Values(std::uint32_t seed) : random_(seed) {}
    std::vector<float> operator()(std::size_t n) {
        std::vector<float> values(n);
        std::generate(values.begin(), values.end(), [&] { return normal_(random_); });
        return values;
    }
    std::size_t below(std::size_t n) { return random_() % n; }

private:
    std::mt19937 random_;
    std::normal_distribution<float> normal_;
};

/** A random weight of three matrices of different heights, with the memory that they point into. */
struct RandomWeight {
    std::vector<std::vector<unsigned char>> memory;
    Weight weight;

    RandomWeight(ggml_type type, std::size_t n, std::size_t k, Values &values) {
        std::vector<Matrix> parts;
        for (const std::size_t rows : {n, n / 2 + 1, std::size_t{1}}) {
            const std::size_t row_bytes = ggml_row_size(type, static_cast<std::int64_t>(k));
            memory.emplace_back(rows * row_bytes);
            const auto from = values(rows * k);
            ggml_quantize_chunk(type, from.data(), memory.back().data(), 0, static_cast<std::int64_t>(rows),
                                static_cast<std::int64_t>(k), nullptr);
            parts.push_back({type, rows, k, memory.back().data(), row_bytes});
        }
        weight = Weight(std::move(parts));
    }
};

/** Compares a row of a product with sums in f64. Activations of quantised products have 8 bits. */
void expect_near(const std::vector<float> &got, const std::vector<float> &x, const Weight &w) {
    std::size_t column = 0;
    for (const Matrix &part : w.parts) {
        std::vector<float> row(w.k);
        for (std::size_t j = 0; j < part.n; j++, column++) {
            part.unpack(j, row.data());
            double sum = 0, squares = 0;
            for (std::size_t i = 0; i < w.k; i++) {
                const double term = static_cast<double>(x[i]) * static_cast<double>(row[i]);
                sum += term;
                squares += term * term;
            }
            // Rounding errors of the terms are independent.
            const double allowed = part.type == GGML_TYPE_F32 ? 1e-5 : 0.06;
            ASSERT_NEAR(static_cast<double>(got[column]), sum, allowed * std::sqrt(squares) + 1e-6)
                << ggml_type_name(part.type) << ", column " << column;
        }
    }
}

void expect_batch_invariance(ggml_type type, std::size_t n, std::size_t k) {
    Values values(static_cast<std::uint32_t>(31 * n + k));
    const RandomWeight random(type, n, k, values);
    const Weight &w = random.weight;
    const auto row = values(k);
    for (const Gemm::Kernels &kernels : kernels()) {
        std::vector<float> want;
        for (const std::size_t threads : {1, 2, 3}) {
            ThreadTeam team(threads);
            Gemm gemm(team, kernels);
            for (const std::size_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 70}) {
                auto x = values(rows * k);
                std::vector<float> y(rows * w.n);
                const std::size_t index = values.below(rows);
                std::copy(row.begin(), row.end(), x.begin() + static_cast<std::ptrdiff_t>(index * k));
                gemm.multiply(x.data(), rows, w, y.data());
                const auto at = y.begin() + static_cast<std::ptrdiff_t>(index * w.n);
                const std::vector<float> got(at, at + static_cast<std::ptrdiff_t>(w.n));
                if (want.empty()) {
                    want = got;
                    expect_near(got, row, w);
                }
                ASSERT_EQ(std::memcmp(got.data(), want.data(), w.n * sizeof(float)), 0)
                    << ggml_type_name(type) << " by " << name(kernels) << ", " << n << " x " << k
                    << ", " << rows << " rows, " << threads << " threads";
            }
        }
    }
}

TEST(Products, ARowDoesNotDependOnTheOthersNorOnTheThreads) {
    for (const ggml_type type : types()) {
        for (const std::size_t n : {1, 7, 100, 259}) {
            for (const std::size_t k : {256, 768}) {
                expect_batch_invariance(type, n, k);
            }
        }
    }
}

TEST(Products, RowsNeedNotFillVectors) {
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
        for (const std::size_t k : {1, 3, 15, 17, 36, 250}) {
            expect_batch_invariance(type, 37, k);
        }
    }
}

TEST(Products, BlocksNeedNotFillSteps) {
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
        for (const std::size_t k : {32, 64, 96, 352, 512, 544, 704, 1056}) {
            expect_batch_invariance(type, 37, k);
        }
    }
}

TEST(Products, IntegerKernelsAreAsExactAsGgml) {
    // With the same rounded activations, sums differ by the rounding of f32 alone.
    if (!q8_kernels()) {
        GTEST_SKIP() << "skipped: the processor has no AVX-512 VNNI";
    }
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
        for (const std::size_t k : {96, 2816}) {
            Values values(9);
            const RandomWeight random(type, 50, k, values);
            auto x = values(k);
            for (float &value : x) {
                // Far from 0 on average: the worst case for weights that are taken as unsigned.
                value = std::abs(value) + 1;
            }
            ThreadTeam team(1);
            Gemm integers(team, {nullptr, q8_kernels()}), ggml(team, {nullptr, nullptr});
            std::vector<float> got(random.weight.n), want(random.weight.n);
            integers.multiply(x.data(), 1, random.weight, got.data());
            ggml.multiply(x.data(), 1, random.weight, want.data());
            for (std::size_t j = 0; j < got.size(); j++) {
                ASSERT_NEAR(got[j], want[j], 2e-6 * std::sqrt(static_cast<double>(k)) * 20) << k << ", " << j;
            }
        }
    }
}

TEST(Products, InfinitiesStayInTheirColumn) {
    // Beyond the last row of a tile lies memory of the next one.
    Values values(5);
    for (const Gemm::Kernels &kernels : kernels()) {
        ThreadTeam team(1);
        Gemm gemm(team, kernels);
        std::vector<float> w = values(20 * 33), x = values(33), y(20);
        w[7 * 33 + 32] = INFINITY;
        const auto *bytes = reinterpret_cast<const unsigned char *>(w.data());
        const Matrix matrix{GGML_TYPE_F32, 20, 33, bytes, 33 * sizeof(float)};
        gemm.multiply(x.data(), 1, Weight({matrix}), y.data());
        for (std::size_t j = 0; j < 20; j++) {
            EXPECT_EQ(std::isfinite(y[j]), j != 7) << j;
        }
    }
}

TEST(Products, SiluIsThatOfEachElement) {
    Values values(6);
    for (auto at = float_kernels(); *at; ++at) {
        const FloatKernels &kernels = **at;
        // All scales, zero, and both ends.
        std::vector<float> gate{0.0f, -0.0f, 87.0f, -87.0f, 88.0f, 1e30f, INFINITY}, up;
        for (const float scale : {1e-6f, 1e-2f, 1.0f, 10.0f, 30.0f}) {
            for (const float x : values(1000)) {
                gate.push_back(std::max(x * scale, -87.0f));
            }
        }
        up = values(gate.size());
        std::vector<float> out(gate.size());
        kernels.silu_times(gate.data(), up.data(), out.data(), gate.size());
        for (std::size_t i = 0; i < gate.size(); i++) {
            const double exact = gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i];
            if (std::isinf(gate[i])) {
                EXPECT_EQ(out[i], static_cast<float>(exact));
                continue;
            }
            ASSERT_NEAR(out[i], exact, 5e-7 * std::abs(exact)) << kernels.name << ": gate " << gate[i];
        }
        // Any length, at any place: the same bits, and nothing is written beyond.
        for (std::size_t n = 0; n < 40; n++) {
            const std::size_t from = values.below(1000);
            std::vector<float> some(n + 1, 7.0f);
            kernels.silu_times(gate.data() + from, up.data() + from, some.data(), n);
            EXPECT_EQ(std::memcmp(some.data(), out.data() + from, n * sizeof(float)), 0) << kernels.name << ", n " << n;
            EXPECT_EQ(some[n], 7.0f);
        }
        const float far[] = {-88.0f, -100.0f, -1e30f, NAN}, ones[] = {1.0f, 1.0f, 1.0f, 1.0f};
        float small[4];
        kernels.silu_times(far, ones, small, 4);
        EXPECT_NEAR(small[0], 0.0f, 88e-38f);
        EXPECT_NEAR(small[1], 0.0f, 100e-38f);
        EXPECT_NEAR(small[2], 0.0f, 1e-8f);
        EXPECT_TRUE(std::isnan(small[3]));
    }
}

TEST(Products, ATeamDoesEveryUnitOnce) {
    ThreadTeam team(4);
    for (const std::size_t n : {0, 1, 2, 3, 100, 1000}) {
        for (int repeat = 0; repeat < 300; repeat++) {
            std::vector<std::atomic<int>> calls(n);
            team.run(n, [&](std::size_t unit) { calls[unit]++; });
            for (const auto &count : calls) {
                ASSERT_EQ(count, 1);
            }
        }
    }
}

}  // namespace
