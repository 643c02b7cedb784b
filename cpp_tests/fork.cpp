// fork(2): a child has none of its parent's threads. A cache that uses the library's threads works in both processes.
#include <gtest/gtest.h>
#include <sinkcache.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

namespace {

constexpr std::uint32_t HEADS = 2, DIM = 64;
constexpr std::int32_t TOKENS = 96;

/** Rows of q, k and v. */
std::vector<float> rows(int seed) {
    std::vector<float> x(std::size_t{TOKENS} * HEADS * DIM);
    for (std::size_t i = 0; i < x.size(); i++) {
        x[i] = static_cast<float>((i * 37 + static_cast<std::size_t>(seed) * 11) % 64) / 32.0f - 1.0f;
    }
    return x;
}

std::vector<float> step(sinkcache::Cache &cache, int seed) {
    const auto x = rows(seed);
    std::vector<float> out(x.size());
    cache.step(0, {{0}, {TOKENS}}, {{x.data()}, {x.data()}}, {{x.data()}, {out.data()}});
    return out;
}

sinkcache::Config config(std::uint32_t n_threads) {
    return sinkcache::Config().heads(HEADS, HEADS, DIM).threads(n_threads).layers(1, sinkcache::Layer(4, 700));
}

/** What the child does; its exit status. */
int run_child(sinkcache::Cache &cache, sinkcache::Cache &alone) {
    try {
        bool same = true;
        for (int seed = 20; seed < 24; seed++) {
            same = step(cache, seed) == step(alone, seed) && same;
        }
        cache.close();
        alone.close();
        return same ? 0 : 1;
    } catch (const sinkcache::Error &) {
        return 2;
    }
}

TEST(Fork, CachesWorkInParentAndChild) {
    sinkcache::Cache cache(config(3)), alone(config(1));
    for (int seed = 0; seed < 12; seed++) {
        EXPECT_EQ(step(cache, seed), step(alone, seed));
    }
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        _exit(run_child(cache, alone));
    }
    for (int seed = 30; seed < 34; seed++) {
        EXPECT_EQ(step(cache, seed), step(alone, seed));
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    cache.close();
    alone.close();
}

}  // namespace
