// Memory callbacks: every allocation may fail, nothing leaks, and results do not depend on initial contents.
#include "support/host.hpp"

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>

namespace {

/** An allocator that counts blocks, fills them, and fails the `fail_at`-th allocation. */
struct Pool {
    int calls = 0, fail_at = 0;
    std::size_t live_bytes = 0, most_bytes = 0;
    std::map<void *, std::size_t> blocks;
    int fill = 0xFF;
    bool misalign = false;

    static void *alloc(void *user, std::size_t bytes, std::size_t align) noexcept {
        auto &p = *static_cast<Pool *>(user);
        if (++p.calls == p.fail_at) {
            return nullptr;
        }
        EXPECT_GT(bytes, 0u);
        EXPECT_EQ(align & (align - 1), 0u);
        const std::size_t rounded = (bytes + align - 1) / align * align + (p.misalign ? align : 0);
        auto *ptr = static_cast<char *>(std::aligned_alloc(align, rounded)) + (p.misalign ? 8 : 0);
        std::memset(ptr, p.fill, bytes);
        p.blocks[ptr] = bytes;
        p.live_bytes += bytes;
        p.most_bytes = std::max(p.most_bytes, p.live_bytes);
        return ptr;
    }
    static void free(void *user, void *ptr, std::size_t bytes) noexcept {
        auto &p = *static_cast<Pool *>(user);
        ASSERT_EQ(p.blocks.count(ptr), 1u) << "freed a block that is not allocated";
        EXPECT_EQ(p.blocks[ptr], bytes) << "freed with a size that differs from the allocation";
        p.live_bytes -= p.blocks[ptr];
        p.blocks.erase(ptr);
        std::free(static_cast<char *>(ptr) - (p.misalign ? 8 : 0));
    }
    sinkcache::Config config() {
        sinkcache::Config c = host::config(2, 3);
        c.threads(2).memory(alloc, free, this);
        return c;
    }
};

TEST(Memory, EveryAllocationMayFail) {
    for (int n = 1;; n++) {
        ASSERT_LT(n, 1000);
        Pool pool;
        pool.fail_at = n;
        const auto owner = pool.config();
        const auto config = owner.get();
        skc_cache *const untouched = reinterpret_cast<skc_cache *>(std::uintptr_t{4});
        skc_cache *cache = untouched;
        const skc_status status = skc_create_cache(&config, &cache);
        if (status == SKC_STATUS_OK) {
            EXPECT_GT(n, 1) << "the callback is not used";
            EXPECT_LT(pool.calls, n);
            EXPECT_OK(skc_destroy_cache(cache));
            EXPECT_TRUE(pool.blocks.empty());
            return;
        }
        EXPECT_EQ(status, SKC_STATUS_OUT_OF_MEMORY);
        EXPECT_STRNE(skc_last_error(), "");
        EXPECT_EQ(cache, untouched);
        EXPECT_TRUE(pool.blocks.empty()) << "allocation " << n << " failed, " << pool.blocks.size() << " blocks leak";
    }
}

/** Steps and forks; a fork also copies slots that were never written. */
host::Results run(const sinkcache::Config &config) {
    sinkcache::Cache cache(config);
    host::Results all;
    for (std::size_t n : {5u, 40u}) {
        const host::Rows rows = host::rows(n, 1);
        for (std::uint32_t layer = 0; layer < 3; layer++) {
            all.add(host::step(cache.handle(), rows, layer));
        }
        EXPECT_OK(host::fork(cache.handle(), 0, 1));
        for (std::uint32_t layer = 0; layer < 3; layer++) {
            all.add(host::step(cache.handle(), rows, layer, 1));
        }
    }
    return all;
}

TEST(Memory, InitialContentsDoNotMatter) {
    for (std::uint32_t kv : {SKC_DTYPE_F32, SKC_DTYPE_F16, SKC_DTYPE_BF16, SKC_DTYPE_Q8, SKC_DTYPE_Q4}) {
        const host::Results want = run(host::config(2, 3).types(SKC_DTYPE_F32, kv));
        EXPECT_TRUE(want.finite());
        // 0xFF is NaN in every type.
        for (int fill : {0xFF, 0x00, 0x7F}) {
            Pool pool;
            pool.fill = fill;
            EXPECT_EQ(run(pool.config().types(SKC_DTYPE_F32, kv)), want) << "type " << kv << ", filled with " << fill;
        }
    }
}

// K and V of 128 dims beside f16, without what does not grow with the window.
TEST(Memory, QuantisedTokensAreSmall) {
    const auto per_token = [](std::uint32_t k, std::uint32_t v) {
        std::uint64_t bytes[2], device = 0;
        for (std::uint32_t i : {0u, 1u}) {
            sinkcache::Config config;
            config.heads(8, 8, 128).storage(k, v).layers(1, sinkcache::Layer(4, 2048 + 2048 * i));
            const skc_cache_config c = config.get();
            EXPECT_OK(skc_cache_bytes(&c, &bytes[i], &device));
        }
        return static_cast<double>(bytes[1] - bytes[0]) / 2048;
    };
    const double f16 = per_token(SKC_DTYPE_F16, SKC_DTYPE_F16);
    EXPECT_EQ(f16, 8 * 2 * 128 * 2);
    EXPECT_LE(per_token(SKC_DTYPE_Q8, SKC_DTYPE_Q8), 0.52 * f16);
    EXPECT_LE(per_token(SKC_DTYPE_Q8, SKC_DTYPE_Q4), 0.41 * f16);
    EXPECT_LE(per_token(SKC_DTYPE_Q4, SKC_DTYPE_Q4), 0.29 * f16);
}

TEST(Memory, IsAllocatedAtCreationOnly) {
    Pool pool;
    sinkcache::Cache cache(pool.config());
    const int calls = pool.calls;
    const host::Rows rows = host::rows(64, 1);
    for (int i = 0; i < 20; i++) {
        for (std::uint32_t layer = 0; layer < 3; layer++) {
            host::step(cache.handle(), rows, layer);
        }
        ASSERT_OK(host::edit(skc_rewind, cache.handle(), 2));
        ASSERT_OK(host::fork(cache.handle(), 0, 1));
        ASSERT_OK(host::edit(skc_evict, cache.handle(), 1));
    }
    ASSERT_OK(host::reset(cache.handle()));
    EXPECT_EQ(pool.calls, calls);
}

TEST(Memory, BytesAreReportedBeforeCreation) {
    Pool pool;
    const auto [host_bytes, device_bytes] = pool.config().bytes();
    EXPECT_EQ(pool.calls, 0);
    EXPECT_EQ(device_bytes, 0u);
    sinkcache::Cache cache(pool.config());
    // Counters are not allocated by the callback; K and V are most of the bytes.
    EXPECT_LE(pool.most_bytes, host_bytes);
    EXPECT_GE(pool.most_bytes, host_bytes / 2);
}

TEST(Memory, AMisalignedBlockIsRejectedAndFreed) {
    Pool pool;
    pool.misalign = true;
    const auto owner = pool.config();
    const auto config = owner.get();
    skc_cache *cache = nullptr;
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_ARGUMENT, "aligned");
    EXPECT_TRUE(pool.blocks.empty());
}

TEST(Memory, OneCallbackWithoutTheOther) {
    Pool pool;
    const auto owner = pool.config();
    auto config = owner.get();
    skc_cache *cache = nullptr;
    config.free = nullptr;
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_CONFIG, "free is NULL");
    config.free = Pool::free;
    config.alloc = nullptr;
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_CONFIG, "alloc is NULL");
}

// Sizes above the address space and above any machine's memory.
TEST(Memory, ImpossibleSizes) {
    sinkcache::Layer layer(4, UINT32_MAX);
    for (std::uint32_t n_layers : {1u, 65536u}) {
        sinkcache::Config c;
        c.heads(65536, 65536, 512).seqs(1u << 24).layers(n_layers, layer).max_chunk(1u << 30).max_rewind(1u << 30);
        const auto config = c.get();
        skc_cache *cache = nullptr;
        EXPECT_EQ(skc_create_cache(&config, &cache), SKC_STATUS_OUT_OF_MEMORY);
        std::uint64_t host_bytes = 7, device_bytes = 7;
        EXPECT_EQ(skc_cache_bytes(&config, &host_bytes, &device_bytes), SKC_STATUS_OUT_OF_MEMORY);
        EXPECT_EQ(host_bytes, 7u);
        EXPECT_EQ(device_bytes, 7u);
        EXPECT_EQ(cache, nullptr);
    }
    // About 2^62 bytes: representable, but not available.
    sinkcache::Config c;
    c.heads(2, 2, 16).seqs(1u << 24).layers(1, layer);
    EXPECT_GT(c.bytes().first, 1ull << 60);
    const auto config = c.get();
    skc_cache *cache = nullptr;
    EXPECT_EQ(skc_create_cache(&config, &cache), SKC_STATUS_OUT_OF_MEMORY);
}

/** Pages of this process that are in memory. */
long resident_pages() {
    long all = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> all >> resident;
    return resident;
}

// Memory that the process had used before is not written when a cache gets it, so it takes no more than new memory.
TEST(Memory, CachesMadeAgainTakeNoMorePages) {
#if defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "skipped: AddressSanitizer writes beside what it allocates";
#endif
    if (resident_pages() == 0) {
        GTEST_SKIP() << "skipped: no /proc";
    }
    // Other blocks lie between those of the caches, so that malloc cannot give memory back to the system.
    std::vector<std::unique_ptr<char[]>> others;
    const auto made = [&others] {
        const long before = resident_pages();
        std::vector<sinkcache::Cache> caches;
        for (int i = 0; i < 500; i++) {
            caches.emplace_back(sinkcache::Config().heads(1, 1, 8).layers(1, sinkcache::Layer(0, 8)).max_chunk(1));
            others.emplace_back(new char[32]);
        }
        return resident_pages() - before;
    };
    // A cache takes more than 30 pages and uses few of them before its first token.
    EXPECT_LT(made(), 8 * 500);
    EXPECT_LT(made(), 8 * 500);
}

}  // namespace
