// Errors: none leads to wrong logits, and rejected batches change nothing.
#include "support/host.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>

using sinkcache::LlamaContext;

namespace {

/** The statement throws sinkcache::Error, and its text contains `part`. */
#define EXPECT_ERROR(statement, part)                                                                                  \
    do {                                                                                                               \
        const std::string text = error_text([&] { statement; });                                                       \
        EXPECT_NE(text.find(part), std::string::npos) << text;                                                         \
    } while (false)

/** A model whose layers have one cache, and one that needs two and whose last layers read the K and V of others. */
class Errors : public testing::TestWithParam<const char *> {
protected:
    llama_model_ptr model = load(supported_models().at(GetParam()), "errors");
    Tokens tokens = random_tokens(model.get(), 300);
    Rows want = [this] {
        LlamaContext ctx(model.get(), params(64), options(4, 60));
        return run(ctx, tokens, 20);
    }();
    /** The sequence has `from` tokens, and the rest of the tokens gives the same logits as without errors. */
    void expect_continues(LlamaContext &ctx, std::size_t from, llama_seq_id seq_id = 0) {
        EXPECT_EQ(ctx.length(seq_id), from);
        const Rows got = run(ctx, slice(tokens, from, 300), 20, seq_id);
        EXPECT_LE(compare(got, Rows(want.begin() + std::ptrdiff_t(from), want.end())).largest, 1e-4);
    }
};

}  // namespace

TEST_P(Errors, BatchesAreChecked) {
    auto o = options(4, 60);
    o.n_seqs = 2;
    LlamaContext ctx(model.get(), params(64), o);
    run(ctx, slice(tokens, 0, 100), 20);
    const auto decode = [&](OwnBatch batch) { ctx.decode(batch.get()); };
    const Tokens three = slice(tokens, 0, 3);

    EXPECT_ERROR(decode(OwnBatch(slice(tokens, 0, 65))), "a batch of 65 tokens: allowed are 1 to n_batch = 64");
    EXPECT_ERROR(decode(OwnBatch()), "a batch of 0 tokens");
    EXPECT_ERROR(decode(OwnBatch(three, 0, 99)), "position 99: sequence 0 continues at 100");
    EXPECT_ERROR(decode(OwnBatch(three, 0, 101)), "position 101: sequence 0 continues at 100");
    EXPECT_ERROR(decode(OwnBatch(three, 1, 100)), "sequence 1 continues at 0");
    EXPECT_ERROR(decode(OwnBatch(three, 2)), "sequence 2 does not exist");
    EXPECT_ERROR(decode(OwnBatch(three, -1)), "sequence -1 does not exist");
    EXPECT_ERROR(decode(OwnBatch(three, 0).add(three, 1).add(three, 0)),
                 "token 6 of the batch: the tokens of sequence 0");

    OwnBatch gap(three, 0, 100);
    gap.positions[2] = 103;
    EXPECT_ERROR(ctx.decode(gap.get()), "token 2 of the batch has position 103");
    OwnBatch in_two_sequences(three);
    in_two_sequences.counts[1] = 2;
    EXPECT_ERROR(ctx.decode(in_two_sequences.get()), "token 1 of the batch is in 2 sequences");
    OwnBatch without_id(three);
    llama_batch batch = without_id.get();
    without_id.id_pointers[1] = nullptr;
    EXPECT_ERROR(ctx.decode(batch), "its seq_id is NULL");
    batch = without_id.get();
    batch.token = nullptr;
    EXPECT_ERROR(ctx.decode(batch), "either token or embd");
    EXPECT_ERROR(decode(OwnBatch({1, 2, 100000})), "llama_decode returned -1");
    EXPECT_ERROR(decode(OwnBatch({1, -7})), "llama_decode returned -1");
    expect_continues(ctx, 100);
}

TEST(ErrorsOfMrope, EmbeddingsAreRefused) {
    const llama_model_ptr model = load(supported_models().at("qwen3vl_mrope"), "embeddings");
    const Tokens tokens = random_tokens(model.get(), 8);
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    OwnBatch image(tokens);
    llama_batch batch = image.get();
    std::vector<float> embeddings(tokens.size() * std::size_t(llama_model_n_embd(model.get())), 0.5F);
    batch.token = nullptr;
    batch.embd = embeddings.data();
    EXPECT_ERROR(ctx.decode(batch), "token 0 of the batch is an embedding: images and other embeddings");
    EXPECT_EQ(ctx.length(0), 0U);
    // Without M-RoPE they are tokens like others.
    const llama_model_ptr plain = load(decoder("llama"), "embeddings");
    LlamaContext served(plain.get(), params(64), options(4, 60));
    served.decode(batch);
    EXPECT_EQ(served.length(0), tokens.size());
}

TEST_P(Errors, SettingsAreChecked) {
    const auto with = [&](const std::function<void(llama_context_params &, sinkcache::LlamaOptions &)> &change) {
        auto p = params(64);
        auto o = options(4, 60);
        change(p, o);
        const LlamaContext ctx(model.get(), p, o);
    };
    EXPECT_ERROR(LlamaContext(nullptr), "the model is NULL");
    EXPECT_ERROR(with([](auto &, auto &o) { o.window = 0; }), "window");
    EXPECT_ERROR(with([](auto &, auto &o) { o.kv_dtype = 9; }), "kv_dtype");
    EXPECT_ERROR(with([](auto &, auto &o) { o.max_rewind = 0xffffffffU; }), "max_rewind");
    EXPECT_ERROR(with([](auto &, auto &o) { o.n_seqs = 0; }), "n_seqs 0");
    EXPECT_ERROR(with([](auto &, auto &o) { o.n_seqs = 100000; }), "n_seqs 100000");
    EXPECT_ERROR(with([](auto &p, auto &) { p.n_batch = 0; }), "n_batch 0");
    EXPECT_ERROR(with([](auto &p, auto &) { p.attention_type = LLAMA_ATTENTION_TYPE_NON_CAUSAL; }), "causal");
    EXPECT_ERROR(with([](auto &p, auto &) { p.ctx_type = LLAMA_CONTEXT_TYPE_MTP; }), "ctx_type");
    EXPECT_ERROR(with([](auto &p, auto &o) {
                     p.embeddings = true;
                     p.pooling_type = LLAMA_POOLING_TYPE_MEAN;
                     o.n_seqs = 2;
                 }),
                 "pooled embeddings of 2 sequences");
    llama_sampler_seq_config config{1, nullptr};
    EXPECT_ERROR(with([&](auto &p, auto &) {
                     p.samplers = &config;
                     p.n_samplers = 1;
                 }),
                 "a sampler for sequence 1");
}

TEST_P(Errors, SettingsOfLlamaThatChangeLaterAreChecked) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 100), 20);
    OwnBatch batch(slice(tokens, 100, 120));
    llama_set_causal_attn(ctx.get(), false);
    EXPECT_ERROR(ctx.decode(batch.get()), "causal");
    llama_set_causal_attn(ctx.get(), true);
    llama_set_n_threads(ctx.get(), 1, 5);
    EXPECT_ERROR(ctx.decode(batch.get()), "raised the threads to 5");
    llama_set_n_threads(ctx.get(), 1, 1);
    expect_continues(ctx, 100);
}

// With these settings llama.cpp alone would abort the process.
TEST_P(Errors, SmallBatchesAndFewOutputsWork) {
    auto o = options(4, 60);
    o.n_seqs = 5;
    auto p = params(1);
    p.n_outputs_max = 1;
    LlamaContext ctx(model.get(), p, o);
    EXPECT_EQ(llama_n_batch(ctx.get()), 6U);
    for (std::size_t i = 0; i < 100; ++i) {
        OwnBatch batch;
        for (llama_seq_id s = 0; s < 5; ++s) {
            batch.add({tokens[i]}, s);
        }
        ctx.decode(batch.get());
        EXPECT_LE(compare({logits(ctx.get(), 4)}, {want[i]}).largest, 1e-4);
    }
    p = params(64);
    p.n_outputs_max = 10;
    LlamaContext few(model.get(), p, options(4, 60));
    EXPECT_ERROR(run(few, slice(tokens, 0, 11), 11), "logits of 11 tokens: allowed are n_outputs_max = 10");
    run(few, slice(tokens, 0, 100), 10);
    OwnBatch batch(slice(tokens, 100, 150));
    std::fill(batch.outputs.begin(), batch.outputs.end() - 1, 0);
    few.decode(batch.get());
    EXPECT_LE(compare({logits(few.get(), 49)}, {want[149]}).largest, 1e-4);
}

TEST_P(Errors, LlamaDecodeIsRejected) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 100), 20);
    const auto newest = [&] { return llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0); };
    OwnBatch direct(slice(tokens, 100, 120), 0, newest() + 1), batch(slice(tokens, 100, 120), 0, 100);
    EXPECT_EQ(llama_decode(ctx.get(), direct.get()), 2);
    EXPECT_ERROR(ctx.decode(batch.get()), "llama_decode was called directly");
    expect_continues(ctx, 100);

    // Without the abort callback llama_decode succeeds, with logits of NaN.
    llama_set_abort_callback(ctx.get(), nullptr, nullptr);
    OwnBatch more({1}, 0, newest() + 1);
    EXPECT_EQ(llama_decode(ctx.get(), more.get()), 0);
    for (const float x : logits(ctx.get(), 0)) {
        ASSERT_TRUE(x != x);
    }
    EXPECT_ERROR(ctx.decode(more.get()), "llama_decode was called directly");
    EXPECT_ERROR(ctx.decode(more.get()), "own cache was modified");
    ctx.clear(0);
    expect_continues(ctx, 0);
}

TEST_P(Errors, EditsOfLlamasOwnCacheAreDetected) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 100), 20);
    std::vector<std::uint8_t> state(llama_state_get_size(ctx.get()));
    ASSERT_GT(llama_state_get_data(ctx.get(), state.data(), state.size()), 0U);
    run(ctx, slice(tokens, 100, 150), 20);
    ASSERT_GT(llama_state_set_data(ctx.get(), state.data(), state.size()), 0U);
    OwnBatch batch(slice(tokens, 100, 101));
    EXPECT_ERROR(ctx.decode(batch.get()), "llama_state_");
    EXPECT_ERROR(ctx.rewind(0, 1), "llama_state_");
    ctx.clear(0);
    run(ctx, slice(tokens, 0, 100), 20);
    // Only the last token is there.
    const llama_pos newest = llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0);
    llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, newest, -1);
    EXPECT_ERROR(ctx.decode(batch.get()), "sequence 0 ends at position -1, not " + std::to_string(newest));
    ctx.clear(0);
    run(ctx, slice(tokens, 0, 100), 20);
    llama_memory_clear(llama_get_memory(ctx.get()), true);
    EXPECT_ERROR(ctx.decode(batch.get()), "sequence 0 ends at position -1, not ");

    // States of the same length after other tokens, after a rewind, into an empty sequence, and of another context.
    const auto expect_detected = [&](const std::function<void(LlamaContext &)> &meanwhile) {
        LlamaContext other(model.get(), params(64), options(4, 60));
        run(other, slice(tokens, 50, 150), 20);
        llama_state_get_data(other.get(), state.data(), state.size());
        meanwhile(other);
        ASSERT_GT(llama_state_set_data(other.get(), state.data(), state.size()), 0U);
        EXPECT_ERROR(other.decode(batch.get()), "llama_state_");
    };
    expect_detected([&](LlamaContext &other) {
        other.clear(0);
        run(other, slice(tokens, 0, 100), 20);
    });
    expect_detected([&](LlamaContext &other) {
        other.rewind(0, 20);
        run(other, slice(tokens, 0, 20), 20);
    });
    expect_detected([&](LlamaContext &other) { other.clear(0); });
    expect_detected([&](LlamaContext &) {
        LlamaContext third(model.get(), params(64), options(4, 60));
        run(third, slice(tokens, 0, 100), 20);
        llama_state_get_data(third.get(), state.data(), state.size());
    });
    ctx.clear(0);
    expect_continues(ctx, 0);
}

// The host's abort callback ends a graph after some layers have appended the tokens.
TEST_P(Errors, AnAbortedBatchIsRolledBack) {
    std::atomic<int> calls_left{0};
    auto p = params(64);
    p.n_ubatch = 8;
    p.abort_callback = [](void *left) { return --*static_cast<std::atomic<int> *>(left) == 0; };
    p.abort_callback_data = &calls_left;
    LlamaContext ctx(model.get(), p, options(4, 60));
    run(ctx, slice(tokens, 0, 100), 20);
    std::size_t at = 100;
    std::size_t aborted = 0, partly = 0;
    // A graph has about 60 nodes: the loop aborts at many of them, in every micro-batch.
    for (int calls = 1; calls < 200; calls += 3) {
        OwnBatch batch(slice(tokens, at, std::min<std::size_t>(at + 20, 300)));
        calls_left = calls;
        const std::string text = error_text([&] { ctx.decode(batch.get()); });
        calls_left = 0;
        if (text == "no error") {
            at += 20;
            break;
        }
        ++aborted;
        EXPECT_NE(text.find("aborted by an abort callback"), std::string::npos) << text;
        const std::uint64_t kept = ctx.length(0) - at;
        EXPECT_TRUE(kept == 0 || kept == 8 || kept == 16) << kept;
        partly += kept != 0;
        ctx.rewind(0, std::uint32_t(kept));
    }
    EXPECT_GT(aborted, 20U);
    EXPECT_GT(partly, 5U);
    expect_continues(ctx, at);
}

// Without the adapter's sampler, attention would read llama.cpp's own cache, which holds few tokens.
TEST_P(Errors, RemovingTheSamplerIsAnError) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 100), 20);
    const llama_pos newest = llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0);
    ASSERT_TRUE(llama_set_sampler(ctx.get(), 1, nullptr));
    OwnBatch batch(slice(tokens, 100, 120));
    EXPECT_ERROR(ctx.decode(batch.get()), "the sampler of sequence 1 must not be removed");
    EXPECT_EQ(ctx.length(0), 100U);
    EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0), newest);
    EXPECT_ERROR(ctx.decode(batch.get()), "the sampler of sequence 1 must not be removed");
}

INSTANTIATE_TEST_SUITE_P(Models, Errors, testing::Values("llama_gqa", "gemma4_shared_kv"),
                         [](const auto &info) { return std::string(info.param); });
