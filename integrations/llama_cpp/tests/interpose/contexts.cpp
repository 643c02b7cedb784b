// Which contexts are served, batches that are refused, and settings of llama.cpp that change later.
#include "served.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>

namespace {

class UnservedModels : public testing::TestWithParam<std::string> {};

}  // namespace

TEST_P(UnservedModels, AreRefusedOrLeftToLlama) {
    const Unsupported unsupported = unsupported_models().at(GetParam());
    const llama_model_ptr model = load(unsupported.model, GetParam());
    llama_context *none = nullptr;
    const Environment errors{{"LOG", "errors"}};
    const std::string text = log_of([&] { none = llama_init_from_model(model.get(), served_params(32, 512)); });
    EXPECT_EQ(none, nullptr);
    EXPECT_NE(text.find(unsupported.reason), std::string::npos) << text;
    EXPECT_NE(text.find("SINKCACHE_LLAMA_UNSUPPORTED=stock"), std::string::npos) << text;

    const Environment stock{{"UNSUPPORTED", "stock"}};
    llama_context_ptr ctx;
    const std::string left = log_of([&] { ctx.reset(llama_init_from_model(model.get(), served_params(32, 512))); });
    ASSERT_TRUE(ctx);
    EXPECT_NE(left.find(unsupported.reason), std::string::npos) << left;
    EXPECT_NE(left.find("llama.cpp goes on with its own cache"), std::string::npos) << left;
    EXPECT_EQ(llama_n_ctx(ctx.get()), 512U);
    const Rows rows = run(ctx.get(), random_tokens(model.get(), 40), 20);
    EXPECT_EQ(rows.size(), 40U);
}

INSTANTIATE_TEST_SUITE_P(Models, UnservedModels, testing::ValuesIn(names(unsupported_models())),
                         [](const auto &info) { return info.param; });

TEST_F(ServedTest, ContextsThatAreNoStreamsAreLeftToLlama) {
    const Environment environment{{"LOG", "info"}};
    auto p = served_params(64, 256);
    p.attention_type = LLAMA_ATTENTION_TYPE_NON_CAUSAL;
    const std::string text = log_of([&] {
        const llama_context_ptr ctx = serve(model.get(), p);
        EXPECT_EQ(llama_n_ctx(ctx.get()), 256U);
    });
    EXPECT_NE(text.find("left to llama.cpp: its attention is not causal"), std::string::npos) << text;
    p = served_params(64, 256, 2);
    p.embeddings = true;
    const std::string embeddings = log_of([&] { EXPECT_EQ(llama_n_ctx(serve(model.get(), p).get()), 512U); });
    EXPECT_NE(embeddings.find("left to llama.cpp: it computes embeddings"), std::string::npos) << embeddings;
    // llama.cpp's own answer.
    EXPECT_EQ(llama_init_from_model(nullptr, served_params()), nullptr);
}

// llama.cpp has ids for 256 sequences; the sampler that sees the graphs needs one.
TEST_F(ServedTest, MoreSequencesThanLlamaHasIdsForAreRefused) {
    const std::string text =
        log_of([&] { EXPECT_EQ(llama_init_from_model(model.get(), served_params(64, 64, 256)), nullptr); });
    EXPECT_NE(text.find("n_seqs 256: allowed are 1 to 255"), std::string::npos) << text;
    const llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 255));
    EXPECT_EQ(llama_n_seq_max(ctx.get()), 255U);
    decode(ctx.get(), slice(tokens, 0, 100), 20, 254);
    expect_continues(ctx.get(), 100, 254);
}

// As llama.cpp's programs do to find out what fits into memory.
TEST(ServedModels, LoadedWithoutDataAreLeftToLlama) {
    llama_model_params p = llama_model_default_params();
    p.no_alloc = true;
    p.load_mode = LLAMA_LOAD_MODE_NONE;
    const llama_model_ptr loaded = load(DATA "/tiny-llama-bytes.gguf");
    const llama_model_ptr model(llama_model_load_from_file(DATA "/tiny-llama-bytes.gguf", p));
    ASSERT_TRUE(model);
    const auto text = [&](const char *level) {
        const Environment environment{{"LOG", level}};
        return log_of([&] { serve(model.get(), served_params(64, 512)); });
    };
    const std::string debug = text("debug"), info = text("info");
    EXPECT_NE(debug.find("left to llama.cpp: its model was loaded without data"), std::string::npos) << debug;
    EXPECT_EQ(info, "");
    EXPECT_EQ(llama_model_n_ctx_train(model.get()), 256);
}

TEST_F(ServedTest, InvalidBatchesAreRefusedAndChangeNothing) {
    const llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 2));
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    const Tokens three = slice(tokens, 0, 3);
    const auto refused = [&](OwnBatch batch, const std::string &reason) {
        const std::string text = log_of([&] { EXPECT_EQ(llama_decode(ctx.get(), batch.get()), -1); });
        EXPECT_NE(text.find(reason), std::string::npos) << text;
    };
    refused(OwnBatch(three, 0, 149), "position 149: sequence 0 continues at 150");
    refused(OwnBatch(three, 0, 151), "position 151: sequence 0 continues at 150");
    refused(OwnBatch(three, 2), "sequence 2 does not exist");
    refused(OwnBatch(three, -1), "sequence -1 does not exist");
    refused(OwnBatch(three, 0).add(three, 1).add(three, 0), "the tokens of sequence 0 are not consecutive");
    refused(OwnBatch(slice(tokens, 0, 65)), "a batch of 65 tokens");
    OwnBatch shared(three);
    shared.counts[1] = 2;
    refused(shared, "token 1 of the batch is in 2 sequences");
    OwnBatch negative(three, 0, 150);
    negative.positions[2] = -1;
    refused(negative, "token 2 of the batch has position -1");
    refused(OwnBatch({1, 2, 3}, 1, 0x7ffffffd), "would reach position 2147483647");
    // llama.cpp's own answers.
    OwnBatch none, invalid({1, 100000});
    EXPECT_EQ(llama_decode(ctx.get(), none.get()), -1);
    EXPECT_EQ(llama_decode(ctx.get(), invalid.get()), -1);

    OwnBatch batch(three);
    const std::string text = log_of([&] { EXPECT_EQ(llama_encode(ctx.get(), batch.get()), -1); });
    EXPECT_NE(text.find("encoding is refused"), std::string::npos) << text;
    llama_set_causal_attn(ctx.get(), false);
    refused(OwnBatch(three), "attention over a stream is causal");
    llama_set_causal_attn(ctx.get(), true);
    expect_continues(ctx.get(), 150);
}

TEST_F(ServedTest, ExtendedBatchesAreRefusedAlike) {
    const llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 2));
    process(ctx.get(), slice(tokens, 0, 150), 20, 0, 0);
    llama_batch_ext *batch = llama_batch_ext_init(ctx.get());
    const auto refused = [&](const std::string &reason) {
        const std::string text = log_of([&] {
            EXPECT_EQ(llama_process(ctx.get(), LLAMA_PROCESS_TYPE_DECODE, batch), -1);
        });
        EXPECT_NE(text.find(reason), std::string::npos) << text;
        llama_batch_ext_clear(batch);
    };
    const auto add = [&](llama_seq_id seq_id, llama_pos pos) {
        const std::int32_t row = llama_batch_ext_add_token(batch, seq_id, 1);
        EXPECT_TRUE(llama_batch_ext_set_pos(batch, row, &pos));
        return row;
    };
    EXPECT_EQ(llama_process(ctx.get(), LLAMA_PROCESS_TYPE_DECODE, batch), -1) << "no tokens";
    add(0, 149);
    refused("position 149: sequence 0 continues at 150");
    EXPECT_TRUE(llama_batch_ext_add_seq(batch, add(0, 150), 1));
    refused("is in 2 sequences");
    EXPECT_EQ(llama_batch_ext_add_token(batch, 2, 1), -3) << "the hook's sequence";
    // A token that llama.cpp rejects and has added all the same.
    add(0, 150);
    EXPECT_EQ(llama_batch_ext_add_token(batch, 0, 100000), -2);
    refused("");
    add(0, 150);
    log_of([&] { EXPECT_EQ(llama_process(ctx.get(), LLAMA_PROCESS_TYPE_ENCODE, batch), -1); });
    llama_batch_ext_clear(batch);
    // Without positions the tokens follow.
    for (std::size_t i = 150; i < 170; ++i) {
        llama_batch_ext_add_token(batch, 0, tokens[i]);
    }
    EXPECT_EQ(llama_process(ctx.get(), LLAMA_PROCESS_TYPE_DECODE, batch), 0);
    llama_batch_ext_free(batch);
    expect_continues(ctx.get(), 170);
}

TEST(ServedModels, WithMropeRefuseEmbeddings) {
    const llama_model_ptr mrope = load(supported_models().at("qwen3vl_mrope"), "mrope");
    const llama_context_ptr ctx = serve(mrope.get(), served_params());
    std::vector<float> row(std::size_t(llama_model_n_embd(mrope.get())), 0.5F);
    llama_batch_ext *batch = llama_batch_ext_init(ctx.get());
    ASSERT_EQ(llama_batch_ext_add_token(batch, 0, 1), 0);
    ASSERT_EQ(llama_batch_ext_add_embd(batch, 0, {row.data(), 1, row.size()}), 1);
    EXPECT_NE(log_of([&] { EXPECT_EQ(llama_process(ctx.get(), LLAMA_PROCESS_TYPE_DECODE, batch), -1); })
                  .find("token 1 of the batch is an embedding"),
              std::string::npos);
    llama_batch_ext_clear(batch);
    // A row without a token, whose embedding would come later.
    ASSERT_EQ(llama_batch_ext_add(batch, 0), 0);
    EXPECT_NE(log_of([&] { EXPECT_EQ(llama_process(ctx.get(), LLAMA_PROCESS_TYPE_DECODE, batch), -1); })
                  .find("token 0 of the batch is an embedding"),
              std::string::npos);
    llama_batch_ext_free(batch);
    EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0), -1);
}

TEST_F(ServedTest, AnAbortedBatchKeepsWhatWasComputed) {
    std::atomic<int> calls_left{0};
    auto p = served_params();
    p.n_ubatch = 8;
    setenv("SINKCACHE_LLAMA_MAX_REWIND", "64", 1);
    const llama_context_ptr ctx = serve(model.get(), p);
    decode(ctx.get(), slice(tokens, 0, 100), 20);
    llama_set_abort_callback(
        ctx.get(), [](void *left) { return --*static_cast<std::atomic<int> *>(left) == 0; }, &calls_left);
    std::size_t aborted = 0, partly = 0;
    for (int calls = 1; calls < 200; calls += 3) {
        OwnBatch batch(slice(tokens, 100, 120));
        calls_left = calls;
        const std::int32_t result = llama_decode(ctx.get(), batch.get());
        calls_left = 0;
        const llama_pos kept = next(ctx.get()) - 100;
        if (result == 0) {
            EXPECT_EQ(kept, 20);
            break;
        }
        EXPECT_EQ(result, 2);
        ++aborted;
        EXPECT_TRUE(kept == 0 || kept == 8 || kept == 16) << kept;
        partly += kept != 0;
        EXPECT_TRUE(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, 100, -1));
    }
    EXPECT_GT(aborted, 20U);
    EXPECT_GT(partly, 5U);
    llama_set_abort_callback(ctx.get(), nullptr, nullptr);
    expect_continues(ctx.get(), 120);
}

TEST_F(ServedTest, ThreadsAreThoseOfTheCache) {
    const llama_context_ptr ctx = serve(model.get(), served_params());
    // Before the first batch there is no cache yet.
    llama_set_n_threads(ctx.get(), 2, 3);
    decode(ctx.get(), slice(tokens, 0, 100), 20);
    const Environment environment{{"LOG", "info"}};
    const std::string text = log_of([&] {
        serve(model.get(), served_params());
        llama_set_n_threads(ctx.get(), 2, 5);
    });
    EXPECT_NE(text.find("5 threads are more than the cache was created for: 3"), std::string::npos) << text;
    EXPECT_EQ(llama_n_threads(ctx.get()), 2);
    EXPECT_EQ(llama_n_threads_batch(ctx.get()), 3);
    expect_continues(ctx.get(), 100);
}

TEST_F(ServedTest, SamplersOfTheHostStay) {
    const llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 2));
    const llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
    EXPECT_FALSE(llama_set_sampler(ctx.get(), 2, nullptr)) << "the one that sees the graphs";
    EXPECT_FALSE(llama_set_sampler(ctx.get(), -1, nullptr));
    ASSERT_TRUE(llama_set_sampler(ctx.get(), 1, chain.get()));
    Tokens chunk = slice(tokens, 0, 20);
    for (std::size_t at = 0; at < 100; at += 20) {
        OwnBatch batch(slice(tokens, at, at + 20), 1);
        std::fill(batch.outputs.begin(), batch.outputs.end() - 1, 0);
        ASSERT_EQ(llama_decode(ctx.get(), batch.get()), 0);
        const Row &row = want[at + 19];
        const auto best = llama_token(std::max_element(row.begin(), row.end()) - row.begin());
        EXPECT_EQ(llama_get_sampled_token_ith(ctx.get(), -1), best) << at;
    }
    ASSERT_TRUE(llama_set_sampler(ctx.get(), 1, nullptr));
    expect_continues(ctx.get(), 100, 1);
}

TEST_F(ServedTest, AContextThatIsNeverFreedIsNoError) {
    // The sanitizer would call it a leak: it stays reachable, as in a host that leaves it to the end of the process.
    EXPECT_NE(serve(model.get(), served_params()).release(), nullptr);
}
