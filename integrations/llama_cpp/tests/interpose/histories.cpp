// Random histories of decoding and edits: the logits of every batch equal those of the same tokens decoded at once.
#include "served.hpp"

#include <algorithm>
#include <random>

namespace {

constexpr llama_seq_id N_SEQS = 3;

/** A served context, and the tokens that each of its sequences must have. */
class History {
public:
    History(llama_model *model, std::uint32_t n_ctx, std::uint32_t seed) : model_(model), n_ctx_(n_ctx), random_(seed) {
        auto p = served_params(64, n_ctx, N_SEQS);
        p.n_ubatch = 1U << below(7);
        p.n_outputs_max_per_seq = std::uint32_t(below(3));
        ctx_ = serve(model, p);
        memory_ = llama_get_memory(ctx_.get());
    }

    void step() {
        switch (below(8)) {
        case 0:
            return copy();
        case 1:
            return cut();
        case 2:
            return move_state();
        case 3:
            return abort();
        default:
            return batch();
        }
    }

private:
    int below(int n) { return int(random_() % std::uint32_t(n)); }

    /** What a sequence's next rows must be: those of all its tokens, decoded without interruption. */
    Rows expected(const Tokens &all, std::size_t from) {
        Rows rows;
        if (all.size() <= n_ctx_) {
            rows = run(stock(model_, 512).get(), all, 64);
        } else {
            rows = decode(serve(model_, served_params(64, n_ctx_)).get(), all, 64);
        }
        return Rows(rows.begin() + std::ptrdiff_t(from), rows.end());
    }

    void check_lengths() {
        for (llama_seq_id s = 0; s < N_SEQS; ++s) {
            ASSERT_EQ(llama_memory_seq_pos_max(memory_, s), llama_pos(held_[s].size()) - 1) << "sequence " << s;
        }
    }

    Tokens more(int n) { return random_tokens(model_, std::size_t(n), random_()); }

    void batch() {
        OwnBatch b;
        std::vector<llama_seq_id> order = {0, 1, 2};
        std::shuffle(order.begin(), order.end(), random_);
        order.resize(std::size_t(1 + below(N_SEQS)));
        const bool positions = below(2) == 0;
        std::vector<std::size_t> from(N_SEQS);
        for (const llama_seq_id s : order) {
            const Tokens t = more(1 + below(21));
            from[std::size_t(s)] = held_[s].size();
            b.add(t, s, positions ? llama_pos(held_[s].size()) : -1);
            held_[s].insert(held_[s].end(), t.begin(), t.end());
        }
        for (auto &o : b.outputs) {
            o = below(4) != 0;
        }
        ASSERT_EQ(llama_decode(ctx_.get(), b.get()), 0);
        std::size_t i = 0;
        for (const llama_seq_id s : order) {
            const Rows want = expected(held_[s], from[std::size_t(s)]);
            for (const Row &row : want) {
                if (b.outputs[i]) {
                    ASSERT_LE(compare({logits(ctx_.get(), std::int32_t(i))}, {row}).largest, 2e-3)
                        << "sequence " << s << " of " << held_[s].size() << " tokens, row " << i;
                }
                ++i;
            }
        }
        check_lengths();
    }

    void copy() {
        const llama_seq_id from = below(N_SEQS), to = below(N_SEQS);
        llama_memory_seq_cp(memory_, from, to, -1, -1);
        held_[to] = Tokens(held_[from]);
        check_lengths();
    }

    void cut() {
        const llama_seq_id s = below(N_SEQS);
        const auto least = llama_memory_seq_pos_min(memory_, s);
        const auto n = llama_pos(held_[s].size());
        const llama_pos end = std::max(n - below(40), least + 1);
        const bool all = below(10) == 0;
        ASSERT_TRUE(llama_memory_seq_rm(memory_, s, all ? 0 : end, -1));
        held_[s].resize(all ? 0 : std::size_t(std::min(n, end)));
        check_lengths();
    }

    void move_state() {
        const llama_seq_id from = below(N_SEQS), to = below(N_SEQS);
        std::vector<std::uint8_t> state(llama_state_seq_get_size(ctx_.get(), from));
        ASSERT_EQ(llama_state_seq_get_data(ctx_.get(), state.data(), state.size(), from), state.size());
        ASSERT_EQ(llama_state_seq_set_data(ctx_.get(), state.data(), state.size(), to), state.size());
        held_[to] = Tokens(held_[from]);
        check_lengths();
    }

    void abort() {
        struct Countdown {
            int left;
        } countdown{below(60)};
        llama_set_abort_callback(
            ctx_.get(), [](void *data) { return --static_cast<Countdown *>(data)->left < 0; }, &countdown);
        const llama_seq_id s = below(N_SEQS);
        const Tokens t = more(1 + below(60));
        OwnBatch b(t, s, llama_pos(held_[s].size()));
        const std::int32_t result = llama_decode(ctx_.get(), b.get());
        llama_set_abort_callback(ctx_.get(), nullptr, nullptr);
        const bool is_lost = llama_memory_seq_pos_min(memory_, s) > llama_memory_seq_pos_max(memory_, s);
        if (llama_model_is_hybrid(model_) && is_lost) {
            // The state of its recurrent layers is lost, and no token follows it.
            ASSERT_EQ(result, 2);
            OwnBatch next(more(1), s);
            ASSERT_EQ(llama_decode(ctx_.get(), next.get()), -1);
            ASSERT_TRUE(llama_memory_seq_rm(memory_, s, -1, -1));
            held_[s].clear();
            return check_lengths();
        }
        const auto kept = std::size_t(llama_memory_seq_pos_max(memory_, s) + 1) - held_[s].size();
        ASSERT_LE(kept, t.size());
        ASSERT_TRUE(result == 2 || (result == 0 && kept == t.size())) << result << ", " << kept << " of " << t.size();
        held_[s].insert(held_[s].end(), t.begin(), t.begin() + std::ptrdiff_t(kept));
        check_lengths();
    }

    llama_model *model_;
    std::size_t n_ctx_;
    std::mt19937 random_;
    llama_context_ptr ctx_;
    llama_memory_t memory_ = nullptr;
    Tokens held_[N_SEQS];
};

class ServedHistories : public testing::TestWithParam<std::string> {};

}  // namespace

TEST_P(ServedHistories, LogitsAreThoseOfTheTokensAlone) {
    const Environment environment{{"LOG", "errors"}, {"MAX_REWIND", "64"}};
    const llama_model_ptr model = load(supported_models().at(GetParam()), GetParam());
    const char *many = std::getenv("SINKCACHE_TEST_HISTORIES");
    for (std::uint32_t seed = 1; seed <= (many ? std::uint32_t(std::atoi(many)) : 2U); ++seed) {
        for (const std::uint32_t n_ctx : {64U, 200U}) {
            History history(model.get(), n_ctx, seed);
            for (int i = 0; i < 25 && !HasFatalFailure(); ++i) {
                history.step();
            }
            ASSERT_FALSE(HasFatalFailure()) << "seed " << seed << ", n_ctx " << n_ctx;
        }
    }
}

// A host may not be ready for its callback yet.
TEST_P(ServedHistories, TheAbortCallbackIsNotCalledWhileAContextIsCreated) {
    const Environment environment{{"LOG", "errors"}};
    const llama_model_ptr model = load(supported_models().at(GetParam()), GetParam());
    int calls = 0;
    auto p = served_params();
    p.abort_callback = [](void *data) { return ++*static_cast<int *>(data) > 0; };
    p.abort_callback_data = &calls;
    const llama_context_ptr ctx = serve(model.get(), p);
    EXPECT_EQ(calls, 0);
    OwnBatch batch(random_tokens(model.get(), 5));
    EXPECT_EQ(llama_decode(ctx.get(), batch.get()), 2);
    EXPECT_GT(calls, 0);
}

TEST_P(ServedHistories, AHostSeesItsOwnTokensAlone) {
    const Environment environment{{"LOG", "errors"}};
    const llama_model_ptr model = load(supported_models().at(GetParam()), GetParam());
    int calls = 0;
    auto p = served_params();
    p.cb_eval = [](ggml_tensor *, bool, void *data) { return ++*static_cast<int *>(data) > 0; };
    p.cb_eval_user_data = &calls;
    const llama_context_ptr ctx = serve(model.get(), p);
    EXPECT_EQ(calls, 0);
    const Tokens tokens = random_tokens(model.get(), 20);
    const Rows want = run(stock(model.get(), 64).get(), tokens, 20);
    EXPECT_LE(compare(decode(ctx.get(), tokens, 20), want).largest, 1e-3);
    EXPECT_GT(calls, 0);
    EXPECT_EQ(llama_perf_context(ctx.get()).n_p_eval, 20);
}

INSTANTIATE_TEST_SUITE_P(Models, ServedHistories, testing::ValuesIn(names(supported_models())),
                         [](const auto &info) { return info.param; });
