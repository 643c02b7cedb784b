// The bundled model, far past its window.
#include "support/host.hpp"

#include <gtest/gtest.h>

#include <cmath>

using sinkcache::LlamaContext;

namespace {

double perplexity(const Rows &rows, const Tokens &tokens) {
    double sum = 0;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
        double most = -HUGE_VAL, total = 0;
        for (const float x : rows[i]) {
            most = std::max(most, double(x));
        }
        for (const float x : rows[i]) {
            total += std::exp(double(x) - most);
        }
        sum += most + std::log(total) - rows[i][static_cast<std::size_t>(tokens[i + 1])];
    }
    return std::exp(sum / double(tokens.size() - 1));
}

}  // namespace

TEST(Streaming, EqualsStockBelowTheWindow) {
    const Model model = load_bundled();
    const Tokens tokens = bundled_text(model.get(), 256);
    const Rows want = run(stock(model.get(), 256).get(), tokens, 256);
    LlamaContext ctx(model.get(), params(256), options(4, 252));
    const Difference d = compare(run(ctx, tokens, 256), want);
    std::printf("bundled model, 256 tokens: max logit difference %.2e, same argmax %zu\n", d.largest, d.same_argmax);
    // Its weights are f16: llama.cpp rounds what it multiplies with them to f16, which turns 1e-6 into steps of 1e-3.
    EXPECT_LE(d.largest, 5e-3);
    EXPECT_EQ(d.same_argmax, 256U);
}

TEST(Streaming, EqualsStockShiftedByOneAtEveryToken) {
    const Model model = load_bundled();
    const Tokens tokens = bundled_text(model.get(), 2000);
    const Rows want = run_shifted(stock(model.get(), 256).get(), tokens, 4, 252);
    LlamaContext ctx(model.get(), params(256), options(4, 252));
    const Difference d = compare(run(ctx, tokens, 1), want);
    std::printf("bundled model, 2000 tokens at 4 + 252: max logit difference %.2e, same argmax %zu\n", d.largest, d.same_argmax);
    EXPECT_GE(double(d.same_argmax), 0.999 * 2000);
    EXPECT_LE(d.largest, 1e-2);
}

TEST(Streaming, HalfPrecisionCostsNoPerplexity) {
    const Model model = load_bundled();
    const Tokens tokens = bundled_text(model.get(), 4000);
    LlamaContext exact(model.get(), params(250), options(4, 252));
    const double want = perplexity(run(exact, tokens, 250), tokens);
    EXPECT_LT(want, 5.0);
    for (const std::uint32_t dtype : {SKC_DTYPE_F16, SKC_DTYPE_BF16}) {
        LlamaContext ctx(model.get(), params(250), options(4, 252, dtype));
        EXPECT_LT(perplexity(run(ctx, tokens, 250), tokens) / want, dtype == SKC_DTYPE_F16 ? 1.001 : 1.005);
        EXPECT_LT(ctx.cache_bytes(), exact.cache_bytes());
    }
}

// Where 32-bit positions and f32 angles have long ended.
TEST(Streaming, EqualsItselfAtAnyPosition) {
    const Model model = load_bundled();
    const Tokens tokens = bundled_text(model.get(), 600);
    LlamaContext ctx(model.get(), params(64), options(4, 124));
    const Rows want = run(ctx, tokens, 60);
    for (const std::uint64_t start : {std::uint64_t(1) << 24, (std::uint64_t(1) << 31) - 300, std::uint64_t(1) << 40}) {
        ctx.clear(0, start);
        const Difference d = compare(run(ctx, tokens, 60), want);
        EXPECT_LE(d.largest, 1e-3) << start;
        EXPECT_EQ(d.same_argmax, d.rows) << start;
    }
}

// Threads share the KV heads; more threads than heads leave some idle.
TEST(Streaming, DoesNotDependOnThreads) {
    const Model model = load_bundled();
    const Tokens tokens = bundled_text(model.get(), 200);
    LlamaContext one(model.get(), params(50, 1), options(4, 60));
    const Rows want = run(one, tokens, 50);
    for (const int threads : {2, 3}) {
        LlamaContext ctx(model.get(), params(50, threads), options(4, 60));
        EXPECT_LE(compare(run(ctx, tokens, 50), want).largest, 1e-4) << threads;
    }
}
