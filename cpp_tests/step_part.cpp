// skc_step_part: one step by a team of the host's threads.
#include "support/calls.hpp"

#include <condition_variable>
#include <mutex>
#include <thread>

namespace {

using host::Ints;
using host::Results;
using host::Rows;

class Barrier {
public:
    explicit Barrier(std::uint32_t n) : n_(n) {}
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        const auto round = round_;
        if (++waiting_ == n_) {
            waiting_ = 0;
            round_++;
            all_.notify_all();
        } else {
            all_.wait(lock, [&] { return round_ != round; });
        }
    }

private:
    std::mutex mutex_;
    std::condition_variable all_;
    std::uint32_t n_, waiting_ = 0, round_ = 0;
};

sinkcache::Config config(std::uint32_t n_threads) {
    return host::config(2, 2).threads(n_threads);
}

struct Batch {
    Ints ids, counts;
    Rows rows;
};

/** Prompts longer than max_chunk (8) and than the window, single tokens, padding. */
std::vector<Batch> batches() {
    std::vector<Batch> all = {{{0, 1}, {20, 35}, host::rows(55, 1)}, {{1, -1, 0}, {9, 2, 1}, host::rows(12, 2)}};
    for (std::uint32_t i = 0; i < 20; i++) {
        all.push_back({{0, 1}, {1, 1}, host::rows(2, 10 + i)});
    }
    all.push_back({{0}, {60}, host::rows(60, 99)});
    return all;
}

TEST(StepPart, ATeamEqualsOneThread) {
    for (std::uint32_t nth : {1u, 2u, 3u, 5u}) {
        sinkcache::Cache one(config(1)), team(config(5));
        const auto work = batches();
        std::vector<Results> results;
        for (const auto &batch : work) {
            results.push_back(Results::of(batch.rows.n(), -7.0f));
            results.push_back(Results::of(batch.rows.n(), -7.0f));
        }
        Barrier barrier(nth);
        std::vector<std::thread> threads;
        for (std::uint32_t ith = 0; ith < nth; ith++) {
            threads.emplace_back([&, ith] {
                for (std::size_t i = 0; i < results.size(); i++) {
                    const auto &b = work[i / 2];
                    const auto a = host::step_args(i % 2, b.ids, b.counts, b.rows, results[i]);
                    EXPECT_OK(skc_step_part(team.handle(), &a, ith, nth));
                    barrier.wait();
                }
            });
        }
        for (auto &thread : threads) {
            thread.join();
        }
        for (std::size_t i = 0; i < results.size(); i++) {
            const auto &b = work[i / 2];
            Results want = Results::of(b.rows.n(), -7.0f);
            const auto a = host::step_args(i % 2, b.ids, b.counts, b.rows, want);
            ASSERT_OK(skc_step(one.handle(), &a));
            ASSERT_EQ(results[i], want) << "step " << i << " of a team of " << nth;
        }
        for (std::int32_t seq : {0, 1}) {
            EXPECT_TRUE(host::operator==(host::info(team.handle(), 1, seq), host::info(one.handle(), 1, seq)));
        }
    }
}

/** A cache with 20 tokens in which member 0 of 3 has made its call of a step of 4 more. */
class OpenStep : public testing::Test {
protected:
    void SetUp() override {
        host::step(cache, host::rows(20, 1), 0);
        host::step(cache, host::rows(20, 1), 1);
        args = host::step_args(0, seq, four, rows, results);
        ASSERT_OK(skc_step_part(cache, &args, 0, 3));
    }
    /** The results of the same step by skc_step. */
    Results expected() {
        sinkcache::Cache twin(config(1));
        host::step(twin.handle(), host::rows(20, 1), 0);
        return host::step(twin.handle(), rows, 0);
    }

    sinkcache::Cache owner{config(3)};
    skc_cache *cache = owner.handle();
    const Ints seq{0}, four{4};
    const Rows rows = host::rows(4, 2);
    Results results = Results::of(4);
    skc_step_args args;
};

TEST_F(OpenStep, OtherCallsAreBusy) {
    for (const auto &call : host::handle_calls()) {
        // abort_step and destroy_cache end the step instead, since no member is computing.
        if (std::string(call.name) != "destroy_cache" && std::string(call.name) != "abort_step") {
            EXPECT_REJECTED(call.call(cache), SKC_STATUS_BUSY, "skc_step_part");
        }
    }
    EXPECT_OK(skc_step_part(cache, &args, 2, 3));
    EXPECT_OK(skc_step_part(cache, &args, 1, 3));
    EXPECT_EQ(results, expected());
    EXPECT_EQ(host::info(cache).length_max, 24u);
}

TEST_F(OpenStep, InvalidMembersAreRejectedAndTheStepGoesOn) {
    EXPECT_REJECTED(skc_step_part(cache, &args, 0, 3), SKC_STATUS_INVALID_ARGUMENT, "ith is 0");
    EXPECT_REJECTED(skc_step_part(cache, &args, 3, 3), SKC_STATUS_INVALID_ARGUMENT, "ith is 3 of nth 3");
    EXPECT_REJECTED(skc_step_part(cache, &args, UINT32_MAX, 3), SKC_STATUS_INVALID_ARGUMENT, "ith is 4294967295");
    EXPECT_REJECTED(skc_step_part(cache, &args, 1, 2), SKC_STATUS_INVALID_ARGUMENT, "of 3 members");
    EXPECT_REJECTED(skc_step_part(cache, &args, 1, 0), SKC_STATUS_INVALID_ARGUMENT, "of 3 members");
    Results elsewhere = Results::of(4);
    auto other = args;
    other.out = elsewhere.out.data();
    EXPECT_REJECTED(skc_step_part(cache, &other, 1, 3), SKC_STATUS_BUSY, "other arguments");
    other = args;
    other.layer = 1;
    EXPECT_REJECTED(skc_step_part(cache, &other, 1, 3), SKC_STATUS_BUSY, "other arguments");
    EXPECT_REJECTED(skc_step_part(cache, nullptr, 1, 3), SKC_STATUS_NULL_POINTER, "NULL");
    EXPECT_OK(skc_step_part(cache, &args, 1, 3));
    EXPECT_REJECTED(skc_step_part(cache, &args, 1, 3), SKC_STATUS_INVALID_ARGUMENT, "ith is 1");
    EXPECT_OK(skc_step_part(cache, &args, 2, 3));
    EXPECT_EQ(results, expected());
    EXPECT_TRUE(std::isnan(elsewhere.out[0]));
    EXPECT_EQ(host::info(cache).length_max, 24u);
}

TEST_F(OpenStep, AbortEndsAStepWithAMissingMember) {
    EXPECT_OK(skc_step_part(cache, &args, 1, 3));
    EXPECT_OK(host::abort_step(cache));
    EXPECT_EQ(host::info(cache).length_max, 20u);
    // The step can be repeated by a team of another size.
    Results again = Results::of(4);
    host::set_results(args, again);
    EXPECT_OK(skc_step_part(cache, &args, 1, 2));
    EXPECT_OK(skc_step_part(cache, &args, 0, 2));
    EXPECT_EQ(again, expected());
}

TEST_F(OpenStep, ALateMemberOpensANewStep) {
    EXPECT_OK(skc_step_part(cache, &args, 1, 3));
    EXPECT_OK(host::abort_step(cache));
    // The library cannot tell it from the first member of a new step: the host's barrier must prevent such calls.
    EXPECT_OK(skc_step_part(cache, &args, 2, 3));
    EXPECT_OK(host::abort_step(cache));
    EXPECT_EQ(host::info(cache).length_max, 20u);
}

TEST_F(OpenStep, ARefusedAbortLeavesTheStep) {
    auto a = host::sized<skc_abort_step_args>();
    const Ints stranger{99};
    a.n_entries = 1;
    a.seq_ids = stranger.data();
    EXPECT_REJECTED(skc_abort_step(cache, &a), SKC_STATUS_OUT_OF_RANGE, "99");
    a = host::sized<skc_abort_step_args>();
    a.stream = &a;
    EXPECT_REJECTED(skc_abort_step(cache, &a), SKC_STATUS_INVALID_ARGUMENT, "stream");
    EXPECT_OK(skc_step_part(cache, &args, 1, 3));
    EXPECT_OK(skc_step_part(cache, &args, 2, 3));
    EXPECT_EQ(results, expected());
    EXPECT_EQ(host::info(cache).length_max, 24u);
}

/** A log callback that tries to destroy its cache. */
struct Destroyer {
    skc_cache *cache = nullptr;
    int refused = 0;

    static void log(void *user, std::uint32_t level, const char *) {
        auto &d = *static_cast<Destroyer *>(user);
        if (level == SKC_LOG_WARN) {
            EXPECT_EQ(skc_destroy_cache(d.cache), SKC_STATUS_BUSY);
            d.refused++;
        }
    }
};

TEST(StepPart, ARefusedDestroyLeavesTheStep) {
    Destroyer destroyer;
    auto with_log = config(2);
    with_log.raw().log = Destroyer::log;
    with_log.raw().log_user = &destroyer;
    sinkcache::Cache owner(with_log);
    skc_cache *cache = destroyer.cache = owner.handle();
    const Rows rows = host::rows(1, 2);
    const Ints seq{0}, one{1};
    Results results = Results::of(1);
    const auto a = host::step_args(0, seq, one, rows, results);
    ASSERT_OK(skc_step_part(cache, &a, 0, 2));
    auto other = a;
    other.layer = 1;
    EXPECT_REJECTED(skc_step_part(cache, &other, 0, 2), SKC_STATUS_BUSY, "other arguments");
    EXPECT_EQ(destroyer.refused, 1);
    EXPECT_OK(skc_step_part(cache, &a, 1, 2));
    EXPECT_EQ(host::info(cache).length_max, 1u);
    EXPECT_TRUE(results.finite());
}

TEST_F(OpenStep, DestroyAbandonsIt) {
    owner.close();
    EXPECT_REJECTED(skc_step_part(cache, &args, 1, 3), SKC_STATUS_INVALID_HANDLE, "destroyed");
}

// A step longer than the ring's spare slots has overwritten tokens that would be visible again after an abort.
TEST(StepPart, AfterAnAbandonedLongStepOnlyResetHelps) {
    sinkcache::Cache owner(host::config().threads(2));
    skc_cache *cache = owner.handle();
    host::step(cache, host::rows(20, 1));
    const Rows rows = host::rows(30, 2);
    const Ints seq{0}, thirty{30};
    Results results = Results::of(30);
    auto a = host::step_args(0, seq, thirty, rows, results);
    ASSERT_OK(skc_step_part(cache, &a, 0, 2));
    EXPECT_REJECTED(host::abort_step(cache), SKC_STATUS_TOKENS_GONE, "reset");
    EXPECT_REJECTED(skc_step(cache, &a), SKC_STATUS_TOKENS_GONE, "reset");
    EXPECT_EQ(host::info(cache).length_max, 20u);
    ASSERT_OK(host::reset(cache));
    sinkcache::Cache twin(host::config());
    EXPECT_EQ(host::step(cache, rows), host::step(twin.handle(), rows));
}

TEST(StepPart, AnInvalidFirstMemberOpensNoStep) {
    sinkcache::Cache owner(config(3));
    const Rows rows = host::rows(4, 2);
    const Ints seq{0}, four{4}, bad{-4};
    Results results = Results::of(4);
    auto a = host::step_args(0, seq, bad, rows, results);
    EXPECT_REJECTED(skc_step_part(owner.handle(), &a, 0, 3), SKC_STATUS_INVALID_ARGUMENT, "-4");
    a.n_tokens = four.data();
    EXPECT_REJECTED(skc_step_part(owner.handle(), &a, 0, 4), SKC_STATUS_INVALID_ARGUMENT, "nth 4");
    EXPECT_EQ(host::info(owner.handle()).length_max, 0u);
    ASSERT_OK(skc_step(owner.handle(), &a));
}

}  // namespace
