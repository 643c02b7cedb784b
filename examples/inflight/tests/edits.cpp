// Pinned prompts, dropped ranges and dropped thoughts of conversations.
#include "support.hpp"

#include <algorithm>
#include <set>
#include <utility>

namespace {

using namespace test;

constexpr std::uint32_t PINNED = 77, SEGMENTS = 24;

PluginConfig with_room(std::uint32_t max_seqs, std::uint32_t max_pinned = PINNED,
                       std::uint32_t max_segments = SEGMENTS) {
    PluginConfig c = plugin_config(max_seqs);
    c.max_pinned = max_pinned;
    c.max_segments = max_segments;
    return c;
}

Request keep(Request r, const std::string &conversation) {
    r.conversation = conversation;
    return r;
}

Request next_round(const std::string &id, const std::string &conversation, std::vector<Token> prompt,
                   std::uint32_t max_tokens) {
    Request r = request(id, std::move(prompt), max_tokens);
    r.start = Start::continued;
    r.source = conversation;
    return r;
}

Request pinned(Request r, std::size_t n) {
    r.pin_prompt = n;
    return r;
}

Request dropping(Request r, std::vector<TokenRange> ranges) {
    r.drop = std::move(ranges);
    return r;
}

bool has_note(const Result &r, const std::string &part) {
    return std::any_of(r.notes.begin(), r.notes.end(),
                       [&](const std::string &note) { return note.find(part) != std::string::npos; });
}

std::vector<std::pair<std::uint64_t, std::uint32_t>> pairs(const std::vector<TokenRange> &ranges) {
    std::vector<std::pair<std::uint64_t, std::uint32_t>> found;
    for (const TokenRange &r : ranges) {
        found.emplace_back(r.first, r.n);
    }
    return found;
}

TEST(Edits, ThoughtsAreWhatStandsBetweenMarkers) {
    using Pairs = std::vector<std::pair<std::uint64_t, std::uint32_t>>;
    const auto found = [](const std::vector<Token> &tokens, std::size_t answer, ThoughtMarkers markers = {1, 2}) {
        return pairs(find_thoughts(tokens, answer, markers));
    };
    EXPECT_EQ(found({5, 5, 1, 7, 7, 2, 5}, 2), (Pairs{{2, 4}}));
    EXPECT_EQ(found({5, 5, 1, 2, 1, 7, 2}, 2), (Pairs{{2, 2}, {4, 3}}));
    // Opened by the prompt; and one that the prompt closes, too.
    EXPECT_EQ(found({5, 1, 7, 2, 5}, 2), (Pairs{{1, 3}}));
    EXPECT_EQ(found({1, 7, 2, 5, 5}, 3), Pairs());
    // Not closed, not opened, opened twice.
    EXPECT_EQ(found({5, 1, 7, 7}, 1), Pairs());
    EXPECT_EQ(found({5, 2, 7, 7}, 1), Pairs());
    EXPECT_EQ(found({5, 1, 1, 7, 2, 2}, 1), (Pairs{{1, 4}}));
    // One token for both.
    EXPECT_EQ(found({5, 3, 7, 3, 7, 3, 3, 3}, 1, {3, 3}), (Pairs{{1, 3}, {5, 2}}));
    EXPECT_EQ(found({}, 0), Pairs());
}

// Longer than the window: the prompt is pinned as it is fed.
TEST(Edits, APinnedPromptStays) {
    for (const std::size_t n : {20u, 61u, 75u}) {
        CpuModel model(weights(), with_room(1), single_rank(), 1);
        Executor executor(model, executor_config(1));
        Request first = keep(new_sequence("a", 0, n, 5), "t");
        first.pin_prompt = first.prompt.size();
        auto results = run(executor, {first, next_round("b", "t", text(3000, 90), 40)});
        expect_done(results);
        const std::size_t expected = 1 + n - SINK;
        EXPECT_EQ(results.at("a").pinned, expected);
        EXPECT_EQ(results.at("a").notes, std::vector<std::string>());
        EXPECT_EQ(results.at("b").pinned, 0u);
        const SequenceState state = model.plugin().state(0);
        EXPECT_EQ(state.pinned, expected);
        EXPECT_EQ(state.cached, SINK + expected + WINDOW);
        EXPECT_EQ(executor.counters().pinned_tokens, expected);
        // A share of a later prompt: 6 of its tokens, behind the pending one.
        results = run(executor, {pinned(next_round("c", "t", text(5000, 60), 40), 6)});
        EXPECT_EQ(results.at("c").pinned, n == 75 ? 0u : 6u);
        EXPECT_EQ(results.at("c").notes.size(), n == 75 ? 1u : 0u);
    }
}

TEST(Edits, TokensDoNotDependOnTheSchedule) {
    const auto requests = [](std::uint32_t arrival) {
        std::vector<Request> all;
        for (std::size_t i = 0; i < 4; i++) {
            const std::string talk = "t" + std::to_string(i);
            Request r = keep(new_sequence(talk + ".a", 2000 * i, 30 + 11 * i, 20), talk);
            r.pin_prompt = i % 2 ? r.prompt.size() : 9;
            // Spaces: each second word is a thought.
            r.drop_thoughts = ThoughtMarkers{' ' + LlamaConfig::byte_offset, ' ' + LlamaConfig::byte_offset};
            r.arrival = arrival * i;
            all.push_back(r);
            Request next = next_round(talk + ".b", talk, text(2000 * i + 500, 40), 20);
            next.drop = {{r.prompt.size() + 1, 2}};
            next.drop_thoughts = r.drop_thoughts;
            all.push_back(next);
        }
        return all;
    };
    CpuModel model(weights(), with_room(4), single_rank(), 1);
    Executor plain(model, executor_config(4, 17));
    const auto want = run(plain, requests(0));
    expect_done(want);
    std::uint64_t dropped = 0;
    for (const std::uint32_t budget : {40u, 64u, 500u}) {
        Executor executor(model, executor_config(4, budget));
        const auto got = run(executor, requests(budget / 10));
        for (const auto &[id, r] : got) {
            EXPECT_EQ(r.tokens, want.at(id).tokens) << id;
            EXPECT_EQ(r.dropped, want.at(id).dropped) << id;
            EXPECT_EQ(r.pinned, want.at(id).pinned) << id;
            EXPECT_EQ(r.notes, std::vector<std::string>()) << id;
            dropped += r.dropped;
        }
    }
    EXPECT_GT(dropped, 100u);
}

// What was fed last has no trace in the rest: dropped, the conversation goes on as one that never had it.
TEST(Edits, ADroppedRangeLeavesNoTrace) {
    CpuModel model(weights(), with_room(2), single_rank(), 1);
    Executor executor(model, executor_config(2));
    const std::size_t kept = 12, result_tokens = 9;
    const auto first = run(executor, {keep(new_sequence("a", 0, kept + result_tokens, 1), "t")});
    const Token pending = first.at("a").tokens.back();
    const auto question = text(700, 10);
    const auto got = run(executor, {dropping(next_round("b", "t", question, 30), {{1 + kept, 9}})});
    expect_done(got);
    EXPECT_EQ(got.at("b").dropped, result_tokens);
    std::vector<Token> whole = new_sequence("", 0, kept, 1).prompt;
    whole.push_back(pending);
    whole.insert(whole.end(), question.begin(), question.end());
    EXPECT_EQ(run(executor, {request("c", whole, 30)}).at("c").tokens, got.at("b").tokens);
    // A fork drops from its copy only.
    Request fork = dropping(next_round("d", "t", text(90, 5), 3), {{45, 10}});
    fork.start = Start::forked;
    EXPECT_EQ(run(executor, {fork}).at("d").dropped, 10u);
    EXPECT_EQ(model.plugin().state(0).cached, SINK + WINDOW);
}

// Dropping an answer's thoughts is dropping these ranges in the next round.
TEST(Edits, DroppedThoughtsAreRangesOfTheAnswer) {
    CpuModel model(weights(), with_room(2), single_rank(), 1);
    const Request start = keep(new_sequence("a", 300, 12, 24), "t");
    Executor plain(model, executor_config(1));
    const auto answer = run(plain, {start}).at("a").tokens;
    const std::set<Token> different(answer.begin(), answer.end());
    std::size_t compared = 0, ends = 0;
    for (const Token open : different) {
        for (const Token close : {*different.begin(), *different.rbegin(), answer.back()}) {
            std::vector<Token> all = start.prompt;
            all.insert(all.end(), answer.begin(), answer.end());
            auto ranges = find_thoughts(all, start.prompt.size(), {open, close});
            if (ranges.empty() || (compared > 5 && ends > 0)) {
                continue;
            }
            Executor executor(model, executor_config(1));
            Request thinking = start;
            thinking.drop_thoughts = ThoughtMarkers{open, close};
            auto first = run(executor, {thinking});
            expect_done(first);
            EXPECT_EQ(first.at("a").tokens, answer);
            std::uint64_t n = 0;
            for (TokenRange &range : ranges) {
                // Sinks stay.
                const std::uint64_t begin = std::max<std::uint64_t>(range.first, SINK);
                range = {begin, static_cast<std::uint32_t>(range.first + range.n - begin)};
                n += range.n;
            }
            // The last token is not in the cache: a thought that ends with it is not fed.
            const bool at_end = ranges.back().first + ranges.back().n == all.size();
            EXPECT_EQ(first.at("a").dropped, n - at_end);
            EXPECT_EQ(first.at("a").stream_length, all.size() - 1);
            const auto got = run(executor, {next_round("b", "t", text(40, 20), 20)});
            EXPECT_EQ(got.at("b").stream_length, all.size() - at_end + 20 + 20 - 1);
            if (at_end) {
                ends++;
                continue;
            }
            Executor by_hand(model, executor_config(1));
            const auto want = run(by_hand, {start, dropping(next_round("b", "t", text(40, 20), 20), ranges)});
            EXPECT_EQ(got.at("b").tokens, want.at("b").tokens);
            compared++;
        }
    }
    EXPECT_GT(compared, 5u);
    EXPECT_GT(ends, 0u);
}

TEST(Edits, WhatThereIsNoRoomForStaysAndIsNoted) {
    CpuModel model(weights(), with_room(1, 10, 2), single_rank(), 1);
    CpuModel none(weights(), plugin_config(1), single_rank(), 1);
    Executor executor(model, executor_config(1));
    auto results = run(executor, {pinned(keep(new_sequence("a", 0, 30, 5), "t"), 15)});
    EXPECT_EQ(results.at("a").outcome, Outcome::done);
    EXPECT_EQ(results.at("a").pinned, 0u);
    EXPECT_TRUE(has_note(results.at("a"), "tokens 0 to 14 are not pinned: 11 pinned tokens would be more than the 10"));
    results = run(executor, {dropping(next_round("b", "t", text(900, 3), 2), {{10, 2}, {14, 2}, {18, 2}})});
    EXPECT_EQ(results.at("b").outcome, Outcome::done);
    EXPECT_EQ(results.at("b").dropped, 4u);
    ASSERT_EQ(results.at("b").notes.size(), 1u);
    EXPECT_TRUE(has_note(results.at("b"), "tokens 18 to 19 stay in the cache: SKC_STATUS_NO_ROOM: "));
    EXPECT_EQ(executor.counters().refused_edits, 2u);
    EXPECT_EQ(model.plugin().state(0).cached, 31 + 5 - 1 - 4 + 1 + 3 + 2 - 1u);
    // Without room for anything.
    Executor other(none, executor_config(1));
    Request r = pinned(keep(new_sequence("a", 0, 30, 20), "t"), 31);
    r.drop_thoughts = ThoughtMarkers{' ' + LlamaConfig::byte_offset, ' ' + LlamaConfig::byte_offset};
    const auto refused = run(other, {r});
    const auto plain = run(executor, {new_sequence("plain", 0, 30, 20)});
    EXPECT_TRUE(has_note(refused.at("a"), "tokens 0 to 30 are not pinned"));
    EXPECT_TRUE(has_note(refused.at("a"), ", a thought, stay in the cache: SKC_STATUS_NO_ROOM"));
    EXPECT_EQ(refused.at("a").dropped + refused.at("a").pinned, 0u);
}

TEST(Edits, WrongRangesFailAndChangeNothing) {
    CpuModel model(weights(), with_room(2), single_rank(), 1);
    Executor executor(model, executor_config(2));
    run(executor, {keep(new_sequence("a", 0, 20, 5), "t")});
    // 1 + 20 + 5 - 1 tokens.
    const auto before = model.plugin().state(0);
    const auto error = [&](std::uint64_t first, std::uint32_t n, Start start = Start::continued) {
        Request r = dropping(next_round("x", "t", text(0, 5), 5), {{10, 2}, {first, n}});
        r.start = start;
        const Result result = run(executor, {r}).at("x");
        EXPECT_EQ(result.outcome, Outcome::failed);
        return result.error;
    };
    EXPECT_EQ(error(3, 2), "the range to drop begins at token 3: the first 4 are sinks, which stay");
    EXPECT_EQ(error(24, 2), "the range to drop has 2 tokens from 24 on: the conversation has 25");
    EXPECT_EQ(error(UINT64_MAX, 1).substr(0, 58), "the range to drop has 1 tokens from 18446744073709551615 o");
    EXPECT_EQ(error(UINT64_MAX - 5, 100).substr(0, 38), "the range to drop has 100 tokens from ");
    EXPECT_EQ(error(25, 1, Start::forked), "the range to drop has 1 tokens from 25 on: the conversation has 25");
    EXPECT_EQ(error(10, 0).substr(0, 31), "a range to drop has 0 tokens: 1");
    const auto after = model.plugin().state(0);
    EXPECT_EQ(after.cached, before.cached);
    EXPECT_EQ(after.length, before.length);
    Request none = dropping(new_sequence("y", 0, 5, 5), {{10, 2}});
    EXPECT_EQ(run(executor, {none}).at("y").error,
              "ranges can be dropped of a conversation that is continued or forked only");
    EXPECT_EQ(run(executor, {pinned(new_sequence("z", 0, 5, 5), 7)}).at("z").error,
              "the prompt has 6 tokens: 7 cannot be pinned");
    // The conversation goes on, and the slot of the fork is free again.
    const auto next = run(executor, {next_round("b", "t", text(60, 20), 9), new_sequence("c", 0, 5, 5)});
    expect_done(next);
    Executor twin(model, executor_config(2));
    const auto want = run(twin, {keep(new_sequence("a", 0, 20, 5), "t"), next_round("b", "t", text(60, 20), 9)});
    EXPECT_EQ(next.at("b").tokens, want.at("b").tokens);
}

// Pins and ranges rest with the conversation.
TEST(Edits, ParkedConversationsKeepThem) {
    const auto requests = [] {
        std::vector<Request> all;
        for (std::size_t round = 0; round < 4; round++) {
            for (std::size_t i = 0; i < 3; i++) {
                const std::string talk = "t" + std::to_string(i), id = talk + "." + std::to_string(round);
                const auto at = 3000 * i + 100 * round;
                Request r = round == 0 ? pinned(keep(new_sequence(id, at, 25 + i, 12), talk), 20)
                                       : next_round(id, talk, text(at, 20), 12);
                r.drop_thoughts = ThoughtMarkers{' ' + LlamaConfig::byte_offset, ' ' + LlamaConfig::byte_offset};
                all.push_back(r);
            }
        }
        return all;
    };
    CpuModel many(weights(), with_room(3), single_rank(), 1), one(weights(), with_room(1), single_rank(), 1);
    Executor wide(many, executor_config(3));
    const auto want = run(wide, requests());
    Parking parking({std::uint64_t{1} << 30, "", 0, {}}, single_rank());
    Executor narrow(one, executor_config(1), &parking);
    const auto got = run(narrow, requests());
    expect_done(got);
    std::uint64_t pinned = 0, dropped = 0;
    for (const auto &[id, r] : got) {
        EXPECT_EQ(r.tokens, want.at(id).tokens) << id;
        EXPECT_EQ(r.stream_length, want.at(id).stream_length) << id;
        EXPECT_EQ(r.dropped, want.at(id).dropped) << id;
        pinned += r.pinned;
        dropped += r.dropped;
    }
    EXPECT_EQ(pinned, 3 * (20 - SINK));
    EXPECT_GT(dropped, 10u);
    EXPECT_GT(parking.counters().memory_hits, 5u);
}

TEST(Edits, TheTrainedContextIsNoted) {
    PluginConfig config = with_room(1);
    config.window = 230;
    CpuModel model(weights(), config, single_rank(), 1);
    ASSERT_EQ(model.config().trained_context, 256u);
    Executor executor(model, executor_config(1));
    // 4 + 22 + 230 positions are what it was trained with.
    const auto results = run(executor, {pinned(new_sequence("fits", 0, 60, 5), 26),
                                        pinned(new_sequence("does not", 0, 60, 5), 27)});
    EXPECT_EQ(results.at("fits").notes, std::vector<std::string>());
    EXPECT_TRUE(has_note(results.at("does not"), "reach 257 positions: the model was trained with 256"));
}

// Every second layer sees a short window, and ignores pins.
TEST(Edits, LayersThatDiffer) {
    PluginConfig config = with_room(1);
    config.local_window = 12;
    CpuModel model(weights(), config, single_rank(), 1);
    Executor executor(model, executor_config(1));
    std::vector<Request> requests;
    for (std::size_t round = 0; round < 20; round++) {
        const std::string id = std::to_string(round);
        Request r = round == 0 ? pinned(keep(new_sequence(id, 0, 40, 10), "t"), 30)
                               : next_round(id, "t", text(100 * round, 10), 10);
        r.drop_thoughts = ThoughtMarkers{' ' + LlamaConfig::byte_offset, ' ' + LlamaConfig::byte_offset};
        requests.push_back(r);
    }
    const auto results = run(executor, requests);
    expect_done(results);
    std::uint64_t dropped = 0;
    for (const auto &[id, r] : results) {
        EXPECT_EQ(r.notes, std::vector<std::string>()) << id;
        dropped += r.dropped;
    }
    EXPECT_GT(dropped, 20u);
    EXPECT_EQ(model.plugin().state(0).pinned, 30 - SINK);
    // Each token is read once.
    const Counters &n = executor.counters();
    EXPECT_EQ(n.context_tokens + n.decode_tokens, results.at("19").stream_length);
}

}  // namespace
