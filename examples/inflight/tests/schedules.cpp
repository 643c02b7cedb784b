// A request's output does not depend on who else is served, nor when: to the last bit of its logits.
#include "support.hpp"

#include <cmath>
#include <cstring>
#include <set>

namespace {

using namespace test;

enum : std::uint32_t { REQUESTS = 64 };

/** Logits of every token drawn, as a hash of their bits by (request, place), and the smallest lead of a first over a second. */
struct Logits {
    std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> bits;
    float smallest_lead = INFINITY;

    /** Greedy requests have no use for a seed: it carries the request's number. */
    CpuModel::Observer observer(std::size_t n) {
        return [this, n](const Wanted &wanted, const float *logits) {
            std::uint64_t hash = 14695981039346656037u;
            float first = -INFINITY, second = -INFINITY;
            for (std::size_t i = 0; i < n; i++) {
                std::uint32_t word;
                std::memcpy(&word, logits + i, sizeof word);
                hash = (hash ^ word) * 1099511628211u;
                second = std::max(second, std::min(first, logits[i])), first = std::max(first, logits[i]);
            }
            bits[{wanted.sampling.seed, wanted.index}] = hash;
            smallest_lead = std::min(smallest_lead, first - second);
        };
    }
};

std::vector<Request> requests() {
    std::mt19937 random(7);
    const auto below = [&](std::uint32_t n) { return random() % n; };
    std::vector<Request> all;
    for (std::uint32_t i = 0; i < REQUESTS; i++) {
        // Up to six times sinks and window.
        all.push_back(fresh("r" + std::to_string(i), below(500000), below(6 * (SINK + WINDOW)), 1 + below(24)));
        all.back().sampling.seed = i;
    }
    return all;
}

TEST(Schedules, EveryOutputIsThatOfTheRequestAlone) {
    const auto all = requests();
    std::map<std::string, Result> alone;
    // A BLAS divides a product among its threads: bits are those of the same number of them.
    Logits alone_logits[2];
    for (int threads : {1, 2}) {
        CpuModel model(weights(), plugin_config(1), lone(), threads);
        model.observe(alone_logits[threads - 1].observer(model.config().vocabulary));
        for (const Request &r : all) {
            Executor executor(model, executor_config(1, 1u << 12));
            alone.merge(run(executor, {r}));
        }
    }
    expect_done(alone);
    std::size_t cancelled = 0, tokens = 0;
    for (std::uint32_t schedule = 0; schedule < SCHEDULES; schedule++) {
        std::mt19937 random(100 + schedule);
        const auto below = [&](std::uint32_t n) { return random() % n; };
        const std::uint32_t max_seqs = 1 + below(16), budget = CHUNK + 1 + below(300);
        const std::uint32_t threads = schedule == 1 ? 2 : 1;
        CpuModel model(weights(), plugin_config(max_seqs), lone(), static_cast<int>(threads));
        Logits logits;
        model.observe(logits.observer(model.config().vocabulary));
        auto mixed = all;
        std::shuffle(mixed.begin(), mixed.end(), random);
        for (Request &r : mixed) {
            r.arrival = below(80);
            if (below(6) == 0) {
                r.cancel_after = below(40);
            }
        }
        Executor executor(model, executor_config(max_seqs, budget));
        const auto results = run(executor, mixed);
        ASSERT_EQ(results.size(), std::size_t{REQUESTS});
        for (const auto &[id, result] : results) {
            const auto &want = alone.at(id).tokens;
            ASSERT_NE(result.outcome, Outcome::failed) << id << ": " << result.error;
            if (result.outcome == Outcome::cancelled) {
                cancelled++;
                ASSERT_LE(result.tokens.size(), want.size()) << id;
                EXPECT_TRUE(std::equal(result.tokens.begin(), result.tokens.end(), want.begin())) << id;
            } else {
                EXPECT_EQ(result.tokens, want) << id << " of schedule " << schedule;
            }
            tokens += result.tokens.size();
        }
        for (const auto &[place, hash] : logits.bits) {
            ASSERT_EQ(hash, alone_logits[threads - 1].bits.at(place))
                << "logits of token " << place.second << " of request " << place.first << ", schedule " << schedule;
        }
        EXPECT_EQ(executor.counters().running + executor.counters().waiting, 0u);
        EXPECT_LE(executor.counters().batch_rows, executor.counters().batch_budget);
    }
    EXPECT_GT(cancelled, std::size_t{SCHEDULES});
    std::printf("%u requests in %u schedules: %zu tokens, %zu requests cancelled; smallest lead of a first logit over the second %g\n",
                unsigned{REQUESTS}, unsigned{SCHEDULES}, tokens, cancelled, static_cast<double>(alone_logits[0].smallest_lead));
}

TEST(Schedules, OtherCutsGiveTheSameTokens) {
    // Sinkcache promises tolerance here, not bits: how far apart logits are, against the lead of the first.
    std::map<std::uint32_t, std::map<std::pair<std::uint64_t, std::uint64_t>, std::vector<float>>> logits;
    std::map<std::uint32_t, std::map<std::string, Result>> results;
    for (std::uint32_t chunk : {16, 1, 23, 64}) {
        CpuModel model(weights(), plugin_config(8, 0, chunk), lone(), 1);
        auto &seen = logits[chunk];
        model.observe([&](const Wanted &wanted, const float *row) {
            seen[{wanted.sampling.seed, wanted.index}] = {row, row + model.config().vocabulary};
        });
        Executor executor(model, executor_config(8, 200, 0, chunk));
        auto some = requests();
        some.resize(16);
        results[chunk] = run(executor, some);
        expect_done(results[chunk]);
    }
    float apart = 0;
    for (std::uint32_t chunk : {1, 23, 64}) {
        for (const auto &[id, want] : results[16]) {
            EXPECT_EQ(results[chunk][id].tokens, want.tokens) << id << " in chunks of " << chunk;
        }
        for (const auto &[place, want] : logits[16]) {
            const auto &got = logits[chunk].at(place);
            for (std::size_t i = 0; i < want.size(); i++) {
                apart = std::max(apart, std::abs(got[i] - want[i]));
            }
        }
    }
    EXPECT_LT(apart, 1e-3f);
    std::printf("chunks of 1, 16, 23 and 64: logits at most %g apart\n", static_cast<double>(apart));
}

TEST(Schedules, WhatIsDrawnDoesNotDependOnTheSchedule) {
    std::vector<Request> some;
    for (std::uint32_t i = 0; i < 12; i++) {
        some.push_back(fresh("r" + std::to_string(i), 9000 * i, 10 + 7 * i, 20));
        some.back().sampling = {0.9f, i % 4};
    }
    CpuModel model(weights(), plugin_config(12), lone(), 1);
    // Every token is drawn at its own place.
    std::map<std::uint64_t, std::multiset<std::uint64_t>> places;
    model.observe([&](const Wanted &wanted, const float *) { places[wanted.sampling.seed].insert(wanted.index); });
    Executor narrow(model, executor_config(2, CHUNK + 1)), wide(model, executor_config(12, 400));
    const auto a = run(narrow, some), b = run(wide, some);
    expect_done(a);
    for (const Request &r : some) {
        EXPECT_EQ(a.at(r.id).tokens, b.at(r.id).tokens) << r.id;
    }
    EXPECT_NE(a.at("r1").tokens, a.at("r2").tokens);
    for (std::uint64_t place = 0; place < 20; place++) {
        // Of three requests with this seed, in both runs.
        EXPECT_EQ(places[2].count(place), 6u) << place;
    }
}

TEST(Schedules, PromptsAndStepsBothGoOnInATightBudget) {
    CpuModel model(weights(), plugin_config(8), lone(), 1);
    // Seven generate for long; with two rows beside a chunk they take turns, and the late prompt still gets in.
    Executor executor(model, executor_config(8, CHUNK + 2));
    std::vector<Request> all;
    for (int i = 0; i < 7; i++) {
        all.push_back(fresh("g" + std::to_string(i), 1000 * static_cast<std::size_t>(i), 3, 40));
    }
    all.push_back(fresh("late", 77, 5 * CHUNK, 1));
    all.back().arrival = 10;
    for (const Request &r : all) {
        executor.submit(r);
    }
    std::vector<std::string> ended;
    while (executor.step()) {
        for (const Result &r : executor.take_results()) {
            ended.push_back(r.id);
        }
    }
    for (const Result &r : executor.take_results()) {
        ended.push_back(r.id);
    }
    ASSERT_EQ(ended.size(), 8u);
    EXPECT_EQ(ended.front(), "late");
}

}  // namespace
