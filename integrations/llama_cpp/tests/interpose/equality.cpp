// Logits of a served context equal those of stock llama.cpp below the window, and with a shift by one past it.
#include "served.hpp"

namespace {

class ServedModels : public testing::TestWithParam<std::string> {
protected:
    llama_model_ptr model = load(supported_models().at(GetParam()), GetParam());
};

void expect_close(const Difference &d, double largest, const char *what) {
    EXPECT_GT(d.rows, 0U) << what;
    EXPECT_LE(d.largest, largest) << what;
    EXPECT_EQ(d.same_argmax, d.rows) << what;
}

}  // namespace

TEST_P(ServedModels, BelowTheWindowEqualsStock) {
    const Tokens tokens = random_tokens(model.get(), 256);
    const Rows want = run(stock(model.get(), 256).get(), tokens, 64);
    const llama_context_ptr ctx = serve(model.get(), served_params(64, 256));
    expect_close(compare(decode(ctx.get(), tokens, 64), want), 1e-3, "llama_decode");
    llama_memory_clear(llama_get_memory(ctx.get()), true);
    expect_close(compare(process(ctx.get(), tokens, 50, 0, 0), want), 1e-3, "llama_process");
}

TEST_P(ServedModels, PastTheWindowEqualsShiftByOne) {
    const auto reference = shift_reference(GetParam());
    if (!reference) {
        return;
    }
    const Tokens tokens = random_tokens(model.get(), 300);
    const llama_model_ptr shifted = load(*reference, GetParam());
    const Rows want = run_shifted(stock(shifted.get(), 256).get(), tokens, 4, 60);
    const llama_context_ptr ctx = serve(model.get(), served_params());
    expect_close(compare(decode(ctx.get(), tokens, 1), want), 2e-3, "single tokens");
    llama_memory_clear(llama_get_memory(ctx.get()), true);
    expect_close(compare(process(ctx.get(), tokens, 37, 0, 0), want), 2e-3, "chunks");
}

INSTANTIATE_TEST_SUITE_P(Models, ServedModels, testing::ValuesIn(names(supported_models())),
                         [](const auto &info) { return info.param; });

TEST_F(ServedTest, StreamsStartAtAnyPosition) {
    for (const llama_pos start : {1000, 1 << 24, (1 << 30) + 5}) {
        const llama_context_ptr ctx = serve(model.get(), served_params());
        EXPECT_LE(compare(decode(ctx.get(), tokens, 20, 0, start), want).largest, 1e-3) << start;
        EXPECT_EQ(next(ctx.get()), start + 300);
    }
}

TEST_F(ServedTest, SeveralSequencesShareBatches) {
    const llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 3));
    std::vector<Rows> got(3);
    for (std::size_t at = 0; at < 300; at += 20) {
        OwnBatch batch;
        for (const llama_seq_id s : {2, 0, 1}) {
            batch.add(slice(tokens, at, at + 20), s, llama_pos(at));
        }
        ASSERT_EQ(llama_decode(ctx.get(), batch.get()), 0);
        for (std::size_t i = 0; i < 60; ++i) {
            got[std::size_t(batch.ids[i])].push_back(logits(ctx.get(), std::int32_t(i)));
        }
    }
    for (const Rows &rows : got) {
        EXPECT_LE(compare(rows, want).largest, 1e-4);
        EXPECT_EQ(rows.size(), 300U);
    }
}

TEST_F(ServedTest, SeveralOutputsOfASequenceMayBeReserved) {
    for (const std::uint32_t outputs : {0U, 4U}) {
        auto p = served_params();
        p.n_outputs_max_per_seq = outputs;
        const llama_context_ptr ctx = serve(model.get(), p);
        EXPECT_EQ(decode(ctx.get(), tokens, 20), want) << outputs;
    }
}

TEST_F(ServedTest, TypesOfTheHostAreKeptOrNamed) {
    struct Case {
        ggml_type k, v;
        const char *text;
        double largest;
    };
    const auto log_with = [&](const Case &c, Rows &rows) {
        return log_of([&] {
            auto p = served_params();
            p.type_k = c.k;
            p.type_v = c.v;
            const Environment environment{{"LOG", "info"}};
            const llama_context_ptr ctx = serve(model.get(), p);
            rows = decode(ctx.get(), tokens, 20);
        });
    };
    double before = 0;
    // Each is less exact than the one before it.
    for (const Case &c : {Case{GGML_TYPE_F32, GGML_TYPE_F32, "", 1e-6}, Case{GGML_TYPE_F16, GGML_TYPE_F16, "", 0.05},
                          Case{GGML_TYPE_Q8_0, GGML_TYPE_Q8_0, "", 0.5},
                          Case{GGML_TYPE_Q4_0, GGML_TYPE_Q4_0, "", 10}}) {
        Rows rows;
        const std::string text = log_with(c, rows);
        const double largest = compare(rows, want).largest;
        EXPECT_LE(largest, c.largest) << ggml_type_name(c.k);
        EXPECT_GE(largest, before) << ggml_type_name(c.k);
        EXPECT_EQ(text.find("the cache has no"), std::string::npos) << text;
        before = largest + 1e-9;
    }
    for (const Case &c : {Case{GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, "K is stored in q8: the cache has no q5_1", 0.5},
                          Case{GGML_TYPE_Q8_0, GGML_TYPE_IQ4_NL, "V is stored in q4: the cache has no iq4_nl", 10}}) {
        Rows rows;
        const std::string text = log_with(c, rows);
        EXPECT_NE(text.find(c.text), std::string::npos) << text;
        EXPECT_LE(compare(rows, want).largest, c.largest) << c.text;
    }
}
