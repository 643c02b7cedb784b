// Pins and evicted ranges.
#include "support/host.hpp"

namespace {

using host::Results;
using host::Rows;

constexpr std::uint32_t LAYERS = 3, PINNED = 8, SEGMENTS = 4;
/** Tokens that layer 0 and layer 1 hold at most, beside pins. */
constexpr std::uint64_t MOST = host::SINKS + host::WINDOW, MOST_1 = MOST + 5;

/** skc_step of tokens in all layers; the results of all of them. */
Results forward(skc_cache *cache, const Rows &rows, std::int32_t seq = 0) {
    Results all;
    for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
        all.add(host::step(cache, rows, layer, seq));
    }
    return all;
}

/** Stored in f32: results of two caches that hold the same tokens differ by the rounding of RoPE only. */
sinkcache::Config config(std::uint32_t max_pinned = PINNED, std::uint32_t max_segments = SEGMENTS) {
    return host::config(2, LAYERS, max_pinned, max_segments).types(SKC_DTYPE_F32, SKC_DTYPE_F32);
}

void expect_close(const Results &got, const Results &want) {
    ASSERT_EQ(got.out.size(), want.out.size());
    for (std::size_t i = 0; i < want.out.size(); i++) {
        ASSERT_NEAR(got.out[i], want.out[i], 2e-5) << "element " << i;
    }
    for (std::size_t i = 0; i < want.lse.size(); i++) {
        ASSERT_NEAR(got.lse[i], want.lse[i], 1e-4) << "lse " << i;
    }
}

class Ranges : public testing::Test {
protected:
    sinkcache::Cache owner{config()}, twin_owner{config()};
    skc_cache *cache = owner.handle(), *twin = twin_owner.handle();

    void expect_info(std::uint32_t layer, std::uint64_t cached, std::uint64_t pinned, std::uint64_t segments,
                     std::uint64_t counted, std::uint64_t room) {
        SCOPED_TRACE("layer " + std::to_string(layer));
        const auto i = host::info(cache, layer);
        EXPECT_EQ(i.cached_tokens, cached);
        EXPECT_EQ(i.evicted_tokens, i.length_max - cached);
        EXPECT_EQ(i.pinned_tokens, pinned);
        EXPECT_EQ(i.segments, segments);
        EXPECT_EQ(i.counted_segments, counted);
        EXPECT_EQ(i.room, room);
    }
};

TEST_F(Ranges, AreSeenInSeqInfo) {
    expect_info(0, 0, 0, 0, 0, MOST);
    forward(cache, host::rows(10, 1));
    ASSERT_OK(host::edit_range(skc_pin, cache, 4, 3));
    // 4 to 6 are pinned, 3 and 7 to 9 are the window.
    expect_info(0, 10, 3, 1, 1, host::WINDOW - 4);
    expect_info(1, 10, 0, 1, 0, MOST_1 - 10);
    forward(cache, host::rows(20, 2));
    expect_info(0, MOST + 3, 3, 3, 1, 0);
    expect_info(1, MOST_1, 0, 2, 0, 0);
    ASSERT_OK(host::edit_range(skc_evict_range, cache, 25, 2));
    expect_info(0, MOST + 1, 3, 4, 2, 2);
    expect_info(1, MOST_1 - 2, 0, 3, 1, 2);
    // Part of the pin goes: sinks, 4, 6, 21 to 24, 27 to 29.
    ASSERT_OK(host::edit_range(skc_evict_range, cache, 5, 1));
    expect_info(0, MOST, 2, 5, 3, 2);
    // Once the window has moved past a dropped range it does not count.
    forward(cache, host::rows(12, 3));
    expect_info(0, MOST + 2, 2, 4, 2, 0);
    EXPECT_EQ(host::info(cache).rewindable, 4u);
    ASSERT_OK(host::reset(cache));
    expect_info(0, 0, 0, 0, 0, MOST);
}

// A token's position is its rank among those held: the answer is that of a cache that never had the dropped tokens.
TEST_F(Ranges, ADroppedRangeIsAsIfNeverAppended) {
    const Rows prompt = host::rows(5, 1), thoughts = host::rows(3, 2), answer = host::rows(2, 3);
    Rows all = prompt, without = prompt;
    all.add(thoughts);
    all.add(answer);
    without.add(answer);
    forward(cache, all);
    ASSERT_OK(host::edit_range(skc_evict_range, cache, 5, 3));
    forward(twin, without);
    // Further than the window is long.
    for (std::uint32_t i = 0; i < 20; i++) {
        const Rows next = host::rows(1 + i % 3, 10 + i);
        expect_close(forward(cache, next), forward(twin, next));
    }
}

TEST_F(Ranges, APinBehindTheSinksIsMoreSinks) {
    auto more_sinks = config();
    std::vector<sinkcache::Layer> layers(LAYERS, sinkcache::Layer(host::SINKS + 4, host::WINDOW));
    layers[1] = sinkcache::Layer(host::SINKS, host::WINDOW + 5);
    layers[1].rope_style = SKC_ROPE_INTERLEAVED;
    sinkcache::Cache other(more_sinks.layers(layers));
    const Rows prompt = host::rows(8, 1);
    forward(cache, prompt);
    forward(other.handle(), prompt);
    ASSERT_OK(host::edit_range(skc_pin, cache, 0, 7));
    for (std::uint32_t i = 0; i < 40; i++) {
        const Rows next = host::rows(1 + i % 4, 10 + i);
        expect_close(forward(cache, next), forward(other.handle(), next));
    }
    expect_info(0, MOST + 4, 4, 2, 1, 0);
}

// The oldest window tokens as a range are what skc_evict drops; and a range that is not held changes nothing.
TEST_F(Ranges, OldestTokensAsARangeEqualEvict) {
    const Rows rows = host::rows(30, 1), next = host::rows(20, 2);
    forward(cache, rows);
    forward(twin, rows);
    const auto before = host::info(cache);
    ASSERT_OK(host::edit_range(skc_evict_range, cache, host::SINKS, 5));
    EXPECT_TRUE(host::operator==(host::info(cache), before));
    // Layer 1 holds five tokens more, of which evict would drop four.
    ASSERT_OK(host::edit_range(skc_evict_range, cache, host::SINKS, 22));
    ASSERT_OK(host::edit(skc_evict, twin, 4));
    expect_close(host::step(cache, next, 0), host::step(twin, next, 0));
}

TEST_F(Ranges, ForksAndSnapshotsKeepThem) {
    forward(cache, host::rows(10, 1));
    ASSERT_OK(host::edit_range(skc_pin, cache, 3, 4));
    forward(cache, host::rows(9, 2));
    ASSERT_OK(host::edit_range(skc_evict_range, cache, 12, 3));
    ASSERT_OK(host::fork(cache, 0, 1));
    for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
        EXPECT_TRUE(host::operator==(host::info(cache, layer, 0), host::info(cache, layer, 1)));
    }
    ASSERT_OK(host::load(twin, host::save(cache), 1));
    const Rows next = host::rows(25, 3);
    const Results want = forward(cache, next);
    EXPECT_EQ(forward(cache, next, 1), want);
    EXPECT_EQ(forward(twin, next, 1), want);
}

TEST_F(Ranges, ALoadNeedsRoomForThem) {
    forward(cache, host::rows(10, 1));
    ASSERT_OK(host::edit_range(skc_pin, cache, 3, 4));
    ASSERT_OK(host::edit_range(skc_evict_range, cache, 8, 1));
    const auto snapshot = host::save(cache);
    sinkcache::Cache fits(config(4, 2)), few_pins(config(3, 2)), few_segments(config(4, 1));
    const auto copy = host::copy_args(cache, 0, 1);
    EXPECT_OK(host::load(fits.handle(), snapshot));
    EXPECT_OK(skc_copy_sequence(fits.handle(), &copy));
    for (const auto &[other, text] : {std::pair{few_pins.handle(), "4 tokens are pinned, max_pinned is 3"},
                                      {few_segments.handle(), "2 segments, max_segments is 1"}}) {
        EXPECT_REJECTED(host::load(other, snapshot), SKC_STATUS_NO_ROOM, text);
        EXPECT_REJECTED(skc_copy_sequence(other, &copy), SKC_STATUS_NO_ROOM, text);
        EXPECT_EQ(host::info(other).length_max, 0u);
    }
}

TEST_F(Ranges, RewindStopsAtWhatWasEdited) {
    forward(cache, host::rows(12, 1));
    ASSERT_OK(host::edit_range(skc_evict_range, cache, 8, 2));
    EXPECT_EQ(host::info(cache).rewindable, 2u);
    EXPECT_REJECTED(host::edit(skc_rewind, cache, 3), SKC_STATUS_TOKENS_GONE, "at most 2");
    EXPECT_OK(host::edit(skc_rewind, cache, 2));
    EXPECT_EQ(host::info(cache).length_max, 10u);
}

// An edit that changes something ends the queries of the latest append, in every layer.
TEST_F(Ranges, QueriesOfTheLatestAppend) {
    const Rows rows = host::rows(6, 1);
    const auto queries = [&](std::uint32_t layer) {
        Results results = Results::of(1);
        const Rows one = host::rows(1, 2);
        const host::Ints seq{0}, count{1};
        const auto a = host::attend_args(layer, seq, count, one, results);
        return skc_attend(cache, &a);
    };
    forward(cache, rows);
    ASSERT_OK(host::edit_range(skc_pin, cache, 0, 3));
    EXPECT_OK(queries(0));
    // Layer 1 has no pins.
    ASSERT_OK(host::edit_range(skc_pin, cache, 3, 1));
    EXPECT_REJECTED(queries(0), SKC_STATUS_OUT_OF_RANGE, "allows 0");
    EXPECT_REJECTED(queries(1), SKC_STATUS_OUT_OF_RANGE, "allows 0");
}

TEST_F(Ranges, TheWrapperEqualsTheCCalls) {
    const Rows rows = host::rows(10, 1), next = host::rows(3, 2);
    for (skc_cache *c : {cache, twin}) {
        forward(c, rows);
        forward(c, rows, 1);
    }
    owner.pin({0, 1}, {4, 5}, {2, 1});
    owner.evict_range({SKC_PADDING, 0}, {77, 7}, {9, 2});
    ASSERT_OK(host::edit_range(skc_pin, twin, 4, 2));
    ASSERT_OK(host::edit_range(skc_pin, twin, 5, 1, 1));
    ASSERT_OK(host::edit_range(skc_evict_range, twin, 7, 2));
    for (const std::int32_t seq : {0, 1}) {
        EXPECT_TRUE(host::operator==(host::info(cache, 0, seq), host::info(twin, 0, seq)));
        EXPECT_EQ(forward(cache, next, seq), forward(twin, next, seq));
    }
    try {
        owner.pin({0, 1}, {4}, {1, 1});
        ADD_FAILURE() << "nothing was thrown";
    } catch (const sinkcache::Error &e) {
        EXPECT_EQ(e.status(), SKC_STATUS_INVALID_ARGUMENT);
        EXPECT_NE(std::string(e.what()).find("2 sequence ids for 1 values"), std::string::npos) << e.what();
    }
}

TEST(RangesSettings, RoomCostsMemory) {
    const auto plain = config(0, 0).bytes().first;
    EXPECT_EQ(plain, host::config(2, LAYERS).types(SKC_DTYPE_F32, SKC_DTYPE_F32).bytes().first);
    EXPECT_GT(config(64, 4).bytes().first, plain);
    EXPECT_GT(config(0, 200).bytes().first, plain);
}

}  // namespace
