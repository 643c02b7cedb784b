// What hosts are told, and the settings that change it.
#include "served.hpp"

TEST_F(ServedTest, TheHostIsToldALongContextThatNeedsNoShift) {
    const std::int32_t n_ctx_train = llama_model_n_ctx_train(model.get());
    auto p = served_params(64, 64, 3);
    const llama_context_ptr ctx = serve(model.get(), p);
    EXPECT_EQ(llama_n_ctx(ctx.get()), 1U << 24);
    EXPECT_EQ(llama_n_ctx_seq(ctx.get()), 1U << 24);
    EXPECT_EQ(llama_n_seq_max(ctx.get()), 3U);
    EXPECT_EQ(llama_n_batch(ctx.get()), 64U);
    EXPECT_EQ(llama_n_rs_seq(ctx.get()), 0U);
    EXPECT_FALSE(llama_memory_can_shift(llama_get_memory(ctx.get())));
    EXPECT_EQ(n_ctx_train, 1 << 24) << "the model had a served context before";

    const llama_model_ptr other = load(decoder("llama"), "unserved");
    EXPECT_EQ(llama_model_n_ctx_train(other.get()), 4096);
    const llama_context_ptr plain = stock(other.get(), 256);
    EXPECT_EQ(llama_n_ctx(plain.get()), 256U);
    EXPECT_TRUE(llama_memory_can_shift(llama_get_memory(plain.get())));
}

// A server would keep checkpoints for windows of the model's own.
TEST_F(ServedTest, WindowsOfTheModelAreNotTheHostsMatter) {
    const llama_model_ptr gemma = load(supported_models().at("gemma2_windows"), "gemma2");
    EXPECT_EQ(llama_model_n_swa(gemma.get()), 32);
    const llama_context_ptr ctx = serve(gemma.get(), served_params());
    EXPECT_EQ(llama_model_n_swa(gemma.get()), 0);
}

TEST_F(ServedTest, TheLengthCanBeSet) {
    const auto length = [&](std::initializer_list<Variable> variables, std::uint32_t n_ctx) {
        const Environment environment(variables);
        return llama_n_ctx(serve(model.get(), served_params(64, n_ctx)).get());
    };
    EXPECT_EQ(length({{"LENGTH", "5000"}}, 64), 5000U);
    // With a window of its own, a longer context is the length that the host wants.
    EXPECT_EQ(length({{"WINDOW", "60"}}, 64), 1U << 24);
    EXPECT_EQ(length({{"WINDOW", "60"}}, 65), 65U);
    EXPECT_EQ(length({{"WINDOW", "60"}}, 1U << 25), 1U << 25);
    EXPECT_EQ(length({{"WINDOW", "60"}, {"LENGTH", "5000"}}, 1U << 25), 5000U);
    EXPECT_EQ(length({{"WINDOW", "60"}}, 0), 1U << 24) << "the model's own length";
    EXPECT_EQ(length({{"LENGTH", ""}}, 64), 1U << 24);
}

TEST_F(ServedTest, SinksAndWindowCanBeSet) {
    const Rows shifted = run_shifted(stock(model.get(), 256).get(), tokens, 7, 40);
    const Environment environment{{"SINK", "7"}, {"WINDOW", "40"}, {"KV", "f32"}};
    auto p = served_params(64, 200);
    p.type_k = GGML_TYPE_Q4_0;
    const llama_context_ptr ctx = serve(model.get(), p);
    EXPECT_LE(compare(decode(ctx.get(), tokens, 1), shifted).largest, 2e-3);
}

// A host that sizes another context by the length it was told means the length it had asked for: a draft model's.
TEST_F(ServedTest, ALengthThatWasToldStandsForTheOneAskedFor) {
    const llama_context_ptr target = serve(model.get(), served_params(64, 64));
    const llama_context_ptr draft = serve(model.get(), served_params(64, llama_n_ctx(target.get())));
    EXPECT_EQ(decode(draft.get(), tokens, 20), want);
    // Also where the other context is left to llama.cpp.
    auto p = served_params(64, llama_n_ctx(target.get()));
    p.attention_type = LLAMA_ATTENTION_TYPE_NON_CAUSAL;
    const llama_context_ptr left = serve(model.get(), p);
    EXPECT_EQ(llama_n_ctx(left.get()), 256U) << "64, padded by llama.cpp";
}

TEST_F(ServedTest, InvalidSettingsAreRefusedByName) {
    const auto refused = [&](const std::string &name, const std::string &value, const std::string &allowed) {
        const Environment environment{{name, value}};
        llama_context *ctx = nullptr;
        const std::string text = log_of([&] { ctx = llama_init_from_model(model.get(), served_params()); });
        EXPECT_EQ(ctx, nullptr) << name;
        EXPECT_NE(text.find("SINKCACHE_LLAMA_" + name + " is '" + value + "': allowed are " + allowed),
                  std::string::npos)
            << text;
    };
    refused("SINK", "-1", "0 to 1048576");
    refused("SINK", "1048577", "0 to 1048576");
    refused("WINDOW", "0", "1 to 268435456");
    refused("WINDOW", "12 ", "1 to 268435456");
    refused("WINDOW", "4k", "1 to 268435456");
    refused("LENGTH", "99999999999999999999999", "1 to 1073741824");
    refused("MAX_REWIND", "0x10", "0 to 1048576");
    refused("KV", "q5", "f32, f16, bf16, q8, q4, or two of them as K/V");
    refused("UNSUPPORTED", "yes", "fail, stock");
    refused("CHECKPOINTS", "1", "off, on");
    refused("GPU", "on", "auto, off");
    refused("LOG", "loud", "quiet, errors, info, debug");

    {
        const Environment environment{{"WINDOWS", "40"}};
        llama_context *ctx = nullptr;
        const std::string text = log_of([&] { ctx = llama_init_from_model(model.get(), served_params()); });
        EXPECT_EQ(ctx, nullptr);
        EXPECT_NE(text.find("SINKCACHE_LLAMA_WINDOWS is not a setting: allowed are SINK"), std::string::npos) << text;
    }
    const Environment environment{{"SINK", "64"}};
    const std::string text = log_of([&] { EXPECT_EQ(llama_init_from_model(model.get(), served_params()), nullptr); });
    EXPECT_NE(text.find("a context of 64 tokens leaves no window"), std::string::npos) << text;
}

// Probabilities of tokens, as llama.cpp's server reads them.
TEST_F(ServedTest, AllLogitsCanBeRead) {
    const llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 2));
    decode(ctx.get(), slice(tokens, 0, 20), 20);
    EXPECT_EQ(llama_get_sampled_logits_count_ith(ctx.get(), 19), 128U);
    EXPECT_EQ(llama_get_sampled_logits_ith(ctx.get(), 19), nullptr);
    // Where a backend has sampled, llama.cpp's own answer.
    const llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(5));
    ASSERT_TRUE(llama_set_sampler(ctx.get(), 1, chain.get()));
    OwnBatch batch({tokens[0]}, 1);
    ASSERT_EQ(llama_decode(ctx.get(), batch.get()), 0);
    EXPECT_EQ(llama_get_sampled_logits_count_ith(ctx.get(), 0), 5U);
    ASSERT_TRUE(llama_set_sampler(ctx.get(), 1, nullptr));
}

TEST_F(ServedTest, CheckpointsAreWantedOnRequest) {
    const Environment environment{{"CHECKPOINTS", "on"}, {"MAX_REWIND", "100"}};
    EXPECT_EQ(llama_n_rs_seq(serve(model.get(), served_params(64)).get()), 100U);
    EXPECT_EQ(llama_n_rs_seq(serve(model.get(), served_params(128)).get()), 128U) << "n_ubatch";
}

TEST_F(ServedTest, TheLogSaysWhatIsServed) {
    const auto lines = [&](const char *level) {
        const Environment environment{{"LOG", level}};
        return log_of([&] { serve(model.get(), served_params(64, 64, 2)); });
    };
    EXPECT_NE(lines("info").find("sinkcache: a context of 2 sequences: 4 sinks and the last 60 tokens of each, 1 MiB, "
                                 "rewinds of up to 64; the host is told a length of 16777216\n"),
              std::string::npos);
    EXPECT_EQ(lines("errors"), "");
}
