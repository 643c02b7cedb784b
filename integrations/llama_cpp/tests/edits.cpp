// Clear, rewind, several sequences, several contexts: sinkcache and llama.cpp's own cache stay consistent.
#include "support/host.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

using sinkcache::Error;
using sinkcache::LlamaContext;

namespace {

constexpr double TOLERANCE = 1e-4;

/** A model whose layers have one cache, and one that needs two and whose last layers read the K and V of others. */
class Edits : public testing::TestWithParam<const char *> {
protected:
    llama_model_ptr model = load(supported_models().at(GetParam()), "edits");
    Tokens tokens = random_tokens(model.get(), 400);
};

/** The same, and models with recurrent layers, with RoPE and without. */
class AllEdits : public Edits {};

}  // namespace

TEST_P(Edits, RewoundTokensLeaveNoTrace) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    const Rows want = run(ctx, tokens, 1);
    ctx.clear(0);
    const Tokens drafts = random_tokens(model.get(), 64, 99);
    Rows got;
    for (std::size_t from = 0; from < tokens.size(); from += 25) {
        // A rejected draft: part of the last batch, the whole of it, or several batches.
        const std::size_t n = 1 + from % 64;
        run(ctx, slice(drafts, 0, n), from % 2 ? 64 : 9);
        ctx.rewind(0, std::uint32_t(n));
        EXPECT_EQ(ctx.length(0), from);
        for (auto &row : run(ctx, slice(tokens, from, from + 25), 25)) {
            got.push_back(std::move(row));
        }
        EXPECT_EQ(ctx.length(0), from + 25);
    }
    EXPECT_LE(compare(got, want).largest, TOLERANCE);
}

TEST_P(Edits, RewindToLengthZero) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    const Rows want = run(ctx, slice(tokens, 0, 40), 40);
    ctx.rewind(0, 40);
    EXPECT_EQ(ctx.length(0), 0U);
    EXPECT_LE(compare(run(ctx, slice(tokens, 0, 40), 8), want).largest, TOLERANCE);
    ctx.rewind(0, 0);
    EXPECT_EQ(ctx.length(0), 40U);
}

TEST_P(Edits, ARewindTooFarIsRejectedAndChangesNothing) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 300), 50);
    for (const std::uint32_t n : {65U, 299U, 301U, 0x80000000U}) {
        EXPECT_THROW(ctx.rewind(0, n), Error) << n;
    }
    EXPECT_THROW(ctx.rewind(1, 1), Error);
    EXPECT_THROW(ctx.rewind(-1, 1), Error);
    EXPECT_THROW(ctx.clear(1), Error);
    EXPECT_EQ(ctx.length(0), 300U);
    const Rows got = run(ctx, slice(tokens, 300, 400), 50);
    ctx.clear(0);
    const Rows want = run(ctx, tokens, 50);
    EXPECT_LE(compare(got, Rows(want.begin() + 300, want.end())).largest, TOLERANCE);
}

TEST_P(AllEdits, PositionsMayBePassed) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    const Rows want = run(ctx, tokens, 50);
    ctx.clear(0);
    Rows got;
    for (std::size_t from = 0; from < 400; from += 50) {
        OwnBatch batch(slice(tokens, from, from + 50), 0, llama_pos(from));
        ctx.decode(batch.get());
        for (std::int32_t i = 0; i < 50; ++i) {
            got.push_back(logits(ctx.get(), i));
        }
    }
    EXPECT_LE(compare(got, want).largest, TOLERANCE);
    // llama_batch_get_one: no positions, no sequences, logits of the last token only.
    ctx.clear(0);
    for (std::size_t from = 0; from < 400; from += 50) {
        Tokens chunk = slice(tokens, from, from + 50);
        ctx.decode(llama_batch_get_one(chunk.data(), 50));
    }
    EXPECT_LE(compare({logits(ctx.get(), -1)}, {want.back()}).largest, TOLERANCE);
}

namespace {

sinkcache::LlamaOptions with_room(std::uint32_t n_sink, std::uint32_t max_pinned, std::uint32_t max_segments) {
    sinkcache::LlamaOptions o = options(n_sink, 60);
    o.max_pinned = max_pinned;
    o.max_segments = max_segments;
    return o;
}

}  // namespace

// What was decoded last has no trace in the rest: dropped, the stream goes on as one that never had it.
TEST_P(Edits, ADroppedRangeLeavesNoTrace) {
    LlamaContext ctx(model.get(), params(64), with_room(4, 0, 8)), plain(model.get(), params(64), options(4, 60));
    const Tokens thoughts = random_tokens(model.get(), 30, 99);
    std::size_t at = 0;
    for (const std::size_t n : {8U, 5U, 6U, 150U}) {
        const Tokens text = slice(tokens, at, at + n);
        const Rows want = run(plain, text, 16), got = run(ctx, text, 16);
        EXPECT_LE(compare(got, want).largest, TOLERANCE) << at;
        at += n;
        if (n < 150) {
            // Together with what is kept, no more than the window.
            const std::uint64_t length = ctx.length(0);
            run(ctx, slice(thoughts, 0, 10), 4);
            ctx.evict_range(0, length, 10);
            EXPECT_EQ(ctx.length(0), length + 10);
        }
    }
}

TEST_P(AllEdits, PinnedTokensBehindTheSinksAreMoreSinks) {
    LlamaContext ctx(model.get(), params(64), with_room(4, 16, 1)), plain(model.get(), params(64), options(20, 60));
    const Rows want = run(plain, tokens, 50);
    run(ctx, slice(tokens, 0, 50), 50);
    ctx.pin(0, 0, 20);
    ctx.pin(0, 0, 0);
    const Rows got = run(ctx, slice(tokens, 50, 400), 50);
    EXPECT_LE(compare(got, Rows(want.begin() + 50, want.end())).largest, TOLERANCE);
    // A copy keeps them.
    const sinkcache::HostTag tag{};
    const auto saved = ctx.save(0, tag);
    LlamaContext other(model.get(), params(64), with_room(4, 16, 1));
    other.load(0, saved, tag);
    EXPECT_EQ(run(other, slice(tokens, 0, 30), 10), run(ctx, slice(tokens, 0, 30), 10));
    // And needs room for them.
    LlamaContext narrow(model.get(), params(64), with_room(4, 15, 1));
    const std::string text = error_text([&] { narrow.load(0, saved, tag); });
    EXPECT_NE(text.find("max_pinned"), std::string::npos) << text;
}

TEST_P(AllEdits, ARefusedRangeChangesNothing) {
    LlamaContext ctx(model.get(), params(64), with_room(4, 8, 1)), plain(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 200), 50);
    run(plain, slice(tokens, 0, 200), 50);
    const auto refused = [](const char *status, const std::function<void()> &call) {
        const std::string text = error_text(call);
        EXPECT_EQ(text.rfind(status, 0), 0U) << text;
    };
    refused("SKC_STATUS_TOKENS_GONE", [&] { ctx.pin(0, 100, 4); });
    refused("SKC_STATUS_NO_ROOM", [&] { ctx.pin(0, 150, 9); });
    refused("SKC_STATUS_OUT_OF_RANGE", [&] { ctx.pin(0, 195, 6); });
    refused("SKC_STATUS_OUT_OF_RANGE", [&] { ctx.pin(0, ~std::uint64_t(0), 2); });
    refused("SKC_STATUS_OUT_OF_RANGE", [&] { ctx.pin(0, 190, 0x80000000U); });
    refused("SKC_STATUS_OUT_OF_RANGE", [&] { ctx.evict_range(0, 3, 2); });
    refused("SKC_STATUS_OUT_OF_RANGE", [&] { ctx.evict_range(0, 190, 0xFFFFFFFFU); });
    refused("SKC_STATUS_OUT_OF_RANGE", [&] { ctx.evict_range(1, 190, 2); });
    refused("SKC_STATUS_OUT_OF_RANGE", [&] { ctx.pin(-1, 190, 2); });
    refused("SKC_STATUS_NO_ROOM", [&] { plain.evict_range(0, 190, 2); });
    EXPECT_EQ(run(ctx, slice(tokens, 200, 300), 50), run(plain, slice(tokens, 200, 300), 50));
}

// Ragged batches, split into micro-batches of several sequences.
TEST_P(AllEdits, SequencesAreIndependent) {
    auto o = options(4, 60);
    o.n_seqs = 3;
    auto p = params(64);
    p.n_ubatch = 23;
    LlamaContext ctx(model.get(), p, o);
    LlamaContext alone(model.get(), params(64), options(4, 60));
    const std::vector<Tokens> streams = {tokens, random_tokens(model.get(), 400, 2),
                                         random_tokens(model.get(), 400, 3)};
    std::vector<Rows> got(3);
    std::vector<std::size_t> at(3, 0);
    for (std::size_t round = 0; at[0] + at[1] + at[2] < 1200; ++round) {
        OwnBatch batch;
        std::vector<std::size_t> seq_of_row;
        for (std::size_t i = 0; i < 3; ++i) {
            const std::size_t s = (i + round) % 3;
            const std::size_t n = std::min(400 - at[s], (round * 7 + s * 5) % 22);
            batch.add(slice(streams[s], at[s], at[s] + n), llama_seq_id(s), round % 2 ? llama_pos(at[s]) : -1);
            seq_of_row.insert(seq_of_row.end(), n, s);
            at[s] += n;
        }
        if (seq_of_row.empty()) {
            continue;
        }
        ctx.decode(batch.get());
        for (std::size_t i = 0; i < seq_of_row.size(); ++i) {
            got[seq_of_row[i]].push_back(logits(ctx.get(), std::int32_t(i)));
        }
    }
    for (std::size_t s = 0; s < 3; ++s) {
        alone.clear(0);
        EXPECT_LE(compare(got[s], run(alone, streams[s], 50)).largest, TOLERANCE) << s;
        EXPECT_EQ(ctx.length(llama_seq_id(s)), 400U);
    }
    ctx.clear(1);
    EXPECT_EQ(ctx.length(1), 0U);
    EXPECT_EQ(ctx.length(2), 400U);
    EXPECT_LE(compare(run(ctx, streams[1], 64, 1), got[1]).largest, TOLERANCE);
}

TEST_P(AllEdits, SeveralContextsInParallel) {
    LlamaContext reference(model.get(), params(64), options(4, 60));
    const Rows want = run(reference, tokens, 50);
    std::vector<Difference> differences(4);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < differences.size(); ++i) {
        threads.emplace_back([&, i] {
            LlamaContext ctx(model.get(), params(64), options(4, 60));
            differences[i] = compare(run(ctx, tokens, 10 + i * 13), want);
        });
    }
    for (auto &thread : threads) {
        thread.join();
    }
    for (const Difference &d : differences) {
        EXPECT_EQ(d.rows, tokens.size());
        EXPECT_LE(d.largest, TOLERANCE);
    }
}

TEST_P(AllEdits, AContextMayBeMoved) {
    LlamaContext a(model.get(), params(64), options(4, 60));
    const Rows want = run(a, tokens, 50);
    a.clear(0);
    run(a, slice(tokens, 0, 100), 50);
    LlamaContext b = std::move(a);
    const Rows got = run(b, slice(tokens, 100, 400), 50);
    EXPECT_LE(compare(got, Rows(want.begin() + 100, want.end())).largest, TOLERANCE);
    b = LlamaContext(model.get(), params(64), options(4, 60));
    EXPECT_EQ(b.length(0), 0U);
}

// A backend sampler of the host works beside the adapter's own.
TEST_P(AllEdits, BackendSamplersOfTheHostStay) {
    const llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
    llama_sampler_seq_config config{0, chain.get()};
    auto p = params(64);
    p.samplers = &config;
    p.n_samplers = 1;
    LlamaContext sampling(model.get(), p, options(4, 60));
    LlamaContext plain(model.get(), params(64), options(4, 60));
    Tokens chunk = slice(tokens, 0, 50);
    for (int i = 0; i < 100; ++i) {
        sampling.decode(llama_batch_get_one(chunk.data(), std::int32_t(chunk.size())));
        plain.decode(llama_batch_get_one(chunk.data(), std::int32_t(chunk.size())));
        const Row row = logits(plain.get(), -1);
        const auto best = llama_token(std::max_element(row.begin(), row.end()) - row.begin());
        ASSERT_EQ(llama_get_sampled_token_ith(sampling.get(), -1), best) << i;
        chunk = {best};
    }
}

// llama.cpp then shows one graph several times, since the hook's sequence has several outputs in it.
TEST_P(AllEdits, SeveralOutputsOfASequenceMayBeReserved) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    const Rows want = run(ctx, tokens, 50);
    for (const std::uint32_t outputs : {0U, 4U}) {
        auto p = params(64);
        p.n_outputs_max_per_seq = outputs;
        LlamaContext several(model.get(), p, options(4, 60));
        EXPECT_EQ(run(several, tokens, 50), want) << outputs;
    }
}

TEST_P(AllEdits, AForkGoesOnAsItsSource) {
    auto o = options(4, 60);
    o.n_seqs = 2;
    LlamaContext ctx(model.get(), params(64), o);
    run(ctx, slice(tokens, 200, 250), 50, 1);
    run(ctx, slice(tokens, 0, 100), 50);
    ctx.fork(0, 1);
    EXPECT_EQ(ctx.length(1), 100U);
    const Rows want = run(ctx, slice(tokens, 100, 200), 25);
    EXPECT_EQ(run(ctx, slice(tokens, 100, 200), 25, 1), want);
    EXPECT_THROW(ctx.fork(0, 0), Error);
    EXPECT_THROW(ctx.fork(0, 2), Error);
    EXPECT_THROW(ctx.fork(-1, 0), Error);
    EXPECT_EQ(ctx.length(0), 200U);
}

// llama.cpp's own cache has room for one batch.
TEST_P(AllEdits, EverySequenceMayHaveAWholeBatch) {
    auto o = options(4, 60);
    o.n_seqs = 3;
    LlamaContext ctx(model.get(), params(512), o);
    const Tokens longest = random_tokens(model.get(), 512);
    const Rows want = run(ctx, longest, 512);
    EXPECT_EQ(run(ctx, longest, 512, 2), want);
    EXPECT_EQ(run(ctx, longest, 512, 1), want);
}

INSTANTIATE_TEST_SUITE_P(Models, Edits, testing::Values("llama_gqa", "gemma4_shared_kv"),
                         [](const auto &info) { return std::string(info.param); });
INSTANTIATE_TEST_SUITE_P(Models, AllEdits,
                         testing::Values("llama_gqa", "gemma4_shared_kv", "granite_hybrid", "qwen3next_hybrid",
                                         "jamba_hybrid_no_rope"),
                         [](const auto &info) { return std::string(info.param); });
