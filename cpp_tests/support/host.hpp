// A small host of the library: settings, random rows, argument structs, and calls that expect success.
#pragma once

#include <gtest/gtest.h>
#include <sinkcache.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

/** The call is rejected with this status, and the error text contains `part`. */
#define EXPECT_REJECTED(call, expected, part)                                                                          \
    do {                                                                                                               \
        EXPECT_STREQ(skc_status_name(call), skc_status_name(expected));                                                \
        EXPECT_NE(std::string(skc_last_error()).find(part), std::string::npos)                                         \
            << "\"" << skc_last_error() << "\" lacks \"" << (part) << "\"";                                            \
    } while (0)

#define EXPECT_OK(call) EXPECT_STREQ(skc_status_name(call), "SKC_STATUS_OK") << skc_last_error()
#define ASSERT_OK(call) ASSERT_STREQ(skc_status_name(call), "SKC_STATUS_OK") << skc_last_error()

namespace host {

enum : std::uint32_t { Q_HEADS = 4, KV_HEADS = 2, DIM = 16, DIM_V = 8, SINKS = 3, WINDOW = 9 };
/** Elements of a row of each packed tensor. */
enum : std::size_t {
    Q_ROW = Q_HEADS * DIM,
    K_ROW = KV_HEADS * DIM,
    V_ROW = KV_HEADS * DIM_V,
    OUT_ROW = Q_HEADS * DIM_V
};

/**
 * A tiny cache whose window is soon full; every other layer has different settings, and no room for pins. No layer has
 * room for pins or evicted ranges unless it is asked for.
 */
inline sinkcache::Config config(std::uint32_t n_seqs = 1, std::uint32_t n_layers = 1, std::uint32_t max_pinned = 0,
                                std::uint32_t max_segments = 0) {
    sinkcache::Config c;
    c.heads(Q_HEADS, KV_HEADS, DIM, DIM_V).seqs(n_seqs).max_chunk(8).max_rewind(4);
    std::vector<sinkcache::Layer> layers(n_layers, sinkcache::Layer(SINKS, WINDOW).room(max_pinned, max_segments));
    for (std::uint32_t i = 1; i < n_layers; i += 2) {
        layers[i].window = WINDOW + 5;
        layers[i].rope_style = SKC_ROPE_INTERLEAVED;
        layers[i].max_pinned = 0;
    }
    c.layers(layers);
    return c;
}

/** Rows `from` to `from` + `count` of a tensor whose rows have `row` elements. */
inline std::vector<float> slice_rows(const std::vector<float> &x, std::size_t row, std::size_t from,
                                     std::size_t count) {
    const auto begin = x.begin() + static_cast<std::ptrdiff_t>(from * row);
    return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(count * row));
}

/** Inputs of consecutive tokens. */
struct Rows {
    std::vector<float> q, k, v;

    std::size_t n() const { return q.size() / Q_ROW; }
    Rows slice(std::size_t from, std::size_t count) const {
        return {slice_rows(q, Q_ROW, from, count), slice_rows(k, K_ROW, from, count),
                slice_rows(v, V_ROW, from, count)};
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

/** Rows in which every value is `x`, such as NaN. */
inline Rows constant(std::size_t n, float x) {
    return {std::vector<float>(n * Q_ROW, x), std::vector<float>(n * K_ROW, x), std::vector<float>(n * V_ROW, x)};
}

/** Outputs of consecutive tokens. */
struct Results {
    std::vector<float> out, lse;

    /** `n` rows filled with `fill`. */
    static Results of(std::size_t n, float fill = NAN) {
        return {std::vector<float>(n * OUT_ROW, fill), std::vector<float>(n * Q_HEADS, fill)};
    }
    Results slice(std::size_t from, std::size_t count) const {
        return {slice_rows(out, OUT_ROW, from, count), slice_rows(lse, Q_HEADS, from, count)};
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
    /** Bit-identical. */
    bool operator==(const Results &o) const {
        return same(out, o.out) && same(lse, o.lse);
    }

private:
    static bool same(const std::vector<float> &a, const std::vector<float> &b) {
        return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    }
};

using Ints = std::vector<std::int32_t>;

/** A zeroed struct with its struct_size set. */
template <class Args>
Args sized() {
    Args a;
    std::memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    return a;
}

/** Arguments of evict and rewind. As everywhere below, they point into what they are made from. */
template <class Args>
Args edit_args(const Ints &ids, const Ints &counts) {
    auto a = sized<Args>();
    a.n_entries = static_cast<std::uint32_t>(ids.size());
    a.seq_ids = ids.data();
    a.n_tokens = counts.data();
    return a;
}

using Indices = std::vector<std::uint64_t>;

/** Arguments of pin and evict_range. */
template <class Args>
Args range_args(const Ints &ids, const Indices &first, const Ints &counts) {
    auto a = edit_args<Args>(ids, counts);
    a.first = first.data();
    return a;
}

/** Arguments of reset (start positions 0) and abort_step. */
template <class Args>
Args sequence_args(const Ints &ids) {
    auto a = sized<Args>();
    a.n_entries = static_cast<std::uint32_t>(ids.size());
    a.seq_ids = ids.data();
    return a;
}

inline skc_fork_args fork_args(const Ints &src, const Ints &dst) {
    auto a = sized<skc_fork_args>();
    a.n_entries = static_cast<std::uint32_t>(src.size());
    a.src_seq_ids = src.data();
    a.dst_seq_ids = dst.data();
    return a;
}

/** Arguments of a call over a ragged batch, without tensors. */
template <class Args>
Args batch_args(std::uint32_t layer, const Ints &ids, const Ints &counts) {
    auto a = edit_args<Args>(ids, counts);
    a.layer = layer;
    return a;
}

/** Address of the elements; not NULL for a tensor without rows, since NULL is rejected. */
template <class V>
auto *address(V &x) {
    static float nothing;
    return x.empty() ? static_cast<decltype(x.data())>(&nothing) : x.data();
}

template <class Args>
void set_kv(Args &a, const Rows &rows) {
    a.k = address(rows.k);
    a.v = address(rows.v);
}

template <class Args>
void set_results(Args &a, Results &results) {
    a.out = address(results.out);
    a.lse = address(results.lse);
}

template <class Args>
void set_query(Args &a, const Rows &rows, Results &results) {
    a.q = address(rows.q);
    set_results(a, results);
}

inline skc_append_kv_args append_args(std::uint32_t layer, const Ints &ids, const Ints &counts, const Rows &rows) {
    auto a = batch_args<skc_append_kv_args>(layer, ids, counts);
    set_kv(a, rows);
    return a;
}

inline skc_attend_args attend_args(std::uint32_t layer, const Ints &ids, const Ints &counts, const Rows &rows,
                                   Results &results) {
    auto a = batch_args<skc_attend_args>(layer, ids, counts);
    set_query(a, rows, results);
    return a;
}

inline skc_step_args step_args(std::uint32_t layer, const Ints &ids, const Ints &counts, const Rows &rows,
                               Results &results) {
    auto a = batch_args<skc_step_args>(layer, ids, counts);
    set_kv(a, rows);
    set_query(a, rows, results);
    return a;
}

/** skc_step of a batch in one layer; expects success. */
inline Results step(skc_cache *cache, const Rows &rows, std::uint32_t layer, const Ints &ids, const Ints &counts) {
    Results results = Results::of(rows.n());
    const auto a = step_args(layer, ids, counts, rows, results);
    EXPECT_OK(skc_step(cache, &a));
    return results;
}

/** The same with all rows for one sequence. */
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

/** skc_evict or skc_rewind of one sequence. */
template <class Args>
skc_status edit(skc_status (*call)(skc_cache *, const Args *), skc_cache *cache, std::int32_t n, std::int32_t seq = 0) {
    const Ints ids{seq}, counts{n};
    const auto a = edit_args<Args>(ids, counts);
    return call(cache, &a);
}

/** skc_pin or skc_evict_range of one sequence. */
template <class Args>
skc_status edit_range(skc_status (*call)(skc_cache *, const Args *), skc_cache *cache, std::uint64_t first,
                      std::int32_t n, std::int32_t seq = 0) {
    const Ints ids{seq}, counts{n};
    const Indices firsts{first};
    const auto a = range_args<Args>(ids, firsts, counts);
    return call(cache, &a);
}

inline skc_status reset(skc_cache *cache, std::int32_t seq = 0, std::uint64_t start = 0) {
    const Ints ids{seq};
    auto a = sequence_args<skc_reset_args>(ids);
    a.start_positions = &start;
    return skc_reset(cache, &a);
}

inline skc_status fork(skc_cache *cache, std::int32_t src, std::int32_t dst) {
    const Ints srcs{src}, dsts{dst};
    const auto a = fork_args(srcs, dsts);
    return skc_fork(cache, &a);
}

inline skc_save_sequence_args save_args(std::int32_t seq, std::vector<std::uint8_t> &to,
                                        const std::uint8_t *tag = nullptr) {
    auto a = sized<skc_save_sequence_args>();
    a.seq_id = seq;
    a.data = to.data();
    a.n_bytes = to.size();
    a.host_tag = tag;
    return a;
}

inline std::size_t snapshot_bytes(skc_cache *cache, std::int32_t seq = 0) {
    std::vector<std::uint8_t> none;
    const auto a = save_args(seq, none);
    std::uint64_t bytes = 0;
    EXPECT_OK(skc_snapshot_bytes(cache, &a, &bytes));
    return static_cast<std::size_t>(bytes);
}

/** skc_save_sequence; expects success. */
inline std::vector<std::uint8_t> save(skc_cache *cache, std::int32_t seq = 0, const std::uint8_t *tag = nullptr) {
    std::vector<std::uint8_t> snapshot(snapshot_bytes(cache, seq));
    const auto a = save_args(seq, snapshot, tag);
    std::uint64_t n_written = 0;
    EXPECT_OK(skc_save_sequence(cache, &a, &n_written));
    EXPECT_EQ(n_written, snapshot.size());
    return snapshot;
}

inline skc_load_sequence_args load_args(std::int32_t seq, const std::vector<std::uint8_t> &snapshot,
                                        const std::uint8_t *tag = nullptr) {
    auto a = sized<skc_load_sequence_args>();
    a.seq_id = seq;
    a.data = snapshot.data();
    a.n_bytes = snapshot.size();
    a.host_tag = tag;
    return a;
}

inline skc_status load(skc_cache *cache, const std::vector<std::uint8_t> &snapshot, std::int32_t seq = 0,
                       const std::uint8_t *tag = nullptr) {
    const auto a = load_args(seq, snapshot, tag);
    return skc_load_sequence(cache, &a);
}

inline skc_copy_sequence_args copy_args(skc_cache *source, std::int32_t src, std::int32_t dst) {
    auto a = sized<skc_copy_sequence_args>();
    a.src_cache = source;
    a.src_seq_id = src;
    a.dst_seq_id = dst;
    return a;
}

/** skc_abort_step of all sequences. */
inline skc_status abort_step(skc_cache *cache) {
    const auto a = sized<skc_abort_step_args>();
    return skc_abort_step(cache, &a);
}

}  // namespace host
