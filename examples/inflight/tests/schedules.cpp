// Batch invariance: a request's logits are bit-identical whatever else is served, and whenever.
#include "quantized_model.hpp"
#include "support.hpp"

#include <cmath>
#include <cstring>
#include <set>

namespace {

using namespace test;

enum : std::uint32_t { REQUESTS = 64 };

/** Hashes of the logits of every sampled token by (request, index), and the smallest margin of the largest logit over
 * the second. */
struct Logits {
    std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> bits;
    float smallest_margin = INFINITY;

    /** Requests are greedy, which leaves the seed unused: it holds the number of the request. */
    CpuModel::Observer observer(std::size_t n) {
        return [this, n](const OutputRow &output_rows, const float *logits) {
            std::uint64_t hash = 14695981039346656037u;
            float first = -INFINITY, second = -INFINITY;
            for (std::size_t i = 0; i < n; i++) {
                std::uint32_t word;
                std::memcpy(&word, logits + i, sizeof word);
                hash = (hash ^ word) * 1099511628211u;
                second = std::max(second, std::min(first, logits[i]));
                first = std::max(first, logits[i]);
            }
            bits[{output_rows.sampling.seed, output_rows.index}] = hash;
            smallest_margin = std::min(smallest_margin, first - second);
        };
    }
};

std::vector<Request> requests() {
    std::mt19937 random(7);
    const auto below = [&](std::uint32_t n) { return random() % n; };
    std::vector<Request> all;
    for (std::uint32_t i = 0; i < REQUESTS; i++) {
        // Up to six times the cached tokens.
        all.push_back(new_sequence("r" + std::to_string(i), below(500000), below(6 * (SINK + WINDOW)), 1 + below(24)));
        all.back().sampling.seed = i;
    }
    return all;
}

/** Results of requests that are served alone, and the logits. */
struct Alone {
    std::map<std::string, Result> results;
    Logits logits;
};

Alone serve_alone(const std::string &path, const std::vector<Request> &requests, std::size_t threads) {
    Alone alone;
    CpuModel model(LlamaWeights::load(path), plugin_config(1), single_rank(), threads);
    model.observe(alone.logits.observer(model.config().vocabulary));
    for (const Request &r : requests) {
        Executor executor(model, executor_config(1, 1u << 12));
        alone.results.merge(run(executor, {r}));
    }
    expect_done(alone.results);
    return alone;
}

/** Serves the requests together, in an order and with settings that depend on the number of the schedule. */
class Schedule {
public:
    Schedule(const std::string &path, std::uint32_t number, std::size_t threads)
        : number_(number), random_(100 + number), max_seqs_(1 + below(16)), budget_(CHUNK + 1 + below(300)),
          model_(LlamaWeights::load(path), plugin_config(max_seqs_), single_rank(), threads),
          executor_(model_, executor_config(max_seqs_, budget_)) {
        model_.observe(logits_.observer(model_.config().vocabulary));
    }

    void serve(std::vector<Request> requests) {
        std::shuffle(requests.begin(), requests.end(), random_);
        for (Request &r : requests) {
            r.arrival = below(80);
            if (below(6) == 0) {
                r.cancel_after = below(40);
            }
        }
        results_ = run(executor_, requests);
        EXPECT_EQ(executor_.counters().running + executor_.counters().waiting, 0u);
        EXPECT_LE(executor_.counters().batch_rows, executor_.counters().batch_budget);
    }

    /** Returns how many requests were cancelled. */
    std::size_t compare(const Alone &alone) const {
        std::size_t cancelled = 0;
        EXPECT_EQ(results_.size(), std::size_t{REQUESTS});
        for (const auto &[id, result] : results_) {
            const auto &want = alone.results.at(id).tokens;
            EXPECT_NE(result.outcome, Outcome::failed) << id << ": " << result.error;
            if (result.outcome == Outcome::cancelled) {
                cancelled++;
                EXPECT_LE(result.tokens.size(), want.size()) << id;
                EXPECT_TRUE(std::equal(result.tokens.begin(), result.tokens.end(), want.begin())) << id;
            } else {
                EXPECT_EQ(result.tokens, want) << id << " of schedule " << number_;
            }
        }
        for (const auto &[key, hash] : logits_.bits) {
            EXPECT_EQ(hash, alone.logits.bits.at(key))
                << "logits of token " << key.second << " of request " << key.first << ", schedule " << number_;
        }
        return cancelled;
    }
    std::size_t outputs() const { return logits_.bits.size(); }

private:
    std::uint32_t number_;
    std::mt19937 random_;
    std::uint32_t max_seqs_, budget_;
    CpuModel model_;
    Executor executor_;
    Logits logits_;
    std::map<std::string, Result> results_;

    std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_()) % n; }
};

/** A schedule with 1 thread is compared with requests that are alone with 2, and the other way round. */
void expect_outputs_of_requests_alone(const std::string &path, std::uint32_t schedules) {
    const auto all = requests();
    const Alone alone[2] = {serve_alone(path, all, 1), serve_alone(path, all, 2)};
    std::size_t cancelled = 0, tokens = 0;
    for (std::uint32_t number = 0; number < schedules && !testing::Test::HasFailure(); number++) {
        const std::size_t threads = 1 + number % 2;
        Schedule schedule(path, number, threads);
        schedule.serve(all);
        cancelled += schedule.compare(alone[2 - threads]);
        tokens += schedule.outputs();
    }
    EXPECT_GT(cancelled, std::size_t{schedules});
    std::printf("%u requests in %u schedules: %zu tokens, %zu requests cancelled; "
                "smallest margin of the largest logit over the second %g\n",
                unsigned{REQUESTS}, unsigned{schedules}, tokens, cancelled,
                static_cast<double>(alone[0].logits.smallest_margin));
}

TEST(Schedules, EveryOutputIsThatOfTheRequestServedAlone) { expect_outputs_of_requests_alone(MODEL, SCHEDULES); }

TEST(Schedules, EveryOutputIsThatOfTheRequestServedAloneInQ8_0) {
    expect_outputs_of_requests_alone(QuantizedModel(GGML_TYPE_Q8_0).path(), SCHEDULES);
}

TEST(Schedules, EveryOutputIsThatOfTheRequestServedAloneInQ4_K) {
    expect_outputs_of_requests_alone(QuantizedModel(GGML_TYPE_Q4_K).path(), SCHEDULES);
}

TEST(Schedules, OtherChunksGiveTheSameTokens) {
    // Between different chunks sinkcache promises a tolerance, not equal bits. It is far below the margin of the
    // largest logit.
    std::map<std::uint32_t, std::map<std::pair<std::uint64_t, std::uint64_t>, std::vector<float>>> logits;
    std::map<std::uint32_t, std::map<std::string, Result>> results;
    for (std::uint32_t chunk : {16, 1, 23, 64}) {
        CpuModel model(weights(), plugin_config(8, 0, chunk), single_rank(), 1);
        auto &of_chunk = logits[chunk];
        model.observe([&](const OutputRow &output_rows, const float *row) {
            of_chunk[{output_rows.sampling.seed, output_rows.index}] = {row, row + model.config().vocabulary};
        });
        Executor executor(model, executor_config(8, 200, 0, chunk));
        auto some = requests();
        some.resize(16);
        results[chunk] = run(executor, some);
        expect_done(results[chunk]);
    }
    float largest_difference = 0;
    for (std::uint32_t chunk : {1, 23, 64}) {
        for (const auto &[id, want] : results[16]) {
            EXPECT_EQ(results[chunk][id].tokens, want.tokens) << id << " in chunks of " << chunk;
        }
        for (const auto &[key, want] : logits[16]) {
            const auto &got = logits[chunk].at(key);
            for (std::size_t i = 0; i < want.size(); i++) {
                largest_difference = std::max(largest_difference, std::abs(got[i] - want[i]));
            }
        }
    }
    EXPECT_LT(largest_difference, 1e-3f);
    std::printf("chunks of 1, 16, 23 and 64: largest difference of logits %g\n",
                static_cast<double>(largest_difference));
}

TEST(Schedules, SamplingDoesNotDependOnTheSchedule) {
    std::vector<Request> some;
    for (std::uint32_t i = 0; i < 12; i++) {
        some.push_back(new_sequence("r" + std::to_string(i), 9000 * i, 10 + 7 * i, 20));
        some.back().sampling = {0.9f, i % 4};
    }
    CpuModel model(weights(), plugin_config(12), single_rank(), 1);
    // Every token is sampled at its own index.
    std::map<std::uint64_t, std::multiset<std::uint64_t>> indices;
    model.observe([&](const OutputRow &output_rows, const float *) {
        indices[output_rows.sampling.seed].insert(output_rows.index);
    });
    Executor narrow(model, executor_config(2, CHUNK + 1)), wide(model, executor_config(12, 400));
    const auto a = run(narrow, some), b = run(wide, some);
    expect_done(a);
    for (const Request &r : some) {
        EXPECT_EQ(a.at(r.id).tokens, b.at(r.id).tokens) << r.id;
    }
    EXPECT_NE(a.at("r1").tokens, a.at("r2").tokens);
    for (std::uint64_t index = 0; index < 20; index++) {
        // By three requests with this seed, in both runs.
        EXPECT_EQ(indices[2].count(index), 6u) << index;
    }
}

TEST(Schedules, NeitherPromptsNorStepsStarveInATightBudget) {
    CpuModel model(weights(), plugin_config(8), single_rank(), 1);
    // Seven requests generate many tokens. With two rows beside a chunk they take turns, and the late prompt still gets
    // its chunks.
    Executor executor(model, executor_config(8, CHUNK + 2));
    std::vector<Request> all;
    for (int i = 0; i < 7; i++) {
        all.push_back(new_sequence("g" + std::to_string(i), 1000 * static_cast<std::size_t>(i), 3, 40));
    }
    all.push_back(new_sequence("late", 77, 5 * CHUNK, 1));
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
