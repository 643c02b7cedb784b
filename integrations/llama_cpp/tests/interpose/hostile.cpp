// Calls with any sequences, positions and bytes, beside a model of what they may do: a call that is refused changes
// nothing, one that is not does what llama.h says, and what is then decoded has the logits of its tokens alone.
#include "served.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>

namespace {

constexpr llama_seq_id N_SEQS = 3;
constexpr std::uint32_t N_CTX = 64, N_BATCH = 48;
constexpr llama_pos LAST = INT_MAX;
constexpr int CALLS = 60;

/** What a sequence must be. */
struct Expected {
    Tokens held;
    llama_pos start = 0;
    bool broken = false;

    llama_pos end() const { return start + llama_pos(held.size()); }
    /** An unusable one is never empty for the host. */
    llama_pos max() const { return std::max(held.empty() ? -1 : end() - 1, broken ? 0 : -1); }
    bool operator==(const Expected &o) const { return held == o.held && start == o.start && broken == o.broken; }
};

using Bytes = std::vector<std::uint8_t>;

class Hostile {
public:
    Hostile(llama_model *model, std::uint32_t seed) : model_(model), random_(seed) {
        auto p = served_params(N_BATCH, N_CTX, N_SEQS);
        p.n_ubatch = 1U << below(6);
        ctx_ = serve(model, p);
        memory_ = llama_get_memory(ctx_.get());
    }

    void step() {
        switch (below(12)) {
        case 0:
            return remove();
        case 1:
            return copy();
        case 2:
            return below(6) == 0 ? keep_or_clear() : move();
        case 6:
            return cut();
        case 3:
            return one_state();
        case 4:
            return all_states();
        case 5:
            return files();
        default:
            return below(3) == 0 ? bad_batch() : batch();
        }
    }

private:
    int below(int n) { return int(random_() % std::uint32_t(n)); }
    template <class T>
    T one_of(std::initializer_list<T> values) {
        return values.begin()[below(int(values.size()))];
    }

    bool exists(llama_seq_id s) const { return s >= 0 && s < N_SEQS; }
    llama_seq_id any_sequence() {
        return below(4) == 0 ? one_of({-1, -2, INT_MIN, N_SEQS, N_SEQS + 1, INT_MAX}) : llama_seq_id(below(N_SEQS));
    }
    /** Near the edges of a sequence. */
    llama_pos any_position(llama_seq_id s) {
        const Expected &e = seqs_[exists(s) ? s : 0];
        const llama_pos min = least(exists(s) ? s : 0);
        return one_of({INT_MIN, -2, -1, 0, 1, e.start, min, min == LAST ? LAST : min + 1, e.end() - 1, e.end(),
                       e.end() - below(20), e.end() + 1, LAST});
    }
    llama_pos least(llama_seq_id s) const { return llama_memory_seq_pos_min(memory_, s); }

    void check() {
        for (llama_seq_id s = 0; s < N_SEQS; ++s) {
            const Expected &e = seqs_[s];
            ASSERT_EQ(llama_memory_seq_pos_max(memory_, s), e.max()) << "sequence " << s;
            const llama_pos min = least(s);
            if (e.broken) {
                ASSERT_EQ(min, LAST);
            } else if (e.held.empty()) {
                ASSERT_EQ(min, -1);
            } else {
                ASSERT_GE(min, e.start);
                ASSERT_LE(min, e.max());
            }
        }
        for (const llama_seq_id s : {-1, INT_MIN, int(N_SEQS), INT_MAX}) {
            ASSERT_EQ(llama_memory_seq_pos_max(memory_, s), -1);
            ASSERT_EQ(least(s), -1);
        }
    }

    // Edits

    /** What llama_memory_seq_rm must return for a sequence that exists. */
    bool removes(llama_seq_id s, llama_pos p0, llama_pos p1) {
        Expected &e = seqs_[s];
        const llama_pos from = std::max(p0, 0), to = p1 < 0 ? e.end() : std::min(p1, e.end());
        if (from <= e.start && to >= e.end()) {
            e = Expected();
            return true;
        }
        if (from >= to) {
            return true;
        }
        if (to < e.end() || e.broken || from <= least(s)) {
            return false;
        }
        e.held.resize(std::size_t(from - e.start));
        return true;
    }

    /** At the edge of what can be cut, which the smallest position tells. */
    void cut() {
        const llama_seq_id s = below(N_SEQS);
        const llama_pos p0 = least(s) == LAST ? LAST : least(s) + below(2);
        const bool want = removes(s, p0, -1);
        ASSERT_EQ(llama_memory_seq_rm(memory_, s, p0, -1), want) << s << " from " << p0;
        check();
    }

    void remove() {
        const llama_seq_id s = any_sequence();
        const llama_pos p0 = any_position(s), p1 = any_position(s);
        bool want = s < 0 || exists(s);
        for (llama_seq_id i = 0; i < N_SEQS; ++i) {
            if (s < 0 || s == i) {
                want = removes(i, p0, p1) && want;
            }
        }
        ASSERT_EQ(llama_memory_seq_rm(memory_, s, p0, p1), want) << s << ", " << p0 << " to " << p1;
        check();
    }

    void copy() {
        const llama_seq_id src = any_sequence(), dst = any_sequence();
        const llama_pos p0 = any_position(src), p1 = any_position(src);
        // How far the copy can be cut. At the smallest position that is told it may be by the last token, too.
        const llama_pos cut = exists(src) ? least(src) : 0;
        llama_memory_seq_cp(memory_, src, dst, p0, p1);
        if (!exists(src) || !exists(dst) || src == dst || (p1 >= 0 && p1 <= std::max(p0, 0))) {
            return check();
        }
        const Expected &from = seqs_[src];
        Expected &to = seqs_[dst];
        if (from.broken || (!from.held.empty() && p0 > from.start)) {
            to.broken = true;
            return check();
        }
        to = Expected(from);
        if (p1 >= 0 && p1 < from.end()) {
            const bool whole = p1 <= from.start;
            const bool is_cut = whole ? llama_memory_seq_pos_max(memory_, dst) < 0 : p1 > cut;
            to.broken = !is_cut;
            if (is_cut) {
                to.held.resize(std::size_t(std::max(p1 - from.start, 0)));
            }
        }
        check();
    }

    void keep_or_clear() {
        const llama_seq_id kept = below(2) ? any_sequence() : -1;
        kept < 0 ? llama_memory_clear(memory_, below(2) == 0) : llama_memory_seq_keep(memory_, kept);
        for (llama_seq_id s = 0; s < N_SEQS; ++s) {
            seqs_[s] = s == kept ? seqs_[s] : Expected();
        }
        check();
    }

    /** Positions cannot be changed: a sequence that has some in the range is unusable from then on. */
    void move() {
        const llama_seq_id s = any_sequence();
        const llama_pos p0 = any_position(s), p1 = any_position(s);
        const int by = one_of({0, 1, -1, 2, INT_MAX, INT_MIN});
        const bool divides = below(2) == 0;
        for (llama_seq_id i = 0; i < N_SEQS; ++i) {
            const bool is_meant = s < 0 || s == i;
            const bool nothing = seqs_[i].max() < 0 || p0 > seqs_[i].max() || (p1 >= 0 && p1 <= std::max(p0, 0));
            if (is_meant && !nothing && by != (divides ? 1 : 0)) {
                seqs_[i].broken = true;
            }
        }
        divides ? llama_memory_seq_div(memory_, s, p0, p1, by) : llama_memory_seq_add(memory_, s, p0, p1, by);
        check();
    }

    // States

    /** Bytes that are not what was saved. */
    Bytes damaged(Bytes bytes) {
        if (below(3) == 0) {
            bytes.resize(std::size_t(below(int(bytes.size()))));
        } else if (below(4) == 0) {
            // A field of a header.
            const std::uint32_t value = one_of<std::uint32_t>({0, 1, 2, 3, 4, 31, 32, 33, 0x7fffffff, 0xffffffff});
            const std::size_t at = std::size_t(4 * below(8));
            std::uint32_t old = 0;
            std::memcpy(&old, bytes.data() + at, 4);
            const std::uint32_t written = value == old ? ~value : value;
            std::memcpy(bytes.data() + at, &written, 4);
        } else {
            const std::size_t at = below(2) ? std::size_t(below(32)) : random_() % bytes.size();
            bytes[at] = std::uint8_t(bytes[at] ^ (1U << below(8)));
        }
        return bytes;
    }

    void one_state() {
        const llama_seq_id from = below(N_SEQS), to = any_sequence();
        Bytes state(llama_state_seq_get_size(ctx_.get(), from));
        ASSERT_GE(state.size(), 32U);
        const std::size_t less = std::size_t(below(int(state.size())));
        ASSERT_EQ(llama_state_seq_get_data(ctx_.get(), state.data(), less, from), 0U);
        ASSERT_EQ(llama_state_seq_get_data(ctx_.get(), state.data(), state.size(), from), state.size());
        ASSERT_EQ(llama_state_seq_get_size(ctx_.get(), exists(to) ? N_SEQS : to), 0U);
        const bool damages = below(2) == 0;
        const Bytes bytes = damages ? damaged(state) : state;
        const std::size_t read = llama_state_seq_set_data(ctx_.get(), bytes.data(), bytes.size(), to);
        ASSERT_EQ(read, damages || !exists(to) ? 0U : state.size());
        if (read > 0) {
            set(to, Expected(seqs_[from]));
        }
        check();
    }

    /** A state of an unusable sequence has none of its tokens. */
    void set(llama_seq_id s, const Expected &e) {
        seqs_[s] = e;
        if (e.broken) {
            seqs_[s].held.clear();
            seqs_[s].start = 0;
        }
    }

    void all_states() {
        Bytes state(llama_state_get_size(ctx_.get()));
        ASSERT_EQ(llama_state_get_data(ctx_.get(), state.data(), state.size()), state.size());
        if (below(2)) {
            ASSERT_EQ(llama_state_get_data(ctx_.get(), state.data(), random_() % state.size()), 0U);
            return check();
        }
        if (below(2)) {
            change_one();
            const Bytes bytes = damaged(state);
            ASSERT_EQ(llama_state_set_data(ctx_.get(), bytes.data(), bytes.size()), 0U);
            forget_unusable();
            return check();
        }
        const std::vector<Expected> before(seqs_, seqs_ + N_SEQS);
        change_one();
        ASSERT_EQ(llama_state_set_data(ctx_.get(), state.data(), state.size()), state.size());
        for (llama_seq_id s = 0; s < N_SEQS; ++s) {
            set(s, before[std::size_t(s)]);
        }
        check();
    }

    /** A load that fails puts back what was there; of an unusable sequence it may be that it is unusable alone. */
    void forget_unusable() {
        for (llama_seq_id s = 0; s < N_SEQS; ++s) {
            if (seqs_[s].broken) {
                ASSERT_TRUE(llama_memory_seq_rm(memory_, s, -1, -1));
                seqs_[s] = Expected();
            }
        }
    }

    /** So that a state that is loaded in part would show. */
    void change_one() {
        const llama_seq_id s = below(N_SEQS);
        ASSERT_TRUE(llama_memory_seq_rm(memory_, s, -1, -1));
        seqs_[s] = Expected();
    }

    void files() {
        const std::string path = testing::TempDir() + "hostile-" + std::to_string(getpid()) + ".state";
        const llama_seq_id from = below(N_SEQS), to = any_sequence();
        const Tokens tokens = more(2 + below(4));
        const bool all = below(2) == 0;
        ASSERT_TRUE(all ? llama_state_save_file(ctx_.get(), path.c_str(), tokens.data(), tokens.size())
                        : llama_state_seq_save_file(ctx_.get(), path.c_str(), from, tokens.data(), tokens.size()) > 0);
        const std::vector<Expected> before(seqs_, seqs_ + N_SEQS);
        const int how = below(4);
        if (how < 2) {
            damage_file(path, 12, 12 + 4 * tokens.size());
        }
        if (all) {
            change_one();
        }
        Tokens read(how == 2 ? tokens.size() - 1 : tokens.size() + std::size_t(below(3)), -7);
        std::size_t n = 99;
        llama_context *ctx = ctx_.get();
        const bool loaded = all ? llama_state_load_file(ctx, path.c_str(), read.data(), read.size(), &n)
                                : llama_state_seq_load_file(ctx, path.c_str(), to, read.data(), read.size(), &n) > 0;
        std::remove(path.c_str());
        ASSERT_EQ(loaded, how == 3 && (all || exists(to)));
        if (!loaded && all) {
            forget_unusable();
        }
        if (loaded) {
            ASSERT_EQ(n, tokens.size());
            ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), read.begin()));
            for (llama_seq_id s = 0; all && s < N_SEQS; ++s) {
                set(s, before[std::size_t(s)]);
            }
            if (!all) {
                set(to, before[std::size_t(from)]);
            }
        }
        check();
    }

    /** The tokens, from `from` to `to`, have no checksum, with llama.cpp neither. */
    void damage_file(const std::string &path, std::size_t from, std::size_t to) {
        std::ifstream in(path, std::ios::binary);
        Bytes bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
        if (below(3) == 0) {
            bytes.resize(std::size_t(below(int(bytes.size()))));
        } else {
            std::size_t at = random_() % (bytes.size() - (to - from));
            at = at < from ? at : at + (to - from);
            bytes[at] = std::uint8_t(bytes[at] ^ (1U << below(8)));
        }
        std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char *>(bytes.data()),
                                                     std::streamsize(bytes.size()));
    }

    // Batches

    Tokens more(int n) { return random_tokens(model_, std::size_t(n), random_()); }

    /** The rows that follow `from` tokens, of all tokens decoded without interruption. */
    Rows expected_rows(const Tokens &all, std::size_t from) {
        const Rows rows = decode(serve(model_, served_params(N_BATCH, N_CTX)).get(), all, N_BATCH);
        return Rows(rows.begin() + std::ptrdiff_t(from), rows.end());
    }

    void batch() {
        std::vector<llama_seq_id> order = {0, 1, 2};
        std::shuffle(order.begin(), order.end(), random_);
        order.resize(std::size_t(1 + below(N_SEQS)));
        const bool positions = below(2) == 0;
        OwnBatch b;
        bool usable = true;
        Expected after[N_SEQS];
        for (const llama_seq_id s : order) {
            Expected &e = after[s] = seqs_[s];
            usable = usable && !e.broken;
            if (positions && e.held.empty() && !e.broken) {
                e.start = one_of({0, 0, 1, 1000, LAST / 2});
            }
            const Tokens t = more(1 + below(16));
            b.add(t, s, positions ? e.end() : -1);
            e.held.insert(e.held.end(), t.begin(), t.end());
        }
        const std::int32_t result = llama_decode(ctx_.get(), b.get());
        ASSERT_EQ(result == 0, usable) << result;
        if (!usable) {
            // What is unusable would be so for the rest of the history.
            forget_unusable();
            return check();
        }
        std::size_t row = 0;
        for (const llama_seq_id s : order) {
            const std::size_t before = seqs_[s].held.size(), n = after[s].held.size() - before;
            // Long streams take long to repeat.
            if (below(4) == 0 && after[s].held.size() < 300) {
                const Rows want = expected_rows(after[s].held, before);
                for (std::size_t i = 0; i < n; ++i) {
                    ASSERT_LE(compare({logits(ctx_.get(), std::int32_t(row + i))}, {want[i]}).largest, 2e-3)
                        << "sequence " << s << " of " << after[s].held.size() << " tokens, its token " << before + i;
                }
            }
            row += n;
            seqs_[s] = after[s];
        }
        check();
    }

    /** One thing is wrong: nothing is decoded. */
    void bad_batch() {
        const llama_seq_id s = below(N_SEQS);
        Expected &e = seqs_[s];
        OwnBatch b(more(2 + below(6)), s, e.end());
        const std::size_t at = std::size_t(below(int(b.tokens.size())));
        switch (below(6)) {
        case 0:
            b.ids[at] = one_of({-1, int(N_SEQS), INT_MIN, INT_MAX, N_SEQS + 1});
            break;
        case 1:
            b.counts[at] = one_of({0, -1, 2});
            break;
        case 2:
            // A sequence without tokens may start anywhere.
            b.positions[std::max(at, std::size_t(e.held.empty()))] = one_of({INT_MIN, -2, e.end() + 77, LAST});
            break;
        case 3:
            // In two pieces, with another between them.
            b.ids[at] = (s + 1) % N_SEQS;
            b.add(more(1), s, e.end() + llama_pos(b.tokens.size()));
            if (at == 0) {
                b.ids[0] = INT_MAX;
            }
            break;
        case 4:
            b.tokens[at] = one_of<llama_token>({-1, 1 << 30, INT_MIN, INT_MAX});
            break;
        default:
            b.add(more(N_BATCH), s, e.end() + llama_pos(b.tokens.size()));
        }
        // More than one id is read only where there is more than one.
        llama_seq_id two[2] = {s, (s + 1) % N_SEQS};
        llama_batch raw = b.get();
        for (std::int32_t i = 0; i < raw.n_tokens; ++i) {
            raw.seq_id[i] = raw.n_seq_id[i] == 2 ? two : raw.seq_id[i];
        }
        ASSERT_NE(llama_decode(ctx_.get(), raw), 0);
        check();
    }

    llama_model *model_;
    std::mt19937 random_;
    llama_context_ptr ctx_;
    llama_memory_t memory_ = nullptr;
    Expected seqs_[N_SEQS];
};

}  // namespace

TEST(ServedHostile, CallsDoWhatTheySayOrNothing) {
    const Environment environment{{"LOG", "errors"}, {"MAX_REWIND", "32"}};
    // One with two caches and layers that read the K and V of others, and two with recurrent layers.
    std::vector<llama_model_ptr> models;
    for (const char *name : {"gemma4_shared_kv", "llama_gqa", "granite_hybrid", "jamba_hybrid_no_rope"}) {
        models.push_back(load(supported_models().at(name), "hostile"));
    }
    // Seconds, and the first seed: scripts/fuzz_llama.
    const char *limit = std::getenv("SINKCACHE_TEST_SECONDS"), *first = std::getenv("SINKCACHE_TEST_SEED");
    const std::uint32_t begin = first ? std::uint32_t(std::atol(first)) : 1;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(limit ? std::atol(limit) : 0);
    std::uint32_t seed = begin;
    for (; seed < begin + 20 || std::chrono::steady_clock::now() < end; ++seed) {
        // Each refusal is a line in the log.
        const std::string log = log_of([&] {
            Hostile hostile(models[seed % models.size()].get(), seed);
            for (int i = 0; i < CALLS && !HasFatalFailure(); ++i) {
                hostile.step();
            }
        });
        EXPECT_NE(log.find("sinkcache: "), std::string::npos);
        ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
    }
    std::cout << "seeds " << begin << " to " << seed - 1 << ", " << CALLS << " calls each\n";
}
