// Evict, rewind, reset, fork, and recovery from a step that failed between layers.
#include "support/host.hpp"

namespace {

using host::Ints;
using host::Results;
using host::Rows;

constexpr std::uint32_t LAYERS = 3;

/** skc_step of tokens in all layers; the results of all of them. */
Results forward(skc_cache *cache, const Rows &rows, std::int32_t seq = 0) {
    Results all;
    for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
        all.add(host::step(cache, rows, layer, seq));
    }
    return all;
}

class Edits : public testing::Test {
protected:
    sinkcache::Cache owner{host::config(4, LAYERS)}, twin_owner{host::config(4, LAYERS)};
    skc_cache *cache = owner.handle(), *twin = twin_owner.handle();
};

TEST_F(Edits, RejectedDraftsLeaveNoTrace) {
    for (std::uint32_t i = 0; i < 30; i++) {
        const Rows tokens = host::rows(1 + i % 3, i);
        EXPECT_EQ(forward(cache, tokens), forward(twin, tokens));
        forward(cache, host::rows(4, 1000 + i));
        ASSERT_OK(host::edit(skc_rewind, cache, 4));
        EXPECT_EQ(host::info(cache).length_max, host::info(twin).length_max);
        EXPECT_EQ(host::info(cache).cached_tokens, host::info(twin).cached_tokens);
    }
}

TEST_F(Edits, RewindSaysHowFar) {
    forward(cache, host::rows(30, 1));
    for (const std::uint64_t want : {4, 3, 2, 1, 0}) {
        EXPECT_EQ(host::info(cache).rewindable, want);
        EXPECT_EQ(host::edit(skc_rewind, cache, static_cast<std::int32_t>(want) + 1), SKC_STATUS_TOKENS_GONE);
        EXPECT_EQ(host::edit(skc_rewind, cache, want ? 1 : 0), SKC_STATUS_OK);
    }
    EXPECT_EQ(host::info(cache).length_max, 26u);
}

TEST_F(Edits, EvictIsPermanent) {
    forward(cache, host::rows(20, 1));
    ASSERT_OK(host::edit(skc_evict, cache, 9));
    const auto i = host::info(cache);
    EXPECT_EQ(i.cached_tokens, host::SINKS + 0u);
    EXPECT_EQ(i.evicted_tokens, 17u);
    EXPECT_EQ(i.room, host::WINDOW + 0u);
    EXPECT_EQ(i.rewindable, 0u);
    EXPECT_REJECTED(host::edit(skc_rewind, cache, 1), SKC_STATUS_TOKENS_GONE, "after the last edit");
    // Evicted tokens, the newest one included, can no longer be attended to.
    Results results = Results::of(1);
    const Rows rows = host::rows(1, 2);
    const Ints seq{0}, one{1};
    const auto a = host::attend_args(0, seq, one, rows, results);
    EXPECT_REJECTED(skc_attend(cache, &a), SKC_STATUS_OUT_OF_RANGE, "allows 0");
    EXPECT_TRUE(forward(cache, rows).finite());
}

TEST_F(Edits, ResetIsANewStream) {
    const Rows rows = host::rows(40, 1);
    const Results want = forward(twin, rows);
    forward(cache, host::rows(33, 2));
    ASSERT_OK(host::edit(skc_evict, cache, 3));
    ASSERT_OK(host::reset(cache));
    EXPECT_EQ(forward(cache, rows), want);
    ASSERT_OK(host::reset(cache, 0, 1ull << 33));
    EXPECT_EQ(host::info(cache).start_position, 1ull << 33);
    // NULL start positions are zeros.
    const Ints all{0, -1, 2};
    const auto a = host::sequence_args<skc_reset_args>(all);
    ASSERT_OK(skc_reset(cache, &a));
    EXPECT_EQ(host::info(cache).start_position, 0u);
}

TEST_F(Edits, ForksAreIndependent) {
    for (std::size_t n : {2u, 7u, 40u}) {
        ASSERT_OK(host::reset(cache));
        ASSERT_OK(host::reset(twin));
        forward(cache, host::rows(n, 1));
        forward(twin, host::rows(n, 1));
        const Ints src{0, -1, 0}, dst{1, 2, 3};
        const auto a = host::fork_args(src, dst);
        ASSERT_OK(skc_fork(cache, &a));
        for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
            EXPECT_TRUE(host::operator==(host::info(cache, layer, 0), host::info(cache, layer, 3)));
        }
        // Changes of the first fork do not affect the source or the other fork.
        forward(cache, host::rows(25, 2), 1);
        ASSERT_OK(host::edit(skc_evict, cache, 3, 1));
        const Rows next = host::rows(10, 3);
        const Results want = forward(twin, next);
        EXPECT_EQ(forward(cache, next, 3), want);
        EXPECT_EQ(forward(cache, next, 0), want);
        EXPECT_EQ(host::info(cache, 0, 2).length_max, 0u);
    }
}

// A fork copies the evicted tokens that a rewind can restore.
TEST_F(Edits, ForksRewindLikeTheirSource) {
    const Rows rows = host::rows(40, 1), next = host::rows(5, 2);
    forward(cache, rows);
    ASSERT_OK(host::fork(cache, 0, 1));
    ASSERT_OK(host::edit(skc_rewind, cache, 4, 1));
    forward(twin, rows.slice(0, 36));
    EXPECT_EQ(forward(cache, next, 1), forward(twin, next));
}

TEST_F(Edits, AStepThatFailsBetweenLayers) {
    forward(cache, host::rows(30, 1));
    forward(twin, host::rows(30, 1));
    const Rows rows = host::rows(3, 2);
    host::step(cache, rows, 0);
    const auto i = host::info(cache);
    EXPECT_EQ(i.length_min, 30u);
    EXPECT_EQ(i.length_max, 33u);
    EXPECT_REJECTED(host::edit(skc_evict, cache, 1), SKC_STATUS_LAYERS_OUT_OF_STEP, "33");
    EXPECT_REJECTED(host::edit(skc_rewind, cache, 1), SKC_STATUS_LAYERS_OUT_OF_STEP, "33");
    EXPECT_REJECTED(host::fork(cache, 0, 1), SKC_STATUS_LAYERS_OUT_OF_STEP, "33");
    EXPECT_OK(host::fork(cache, 1, 2));
    ASSERT_OK(host::abort_step(cache));
    EXPECT_EQ(host::info(cache).length_max, 30u);
    EXPECT_EQ(forward(cache, rows), forward(twin, rows));
    // Reset also brings the layers to one length.
    host::step(cache, rows, 1);
    ASSERT_OK(host::reset(cache));
    EXPECT_EQ(host::info(cache).length_max, 0u);
}

TEST_F(Edits, AbortOfSomeSequencesOnly) {
    const Rows rows = host::rows(2, 1);
    host::step(cache, rows, 0, 0);
    host::step(cache, rows, 0, 1);
    const Ints one{1};
    const auto a = host::sequence_args<skc_abort_step_args>(one);
    ASSERT_OK(skc_abort_step(cache, &a));
    EXPECT_EQ(host::info(cache, 0, 0).length_max, 2u);
    EXPECT_EQ(host::info(cache, 0, 1).length_max, 0u);
}

// An empty list that is not NULL means no sequences, not all.
TEST_F(Edits, AbortOfNoSequences) {
    host::step(cache, host::rows(2, 1), 0, 0);
    const std::int32_t unread = 0;
    auto a = host::sized<skc_abort_step_args>();
    a.seq_ids = &unread;
    ASSERT_OK(skc_abort_step(cache, &a));
    EXPECT_EQ(host::info(cache).length_max, 2u);
    ASSERT_OK(host::abort_step(cache));
    EXPECT_EQ(host::info(cache).length_max, 0u);
}

TEST_F(Edits, AbortWhereTokensAreGone) {
    forward(cache, host::rows(30, 1));
    host::step(cache, host::rows(25, 2), 0);
    EXPECT_REJECTED(host::abort_step(cache), SKC_STATUS_TOKENS_GONE, "layer 0");
    EXPECT_EQ(host::info(cache).length_max, 55u);
    ASSERT_OK(host::reset(cache));
    EXPECT_TRUE(forward(cache, host::rows(30, 1)).finite());
}

TEST_F(Edits, SeqInfoFollowsEveryToken) {
    ASSERT_OK(host::reset(cache, 0, 7));
    for (std::uint64_t n = 0; n < 25; n++) {
        const auto i = host::info(cache);
        const std::uint64_t most = host::SINKS + host::WINDOW;
        EXPECT_EQ(i.length_min, n);
        EXPECT_EQ(i.length_max, n);
        EXPECT_EQ(i.start_position, 7u);
        EXPECT_EQ(i.cached_tokens, std::min(n, most));
        EXPECT_EQ(i.evicted_tokens, n - i.cached_tokens);
        EXPECT_EQ(i.room, most - i.cached_tokens);
        EXPECT_EQ(host::info(cache, 1).room, most + 5 - std::min(n, most + 5));
        forward(cache, host::rows(1, static_cast<std::uint32_t>(n)));
    }
}

// An entry with id SKC_PADDING or with count 0 is padding: nothing of it is checked, in any call.
TEST_F(Edits, NothingOfAPaddingEntryIsChecked) {
    const Rows rows = host::rows(12, 1);
    const Ints ids{0, 0, 99, -5, SKC_PADDING}, counts{8, 0, 0, 0, 4};
    Results got = Results::of(12, -7.0f);
    auto step = host::step_args(0, ids, counts, rows, got);
    auto append = host::append_args(1, ids, counts, rows);
    auto attend = host::attend_args(1, ids, counts, rows, got);
    EXPECT_OK(skc_append_kv(cache, &append));
    EXPECT_OK(skc_attend(cache, &attend));
    EXPECT_OK(skc_step(cache, &step));
    step.layer = 2;
    EXPECT_OK(skc_step(cache, &step));
    const Ints few{2, 0, 0, 0, 4};
    const auto rewind = host::edit_args<skc_rewind_args>(ids, few);
    EXPECT_OK(skc_rewind(cache, &rewind));
    const auto evict = host::edit_args<skc_evict_args>(ids, few);
    EXPECT_OK(skc_evict(cache, &evict));
    EXPECT_EQ(host::info(cache).length_max, 6u);
    EXPECT_EQ(host::info(cache).evicted_tokens, 2u);
    const Ints from{0, SKC_PADDING, 99}, to{1, 99, SKC_PADDING};
    const auto fork = host::fork_args(from, to);
    EXPECT_OK(skc_fork(cache, &fork));
    EXPECT_EQ(host::info(cache, 0, 1).length_max, 6u);
    // What is no padding is checked.
    const Ints twice{0, 0}, once{1, 1};
    const auto duplicate = host::edit_args<skc_evict_args>(twice, once);
    EXPECT_REJECTED(skc_evict(cache, &duplicate), SKC_STATUS_INVALID_ARGUMENT, "once");
}

}  // namespace
