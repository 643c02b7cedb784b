// Logits equal those of stock llama.cpp below the window, and with a context shift of one token per step past it.
#include "support/host.hpp"

#include <gtest/gtest.h>

using sinkcache::LlamaContext;

namespace {

class Supported : public testing::TestWithParam<std::string> {
protected:
    llama_model_ptr model = load(supported_models().at(GetParam()), GetParam());
};

void expect_close(const Difference &d, double largest, const char *what) {
    EXPECT_LE(d.largest, largest) << what;
    EXPECT_EQ(d.same_argmax, d.rows) << what;
    std::printf("%s: max logit difference %.2e, same argmax %zu of %zu\n", what, d.largest, d.same_argmax, d.rows);
}

}  // namespace

TEST_P(Supported, BelowTheWindowEqualsStock) {
    const Tokens tokens = random_tokens(model.get(), 256);
    const Rows want = run(stock(model.get(), 256).get(), tokens, 64);
    LlamaContext ctx(model.get(), params(64), options(4, 252));
    expect_close(compare(run(ctx, tokens, 64), want), 1e-3, GetParam().c_str());
    ctx.clear(0);
    expect_close(compare(run(ctx, tokens, 1), want), 1e-3, "single tokens");
}

TEST_P(Supported, PastTheWindowEqualsShiftByOne) {
    const Tokens tokens = random_tokens(model.get(), 300);
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    const Rows got = run(ctx, tokens, 1);
    if (const auto reference = shift_reference(GetParam())) {
        const llama_model_ptr shifted = load(*reference, GetParam());
        const Rows want = run_shifted(stock(shifted.get(), 256).get(), tokens, 4, 60);
        expect_close(compare(got, want), 2e-3, GetParam().c_str());
    }
    // Chunks, and a prompt longer than the window.
    for (const std::size_t chunk : {7, 37, 64}) {
        ctx.clear(0);
        expect_close(compare(run(ctx, tokens, chunk), got), 1e-3, "in chunks");
    }
    LlamaContext whole(model.get(), params(300), options(4, 60));
    expect_close(compare(run(whole, tokens, 300), got), 1e-3, "one batch");
    // Micro-batches shorter than the batch.
    llama_context_params p = params(300);
    p.n_ubatch = 23;
    LlamaContext micro(model.get(), p, options(4, 60));
    expect_close(compare(run(micro, tokens, 300), got), 1e-3, "micro-batches");
}

INSTANTIATE_TEST_SUITE_P(Models, Supported, testing::ValuesIn(names(supported_models())),
                         [](const auto &info) { return info.param; });
