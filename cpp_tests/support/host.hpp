// A small host of the library: settings, random rows, and calls that expect success.
#pragma once

#include <gtest/gtest.h>
#include <sinkcache.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

/** The call is refused with this status, and the text says what was wrong. */
#define EXPECT_REFUSED(call, expected, part)                                                                           \
    do {                                                                                                               \
        EXPECT_STREQ(skc_status_name(call), skc_status_name(expected));                                                \
        EXPECT_NE(std::string(skc_last_error()).find(part), std::string::npos)                                         \
            << "\"" << skc_last_error() << "\" lacks \"" << (part) << "\"";                                            \
    } while (0)

#define EXPECT_OK(call) EXPECT_STREQ(skc_status_name(call), "SKC_STATUS_OK") << skc_last_error()
#define ASSERT_OK(call) ASSERT_STREQ(skc_status_name(call), "SKC_STATUS_OK") << skc_last_error()

namespace host {

enum : std::uint32_t { Q_HEADS = 4, KV_HEADS = 2, DIM = 16, DIM_V = 8, SINKS = 3, WINDOW = 9 };
enum : std::size_t { Q_ROW = Q_HEADS * DIM, K_ROW = KV_HEADS * DIM, V_ROW = KV_HEADS * DIM_V, OUT_ROW = Q_HEADS * DIM_V };

/** A tiny cache of two unlike layers: most tests want a window that is soon full. */
inline sinkcache::Config config(std::uint32_t n_seqs = 1, std::uint32_t n_layers = 1) {
    sinkcache::Config c;
    c.heads(Q_HEADS, KV_HEADS, DIM, DIM_V).seqs(n_seqs).max_chunk(8).max_rewind(4);
    std::vector<sinkcache::Layer> layers(n_layers, sinkcache::Layer(SINKS, WINDOW));
    for (std::uint32_t i = 1; i < n_layers; i += 2) {
        layers[i].window = WINDOW + 5;
        layers[i].rope_style = SKC_ROPE_INTERLEAVED;
    }
    c.layers(layers);
    return c;
}

/** Inputs of consecutive tokens. */
struct Rows {
    std::vector<float> q, k, v;

    std::size_t n() const { return q.size() / Q_ROW; }
    Rows slice(std::size_t from, std::size_t count) const {
        auto cut = [&](const std::vector<float> &x, std::size_t row) {
            const auto at = x.begin() + static_cast<std::ptrdiff_t>(from * row);
            return std::vector<float>(at, at + static_cast<std::ptrdiff_t>(count * row));
        };
        return {cut(q, Q_ROW), cut(k, K_ROW), cut(v, V_ROW)};
    }
    void add(const Rows &other) {
        q.insert(q.end(), other.q.begin(), other.q.end());
        k.insert(k.end(), other.k.begin(), other.k.end());
        v.insert(v.end(), other.v.begin(), other.v.end());
    }
};

/** Uniform in [-1, 1). */
inline std::vector<float> noise(std::size_t n, std::uint32_t seed) {
    std::uint32_t state = seed * 2654435761u + 1;
    std::vector<float> x(n);
    for (float &value : x) {
        state = state * 1664525u + 1013904223u;
        value = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
    }
    return x;
}

inline Rows rows(std::size_t n, std::uint32_t seed) {
    return {noise(n * Q_ROW, 3 * seed), noise(n * K_ROW, 3 * seed + 1), noise(n * V_ROW, 3 * seed + 2)};
}

/** Every value the same, such as NaN. */
inline Rows constant(std::size_t n, float x) {
    return {std::vector<float>(n * Q_ROW, x), std::vector<float>(n * K_ROW, x), std::vector<float>(n * V_ROW, x)};
}

struct Results {
    std::vector<float> out, lse;

    static Results of(std::size_t n, float fill = NAN) {
        return {std::vector<float>(n * OUT_ROW, fill), std::vector<float>(n * Q_HEADS, fill)};
    }
    Results slice(std::size_t from, std::size_t count) const {
        auto cut = [&](const std::vector<float> &x, std::size_t row) {
            const auto at = x.begin() + static_cast<std::ptrdiff_t>(from * row);
            return std::vector<float>(at, at + static_cast<std::ptrdiff_t>(count * row));
        };
        return {cut(out, OUT_ROW), cut(lse, Q_HEADS)};
    }
    void add(const Results &other) {
        out.insert(out.end(), other.out.begin(), other.out.end());
        lse.insert(lse.end(), other.lse.begin(), other.lse.end());
    }
    bool finite() const {
        for (const auto *values : {&out, &lse}) {
            for (float x : *values) {
                if (!std::isfinite(x)) {
                    return false;
                }
            }
        }
        return true;
    }
    friend void PrintTo(const Results &r, std::ostream *stream) {
        *stream << r.out.size() << " results, " << r.lse.size() << " lse";
    }
    /** Bit for bit. */
    bool operator==(const Results &o) const {
        return same(out, o.out) && same(lse, o.lse);
    }

private:
    static bool same(const std::vector<float> &a, const std::vector<float> &b) {
        return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    }
};

using Ints = std::vector<std::int32_t>;

template <class Args>
Args sized() {
    Args a;
    std::memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    return a;
}

template <class Args>
Args batch(std::uint32_t layer, const Ints &ids, const Ints &counts) {
    auto a = sized<Args>();
    a.layer = layer;
    a.n_entries = static_cast<std::uint32_t>(ids.size());
    a.seq_ids = ids.data();
    a.n_tokens = counts.data();
    return a;
}

/** Never NULL: a batch of no rows still names its tensors. */
template <class V>
auto *rows_of(V &x) {
    static float nothing;
    return x.empty() ? static_cast<decltype(x.data())>(&nothing) : x.data();
}

inline skc_append_kv_args append_args(std::uint32_t layer, const Ints &ids, const Ints &counts, const Rows &rows) {
    auto a = batch<skc_append_kv_args>(layer, ids, counts);
    a.k = rows_of(rows.k), a.v = rows_of(rows.v);
    return a;
}

inline skc_attend_args attend_args(std::uint32_t layer, const Ints &ids, const Ints &counts, const Rows &rows,
                                   Results &results) {
    auto a = batch<skc_attend_args>(layer, ids, counts);
    a.q = rows_of(rows.q), a.out = rows_of(results.out), a.lse = rows_of(results.lse);
    return a;
}

inline skc_step_args step_args(std::uint32_t layer, const Ints &ids, const Ints &counts, const Rows &rows,
                               Results &results) {
    auto a = batch<skc_step_args>(layer, ids, counts);
    a.k = rows_of(rows.k), a.v = rows_of(rows.v), a.q = rows_of(rows.q);
    a.out = rows_of(results.out), a.lse = rows_of(results.lse);
    return a;
}

/** One layer of one batch; expects success. */
inline Results step(skc_cache *cache, const Rows &rows, std::uint32_t layer, const Ints &ids, const Ints &counts) {
    Results results = Results::of(rows.n());
    const auto a = step_args(layer, ids, counts, rows, results);
    EXPECT_OK(skc_step(cache, &a));
    return results;
}

/** All rows to one sequence. */
inline Results step(skc_cache *cache, const Rows &rows, std::uint32_t layer = 0, std::int32_t seq = 0) {
    return step(cache, rows, layer, {seq}, {static_cast<std::int32_t>(rows.n())});
}

inline skc_sequence_info info(skc_cache *cache, std::uint32_t layer = 0, std::int32_t seq = 0) {
    auto i = sized<skc_sequence_info>();
    EXPECT_OK(skc_seq_info(cache, layer, seq, &i));
    return i;
}

inline bool operator==(const skc_sequence_info &a, const skc_sequence_info &b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
}

/** evict and rewind of one sequence. */
template <class Args>
skc_status cut(skc_status (*call)(skc_cache *, const Args *), skc_cache *cache, std::int32_t n, std::int32_t seq = 0) {
    auto a = sized<Args>();
    a.n_entries = 1, a.seq_ids = &seq, a.n_tokens = &n;
    return call(cache, &a);
}

inline skc_status reset(skc_cache *cache, std::int32_t seq = 0, std::uint64_t start = 0) {
    auto a = sized<skc_reset_args>();
    a.n_entries = 1, a.seq_ids = &seq, a.start_positions = &start;
    return skc_reset(cache, &a);
}

inline skc_status fork(skc_cache *cache, std::int32_t src, std::int32_t dst) {
    auto a = sized<skc_fork_args>();
    a.n_entries = 1, a.src_seq_ids = &src, a.dst_seq_ids = &dst;
    return skc_fork(cache, &a);
}

inline skc_status abort_step(skc_cache *cache) {
    const auto a = sized<skc_abort_step_args>();
    return skc_abort_step(cache, &a);
}

}  // namespace host
