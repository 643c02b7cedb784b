// The bundled model over many times its window.
#include "support/host.hpp"

#include "../program/measure.hpp"

#include <gtest/gtest.h>

using sinkcache::LlamaContext;

namespace {

double perplexity(const Rows &rows, const Tokens &tokens) {
    Perplexity perplexity;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
        const auto n_vocab = static_cast<std::int32_t>(rows[i].size());
        perplexity.add(negative_log_likelihood(rows[i].data(), n_vocab, tokens[i + 1]));
    }
    return perplexity.value().value();
}

}  // namespace

TEST(Streaming, EqualsStockBelowTheWindow) {
    const llama_model_ptr model = load_bundled();
    const Tokens tokens = bundled_text(model.get(), 256);
    const Rows want = run(stock(model.get(), 256).get(), tokens, 256);
    LlamaContext ctx(model.get(), params(256), options(4, 252));
    const Difference d = compare(run(ctx, tokens, 256), want);
    std::printf("bundled model, 256 tokens: max logit difference %.2e, same argmax %zu\n", d.largest, d.same_argmax);
    EXPECT_LE(d.largest, 1e-3);
    EXPECT_EQ(d.same_argmax, 256U);
}

TEST(Streaming, EqualsStockShiftedByOneAtEveryToken) {
    const llama_model_ptr model = load_bundled();
    const Tokens tokens = bundled_text(model.get(), 2000);
    const Rows want = run_shifted(stock(model.get(), 256).get(), tokens, 4, 252);
    LlamaContext ctx(model.get(), params(256), options(4, 252));
    const Difference d = compare(run(ctx, tokens, 1), want);
    std::printf("bundled model, 2000 tokens at 4 + 252: max logit difference %.2e, same argmax %zu\n", d.largest,
                d.same_argmax);
    EXPECT_GE(double(d.same_argmax), 0.999 * 2000);
    EXPECT_LE(d.largest, 1e-3);
}

TEST(Streaming, SixteenBitCachesKeepPerplexity) {
    const llama_model_ptr model = load_bundled();
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

// Also at positions that f32 angles and 32-bit positions cannot represent.
TEST(Streaming, DoesNotDependOnTheStartPosition) {
    const llama_model_ptr model = load_bundled();
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
    const llama_model_ptr model = load_bundled();
    const Tokens tokens = bundled_text(model.get(), 200);
    LlamaContext one(model.get(), params(50, 1), options(4, 60));
    const Rows want = run(one, tokens, 50);
    for (const int threads : {2, 3}) {
        LlamaContext ctx(model.get(), params(50, threads), options(4, 60));
        EXPECT_LE(compare(run(ctx, tokens, 50), want).largest, 1e-4) << threads;
    }
}
