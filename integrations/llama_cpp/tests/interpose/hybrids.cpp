// Served contexts of models with recurrent layers: what a host is told, and states as llama.cpp's server uses them.
#include "served.hpp"
#include "support/random_hybrid.hpp"

namespace {

using Bytes = std::vector<std::uint8_t>;

class ServedHybrids : public testing::TestWithParam<std::string> {
protected:
    llama_model_ptr model = load(hybrid_models().at(GetParam()), GetParam());
    Tokens tokens = random_tokens(model.get(), 300);
    Environment environment{{"LOG", "errors"}};
    Rows want = decode(serve(model.get(), served_params()).get(), tokens, 20);

    void expect_continues(llama_context *ctx, std::size_t from, llama_seq_id seq_id = 0) const {
        const Rows got = decode(ctx, slice(tokens, from, 300), 20, seq_id, llama_pos(from));
        EXPECT_LE(compare(got, Rows(want.begin() + std::ptrdiff_t(from), want.end())).largest, 1e-4);
    }
};

/** As the server keeps checkpoints: the part of the state that it cannot rewind. */
Bytes checkpoint_of(llama_context *ctx, llama_seq_id seq_id) {
    Bytes state(llama_state_seq_get_size_ext(ctx, seq_id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY));
    EXPECT_EQ(llama_state_seq_get_data_ext(ctx, state.data(), state.size(), seq_id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY),
              state.size());
    return state;
}

}  // namespace

// As llama.cpp answers for such a model: a host then goes on from a checkpoint, or reads a prompt again.
TEST_P(ServedHybrids, AHostIsToldThatNothingCanBeRewound) {
    const Environment checkpoints{{"CHECKPOINTS", "on"}, {"MAX_REWIND", "100"}};
    const llama_context_ptr ctx = serve(model.get(), served_params());
    const llama_memory_t memory = llama_get_memory(ctx.get());
    EXPECT_EQ(llama_n_rs_seq(ctx.get()), 0U);
    decode(ctx.get(), slice(tokens, 0, 100), 20);
    EXPECT_EQ(llama_memory_seq_pos_min(memory, 0), 99);
    EXPECT_EQ(llama_memory_seq_pos_max(memory, 0), 99);
    const std::string text = log_of([&] {
        EXPECT_FALSE(llama_memory_seq_rm(memory, 0, 99, -1));
        EXPECT_FALSE(llama_memory_seq_rm(memory, 0, 1, -1));
        EXPECT_TRUE(llama_memory_seq_rm(memory, 0, 100, -1));
    });
    EXPECT_EQ(text, "");
    EXPECT_EQ(llama_memory_seq_pos_max(memory, 0), 99);
    expect_continues(ctx.get(), 100);
    EXPECT_TRUE(llama_memory_seq_rm(memory, 0, 0, -1));
    expect_continues(ctx.get(), 0);
}

TEST_P(ServedHybrids, ACheckpointIsGoneBackTo) {
    const llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 2));
    const llama_memory_t memory = llama_get_memory(ctx.get());
    decode(ctx.get(), slice(tokens, 0, 120), 20, 1);
    const Bytes checkpoint = checkpoint_of(ctx.get(), 1);
    decode(ctx.get(), slice(tokens, 200, 290), 20, 1);
    ASSERT_EQ(llama_state_seq_set_data_ext(ctx.get(), checkpoint.data(), checkpoint.size(), 1,
                                           LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY),
              checkpoint.size());
    EXPECT_TRUE(llama_memory_seq_rm(memory, 1, 120, -1));
    expect_continues(ctx.get(), 120, 1);
    // In another sequence, and one that cannot be loaded.
    ASSERT_EQ(llama_state_seq_set_data(ctx.get(), checkpoint.data(), checkpoint.size(), 0), checkpoint.size());
    Bytes damaged = checkpoint;
    damaged[damaged.size() / 2] ^= 1;
    log_of([&] { EXPECT_EQ(llama_state_seq_set_data(ctx.get(), damaged.data(), damaged.size(), 0), 0U); });
    expect_continues(ctx.get(), 120, 0);
}

TEST_P(ServedHybrids, StatesOfStockLlamaAreRefused) {
    const llama_context_ptr plain = stock(model.get(), 128), ctx = serve(model.get(), served_params());
    run(plain.get(), slice(tokens, 0, 60), 20);
    decode(ctx.get(), slice(tokens, 0, 90), 20);
    for (const llama_state_seq_flags flags : {0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY}) {
        Bytes state(llama_state_seq_get_size_ext(plain.get(), 0, flags));
        ASSERT_EQ(llama_state_seq_get_data_ext(plain.get(), state.data(), state.size(), 0, flags), state.size());
        const std::string text = log_of([&] {
            EXPECT_EQ(llama_state_seq_set_data_ext(ctx.get(), state.data(), state.size(), 0, flags), 0U);
        });
        EXPECT_NE(text.find("a state that sinkcache has not written"), std::string::npos) << text;
    }
    expect_continues(ctx.get(), 90);
}

// A copy that would have to be cut is none: its sequence has to be cleared.
TEST_P(ServedHybrids, PartOfASequenceIsNotCopied) {
    const llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 2));
    const llama_memory_t memory = llama_get_memory(ctx.get());
    decode(ctx.get(), slice(tokens, 0, 60), 20);
    const std::string text = log_of([&] { llama_memory_seq_cp(memory, 0, 1, 0, 40); });
    EXPECT_NE(text.find("the states of recurrent layers cannot go back"), std::string::npos) << text;
    EXPECT_NE(text.find("sequence 1 is unusable until it is cleared"), std::string::npos) << text;
    EXPECT_TRUE(llama_memory_seq_rm(memory, 1, -1, -1));
    llama_memory_seq_cp(memory, 0, 1, 0, 60);
    expect_continues(ctx.get(), 60, 1);
    expect_continues(ctx.get(), 60, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, ServedHybrids, testing::ValuesIn(names(hybrid_models())),
                         [](const auto &info) { return info.param; });
