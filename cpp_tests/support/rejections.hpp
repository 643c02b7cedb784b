// A cache that gets invalid calls and a twin that does not: afterwards both must be in the same state.
#pragma once

#include "host.hpp"

class RejectedCalls : public testing::Test {
protected:
    static constexpr std::uint32_t SEQS = 3, LAYERS = 2;

    explicit RejectedCalls(std::uint32_t max_pinned = 0, std::uint32_t max_segments = 0)
        : cache_{host::config(SEQS, LAYERS, max_pinned, max_segments)},
          twin_{host::config(SEQS, LAYERS, max_pinned, max_segments)} {}

    // Sequence 0 is past its window, 1 is short, 2 is empty.
    void SetUp() override {
        for (skc_cache *c : {cache_.handle(), twin()}) {
            for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
                host::step(c, host::rows(20, 1), layer, 0);
                host::step(c, host::rows(3, 2), layer, 1);
                host::step(c, host::rows(6, 3), layer, 0);
            }
        }
        ASSERT_OK(host::reset(cache_.handle(), 2, 1000));
        ASSERT_OK(host::reset(twin(), 2, 1000));
    }

    /** After each test: outputs untouched, counters equal, queries of the latest append and next steps equal. */
    void TearDown() override {
        EXPECT_EQ(results, host::Results::of(8, CANARY)) << "outputs were written";
        for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
            for (std::int32_t seq = 0; seq < static_cast<std::int32_t>(SEQS); seq++) {
                EXPECT_TRUE(host::operator==(host::info(cache_.handle(), layer, seq),
                                             host::info(twin(), layer, seq)))
                    << "layer " << layer << ", sequence " << seq;
            }
        }
        const host::Ints ids{0, 1}, counts{6, 2};
        const host::Rows queries = host::rows(8, 5);
        for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
            host::Results got = host::Results::of(8), want = host::Results::of(8);
            auto a = host::attend_args(layer, ids, counts, queries, got);
            EXPECT_OK(skc_attend(cache(), &a));
            host::set_results(a, want);
            EXPECT_OK(skc_attend(twin(), &a));
            EXPECT_EQ(got, want);
            const host::Rows more = host::rows(9, 6);
            const host::Ints all{2, 0, 1}, three{3, 3, 3};
            EXPECT_EQ(host::step(cache(), more, layer, all, three),
                      host::step(twin(), more, layer, all, three));
        }
    }

    skc_cache *cache() const { return cache_.handle(); }
    skc_cache *twin() const { return twin_.handle(); }

    static constexpr float CANARY = 42.5f;
    const host::Ints ids{0, 1}, counts{5, 3};
    const host::Rows rows = host::rows(8, 4);
    host::Results results = host::Results::of(8, CANARY);

    skc_append_kv_args append() const { return host::append_args(0, ids, counts, rows); }
    skc_attend_args attend() { return host::attend_args(0, ids, counts, rows, results); }
    skc_step_args step() { return host::step_args(0, ids, counts, rows, results); }

private:
    sinkcache::Cache cache_, twin_;
};
