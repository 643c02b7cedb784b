// NaN and infinity in tokens that are not visible never reach a result, neither by 0 x NaN nor by a stale slot.
#include "support/host.hpp"

namespace {

using host::Ints;
using host::Results;
using host::Rows;

/** 3e38 overflows in f16, and in f32 when squared. */
const float BAD[] = {NAN, INFINITY, -INFINITY, 3e38f};

class NonFinite : public testing::TestWithParam<std::tuple<std::uint32_t, int>> {
protected:
    sinkcache::Config config(std::uint32_t n_seqs = 1) const {
        return host::config(n_seqs).types(SKC_DTYPE_F32, std::get<0>(GetParam()));
    }
    /** Rows whose every value is the parameter's non-finite or huge one. */
    Rows bad(std::size_t n) const { return host::constant(n, BAD[std::get<1>(GetParam())]); }
    sinkcache::Cache owner{config(2)}, twin_owner{config(2)};
    skc_cache *cache = owner.handle(), *twin = twin_owner.handle();
};

TEST_P(NonFinite, TokensThatLeftTheWindow) {
    const Rows sinks = host::rows(host::SINKS, 1), after = host::rows(host::WINDOW, 2), more = host::rows(30, 3);
    for (skc_cache *c : {cache, twin}) {
        host::step(c, sinks);
        host::step(c, c == cache ? bad(6) : host::rows(6, 9));
        host::step(c, after);
    }
    const Results want = host::step(twin, more);
    EXPECT_TRUE(want.finite());
    EXPECT_EQ(host::step(cache, more), want);
}

TEST_P(NonFinite, WithinOneCall) {
    Rows rows = host::rows(host::SINKS, 1), good = rows;
    rows.add(bad(4));
    rows.add(host::rows(40, 2));
    good.add(host::rows(4, 9));
    good.add(host::rows(40, 2));
    const std::size_t clean = host::SINKS + 4 + host::WINDOW;
    const Results got = host::step(cache, rows), want = host::step(twin, good);
    EXPECT_EQ(got.slice(0, host::SINKS), want.slice(0, host::SINKS)) << "a query attended to later tokens";
    EXPECT_EQ(got.slice(clean, 47 - clean), want.slice(clean, 47 - clean));
    EXPECT_TRUE(got.slice(clean, 47 - clean).finite());
}

TEST_P(NonFinite, RejectedTokens) {
    for (std::uint32_t i = 0; i < 12; i++) {
        const Rows rows = host::rows(1 + i % 4, i);
        const Results got = host::step(cache, rows);
        EXPECT_TRUE(got.finite());
        EXPECT_EQ(got, host::step(twin, rows));
        host::step(cache, bad(4));
        ASSERT_OK(host::edit(skc_rewind, cache, 4));
    }
}

TEST_P(NonFinite, EvictedTokens) {
    for (skc_cache *c : {cache, twin}) {
        host::step(c, host::rows(host::SINKS, 1));
        host::step(c, c == cache ? bad(5) : host::rows(5, 9));
        host::step(c, host::rows(2, 2));
        ASSERT_OK(host::edit(skc_evict, c, 5));
    }
    const Rows more = host::rows(30, 3);
    const Results got = host::step(cache, more);
    EXPECT_TRUE(got.finite());
    EXPECT_EQ(got, host::step(twin, more));
}

TEST_P(NonFinite, AbortedAndResetTokens) {
    host::step(cache, bad(40));
    ASSERT_OK(host::reset(cache));
    const Rows rows = host::rows(30, 1);
    EXPECT_EQ(host::step(cache, rows), host::step(twin, rows));
}

TEST_P(NonFinite, OtherEntriesOfTheBatch) {
    Rows rows = bad(3);
    const Rows good = host::rows(20, 1);
    rows.add(good);
    const Results got = host::step(cache, rows, 0, {1, 0}, {3, 20});
    EXPECT_EQ(got.slice(3, 20), host::step(twin, good));
}

TEST_P(NonFinite, AQueryAffectsItsOwnRowOnly) {
    Rows rows = host::rows(20, 1);
    const Results want = host::step(twin, rows);
    std::fill_n(rows.q.begin() + 6 * host::Q_ROW, static_cast<std::size_t>(host::Q_ROW), BAD[std::get<1>(GetParam())]);
    const Results got = host::step(cache, rows);
    EXPECT_EQ(got.slice(0, 6), want.slice(0, 6));
    EXPECT_EQ(got.slice(7, 13), want.slice(7, 13));
}

INSTANTIATE_TEST_SUITE_P(All, NonFinite,
                         testing::Combine(testing::Values(SKC_DTYPE_F32, SKC_DTYPE_F16, SKC_DTYPE_BF16, SKC_DTYPE_Q8,
                                                          SKC_DTYPE_Q4),
                                          testing::Range(0, 4)));

}  // namespace
