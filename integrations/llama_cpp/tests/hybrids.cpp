// Models with recurrent layers: what their states allow, and what is refused.
#include "support/host.hpp"
#include "support/random_hybrid.hpp"

#include <gtest/gtest.h>

#include <atomic>

using sinkcache::HostTag;
using sinkcache::LlamaContext;

namespace {

constexpr double TOLERANCE = 1e-4;
const HostTag TAG{4, 5, 6};

class Hybrids : public testing::TestWithParam<std::string> {
protected:
    llama_model_ptr model = load(hybrid_models().at(GetParam()), GetParam());
    Tokens tokens = random_tokens(model.get(), 300);
    Rows want = [this] {
        LlamaContext ctx(model.get(), params(64), options(4, 60));
        return run(ctx, tokens, 20);
    }();

    sinkcache::LlamaOptions sequences(std::uint32_t n) const {
        sinkcache::LlamaOptions o = options(4, 60);
        o.n_seqs = n;
        return o;
    }
    void expect_continues(LlamaContext &ctx, std::size_t from, llama_seq_id seq_id = 0) const {
        EXPECT_EQ(ctx.length(seq_id), from);
        const Rows got = run(ctx, slice(tokens, from, 300), 20, seq_id);
        EXPECT_LE(compare(got, Rows(want.begin() + std::ptrdiff_t(from), want.end())).largest, TOLERANCE);
    }
};

void expect_error(const char *part, const std::function<void()> &call) {
    const std::string text = error_text(call);
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

/** Stock llama.cpp with a model without RoPE: tokens are removed, and those behind them need not move. */
Rows run_removing(llama_context *ctx, const Tokens &tokens, llama_pos n_sink, llama_pos window) {
    Rows rows;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        const auto pos = llama_pos(i);
        if (pos >= n_sink + window) {
            llama_memory_seq_rm(llama_get_memory(ctx), 0, pos - window, pos - window + 1);
        }
        OwnBatch batch({tokens[i]}, 0, pos);
        if (llama_decode(ctx, batch.get()) != 0) {
            throw std::runtime_error("llama_decode failed");
        }
        rows.push_back(logits(ctx, 0));
    }
    return rows;
}

}  // namespace

TEST_P(Hybrids, PastTheWindowWithoutRopeEqualsStockWithoutTheTokens) {
    if (GetParam().find("no_rope") == std::string::npos) {
        return;
    }
    const Difference d = compare(want, run_removing(stock(model.get(), 512).get(), tokens, 4, 60));
    EXPECT_LE(d.largest, 1e-3);
    EXPECT_EQ(d.same_argmax, 300U);
}

// Otherwise the tests of copies and saved sequences would show nothing of the states.
TEST_P(Hybrids, StatesDependOnTokensThatHaveLeftTheWindow) {
    if (GetParam() == "lfm2_hybrid") {
        // Its states are those of the last two tokens.
        return;
    }
    Tokens other = tokens;
    other[10] = (other[10] + 1) % 128;
    LlamaContext ctx(model.get(), params(64), options(4, 20));
    const Rows a = run(ctx, slice(tokens, 0, 60), 20);
    ctx.clear(0);
    EXPECT_GT(compare({run(ctx, slice(other, 0, 60), 20).back()}, {a.back()}).largest, 2 * TOLERANCE);
}

TEST_P(Hybrids, ARewindButToNothingIsRefusedAndChangesNothing) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 50), 20);
    for (const std::uint32_t n : {1U, 20U, 49U}) {
        expect_error("SKC_STATUS_TOKENS_GONE: rewind by", [&] { ctx.rewind(0, n); });
    }
    expect_error("sequence 0 has 50 tokens", [&] { ctx.rewind(0, 51); });
    ctx.rewind(0, 0);
    expect_continues(ctx, 50);
    ctx.clear(0);
    run(ctx, slice(tokens, 100, 130), 20);
    ctx.rewind(0, 30);
    expect_continues(ctx, 0);
}

// llama.cpp's own snapshots for rewinds are not used: it does not check whether they are those of the last tokens.
TEST_P(Hybrids, RewindsOfLlamaAreOff) {
    auto p = params(64);
    p.n_rs_seq = 8;
    LlamaContext ctx(model.get(), p, options(4, 60));
    EXPECT_EQ(llama_n_rs_seq(ctx.get()), 0U);
    run(ctx, slice(tokens, 0, 50), 20);
    expect_error("the states of recurrent layers cannot go back", [&] { ctx.rewind(0, 1); });
    expect_continues(ctx, 50);
}

// Equally many rows of each sequence are in a micro-batch; with embeddings those of one.
TEST_P(Hybrids, SequencesOfUnequalLengthsShareBatches) {
    for (const bool embeddings : {false, true}) {
        if (embeddings && GetParam() == "lfm2_hybrid") {
            // It then has no logits.
            continue;
        }
        for (const std::uint32_t n_ubatch : {1U, 7U, 16U, 64U}) {
            auto p = params(64);
            p.n_ubatch = n_ubatch;
            p.embeddings = embeddings;
            p.pooling_type = LLAMA_POOLING_TYPE_NONE;
            LlamaContext ctx(model.get(), p, sequences(3));
            std::vector<Rows> got(3);
            for (std::size_t at[3] = {}, round = 0; got[0].size() + got[1].size() + got[2].size() < 600; ++round) {
                OwnBatch batch;
                for (const std::size_t s : {round % 3, (round + 1) % 3, (round + 2) % 3}) {
                    const std::size_t n = std::min(200 - at[s], (round * 5 + s * 8) % 22);
                    batch.add(slice(tokens, at[s], at[s] + n), llama_seq_id(s));
                    at[s] += n;
                }
                if (batch.tokens.empty()) {
                    continue;
                }
                ctx.decode(batch.get());
                for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
                    got[std::size_t(batch.ids[i])].push_back(logits(ctx.get(), std::int32_t(i)));
                }
            }
            for (llama_seq_id s = 0; s < 3; ++s) {
                EXPECT_EQ(ctx.length(s), 200U);
                EXPECT_LE(compare(got[std::size_t(s)], want).largest, TOLERANCE) << s << ", " << n_ubatch;
            }
        }
    }
}

// llama.cpp then cuts batches in another way, into micro-batches of the same lengths. Positions or masks show it.
TEST_P(Hybrids, AnotherSplitThanThatOfTheContextIsNoticed) {
    if (GetParam() == "lfm2_hybrid") {
        return;
    }
    auto p = params(64);
    p.n_ubatch = 8;
    LlamaContext ctx(model.get(), p, sequences(2));
    run(ctx, slice(tokens, 0, 20), 20, 1);
    llama_set_embeddings(ctx.get(), true);
    const auto decode = [&] {
        OwnBatch batch(slice(tokens, 20, 28), 1);
        batch.add(slice(tokens, 0, 8), 0);
        ctx.decode(batch.get());
    };
    expect_error("do not match micro-batch 0 of the batch", decode);
    expect_error("sequence 1 is unusable", decode);
    llama_set_embeddings(ctx.get(), false);
    ctx.clear(0);
    ctx.clear(1);
    run(ctx, slice(tokens, 0, 20), 20, 1);
    decode();
    EXPECT_LE(compare({logits(ctx.get(), 7)}, {want[27]}).largest, TOLERANCE);
    expect_continues(ctx, 8, 0);
}

TEST_P(Hybrids, AForkAndItsSourceGoOnApart) {
    LlamaContext ctx(model.get(), params(64), sequences(3));
    run(ctx, slice(tokens, 150, 220), 20, 2);
    run(ctx, slice(tokens, 0, 100), 20, 0);
    ctx.fork(0, 2);
    ctx.fork(0, 1);
    run(ctx, slice(tokens, 200, 230), 20, 0);
    expect_continues(ctx, 100, 1);
    ctx.clear(1);
    expect_continues(ctx, 100, 2);
    // A fork of a sequence without tokens, over one with some.
    ctx.fork(1, 0);
    expect_continues(ctx, 0, 0);
}

TEST_P(Hybrids, SavedSequencesHaveBothParts) {
    LlamaContext ctx(model.get(), params(64), sequences(2)), other(model.get(), params(64), sequences(2));
    run(ctx, slice(tokens, 0, 100), 20);
    const std::vector<std::uint8_t> saved = ctx.save(0, TAG);
    EXPECT_EQ(saved.size(), ctx.saved_bytes(0));
    run(other, slice(tokens, 40, 90), 20, 1);
    other.load(1, saved, TAG);
    expect_continues(other, 100, 1);
    // One without tokens.
    other.load(1, other.save(0, TAG), TAG);
    expect_continues(other, 0, 1);
    std::vector<std::uint8_t> little(saved.size() - 1);
    expect_error("the snapshot has", [&] { ctx.save_to(0, TAG, little.data(), little.size()); });
}

// llama.cpp takes any position after a state, and warns of one that does not follow.
TEST_P(Hybrids, PositionsFollowALoadedState) {
    LlamaContext ctx(model.get(), params(64), options(4, 60)), other(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 100), 20);
    run(other, slice(tokens, 0, 30), 20);
    ggml_log_callback log = nullptr;
    void *log_data = nullptr;
    llama_log_get(&log, &log_data);
    std::string text;
    llama_log_set([](ggml_log_level level, const char *line, void *to) {
        if (level == GGML_LOG_LEVEL_WARN) {
            *static_cast<std::string *>(to) += line;
        }
    }, &text);
    other.load(0, ctx.save(0, TAG), TAG);
    expect_continues(other, 100);
    llama_log_set(log, log_data);
    EXPECT_EQ(text, "");
}

// Damage in llama.cpp's part, which has no checksum of its own, and one that llama.cpp refuses itself.
TEST_P(Hybrids, ADamagedPartIsRefusedAndChangesNothing) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 100), 20);
    const std::vector<std::uint8_t> saved = ctx.save(0, TAG);
    ctx.clear(0);
    run(ctx, slice(tokens, 0, 60), 20);
    const auto refused = [&](const std::vector<std::uint8_t> &bytes) {
        expect_error("SKC_STATUS_INVALID_SNAPSHOT", [&] { ctx.load(0, bytes, TAG); });
        EXPECT_EQ(ctx.length(0), 60U);
    };
    for (std::size_t at = 0; at < saved.size(); at += saved.size() / 97) {
        std::vector<std::uint8_t> damaged = saved;
        damaged[at] ^= 1;
        refused(damaged);
    }
    for (const std::size_t n : {std::size_t{0}, std::size_t{31}, std::size_t{32}, saved.size() / 2}) {
        refused(std::vector<std::uint8_t>(saved.begin(), saved.begin() + std::ptrdiff_t(n)));
    }
    // Of a model with other states, and of one without.
    for (const char *name : {"granite_hybrid", "jamba_hybrid_no_rope", "llama_gqa"}) {
        if (GetParam() != name) {
            const llama_model_ptr foreign = load(supported_models().at(name), name);
            LlamaContext context(foreign.get(), params(64), options(4, 60));
            run(context, slice(tokens, 0, 100), 20);
            refused(context.save(0, TAG));
        }
    }
    const HostTag other_tag{9};
    expect_error("SKC_STATUS_INVALID_SNAPSHOT", [&] { ctx.load(0, saved, other_tag); });
    expect_continues(ctx, 60);
}

TEST_P(Hybrids, StatesThatLlamaHasLoadedAreDetected) {
    for (const llama_state_seq_flags flags : {0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY}) {
        LlamaContext ctx(model.get(), params(64), sequences(2)), other(model.get(), params(64), sequences(2));
        run(ctx, slice(tokens, 0, 100), 20);
        run(other, slice(tokens, 100, 200), 20);
        std::vector<std::uint8_t> state(llama_state_seq_get_size_ext(other.get(), 0, flags));
        ASSERT_EQ(llama_state_seq_get_data_ext(other.get(), state.data(), state.size(), 0, flags), state.size());
        ASSERT_EQ(llama_state_seq_set_data_ext(ctx.get(), state.data(), state.size(), 0, flags), state.size());
        OwnBatch batch(slice(tokens, 100, 101));
        expect_error("own cache was modified", [&] { ctx.decode(batch.get()); });
        expect_error("own cache was modified", [&] { ctx.save(0, TAG); });
        expect_error("own cache was modified", [&] { ctx.fork(0, 1); });
        // It is not there any more after a load that is refused.
        expect_error("SKC_STATUS_INVALID_SNAPSHOT", [&] { ctx.load(0, other.save(0, TAG), HostTag{1}); });
        expect_error("sequence 0 is unusable", [&] { ctx.decode(batch.get()); });
        ctx.clear(0);
        expect_continues(ctx, 0);
    }
}

TEST_P(Hybrids, LlamaDecodeIsRejected) {
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 100), 20);
    const llama_pos newest = llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0);
    OwnBatch direct(slice(tokens, 100, 120), 0, newest + 1), batch(slice(tokens, 100, 120));
    EXPECT_EQ(llama_decode(ctx.get(), direct.get()), 2);
    expect_error("llama_decode was called directly", [&] { ctx.decode(batch.get()); });
    expect_error("own cache was modified", [&] { ctx.decode(batch.get()); });
    ctx.clear(0);
    expect_continues(ctx, 0);
}

// An abort in a micro-batch that has tokens of sequence 1 alone: sequence 0 was computed before it.
TEST_P(Hybrids, AnAbortMakesTheSequencesUnusableThatWereBeingComputed) {
    std::atomic<int> calls_left{0};
    auto p = params(64);
    p.n_ubatch = 8;
    p.abort_callback = [](void *left) { return --*static_cast<std::atomic<int> *>(left) == 0; };
    p.abort_callback_data = &calls_left;
    LlamaContext ctx(model.get(), p, sequences(2));
    int first = 0, second = 0, early = 0;
    for (int calls = 1; calls < 600; calls += 7) {
        ctx.clear(0);
        ctx.clear(1);
        run(ctx, slice(tokens, 0, 40), 20, 0);
        run(ctx, slice(tokens, 0, 40), 20, 1);
        OwnBatch batch(slice(tokens, 40, 44), 0);
        batch.add(slice(tokens, 40, 60), 1);
        calls_left = calls;
        const std::string text = error_text([&] { ctx.decode(batch.get()); });
        calls_left = 0;
        if (text == "no error") {
            EXPECT_EQ(ctx.length(0) + ctx.length(1), 104U);
            break;
        }
        OwnBatch one(slice(tokens, 0, 1), 1);
        if (ctx.length(0) == 40) {
            // The first micro-batch, of both.
            OwnBatch zero(slice(tokens, 0, 1), 0);
            expect_error("sequence 0 is unusable", [&] { ctx.decode(zero.get()); });
            ++first;
        } else {
            EXPECT_EQ(ctx.length(0), 44U);
            ++second;
        }
        expect_error("sequence 1 is unusable", [&] { ctx.decode(one.get()); });
        EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 1), -1);
        expect_error("sequence 1 is unusable", [&] { ctx.save(1, TAG); });
        expect_error("sequence 1 is unusable", [&] { ctx.fork(1, 0); });
        if (ctx.length(0) == 44 && early++ == 0) {
            expect_continues(ctx, 44, 0);
        }
        // A saved one makes it usable again, and a copy, as a clear does.
        ctx.clear(0);
        run(ctx, slice(tokens, 0, 20), 20, 0);
        if (calls % 2 == 0) {
            ctx.load(1, ctx.save(0, TAG), TAG);
        } else {
            ctx.fork(0, 1);
        }
        ctx.decode(one.get());
    }
    // Two of three micro-batches have no token of sequence 0, and all have equally many nodes.
    EXPECT_GT(first, 3);
    EXPECT_GT(second, first);
    ctx.clear(1);
    expect_continues(ctx, 0, 1);
}

INSTANTIATE_TEST_SUITE_P(Models, Hybrids, testing::ValuesIn(names(hybrid_models())),
                         [](const auto &info) { return info.param; });
