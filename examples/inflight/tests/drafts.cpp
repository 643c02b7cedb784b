// Drafts change how many tokens a step generates, not which.
#include "prompt_lookup.hpp"
#include "support.hpp"

namespace {

using namespace test;

std::vector<Token> draft(std::initializer_list<Token> tokens, std::size_t most) {
    PromptLookup lookup;
    for (Token t : tokens) {
        lookup.push(t);
    }
    return lookup.draft(most);
}

TEST(Drafts, AreTheTokensAfterTheLatestOccurrence) {
    using T = std::vector<Token>;
    EXPECT_EQ(draft({1, 2, 3, 4, 9, 8, 7, 1, 2, 3, 4}, 2), (T{9, 8}));
    EXPECT_EQ(draft({1, 2, 3, 4, 9, 8, 7, 1, 2, 3, 4}, 9), (T{9, 8, 7, 1, 2, 3, 4}));
    EXPECT_EQ(draft({1, 2, 3, 4, 9, 8, 7, 1, 2, 3, 4}, 0), T{});
    // The latest occurrence counts, and one of four tokens before one of three.
    EXPECT_EQ(draft({1, 2, 3, 5, 1, 2, 3, 6, 1, 2, 3}, 1), (T{6}));
    EXPECT_EQ(draft({0, 1, 2, 3, 5, 7, 1, 2, 3, 6, 0, 1, 2, 3}, 1), (T{5}));
    // An occurrence may overlap the end.
    EXPECT_EQ(draft({4, 4, 4, 4}, 3), (T{4}));
    EXPECT_EQ(draft({1, 2, 3, 1, 2}, 3), T{});
    EXPECT_EQ(draft({}, 3), T{});
    PromptLookup lookup;
    for (Token t = 0; t < 10000; t++) {
        lookup.push(t % 700);
    }
    EXPECT_EQ(lookup.draft(2), (T{10000 % 700, 10001 % 700}));
}

TEST(Drafts, DoNotChangeTheTokens) {
    std::vector<Request> all;
    for (std::uint32_t i = 0; i < 24; i++) {
        const std::string id = "r" + std::to_string(i);
        all.push_back(new_sequence(id, 20000 * i, 20 + 9 * i, 60));
        if (i % 3 == 0) {
            // Repeated text.
            auto &prompt = all.back().prompt;
            const auto half = prompt;
            prompt.insert(prompt.end(), half.begin() + 1, half.end());
        }
        if (i % 4 == 1) {
            all.back().sampling = {0.8f, i};
        }
    }
    CpuModel plain(weights(), plugin_config(6), single_rank(), 1);
    Executor without(plain, executor_config(6, 120));
    const auto want = run(without, all);
    expect_done(want);
    for (std::uint32_t most : {1u, 4u, 12u}) {
        CpuModel model(weights(), plugin_config(6, most), single_rank(), 1);
        Executor executor(model, executor_config(6, 120, most));
        const auto got = run(executor, all);
        const Counters &n = executor.counters();
        for (const Request &r : all) {
            EXPECT_EQ(got.at(r.id).tokens, want.at(r.id).tokens) << r.id << " with drafts of " << most;
            // Rejected drafts do not count in the length.
            EXPECT_EQ(got.at(r.id).stream_length, want.at(r.id).stream_length) << r.id;
        }
        EXPECT_EQ(n.evicted_tokens, without.counters().evicted_tokens);
        EXPECT_LT(n.iterations, without.counters().iterations);
        EXPECT_GT(n.accepted_tokens, 0u);
        EXPECT_LT(n.accepted_tokens, n.drafted_tokens);
        EXPECT_EQ(n.decode_tokens, without.counters().decode_tokens);
        std::printf("drafts of up to %u: %.1f %% of %llu draft tokens accepted, %llu iterations for %llu\n", most,
                    100.0 * static_cast<double>(n.accepted_tokens) / static_cast<double>(n.drafted_tokens),
                    static_cast<unsigned long long>(n.drafted_tokens), static_cast<unsigned long long>(n.iterations),
                    static_cast<unsigned long long>(without.counters().iterations));
    }
}

}  // namespace
