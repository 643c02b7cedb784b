// Ragged batches: results of a sequence do not depend on the other entries, their order or padding.
#include "support/host.hpp"

#include <map>

namespace {

using host::Ints;
using host::Results;
using host::Rows;

constexpr std::uint32_t SEQS = 4, LAYERS = 3;

/** The batches of a history: sequence ids, and the number of tokens of each. */
const std::vector<std::pair<Ints, Ints>> HISTORY = {
    {{0, 1, 2, 3}, {5, 8, 1, 3}}, {{2, -1, 0}, {7, 2, 4}}, {{3, 1}, {0, 6}},         {{-1, -1}, {3, 1}},
    {{3, 2, 1, 0}, {1, 1, 1, 1}}, {{1, 3}, {8, 8}},        {{0, -1, 3}, {2, 0, 8}}, {{0, 1, 2, 3}, {8, 8, 8, 8}},
    {{}, {}},                     {{2}, {1}},
};

Rows tokens(std::int32_t seq, std::size_t from, std::size_t n) {
    return host::rows(200, static_cast<std::uint32_t>(seq) + 10).slice(from, n);
}

enum class Call { AppendAttend, Step };

/**
 * Results by (layer, sequence), in the order of the tokens. With `together` a batch is one call, else a call an entry.
 */
std::map<std::pair<std::uint32_t, std::int32_t>, Results> run(Call call, bool together) {
    sinkcache::Cache cache(host::config(SEQS, LAYERS));
    std::map<std::pair<std::uint32_t, std::int32_t>, Results> all;
    std::map<std::int32_t, std::size_t> fed;
    auto feed = [&](const Ints &ids, const Ints &counts, const Rows &rows) {
        for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
            Results results = Results::of(rows.n(), 77.0f);
            if (call == Call::Step) {
                const auto a = host::step_args(layer, ids, counts, rows, results);
                EXPECT_OK(skc_step(cache.handle(), &a));
            } else {
                const auto append = host::append_args(layer, ids, counts, rows);
                const auto attend = host::attend_args(layer, ids, counts, rows, results);
                EXPECT_OK(skc_append_kv(cache.handle(), &append));
                EXPECT_OK(skc_attend(cache.handle(), &attend));
            }
            std::size_t row = 0;
            for (std::size_t i = 0; i < ids.size(); row += static_cast<std::size_t>(counts[i++])) {
                const auto part = results.slice(row, static_cast<std::size_t>(counts[i]));
                if (ids[i] == SKC_PADDING) {
                    EXPECT_EQ(part, Results::of(static_cast<std::size_t>(counts[i]), 77.0f)) << "padding was written";
                } else {
                    EXPECT_TRUE(part.finite());
                    all[{layer, ids[i]}].add(part);
                }
            }
        }
    };
    for (const auto &[ids, counts] : HISTORY) {
        Rows rows;
        for (std::size_t i = 0; i < ids.size(); i++) {
            const auto n = static_cast<std::size_t>(counts[i]);
            // Padding rows hold NaN: reading them would show in the results.
            const Rows part = ids[i] == SKC_PADDING ? host::constant(n, NAN) : tokens(ids[i], fed[ids[i]], n);
            if (ids[i] != SKC_PADDING) {
                fed[ids[i]] += n;
            }
            if (together) {
                rows.add(part);
            } else if (ids[i] != SKC_PADDING) {
                feed({ids[i]}, {counts[i]}, part);
            }
        }
        if (together) {
            feed(ids, counts, rows);
        }
    }
    return all;
}

TEST(Batches, EqualSequencesAlone) {
    const auto alone = run(Call::Step, false);
    ASSERT_EQ(alone.size(), SEQS * LAYERS);
    EXPECT_EQ(run(Call::Step, true), alone);
    EXPECT_EQ(run(Call::AppendAttend, true), alone);
    EXPECT_EQ(run(Call::AppendAttend, false), alone);
}

TEST(Batches, AttendOfTheLastTokensOnly) {
    sinkcache::Cache whole(host::config()), last(host::config());
    const Rows rows = host::rows(8, 1);
    const Results want = host::step(whole.handle(), rows).slice(5, 3);
    const Ints seq{0}, eight{8}, three{3};
    const auto append = host::append_args(0, seq, eight, rows);
    ASSERT_OK(skc_append_kv(last.handle(), &append));
    Results got = Results::of(3);
    const Rows queries = rows.slice(5, 3);
    const auto attend = host::attend_args(0, seq, three, queries, got);
    ASSERT_OK(skc_attend(last.handle(), &attend));
    EXPECT_EQ(got, want);
    // Attending changes no state: repeated, it gives the same results.
    Results again = Results::of(3);
    const auto repeat = host::attend_args(0, seq, three, queries, again);
    ASSERT_OK(skc_attend(last.handle(), &repeat));
    EXPECT_EQ(again, want);
}

TEST(Batches, LseIsOptional) {
    sinkcache::Cache a(host::config()), b(host::config());
    const Rows rows = host::rows(8, 1);
    const Results want = host::step(a.handle(), rows);
    Results got = Results::of(8, 5.0f);
    const Ints seq{0}, eight{8};
    auto args = host::step_args(0, seq, eight, rows, got);
    args.lse = nullptr;
    ASSERT_OK(skc_step(b.handle(), &args));
    EXPECT_EQ(got.out, want.out);
    EXPECT_EQ(got.lse, Results::of(8, 5.0f).lse);
}

// Entries that are all padding, of any count, read and write nothing.
TEST(Batches, OnlyPadding) {
    sinkcache::Cache cache(host::config());
    const Rows rows = host::rows(1, 1);
    Results results = Results::of(1, 3.0f);
    const Ints ids{-1, 0, -1}, counts{INT32_MAX, 0, INT32_MAX};
    const auto args = host::step_args(0, ids, counts, rows, results);
    ASSERT_OK(skc_step(cache.handle(), &args));
    EXPECT_EQ(results, Results::of(1, 3.0f));
    EXPECT_EQ(host::info(cache.handle()).length_max, 0u);
}

}  // namespace
