// Every way in which a call can be rejected: the status, a text that names the value, and no effect.
#include "support/rejections.hpp"

namespace {

using host::Ints;

/** Applies a change to the arguments of every call over a ragged batch: each is rejected. */
#define REJECTED_BY_ALL(change, status, text)                                                                          \
    do {                                                                                                               \
        auto append_ = append();                                                                                       \
        auto attend_ = attend();                                                                                       \
        auto step_ = step();                                                                                           \
        change(append_);                                                                                               \
        change(attend_);                                                                                               \
        change(step_);                                                                                                 \
        EXPECT_REJECTED(skc_append_kv(cache(), &append_), status, text);                                               \
        EXPECT_REJECTED(skc_attend(cache(), &attend_), status, text);                                                  \
        EXPECT_REJECTED(skc_step(cache(), &step_), status, text);                                                      \
        EXPECT_REJECTED(skc_step_part(cache(), &step_, 0, 1), status, text);                                           \
    } while (0)

/** Assigns to a member of the arguments of skc_step: it is rejected. */
#define REJECTED_STEP(assignment, status, text)                                                                        \
    do {                                                                                                               \
        auto step_ = step();                                                                                           \
        step_.assignment;                                                                                              \
        EXPECT_REJECTED(skc_step(cache(), &step_), status, text);                                                      \
        EXPECT_REJECTED(skc_step_part(cache(), &step_, 0, 1), status, text);                                           \
    } while (0)

/** Assigns to a member that the arguments of skc_append_kv and skc_step have: both are rejected. */
#define REJECTED_KV(assignment, status, text)                                                                          \
    do {                                                                                                               \
        auto append_ = append();                                                                                       \
        append_.assignment;                                                                                            \
        EXPECT_REJECTED(skc_append_kv(cache(), &append_), status, text);                                               \
        REJECTED_STEP(assignment, status, text);                                                                       \
    } while (0)

/** The same for skc_attend and skc_step. */
#define REJECTED_Q(assignment, status, text)                                                                           \
    do {                                                                                                               \
        auto attend_ = attend();                                                                                       \
        attend_.assignment;                                                                                            \
        EXPECT_REJECTED(skc_attend(cache(), &attend_), status, text);                                                  \
        REJECTED_STEP(assignment, status, text);                                                                       \
    } while (0)

TEST_F(RejectedCalls, Layer) {
    REJECTED_BY_ALL([](auto &a) { a.layer = 2; }, SKC_STATUS_OUT_OF_RANGE, "layer is 2");
    REJECTED_BY_ALL([](auto &a) { a.layer = UINT32_MAX; }, SKC_STATUS_OUT_OF_RANGE, "layer is 4294967295");
}

TEST_F(RejectedCalls, SequenceIds) {
    const Ints beyond{0, 3}, negative{0, -2}, lowest{0, INT32_MIN}, highest{0, INT32_MAX}, twice{1, 1};
    REJECTED_BY_ALL([&](auto &a) { a.seq_ids = beyond.data(); }, SKC_STATUS_OUT_OF_RANGE, "seq_ids[1] is 3");
    REJECTED_BY_ALL([&](auto &a) { a.seq_ids = negative.data(); }, SKC_STATUS_OUT_OF_RANGE, "seq_ids[1] is -2");
    REJECTED_BY_ALL([&](auto &a) { a.seq_ids = lowest.data(); }, SKC_STATUS_OUT_OF_RANGE, "-2147483648");
    REJECTED_BY_ALL([&](auto &a) { a.seq_ids = highest.data(); }, SKC_STATUS_OUT_OF_RANGE, "2147483647");
    const Ints one_each{1, 1};
    const auto duplicate = [&](auto &a) {
        a.seq_ids = twice.data();
        a.n_tokens = one_each.data();
    };
    REJECTED_BY_ALL(duplicate, SKC_STATUS_INVALID_ARGUMENT, "seq_ids[1] is 1");
}

TEST_F(RejectedCalls, TokenCounts) {
    const Ints negative{5, -1}, many{9, 3}, huge{INT32_MAX, 1};
    REJECTED_BY_ALL([&](auto &a) { a.n_tokens = negative.data(); }, SKC_STATUS_INVALID_ARGUMENT, "n_tokens[1] is -1");
    auto a = append();
    a.n_tokens = many.data();
    EXPECT_REJECTED(skc_append_kv(cache(), &a), SKC_STATUS_CHUNK_TOO_LONG, "n_tokens[0] is 9");
    a.n_tokens = huge.data();
    EXPECT_REJECTED(skc_append_kv(cache(), &a), SKC_STATUS_CHUNK_TOO_LONG, "2147483647");
    const Ints more{7, 2};
    auto b = attend();
    b.n_tokens = more.data();
    EXPECT_REJECTED(skc_attend(cache(), &b), SKC_STATUS_OUT_OF_RANGE, "7 queries");
    b.n_tokens = huge.data();
    EXPECT_REJECTED(skc_attend(cache(), &b), SKC_STATUS_OUT_OF_RANGE, "2147483647 queries");
    const Ints empty_seq{2}, one{1};
    b.n_entries = 1;
    b.seq_ids = empty_seq.data();
    b.n_tokens = one.data();
    EXPECT_REJECTED(skc_attend(cache(), &b), SKC_STATUS_OUT_OF_RANGE, "sequence 2: 1 queries");
}

TEST_F(RejectedCalls, NullPointers) {
    REJECTED_BY_ALL([](auto &a) { a.seq_ids = nullptr; }, SKC_STATUS_NULL_POINTER, "seq_ids is NULL");
    REJECTED_BY_ALL([](auto &a) { a.n_tokens = nullptr; }, SKC_STATUS_NULL_POINTER, "n_tokens is NULL");
    REJECTED_KV(k = nullptr, SKC_STATUS_NULL_POINTER, "k is NULL");
    REJECTED_KV(v = nullptr, SKC_STATUS_NULL_POINTER, "v is NULL");
    REJECTED_Q(q = nullptr, SKC_STATUS_NULL_POINTER, "q is NULL");
    REJECTED_Q(out = nullptr, SKC_STATUS_NULL_POINTER, "out is NULL");
}

template <class T>
T *misaligned(const T *p) {
    return reinterpret_cast<T *>(reinterpret_cast<std::uintptr_t>(p) + 1);
}

TEST_F(RejectedCalls, MisalignedPointers) {
    REJECTED_BY_ALL([](auto &a) { a.seq_ids = misaligned(a.seq_ids); }, SKC_STATUS_INVALID_ARGUMENT, "seq_ids");
    REJECTED_BY_ALL([](auto &a) { a.n_tokens = misaligned(a.n_tokens); }, SKC_STATUS_INVALID_ARGUMENT, "n_tokens");
    REJECTED_KV(k = misaligned(rows.k.data()), SKC_STATUS_INVALID_ARGUMENT, "not aligned");
    REJECTED_KV(v = misaligned(rows.v.data()), SKC_STATUS_INVALID_ARGUMENT, "not aligned");
    REJECTED_Q(q = misaligned(rows.q.data()), SKC_STATUS_INVALID_ARGUMENT, "not aligned");
    REJECTED_Q(out = misaligned(results.out.data()), SKC_STATUS_INVALID_ARGUMENT, "not aligned");
    REJECTED_Q(lse = misaligned(results.lse.data()), SKC_STATUS_INVALID_ARGUMENT, "lse");
    auto args = step();
    EXPECT_REJECTED(skc_step(cache(), misaligned(&args)), SKC_STATUS_INVALID_ARGUMENT, "skc_step_args");
    auto info = host::sized<skc_sequence_info>();
    EXPECT_REJECTED(skc_seq_info(cache(), 0, 0, misaligned(&info)), SKC_STATUS_INVALID_ARGUMENT, "skc_sequence_info");
}

TEST_F(RejectedCalls, StridesOutsideTheAddressSpace) {
    for (std::int64_t stride : {INT64_MAX, INT64_MIN, INT64_MAX / 4, INT64_MIN / 4}) {
        const char *text = "address space";
        REJECTED_KV(k_token_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
        REJECTED_KV(k_head_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
        REJECTED_KV(v_token_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
        REJECTED_KV(v_head_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
        REJECTED_Q(q_token_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
        REJECTED_Q(q_head_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
        REJECTED_Q(out_token_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
        REJECTED_Q(out_head_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
        REJECTED_Q(lse_token_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
        REJECTED_Q(lse_head_stride = stride, SKC_STATUS_INVALID_ARGUMENT, text);
    }
}

TEST_F(RejectedCalls, TeamNumbers) {
    const auto a = step();
    EXPECT_REJECTED(skc_step_part(cache(), &a, 0, 0), SKC_STATUS_INVALID_ARGUMENT, "nth 0");
    EXPECT_REJECTED(skc_step_part(cache(), &a, 0, 2), SKC_STATUS_INVALID_ARGUMENT, "nth 2");
    EXPECT_REJECTED(skc_step_part(cache(), &a, 1, 1), SKC_STATUS_INVALID_ARGUMENT, "ith is 1");
    EXPECT_REJECTED(skc_step_part(cache(), &a, UINT32_MAX, UINT32_MAX), SKC_STATUS_INVALID_ARGUMENT, "4294967295");
}

TEST_F(RejectedCalls, Edits) {
    EXPECT_REJECTED(host::edit(skc_evict, cache(), 10), SKC_STATUS_OUT_OF_RANGE, "n_tokens[0] is 10");
    EXPECT_REJECTED(host::edit(skc_evict, cache(), INT32_MAX), SKC_STATUS_OUT_OF_RANGE, "holds 9");
    EXPECT_REJECTED(host::edit(skc_evict, cache(), 1, 1), SKC_STATUS_OUT_OF_RANGE, "holds 0");
    EXPECT_REJECTED(host::edit(skc_evict, cache(), -1), SKC_STATUS_INVALID_ARGUMENT, "n_tokens[0] is -1");
    EXPECT_REJECTED(host::edit(skc_rewind, cache(), INT32_MIN), SKC_STATUS_INVALID_ARGUMENT, "-2147483648");
    EXPECT_REJECTED(host::edit(skc_rewind, cache(), 5), SKC_STATUS_TOKENS_GONE, "at most 4");
    EXPECT_REJECTED(host::edit(skc_rewind, cache(), 27), SKC_STATUS_OUT_OF_RANGE, "holds 26");
    EXPECT_REJECTED(host::edit(skc_rewind, cache(), 1, 9), SKC_STATUS_OUT_OF_RANGE, "seq_ids[0] is 9");
    EXPECT_REJECTED(host::reset(cache(), 3), SKC_STATUS_OUT_OF_RANGE, "seq_ids[0] is 3");
    EXPECT_REJECTED(host::fork(cache(), 0, 3), SKC_STATUS_OUT_OF_RANGE, "dst_seq_ids[0] is 3");
    EXPECT_REJECTED(host::fork(cache(), 3, 0), SKC_STATUS_OUT_OF_RANGE, "src_seq_ids[0] is 3");
    EXPECT_REJECTED(host::fork(cache(), 0, 0), SKC_STATUS_INVALID_ARGUMENT, "destination");
}

TEST_F(RejectedCalls, RangesWithoutRoomForThem) {
    EXPECT_REJECTED(host::edit_range(skc_pin, cache(), 20, 1), SKC_STATUS_NO_ROOM, "max_pinned is 0");
    EXPECT_REJECTED(host::edit_range(skc_evict_range, cache(), 20, 1), SKC_STATUS_NO_ROOM, "max_segments is 0");
    // With count 0 an entry is padding, whatever its first token is.
    EXPECT_OK(host::edit_range(skc_pin, cache(), UINT64_MAX, 0, 99));
    EXPECT_OK(host::edit_range(skc_evict_range, cache(), UINT64_MAX, 0, 99));
}

/** The same with room for 4 pinned tokens (in layer 0) and 2 segments. */
class RejectedRanges : public RejectedCalls {
protected:
    RejectedRanges() : RejectedCalls(4, 2) {}
    void both(std::uint64_t first, std::int32_t n, std::int32_t seq, skc_status status, const char *text) {
        EXPECT_REJECTED(host::edit_range(skc_pin, cache(), first, n, seq), status, text);
        EXPECT_REJECTED(host::edit_range(skc_evict_range, cache(), first, n, seq), status, text);
    }
};

TEST_F(RejectedRanges, Arguments) {
    both(20, -1, 0, SKC_STATUS_INVALID_ARGUMENT, "n_tokens[0] is -1");
    both(20, INT32_MIN, 0, SKC_STATUS_INVALID_ARGUMENT, "-2147483648");
    both(20, 1, 3, SKC_STATUS_OUT_OF_RANGE, "seq_ids[0] is 3");
    both(20, 1, -2, SKC_STATUS_OUT_OF_RANGE, "seq_ids[0] is -2");
}

// Sequence 0 has 26 tokens: layer 0 holds 0 to 2 and from 17 on.
TEST_F(RejectedRanges, EndsBeyondTheSequence) {
    both(26, 1, 0, SKC_STATUS_OUT_OF_RANGE, "first[0] is 26");
    both(20, 7, 0, SKC_STATUS_OUT_OF_RANGE, "has 26 tokens");
    both(25, INT32_MAX, 0, SKC_STATUS_OUT_OF_RANGE, "n_tokens[0] is 2147483647");
    both(0, 1, 2, SKC_STATUS_OUT_OF_RANGE, "has 0 tokens");
    const host::Indices far{UINT64_MAX, UINT64_MAX - 1, UINT64_MAX - 25, 1ull << 63, 1ull << 32};
    for (const std::uint64_t first : far) {
        both(first, 1, 0, SKC_STATUS_OUT_OF_RANGE, "first[0] is");
        both(first, 26, 0, SKC_STATUS_OUT_OF_RANGE, "first[0] is");
        both(first, INT32_MAX, 0, SKC_STATUS_OUT_OF_RANGE, "first[0] is");
    }
}

TEST_F(RejectedRanges, WhatIsHeldAndWhatThereIsRoomFor) {
    EXPECT_REJECTED(host::edit_range(skc_evict_range, cache(), 2, 1), SKC_STATUS_OUT_OF_RANGE, "sinks");
    EXPECT_REJECTED(host::edit_range(skc_evict_range, cache(), 0, 26), SKC_STATUS_OUT_OF_RANGE, "sinks");
    EXPECT_REJECTED(host::edit_range(skc_pin, cache(), 16, 2), SKC_STATUS_TOKENS_GONE, "layer 0");
    EXPECT_REJECTED(host::edit_range(skc_pin, cache(), 17, 5), SKC_STATUS_NO_ROOM, "max_pinned is 4");
    // Two segments of sequence 1 in layer 0, and then no room for a third.
    for (skc_cache *c : {cache(), twin()}) {
        for (const std::uint32_t layer : {0u, 1u}) {
            host::step(c, host::rows(7, 7), layer, 1);
        }
        EXPECT_OK(host::edit_range(skc_pin, c, 0, 5, 1));
        EXPECT_OK(host::edit_range(skc_evict_range, c, 6, 1, 1));
        // Sinks, and what is pinned, are no new segments.
        EXPECT_OK(host::edit_range(skc_pin, c, 1, 4, 1));
        for (const std::uint32_t layer : {0u, 1u}) {
            host::step(c, host::rows(2, 9), layer, 1);
        }
    }
    EXPECT_REJECTED(host::edit_range(skc_evict_range, cache(), 8, 1, 1), SKC_STATUS_NO_ROOM, "max_segments is 2");
    EXPECT_REJECTED(host::edit_range(skc_pin, cache(), 8, 1, 1), SKC_STATUS_NO_ROOM, "max_segments is 2");
}

TEST_F(RejectedRanges, LayersOutOfStep) {
    for (skc_cache *c : {cache(), twin()}) {
        host::step(c, host::rows(2, 7), 0, 1);
    }
    both(3, 1, 1, SKC_STATUS_LAYERS_OUT_OF_STEP, "sequence 1 has 5 tokens in layer 0");
    ASSERT_OK(host::abort_step(cache()));
    ASSERT_OK(host::abort_step(twin()));
    for (skc_cache *c : {cache(), twin()}) {
        for (const std::uint32_t layer : {0u, 1u}) {
            host::step(c, host::rows(2, 7), layer, 1);
        }
    }
}

// SKC_IN_STEP: a pass in order is taken; what does not go on with it is not.
TEST_F(RejectedCalls, LayersOutOfStep) {
    REJECTED_KV(flags = SKC_IN_STEP | SKC_ON_DEVICE, SKC_STATUS_INVALID_ARGUMENT, "SKC_IN_STEP");
    auto attended = attend();
    attended.flags = SKC_IN_STEP;
    EXPECT_REJECTED(skc_attend(cache(), &attended), SKC_STATUS_VERSION_MISMATCH, "flags is 0x2");
    for (const std::uint32_t layer : {0u, 1u}) {
        const auto out_of_step = [=](auto &a) { a.flags = SKC_IN_STEP, a.layer = 1 - layer; };
        auto appended = append();
        auto stepped = step();
        out_of_step(appended);
        out_of_step(stepped);
        EXPECT_REJECTED(skc_append_kv(cache(), &appended), SKC_STATUS_LAYERS_OUT_OF_STEP, "finish or abort");
        EXPECT_REJECTED(skc_step(cache(), &stepped), SKC_STATUS_LAYERS_OUT_OF_STEP, "finish or abort");
        EXPECT_REJECTED(skc_step_part(cache(), &stepped, 0, 1), SKC_STATUS_LAYERS_OUT_OF_STEP, "finish or abort");
        appended.layer = layer;
        for (skc_cache *c : {cache(), twin()}) {
            ASSERT_OK(skc_append_kv(c, &appended));
        }
    }
    // As many as TearDown asks for.
    for (const std::uint32_t layer : {0u, 1u}) {
        for (skc_cache *c : {cache(), twin()}) {
            host::step(c, host::rows(6, 8), layer, 0);
            host::step(c, host::rows(3, 9), layer, 1);
        }
    }
}

// One invalid entry in a batch of edits: none is done.
TEST_F(RejectedCalls, EditsOfABatchAreAllOrNothing) {
    const Ints seqs{0, 1}, counts_{1, 4}, twice{0, 0};
    const auto rewind = host::edit_args<skc_rewind_args>(seqs, counts_);
    EXPECT_REJECTED(skc_rewind(cache(), &rewind), SKC_STATUS_OUT_OF_RANGE, "n_tokens[1] is 4");
    auto evict = host::edit_args<skc_evict_args>(seqs, counts_);
    EXPECT_REJECTED(skc_evict(cache(), &evict), SKC_STATUS_OUT_OF_RANGE, "n_tokens[1] is 4");
    evict.seq_ids = twice.data();
    EXPECT_REJECTED(skc_evict(cache(), &evict), SKC_STATUS_INVALID_ARGUMENT, "seq_ids[1] is 0");
    const Ints beyond{0, 7};
    const auto reset = host::sequence_args<skc_reset_args>(beyond);
    EXPECT_REJECTED(skc_reset(cache(), &reset), SKC_STATUS_OUT_OF_RANGE, "seq_ids[1] is 7");
    const Ints src{0, 1}, dst{2, 2}, chain{2, 0};
    auto fork = host::fork_args(src, dst);
    EXPECT_REJECTED(skc_fork(cache(), &fork), SKC_STATUS_INVALID_ARGUMENT, "dst_seq_ids[1] is 2");
    fork.dst_seq_ids = chain.data();
    EXPECT_REJECTED(skc_fork(cache(), &fork), SKC_STATUS_INVALID_ARGUMENT, "sequence 0");
    auto abort = host::sequence_args<skc_abort_step_args>(beyond);
    EXPECT_REJECTED(skc_abort_step(cache(), &abort), SKC_STATUS_OUT_OF_RANGE, "seq_ids[1] is 7");
    abort.seq_ids = nullptr;
    EXPECT_REJECTED(skc_abort_step(cache(), &abort), SKC_STATUS_NULL_POINTER, "seq_ids is NULL");
    auto broken = evict;
    broken.seq_ids = nullptr;
    EXPECT_REJECTED(skc_evict(cache(), &broken), SKC_STATUS_NULL_POINTER, "seq_ids is NULL");
    broken = evict;
    broken.n_tokens = nullptr;
    EXPECT_REJECTED(skc_evict(cache(), &broken), SKC_STATUS_NULL_POINTER, "n_tokens is NULL");
    const host::Indices first{20, 0};
    const auto range = host::range_args<skc_pin_args>(seqs, first, counts_);
    auto no_range = range;
    no_range.first = nullptr;
    EXPECT_REJECTED(skc_pin(cache(), &no_range), SKC_STATUS_NULL_POINTER, "first is NULL");
    no_range.first = misaligned(range.first);
    EXPECT_REJECTED(skc_pin(cache(), &no_range), SKC_STATUS_INVALID_ARGUMENT, "first");
    no_range = range;
    no_range.n_tokens = nullptr;
    EXPECT_REJECTED(skc_pin(cache(), &no_range), SKC_STATUS_NULL_POINTER, "n_tokens is NULL");
}

TEST_F(RejectedRanges, ABatchIsAllOrNothing) {
    const Ints seqs{0, 1}, counts_{2, 1}, twice{0, 0};
    const host::Indices beyond{20, 3}, good{20, 2};
    auto pin = host::range_args<skc_pin_args>(seqs, beyond, counts_);
    EXPECT_REJECTED(skc_pin(cache(), &pin), SKC_STATUS_OUT_OF_RANGE, "first[1] is 3");
    auto evict = host::range_args<skc_evict_range_args>(seqs, good, counts_);
    EXPECT_REJECTED(skc_evict_range(cache(), &evict), SKC_STATUS_OUT_OF_RANGE, "first[1] is 2");
    pin.seq_ids = evict.seq_ids = twice.data();
    pin.first = good.data();
    EXPECT_REJECTED(skc_pin(cache(), &pin), SKC_STATUS_INVALID_ARGUMENT, "seq_ids[1] is 0");
    EXPECT_REJECTED(skc_evict_range(cache(), &evict), SKC_STATUS_INVALID_ARGUMENT, "seq_ids[1] is 0");
}

TEST_F(RejectedCalls, SeqInfo) {
    auto i = host::sized<skc_sequence_info>();
    i.room = 99;
    EXPECT_REJECTED(skc_seq_info(cache(), 2, 0, &i), SKC_STATUS_OUT_OF_RANGE, "layer is 2");
    EXPECT_REJECTED(skc_seq_info(cache(), 0, 3, &i), SKC_STATUS_OUT_OF_RANGE, "is 3");
    EXPECT_REJECTED(skc_seq_info(cache(), 0, -1, &i), SKC_STATUS_OUT_OF_RANGE, "is -1");
    EXPECT_EQ(i.room, 99u);
}

TEST_F(RejectedCalls, KernelChoice) {
    auto i = host::sized<skc_kernel_info>();
    i.n_splits = 99;
    EXPECT_REJECTED(skc_kernel_choice(cache(), 2, SKC_CALL_STEP, 1, 1, &i), SKC_STATUS_OUT_OF_RANGE, "layer is 2");
    EXPECT_REJECTED(skc_kernel_choice(cache(), 0, SKC_CALL_EVICT, 1, 1, &i), SKC_STATUS_INVALID_ARGUMENT, "call is 3");
    EXPECT_REJECTED(skc_kernel_choice(cache(), 0, SKC_CALL_STEP, 0, 1, &i), SKC_STATUS_OUT_OF_RANGE, "n_entries is 0");
    EXPECT_REJECTED(skc_kernel_choice(cache(), 0, SKC_CALL_ATTEND, 1, 0, &i), SKC_STATUS_OUT_OF_RANGE, "n_tokens is 0");
    EXPECT_REJECTED(skc_kernel_choice(nullptr, 0, SKC_CALL_STEP, 1, 1, &i), SKC_STATUS_INVALID_HANDLE, "");
    EXPECT_EQ(i.n_splits, 99u);
    ASSERT_OK(skc_kernel_choice(cache(), 0, SKC_CALL_STEP, 1, 1, &i));
    EXPECT_EQ(std::string(i.kernel).substr(0, 11), "cpu_decode_");
    EXPECT_EQ(i.n_splits, 0u);
    ASSERT_OK(skc_kernel_choice(cache(), 0, SKC_CALL_APPEND, 1, 1, &i));
    EXPECT_EQ(std::string(i.kernel).substr(0, 11), "cpu_append_");
}

// A call that succeeds leaves the error text as it is.
TEST_F(RejectedCalls, SuccessKeepsTheText) {
    EXPECT_REJECTED(host::reset(cache(), 77), SKC_STATUS_OUT_OF_RANGE, "77");
    host::info(cache());
    EXPECT_NE(std::string(skc_last_error()).find("77"), std::string::npos);
}

// Stream positions end at 2^64 - 1.
TEST(EndOfPositions, IsReachedAndNotPassed) {
    sinkcache::Cache cache(host::config().types(SKC_DTYPE_F32, SKC_DTYPE_F32));
    sinkcache::Cache zero(host::config().types(SKC_DTYPE_F32, SKC_DTYPE_F32));
    ASSERT_OK(host::reset(cache.handle(), 0, UINT64_MAX - 20));
    const host::Rows rows = host::rows(20, 1);
    const auto got = host::step(cache.handle(), rows), want = host::step(zero.handle(), rows);
    for (std::size_t i = 0; i < want.out.size(); i++) {
        ASSERT_NEAR(got.out[i], want.out[i], 1e-5) << i;
    }
    const host::Rows more = host::rows(1, 2);
    host::Results results = host::Results::of(1);
    const Ints seq{0}, one{1}, huge{INT32_MAX};
    auto a = host::step_args(0, seq, one, more, results);
    EXPECT_REJECTED(skc_step(cache.handle(), &a), SKC_STATUS_OUT_OF_RANGE, "18446744073709551615");
    a.n_tokens = huge.data();
    EXPECT_REJECTED(skc_step(cache.handle(), &a), SKC_STATUS_OUT_OF_RANGE, "18446744073709551615");
    EXPECT_EQ(host::info(cache.handle()).length_max, 20u);
    ASSERT_OK(host::reset(cache.handle(), 0, UINT64_MAX));
    EXPECT_REJECTED(skc_step(cache.handle(), &a), SKC_STATUS_OUT_OF_RANGE, "18446744073709551615");
}

// A wrong number of entries does not say how long the arrays are: it is rejected before they are read.
TEST_F(RejectedCalls, TooManyEntries) {
    for (const std::uint32_t n : {(1u << 24) + 1, UINT32_MAX}) {
        const auto many = [n](auto &a) { a.n_entries = n; };
        REJECTED_BY_ALL(many, SKC_STATUS_OUT_OF_RANGE, "n_entries is");
        auto evict = host::edit_args<skc_evict_args>(ids, counts);
        auto rewind = host::edit_args<skc_rewind_args>(ids, counts);
        auto reset = host::sequence_args<skc_reset_args>(ids);
        auto fork = host::fork_args(ids, counts);
        auto abort = host::sequence_args<skc_abort_step_args>(ids);
        const host::Indices first{0, 0};
        auto pin = host::range_args<skc_pin_args>(ids, first, counts);
        auto evict_range = host::range_args<skc_evict_range_args>(ids, first, counts);
        evict.n_entries = rewind.n_entries = reset.n_entries = fork.n_entries = abort.n_entries = n;
        pin.n_entries = evict_range.n_entries = n;
        EXPECT_REJECTED(skc_pin(cache(), &pin), SKC_STATUS_OUT_OF_RANGE, "n_entries is");
        EXPECT_REJECTED(skc_evict_range(cache(), &evict_range), SKC_STATUS_OUT_OF_RANGE, "n_entries is");
        EXPECT_REJECTED(skc_evict(cache(), &evict), SKC_STATUS_OUT_OF_RANGE, "n_entries is");
        EXPECT_REJECTED(skc_rewind(cache(), &rewind), SKC_STATUS_OUT_OF_RANGE, "n_entries is");
        EXPECT_REJECTED(skc_reset(cache(), &reset), SKC_STATUS_OUT_OF_RANGE, "n_entries is");
        EXPECT_REJECTED(skc_fork(cache(), &fork), SKC_STATUS_OUT_OF_RANGE, "n_entries is");
        EXPECT_REJECTED(skc_abort_step(cache(), &abort), SKC_STATUS_OUT_OF_RANGE, "n_entries is");
    }
}

}  // namespace
