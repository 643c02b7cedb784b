// Sequences that stay in the cache between requests: rounds, forks, waiting for slots, cancellation.
#include "support.hpp"

#include <cstdlib>

namespace {

using namespace test;

Request next_round(const std::string &id, const std::string &conversation, std::vector<Token> prompt,
                   std::uint32_t max_tokens) {
    Request r = request(id, std::move(prompt), max_tokens);
    r.start = Start::continued;
    r.source = conversation;
    return r;
}

Request keep(Request r, const std::string &conversation) {
    r.conversation = conversation;
    return r;
}

Request fork_of(const std::string &id, const std::string &conversation, std::vector<Token> prompt,
                std::uint32_t max_tokens) {
    Request r = next_round(id, conversation, std::move(prompt), max_tokens);
    r.start = Start::forked;
    return r;
}

std::string name(const char *what, std::size_t c, std::size_t round) {
    return what + std::to_string(c) + "." + std::to_string(round);
}

/** Bytes that a cache holds, and the number of its allocations. */
struct Memory {
    std::size_t live = 0, calls = 0;

    void watch(PluginConfig &config) {
        config.memory_user = this;
        config.alloc = [](void *user, std::size_t bytes, std::size_t align) {
            auto &memory = *static_cast<Memory *>(user);
            memory.live += bytes;
            memory.calls++;
            return std::aligned_alloc(align, (bytes + align - 1) / align * align);
        };
        config.free = [](void *user, void *p, std::size_t bytes) {
            static_cast<Memory *>(user)->live -= bytes;
            std::free(p);
        };
    }
};

TEST(Conversations, TwentyRoundsFeedEachTokenOnceAndNeedNoMoreMemory) {
    constexpr std::size_t CONVERSATIONS = 8, ROUNDS = 20, PROMPT = 12, OUT = 8;
    static_assert(ROUNDS * (PROMPT + OUT) > 10 * (SINK + WINDOW), "more than ten times the cached tokens");
    // A second model serves each conversation alone.
    Memory memory;
    PluginConfig config = plugin_config(CONVERSATIONS);
    memory.watch(config);
    CpuModel model(weights(), config, single_rank(), 1), other(weights(), plugin_config(1), single_rank(), 1);
    Executor executor(model, executor_config(CONVERSATIONS, 64));
    const std::size_t live = memory.live, calls = memory.calls;
    EXPECT_GT(live, 0u);
    EXPECT_LE(live, AttentionPlugin::bytes(with_shape(config, model.weights())).host);
    std::map<std::string, Result> results;
    const auto at = [&](std::size_t c, std::size_t round) { return 20000 * c + 100 * round; };
    const auto rounds = [&](Executor &e, std::size_t c) {
        const std::string talk = "talk" + std::to_string(c);
        e.submit(keep(new_sequence(name("c", c, 0), at(c, 0), PROMPT, OUT), talk));
        for (std::size_t round = 1; round < ROUNDS; round++) {
            e.submit(next_round(name("c", c, round), talk, text(at(c, round), PROMPT), OUT));
        }
    };
    for (std::size_t c = 0; c < CONVERSATIONS; c++) {
        rounds(executor, c);
    }
    results = run(executor);
    expect_done(results);
    std::uint64_t total_length = 0;
    for (std::size_t c = 0; c < CONVERSATIONS; c++) {
        Executor alone(other, executor_config(1, 1000));
        rounds(alone, c);
        const auto want = run(alone);
        for (std::size_t round = 0; round < ROUNDS; round++) {
            const Result &got = results.at(name("c", c, round));
            EXPECT_EQ(got.tokens, want.at(got.id).tokens) << got.id;
            // <s>, all prompts and all generated tokens but the last, each once.
            EXPECT_EQ(got.stream_length, 1 + (round + 1) * (PROMPT + OUT) - 1) << got.id;
        }
        total_length += results.at(name("c", c, ROUNDS - 1)).stream_length;
    }
    const Counters &n = executor.counters();
    EXPECT_EQ(n.context_tokens + n.decode_tokens, total_length);
    EXPECT_EQ(n.evicted_tokens, total_length - CONVERSATIONS * (SINK + WINDOW));
    EXPECT_EQ(n.idle_conversations, CONVERSATIONS);
    EXPECT_EQ(memory.live, live);
    EXPECT_EQ(memory.calls, calls);
}

TEST(Conversations, ARoundEqualsOneLongRequest) {
    // Greedy: what a round generated, fed as part of a longer prompt, must lead to the same next tokens.
    CpuModel model(weights(), plugin_config(2), single_rank(), 1);
    Executor executor(model, executor_config(2));
    const auto rounds = run(executor, {keep(new_sequence("a", 0, 30, 9), "t"), next_round("b", "t", text(500, 30), 9)});
    expect_done(rounds);
    std::vector<Token> whole = new_sequence("", 0, 30, 1).prompt;
    for (const auto *part : {&rounds.at("a").tokens}) {
        whole.insert(whole.end(), part->begin(), part->end());
    }
    const auto second = text(500, 30);
    whole.insert(whole.end(), second.begin(), second.end());
    EXPECT_EQ(run(executor, {request("c", whole, 9)}).at("c").tokens, rounds.at("b").tokens);
}

TEST(Conversations, AForkDoesNotChangeItsSource) {
    CpuModel model(weights(), plugin_config(4), single_rank(), 1);
    Executor executor(model, executor_config(4));
    const auto talk = [](const std::string &id) { return keep(new_sequence(id, 300, 50, 12), id); };
    const auto results =
        run(executor, {talk("a"), talk("b"), keep(fork_of("fork", "a", text(900, 20), 12), "c"),
                       next_round("a2", "a", text(700, 40), 12), next_round("b2", "b", text(700, 40), 12),
                       next_round("c2", "c", text(100, 5), 3)});
    expect_done(results);
    EXPECT_EQ(results.at("a2").tokens, results.at("b2").tokens);
    EXPECT_EQ(results.at("fork").stream_length, 1 + 50 + 12 + 20 + 12 - 1u);
    // The fork gives the tokens of a round of a conversation with the same history.
    const auto again = run(executor, {next_round("end", "b", text(1, 1), 1)});
    Executor second(model, executor_config(4));
    const auto direct = run(second, {talk("a"), next_round("x", "a", text(900, 20), 12)});
    EXPECT_EQ(results.at("fork").tokens, direct.at("x").tokens);
}

TEST(Conversations, RequestsWaitForASlotAndDoNotFail) {
    CpuModel model(weights(), plugin_config(2), single_rank(), 1);
    Executor executor(model, executor_config(2));
    // Both slots are taken by conversations that stay.
    auto results = run(executor, {keep(new_sequence("a", 0, 10, 4), "a"), keep(new_sequence("b", 0, 10, 4), "b"),
                                  new_sequence("waits", 0, 10, 4), fork_of("fork waits", "a", text(0, 5), 4)});
    EXPECT_EQ(results.size(), 2u);
    expect_done(results);
    EXPECT_EQ(executor.counters().waiting, 2u);
    EXPECT_EQ(executor.counters().idle_conversations, 2u);
    // A round of a conversation needs no slot, but it does not overtake a fork that came before it. A conversation with
    // queued requests cannot be closed.
    results = run(executor, {next_round("b2", "b", text(50, 10), 4), next_round("a2", "a", text(50, 10), 4)});
    EXPECT_EQ(results.size(), 1u);
    EXPECT_EQ(results.count("b2"), 1u);
    expect_done(results);
    EXPECT_FALSE(executor.close("a"));
    EXPECT_FALSE(executor.close("nobody"));
    EXPECT_TRUE(executor.close("b"));
    results = run(executor);
    EXPECT_EQ(results.size(), 3u);
    expect_done(results);
    EXPECT_EQ(results.at("waits").tokens.size(), 4u);
    // 10 + <s> + 4 generated, then the fork's 5 + 4 generated without the last. It was taken before a2, whose 10 are
    // not in it.
    EXPECT_EQ(results.at("fork waits").stream_length, 11 + 4 + 5 + 4 - 1u);
    EXPECT_TRUE(executor.close("a"));
    EXPECT_EQ(executor.counters().failed, 0u);
}

TEST(Conversations, IdleConversationsAreReclaimedIfConfigured) {
    CpuModel model(weights(), plugin_config(2), single_rank(), 1);
    ExecutorConfig config = executor_config(2);
    config.reclaim_idle = true;
    Executor executor(model, config);
    auto results = run(executor, {keep(new_sequence("a", 0, 10, 4), "a"), keep(new_sequence("b", 0, 10, 4), "b"),
                                  next_round("a2", "a", text(0, 5), 4), new_sequence("c", 0, 10, 4),
                                  next_round("a3", "a", text(0, 5), 4)});
    expect_done(results);
    EXPECT_EQ(results.size(), 5u);
    // The conversation without queued requests was ended.
    results = run(executor, {next_round("b2", "b", text(0, 5), 4)});
    EXPECT_EQ(results.at("b2").error, "there is no conversation 'b'");
    // A fork that can never get its second slot fails, and the next round runs.
    results = run(executor, {keep(new_sequence("d", 0, 10, 4), "d"), fork_of("f", "a", text(0, 5), 4),
                             next_round("a4", "a", text(0, 5), 4), next_round("d2", "d", text(0, 5), 4)});
    expect_done(results);
    // The slot of a fork's source goes to the next request in the same iteration in which the fork starts.
    Executor again(model, config);
    run(again, {keep(new_sequence("d", 0, 10, 4), "d")});
    results = run(again, {fork_of("g", "d", text(0, 5), 4), new_sequence("h", 0, 10, 4)});
    expect_done(results);
    EXPECT_FALSE(again.close("d"));
    CpuModel single(weights(), plugin_config(1), single_rank(), 1);
    config.max_seqs = 1;
    Executor narrow(single, config);
    results = run(narrow, {keep(new_sequence("a", 0, 10, 4), "a"), fork_of("f", "a", text(0, 5), 4),
                           next_round("a2", "a", text(0, 5), 4)});
    EXPECT_EQ(results.at("f").outcome, Outcome::failed);
    EXPECT_NE(results.at("f").error.find("second sequence slot"), std::string::npos);
    EXPECT_EQ(results.at("a2").outcome, Outcome::done);
}

TEST(Conversations, CancellingKeepsTheTokensInTheCache) {
    CpuModel model(weights(), plugin_config(2), single_rank(), 1);
    Executor executor(model, executor_config(2));
    executor.submit(keep(new_sequence("a", 0, 20, 100), "t"));
    executor.submit(next_round("b", "t", text(40, 10), 5));
    for (int i = 0; i < 6; i++) {
        executor.step();
    }
    EXPECT_FALSE(executor.cancel("nobody"));
    EXPECT_TRUE(executor.cancel("a"));
    auto results = run(executor);
    const Result &a = results.at("a"), &b = results.at("b");
    EXPECT_EQ(a.outcome, Outcome::cancelled);
    ASSERT_FALSE(a.tokens.empty());
    EXPECT_EQ(a.stream_length, 21 + a.tokens.size() - 1);
    EXPECT_EQ(b.outcome, Outcome::done);
    // b continued from a's last token, like a request with that history.
    std::vector<Token> whole = new_sequence("", 0, 20, 1).prompt;
    whole.insert(whole.end(), a.tokens.begin(), a.tokens.end());
    const auto more = text(40, 10);
    whole.insert(whole.end(), more.begin(), more.end());
    EXPECT_EQ(run(executor, {request("c", whole, 5)}).at("c").tokens, b.tokens);
    // Cancelled before it had a slot: requests that wait for its conversation fail.
    executor.submit(keep(new_sequence("x", 0, 20, 5), "never"));
    executor.submit(next_round("y", "never", text(0, 5), 5));
    executor.submit(keep(fork_of("z", "never", text(0, 5), 5), "either"));
    EXPECT_TRUE(executor.cancel("x"));
    results = run(executor);
    EXPECT_EQ(results.at("x").outcome, Outcome::cancelled);
    EXPECT_EQ(results.at("y").error, "conversation 'never' never began");
    EXPECT_EQ(results.at("z").error, "conversation 'never' never began");
    EXPECT_EQ(executor.counters().idle_conversations, 1u);
}

TEST(Conversations, EndWithTheirLastRound) {
    CpuModel model(weights(), plugin_config(1), single_rank(), 1);
    Executor executor(model, executor_config(1));
    Request last = next_round("b", "t", text(0, 5), 5);
    last.end = true;
    const auto results = run(executor, {keep(new_sequence("a", 0, 20, 5), "t"), last,
                                        next_round("late", "t", text(0, 5), 5), new_sequence("c", 0, 9, 5)});
    EXPECT_EQ(results.at("b").outcome, Outcome::done);
    EXPECT_EQ(results.at("late").error, "conversation 't' ends with an earlier request");
    EXPECT_EQ(results.at("c").outcome, Outcome::done);
    EXPECT_EQ(executor.counters().idle_conversations, 0u);
    // The name can be used again.
    EXPECT_EQ(run(executor, {keep(new_sequence("d", 0, 20, 5), "t")}).at("d").outcome, Outcome::done);
}

TEST(Conversations, RandomConversationsAgreeWithEachServedAlone) {
    // Random rounds, forks and reclaimed conversations over few slots. Each result is compared with its conversation
    // served alone.
    std::mt19937 random(5);
    const auto below = [&](std::uint32_t n) { return random() % n; };
    CpuModel model(weights(), plugin_config(4), single_rank(), 1), other(weights(), plugin_config(4), single_rank(), 1);
    ExecutorConfig config = executor_config(4, 40);
    config.reclaim_idle = true;
    std::vector<Request> all;
    std::map<std::string, std::vector<Request>> histories;
    for (std::uint32_t i = 0; i < 60; i++) {
        const std::string id = "r" + std::to_string(i), source = "t" + std::to_string(below(6));
        Request r = new_sequence(id, below(100000), 1 + below(70), 1 + below(9));
        if (histories.count(source) && below(4) != 0) {
            r.start = below(4) == 0 ? Start::forked : Start::continued;
            r.source = source;
            r.prompt.erase(r.prompt.begin());
            if (r.start == Start::continued) {
                histories[source].push_back(r);
            }
        } else if (!histories.count(source)) {
            r.conversation = source;
            histories[source] = {r};
        }
        r.arrival = below(30);
        all.push_back(r);
    }
    Executor executor(model, config);
    const auto results = run(executor, all);
    ASSERT_EQ(results.size(), all.size());
    for (const auto &[id, r] : results) {
        EXPECT_TRUE(r.outcome == Outcome::done || r.error.find("no conversation '") != std::string::npos ||
                    r.error.find("second sequence slot") != std::string::npos)
            << id << ": " << r.error;
    }
    std::size_t compared = 0;
    for (const auto &[talk, line] : histories) {
        Executor alone(other, executor_config(4, 500));
        auto requests = line;
        requests.erase(std::remove_if(requests.begin(), requests.end(),
                                      [&](const Request &r) { return results.at(r.id).outcome != Outcome::done; }),
                       requests.end());
        for (const auto &[id, want] : run(alone, requests)) {
            EXPECT_EQ(results.at(id).tokens, want.tokens) << id << " of " << talk;
            compared++;
        }
    }
    EXPECT_GT(compared, 25u);
}

}  // namespace
