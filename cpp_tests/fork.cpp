// A child of fork(2) has none of its parent's threads: a cache with threads of its own must go on in both.
#include <gtest/gtest.h>
#include <sinkcache.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

namespace {

constexpr int kHeads = 2, kDim = 64, kTokens = 96;

std::vector<float> rows(int seed) {
    std::vector<float> x(kTokens * kHeads * kDim);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i * 37 + seed * 11) % 64) / 32.0f - 1.0f;
    return x;
}

std::vector<float> step(skc_cache * cache, int seed) {
    const auto x = rows(seed);
    std::vector<float> out(x.size());
    const int32_t seq = 0, n = kTokens;
    skc_step_args args{};
    args.struct_size = sizeof args;
    args.n_entries = 1;
    args.seq_ids = &seq;
    args.n_tokens = &n;
    args.q = args.k = args.v = x.data();
    args.out = out.data();
    return skc_step(cache, &args) == SKC_STATUS_OK ? out : std::vector<float>{};
}

skc_cache * create(uint32_t threads) {
    skc_layer_config layer = SKC_LAYER_CONFIG_INIT;
    layer.window = 700;
    skc_cache_config config = SKC_CACHE_CONFIG_INIT;
    config.n_q_heads = config.n_kv_heads = kHeads;
    config.head_dim = kDim;
    config.n_threads = threads;
    config.n_layer_configs = 1;
    config.layers = &layer;
    skc_cache * cache = nullptr;
    EXPECT_EQ(skc_create_cache(&config, &cache), SKC_STATUS_OK) << skc_last_error();
    return cache;
}

}  // namespace

TEST(Fork, ParentAndChildGoOn) {
    skc_cache *cache = create(3), *alone = create(1);
    for (int seed = 0; seed < 12; ++seed) EXPECT_EQ(step(cache, seed), step(alone, seed));
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        bool same = true;
        for (int seed = 20; seed < 24; ++seed) {
            const auto got = step(cache, seed);
            same = same && !got.empty() && got == step(alone, seed);
        }
        same = same && skc_destroy_cache(cache) == SKC_STATUS_OK && skc_destroy_cache(alone) == SKC_STATUS_OK;
        _exit(same ? 0 : 1);
    }
    for (int seed = 30; seed < 34; ++seed) EXPECT_EQ(step(cache, seed), step(alone, seed));
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_EQ(skc_destroy_cache(cache), SKC_STATUS_OK);
    EXPECT_EQ(skc_destroy_cache(alone), SKC_STATUS_OK);
}
