// Conversations that rest without a slot and come back: tokens as with a slot for each, and none read twice.
#include "parked_conversation.hpp"
#include "support.hpp"

#include <filesystem>
#include <memory>
#include <unistd.h>

namespace {

using namespace test;
namespace fs = std::filesystem;

Request starting(const std::string &id, const std::string &conversation, std::size_t from, std::size_t n) {
    Request r = new_sequence(id, from, n, 6);
    r.conversation = conversation;
    return r;
}

Request continuing(const std::string &id, const std::string &conversation, std::size_t from, std::size_t n) {
    Request r = request(id, text(from, n), 6);
    r.start = Start::continued;
    r.source = conversation;
    return r;
}

Request forking(const std::string &id, const std::string &source, std::size_t from, std::size_t n) {
    Request r = continuing(id, source, from, n);
    r.start = Start::forked;
    return r;
}

std::string talk(std::size_t c) { return "talk " + std::to_string(c); }
std::string id(std::size_t c, std::size_t round) { return std::to_string(c) + "." + std::to_string(round); }

Request round(std::size_t c, std::size_t r) {
    const std::size_t at = 1000 * c + 50 * r, n = 5 + (c + r) % 20;
    return r == 0 ? starting(id(c, r), talk(c), at, n) : continuing(id(c, r), talk(c), at, n);
}

/** Rounds of conversations, all of one round before the next. */
std::vector<Request> rounds(std::size_t conversations, std::size_t from, std::size_t to) {
    std::vector<Request> all;
    for (std::size_t r = from; r < to; r++) {
        for (std::size_t c = 0; c < conversations; c++) {
            all.push_back(round(c, r));
        }
    }
    return all;
}

/** The same rounds in random order. */
std::vector<Request> shuffled_rounds(std::size_t conversations, std::size_t n) {
    std::mt19937 random(3);
    std::vector<std::size_t> done(conversations, 0);
    std::vector<Request> all;
    while (all.size() < conversations * n) {
        if (const std::size_t c = random() % conversations; done[c] < n) {
            all.push_back(round(c, done[c]++));
        }
    }
    return all;
}

/** A model with few slots, and where its conversations rest. */
class ParkConversations : public testing::Test {
protected:
    const fs::path folder = fs::path(testing::TempDir()) / ("resting-" + std::to_string(getpid()));

    void SetUp() override { fs::remove_all(folder); }
    void TearDown() override { fs::remove_all(folder); }

    Parking parking(std::uint64_t memory, std::uint64_t disk) const {
        return Parking({memory, disk > 0 ? folder.string() : "", disk, {}}, single_rank());
    }
    /** What the same requests give with a slot for each sequence. */
    static std::map<std::string, Result> with_slots(const std::vector<Request> &requests, std::uint32_t slots,
                                                    std::uint32_t draft = 0) {
        CpuModel model(weights(), plugin_config(slots, draft), single_rank(), 1);
        Executor executor(model, executor_config(slots, 64, draft));
        auto results = run(executor, requests);
        expect_done(results);
        return results;
    }
    static void expect_equal(const std::map<std::string, Result> &got, const std::map<std::string, Result> &want) {
        expect_done(got);
        for (const auto &[name, result] : got) {
            EXPECT_EQ(result.tokens, want.at(name).tokens) << name;
            EXPECT_EQ(result.stream_length, want.at(name).stream_length) << name;
        }
    }
    /** Bytes of a parked conversation that is longer than the window. */
    static std::uint64_t parked_bytes() {
        CpuModel model(weights(), plugin_config(1), single_rank(), 1);
        Parking parking({1 << 30, "", 0, {}}, single_rank());
        Executor executor(model, executor_config(1), &parking);
        run(executor, {starting("a", "a", 0, 100)});
        executor.park_idle();
        EXPECT_EQ(parking.counters().in_memory, 1u);
        return parking.counters().memory_bytes;
    }
};

TEST_F(ParkConversations, ManyOnFewSlotsGiveTheTokensOfASlotEach) {
    constexpr std::size_t CONVERSATIONS = 40, ROUNDS = 5;
    const std::vector<Request> requests = shuffled_rounds(CONVERSATIONS, ROUNDS);
    for (const std::uint32_t draft : {0u, 4u}) {
        fs::remove_all(folder);
        const auto want = with_slots(requests, CONVERSATIONS, draft);
        Parking resting = parking(10 * parked_bytes(), std::uint64_t{1} << 30);
        CpuModel model(weights(), plugin_config(4, draft), single_rank(), 1);
        Executor executor(model, executor_config(4, 64, draft), &resting);
        const auto got = run(executor, requests);
        EXPECT_EQ(got.size(), requests.size());
        expect_equal(got, want);
        std::uint64_t length = 0, restored = 0;
        for (std::size_t c = 0; c < CONVERSATIONS; c++) {
            length += got.at(id(c, ROUNDS - 1)).stream_length;
        }
        for (const auto &[name, result] : got) {
            restored += result.restored != Restored::not_parked;
        }
        EXPECT_EQ(executor.counters().context_tokens + executor.counters().decode_tokens, length) << "none twice";
        const ParkingCounters &n = resting.counters();
        EXPECT_EQ(n.memory_hits + n.disk_hits, restored);
        EXPECT_GT(n.memory_hits, 0u);
        EXPECT_GT(n.disk_hits, 30u);
        EXPECT_EQ(n.in_memory + n.on_disk + executor.counters().idle_conversations, CONVERSATIONS);
        EXPECT_EQ(n.misses + n.dropped + n.write_failures + n.damaged, 0u);
    }
}

TEST_F(ParkConversations, InEveryPairOfStorageTypes) {
    const std::vector<Request> requests = rounds(5, 0, 3);
    for (const auto &[k, v] : {std::pair<std::uint32_t, std::uint32_t>{SKC_DTYPE_BF16, SKC_DTYPE_BF16},
                               {SKC_DTYPE_F16, SKC_DTYPE_Q8},
                               {SKC_DTYPE_Q8, SKC_DTYPE_Q4},
                               {SKC_DTYPE_Q4, SKC_DTYPE_F32}}) {
        std::map<std::string, Result> got[2];
        for (const std::uint32_t slots : {5, 2}) {
            PluginConfig config = plugin_config(slots);
            config.k_dtype = k;
            config.v_dtype = v;
            Parking resting = parking(1 << 30, 0);
            CpuModel model(weights(), config, single_rank(), 1);
            Executor executor(model, executor_config(slots), &resting);
            got[slots == 2] = run(executor, requests);
            EXPECT_EQ(resting.counters().memory_hits > 0, slots == 2);
        }
        expect_equal(got[1], got[0]);
    }
}

TEST_F(ParkConversations, OneSlotIsEnoughForForks) {
    const std::vector<Request> requests{
        starting("a", "a", 300, 50),  forking("f1", "a", 900, 20), continuing("a2", "a", 700, 40),
        forking("f2", "a", 900, 20), continuing("a3", "a", 100, 9),
    };
    auto named = requests;
    named[1].conversation = "fork";
    named.push_back(continuing("f3", "fork", 500, 12));
    const auto want = with_slots(named, 8);
    Parking resting = parking(1 << 30, 0);
    CpuModel model(weights(), plugin_config(1), single_rank(), 1);
    Executor executor(model, executor_config(1), &resting);
    const auto got = run(executor, named);
    EXPECT_EQ(got.size(), named.size());
    expect_equal(got, want);
    EXPECT_EQ(got.at("f1").restored, Restored::from_memory);
}

TEST_F(ParkConversations, ConversationsGoOnAfterARestart) {
    constexpr std::size_t CONVERSATIONS = 10;
    const auto want = with_slots(rounds(CONVERSATIONS, 0, 4), CONVERSATIONS);
    for (const std::size_t from : {0, 2}) {
        Parking resting = parking(3 * parked_bytes(), std::uint64_t{1} << 30);
        CpuModel model(weights(), plugin_config(3), single_rank(), 1);
        Executor executor(model, executor_config(3), &resting);
        expect_equal(run(executor, rounds(CONVERSATIONS, from, from + 2)), want);
        executor.park_idle();
        EXPECT_EQ(resting.counters().on_disk, CONVERSATIONS);
        EXPECT_EQ(executor.counters().failed, 0u);
    }
}

TEST_F(ParkConversations, ALostConversationFailsItsRequestsAndNoOthers) {
    Parking resting = parking(0, std::uint64_t{1} << 30);
    CpuModel model(weights(), plugin_config(2), single_rank(), 1);
    Executor executor(model, executor_config(2), &resting);
    expect_done(run(executor, rounds(6, 0, 1)));
    EXPECT_EQ(resting.counters().on_disk, 4u);
    for (const auto &entry : fs::directory_iterator(folder)) {
        if (entry.path().extension() == ".parked") {
            fs::resize_file(entry.path(), fs::file_size(entry.path()) - 1);
        }
    }
    Request fork = forking("fork", talk(1), 0, 4);
    fork.conversation = "fork";
    std::vector<Request> requests = rounds(6, 1, 2);
    requests.insert(requests.begin() + 1, fork);
    requests.push_back(continuing("of the fork", "fork", 0, 4));
    requests.push_back(continuing("second", talk(0), 0, 4));
    const auto results = run(executor, requests);
    EXPECT_EQ(results.size(), requests.size());
    std::size_t lost = 0;
    for (const auto &[name, result] : results) {
        if (result.outcome == Outcome::failed && name != "of the fork") {
            EXPECT_NE(result.error.find("was lost: what was parked of it is damaged or missing"), std::string::npos)
                << name << ": " << result.error;
            lost++;
        }
    }
    EXPECT_EQ(lost, 6u) << "a round of each, the fork, and the second of talk 0";
    EXPECT_EQ(results.at("0.1").outcome, Outcome::failed);
    EXPECT_EQ(results.at("second").outcome, Outcome::failed);
    EXPECT_EQ(results.at("of the fork").error, "conversation 'fork' never began");
    EXPECT_EQ(resting.counters().damaged, 4u);
    EXPECT_EQ(resting.counters().misses, 4u);
    // The name is free again, and the two that had slots go on.
    expect_done(run(executor, {starting("again", talk(0), 0, 10), continuing("4.2", talk(4), 0, 4),
                               continuing("5.2", talk(5), 0, 4)}));
}

TEST_F(ParkConversations, EndCloseAndCancelReachParkedConversations) {
    Parking resting = parking(1 << 30, 0);
    CpuModel model(weights(), plugin_config(1), single_rank(), 1);
    Executor executor(model, executor_config(1), &resting);
    expect_done(run(executor, rounds(4, 0, 1)));
    EXPECT_EQ(resting.counters().in_memory, 3u);
    EXPECT_TRUE(executor.close(talk(0)));
    EXPECT_FALSE(executor.close(talk(0)));
    EXPECT_EQ(resting.counters().in_memory, 2u);
    Request last = continuing("last", talk(1), 0, 4), cancelled = continuing("cancelled", talk(2), 0, 4);
    last.end = true;
    cancelled.cancel_after = 0;
    executor.submit(cancelled);
    EXPECT_FALSE(executor.close(talk(2))) << "a request is queued for it";
    executor.submit(last);
    executor.submit(continuing("too late", talk(1), 0, 4));
    executor.submit(continuing("closed", talk(0), 0, 4));
    executor.submit(starting("taken", talk(2), 0, 4));
    const auto results = run(executor);
    EXPECT_EQ(results.at("last").outcome, Outcome::done);
    EXPECT_EQ(results.at("cancelled").outcome, Outcome::cancelled);
    EXPECT_EQ(results.at("too late").error, "conversation 'talk 1' ends with an earlier request");
    EXPECT_EQ(results.at("closed").error, "there is no conversation 'talk 0'");
    EXPECT_EQ(results.at("taken").error, "there is a conversation 'talk 2' already");
    EXPECT_EQ(resting.counters().misses, 1u);
    EXPECT_FALSE(resting.contains(talk(1)));
    expect_done(run(executor, {continuing("2.1", talk(2), 0, 4), continuing("3.1", talk(3), 0, 4)}));
}

TEST_F(ParkConversations, WithoutRoomAConversationThatIsAwaitedKeepsItsSlot) {
    ExecutorConfig config = executor_config(2);
    config.reclaim_idle = true;
    const std::uint64_t one = parked_bytes();
    Parking resting = parking(one + one / 2, 0);
    CpuModel model(weights(), plugin_config(2), single_rank(), 1);
    Executor executor(model, config, &resting);
    // Four long conversations, of which two have slots and one rests: the first to rest was dropped.
    std::vector<Request> requests;
    for (std::size_t c = 0; c < 4; c++) {
        requests.push_back(starting(id(c, 0), talk(c), 1000 * c, 100));
    }
    expect_done(run(executor, requests));
    EXPECT_EQ(resting.counters().dropped, 1u);
    EXPECT_EQ(resting.counters().in_memory, 1u);
    // All that are left are awaited. None is lost while others wait for slots.
    requests = {new_sequence("new", 0, 100, 6)};
    for (std::size_t c = 0; c < 4; c++) {
        requests.push_back(continuing(id(c, 1), talk(c), 1000 * c + 100, 30));
        requests.push_back(continuing(id(c, 2), talk(c), 1000 * c + 200, 30));
    }
    const auto results = run(executor, requests);
    EXPECT_EQ(results.size(), requests.size());
    for (const auto &[name, result] : results) {
        const bool dropped = name == "0.1" || name == "0.2";
        EXPECT_EQ(result.error, dropped ? "there is no conversation 'talk 0'" : "") << name;
    }
}

TEST_F(ParkConversations, BytesThatAreNoConversationAreRejected) {
    const ParkedConversation c{Token{5}, {1, 2, 3}, {9, 8, 7}};
    const Bytes bytes = to_bytes(c);
    const auto again = from_bytes(bytes, 6);
    ASSERT_TRUE(again);
    EXPECT_EQ(again->pending, c.pending);
    EXPECT_EQ(again->recent, c.recent);
    EXPECT_EQ(again->sequence, c.sequence);
    EXPECT_EQ(from_bytes(to_bytes({std::nullopt, {}, {1}}), 6)->pending, std::nullopt);
    EXPECT_FALSE(from_bytes(bytes, 5)) << "a token outside the vocabulary";
    for (std::size_t n = 0; n < bytes.size(); n++) {
        EXPECT_FALSE(from_bytes(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n)), 6)) << n;
    }
    Bytes longer = bytes;
    longer.push_back(0);
    EXPECT_FALSE(from_bytes(longer, 6));
    for (std::size_t i = 0; i < bytes.size() - c.sequence.size(); i++) {
        Bytes wrong = bytes;
        wrong[i] ^= 0x80;
        EXPECT_FALSE(from_bytes(wrong, 6)) << i;
    }
}

}  // namespace
