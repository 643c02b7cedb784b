// Saved sequences: loaded into another context they go on as if nothing had happened.
#include "support/host.hpp"

#include <gtest/gtest.h>

using sinkcache::Error;
using sinkcache::HostTag;
using sinkcache::LlamaContext;

namespace {

const HostTag TAG{1, 2, 3};

/**
 * A model whose layers have one cache, one that needs two and whose last layers read the K and V of others, and models
 * with recurrent layers, with RoPE and without.
 */
class States : public testing::TestWithParam<const char *> {
protected:
    llama_model_ptr model = load(supported_models().at(GetParam()), "states");
    Tokens tokens = random_tokens(model.get(), 400);

    sinkcache::LlamaOptions sequences(std::uint32_t n) const {
        sinkcache::LlamaOptions o = options(4, 60);
        o.n_seqs = n;
        return o;
    }
};

/** The models without recurrent layers. */
class RewoundStates : public States {};

void expect_same(const Rows &got, const Rows &want) {
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i], want[i]) << "row " << i;
    }
}

/** The status of the Error that a call throws. */
skc_status status_of(const std::function<void()> &call) {
    try {
        call();
    } catch (const Error &e) {
        return e.status();
    }
    return SKC_STATUS_OK;
}

}  // namespace

TEST_P(States, ASequenceGoesOnInAnotherContextWithTheSameBits) {
    for (const std::size_t length : {std::size_t{1}, std::size_t{30}, std::size_t{300}}) {
        LlamaContext ctx(model.get(), params(64), options(4, 60));
        run(ctx, slice(tokens, 0, length), 50);
        const std::vector<std::uint8_t> saved = ctx.save(0, TAG);
        const Rows want = run(ctx, slice(tokens, length, length + 90), 9);
        LlamaContext other(model.get(), params(64), options(4, 60));
        run(other, slice(tokens, 200, 280), 16);
        other.load(0, saved, TAG);
        EXPECT_EQ(other.length(0), length);
        expect_same(run(other, slice(tokens, length, length + 90), 9), want);
        // And once more in the context that has gone on.
        ctx.load(0, saved, TAG);
        expect_same(run(ctx, slice(tokens, length, length + 90), 9), want);
    }
}

TEST_P(States, WithNarrowStorage) {
    sinkcache::LlamaOptions narrow = options(4, 60);
    narrow.k_dtype = SKC_DTYPE_Q8;
    narrow.v_dtype = SKC_DTYPE_Q4;
    LlamaContext ctx(model.get(), params(64), narrow), other(model.get(), params(64), narrow);
    EXPECT_LT(ctx.cache_bytes(), LlamaContext(model.get(), params(64), options(4, 60)).cache_bytes());
    run(ctx, slice(tokens, 0, 300), 50);
    other.load(0, ctx.save(0, TAG), TAG);
    expect_same(run(other, slice(tokens, 300, 390), 9), run(ctx, slice(tokens, 300, 390), 9));
}

TEST_P(RewoundStates, TokensCanBeRewoundAfterALoad) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 200), 50);
    const Rows want = run(ctx, slice(tokens, 200, 240), 20);
    run(ctx, slice(tokens, 300, 330), 30);
    ctx.load(0, ctx.save(0, TAG), TAG);
    ctx.rewind(0, 30);
    ctx.rewind(0, 20);
    expect_same(run(ctx, slice(tokens, 220, 240), 20), Rows(want.begin() + 20, want.end()));
}

TEST_P(States, OfOneSequenceDoNotTouchTheOthers) {
    LlamaContext ctx(model.get(), params(64), sequences(3)), alone(model.get(), params(64), sequences(3));
    run(ctx, slice(tokens, 0, 150), 50, 0);
    run(ctx, slice(tokens, 100, 180), 40, 1);
    ctx.load(2, ctx.save(0, TAG), TAG);
    EXPECT_EQ(ctx.length(2), 150U);
    run(alone, slice(tokens, 0, 150), 50, 0);
    run(alone, slice(tokens, 100, 180), 40, 1);
    const Rows first = run(alone, slice(tokens, 150, 200), 10, 0);
    expect_same(run(ctx, slice(tokens, 150, 200), 10, 2), first);
    expect_same(run(ctx, slice(tokens, 150, 200), 10, 0), first);
    expect_same(run(ctx, slice(tokens, 180, 220), 10, 1), run(alone, slice(tokens, 180, 220), 10, 1));
}

TEST_P(States, OfAnotherModelOrSettingAreRejectedAndChangeNothing) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 150), 50);
    const std::vector<std::uint8_t> saved = ctx.save(0, TAG);
    const Rows want = run(ctx, slice(tokens, 150, 190), 20);
    ctx.load(0, saved, TAG);

    const auto rejected = [&](const std::vector<std::uint8_t> &bytes, const HostTag &tag) {
        EXPECT_EQ(status_of([&] { ctx.load(0, bytes, tag); }), SKC_STATUS_INVALID_SNAPSHOT);
        EXPECT_EQ(ctx.length(0), 150U);
    };
    rejected(saved, HostTag{1, 2, 4});
    rejected(std::vector<std::uint8_t>(saved.begin(), saved.end() - 1), TAG);
    for (std::size_t at = 0; at < saved.size(); at += saved.size() / 50) {
        std::vector<std::uint8_t> damaged = saved;
        damaged[at] ^= 0x10;
        rejected(damaged, TAG);
    }
    for (const auto &other : {options(4, 61), options(5, 60), options(4, 60, SKC_DTYPE_F16)}) {
        LlamaContext context(model.get(), params(64), other);
        run(context, slice(tokens, 0, 150), 50);
        rejected(context.save(0, TAG), TAG);
    }
    EXPECT_EQ(status_of([&] { ctx.load(1, saved, TAG); }), SKC_STATUS_OUT_OF_RANGE);
    EXPECT_EQ(status_of([&] { ctx.save(-1, TAG); }), SKC_STATUS_OUT_OF_RANGE);
    expect_same(run(ctx, slice(tokens, 150, 190), 20), want);
}

INSTANTIATE_TEST_SUITE_P(Models, States,
                         testing::Values("llama_gqa", "gemma4_shared_kv", "lfm2_hybrid", "nemotron_h_hybrid_no_rope"),
                         [](const auto &info) { return std::string(info.param); });
INSTANTIATE_TEST_SUITE_P(Models, RewoundStates, testing::Values("llama_gqa", "gemma4_shared_kv"),
                         [](const auto &info) { return std::string(info.param); });
