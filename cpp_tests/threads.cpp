// Different caches in different threads, one cache in several, and concurrent creation and destruction.
#include "support/host.hpp"

#include <atomic>
#include <filesystem>
#include <functional>
#include <iterator>
#include <thread>

namespace {

void on_threads(std::uint32_t n, const std::function<void(std::uint32_t)> &body) {
    std::vector<std::thread> threads;
    for (std::uint32_t i = 0; i < n; i++) {
        threads.emplace_back(body, i);
    }
    for (auto &thread : threads) {
        thread.join();
    }
}

/** 60 steps of 3 tokens, each repeated while the cache is busy. */
host::Results stream(skc_cache *cache, std::uint32_t seed, std::int32_t seq = 0) {
    host::Results all;
    for (std::uint32_t i = 0; i < 60; i++) {
        const host::Rows rows = host::rows(3, seed * 1000 + i);
        host::Results results = host::Results::of(3);
        const host::Ints ids{seq}, three{3};
        const auto a = host::step_args(0, ids, three, rows, results);
        skc_status status;
        while ((status = skc_step(cache, &a)) == SKC_STATUS_BUSY) {
            std::this_thread::yield();
        }
        EXPECT_OK(status);
        all.add(results);
    }
    return all;
}

TEST(Threads, CachesAreIndependent) {
    sinkcache::Cache caches[2] = {sinkcache::Cache(host::config().threads(2)), sinkcache::Cache(host::config())};
    host::Results got[2];
    on_threads(2, [&](std::uint32_t i) { got[i] = stream(caches[i].handle(), i); });
    for (std::uint32_t i = 0; i < 2; i++) {
        sinkcache::Cache alone(host::config());
        EXPECT_EQ(got[i], stream(alone.handle(), i));
    }
}

// Concurrent calls on one cache succeed or are SKC_STATUS_BUSY.
TEST(Threads, OneCacheInManyThreads) {
    sinkcache::Cache cache(host::config(4));
    host::Results got[4];
    std::atomic<bool> stop{false};
    std::thread watcher([&] {
        while (!stop) {
            auto i = host::sized<skc_sequence_info>();
            const skc_status status = skc_seq_info(cache.handle(), 0, 0, &i);
            EXPECT_TRUE(status == SKC_STATUS_OK || status == SKC_STATUS_BUSY) << skc_last_error();
        }
    });
    on_threads(4, [&](std::uint32_t i) { got[i] = stream(cache.handle(), i, static_cast<std::int32_t>(i)); });
    stop = true;
    watcher.join();
    for (std::uint32_t i = 0; i < 4; i++) {
        sinkcache::Cache alone(host::config());
        EXPECT_EQ(got[i], stream(alone.handle(), i));
    }
}

TEST(Threads, ManyCachesAreCreatedAndDestroyed) {
    std::atomic<skc_cache *> shared{nullptr};
    on_threads(8, [&](std::uint32_t i) {
        for (std::uint32_t round = 0; round < 60; round++) {
            sinkcache::Cache a(host::config()), b(host::config());
            EXPECT_NE(a.handle(), b.handle());
            host::step(a.handle(), host::rows(2, i));
            EXPECT_EQ(host::info(a.handle()).length_max, 2u);
            EXPECT_EQ(host::info(b.handle()).length_max, 0u);
            // A handle of another thread, live, busy or destroyed: the call returns a status.
            auto info = host::sized<skc_sequence_info>();
            const skc_status status = skc_seq_info(shared.exchange(a.handle()), 0, 0, &info);
            EXPECT_TRUE(status == SKC_STATUS_OK || status == SKC_STATUS_BUSY || status == SKC_STATUS_INVALID_HANDLE);
            // Other threads may be querying this handle.
            while (skc_destroy_cache(a.handle()) == SKC_STATUS_BUSY) {
                std::this_thread::yield();
            }
            EXPECT_EQ(skc_destroy_cache(a.release()), SKC_STATUS_INVALID_HANDLE);
        }
    });
}

TEST(Threads, OnlyOneDestroySucceeds) {
    for (int round = 0; round < 50; round++) {
        sinkcache::Cache cache(host::config());
        std::atomic<int> succeeded{0};
        skc_cache *handle = cache.release();
        on_threads(4, [&](std::uint32_t) {
            skc_status status;
            while ((status = skc_destroy_cache(handle)) == SKC_STATUS_BUSY) {
                std::this_thread::yield();
            }
            succeeded += status == SKC_STATUS_OK;
        });
        EXPECT_EQ(succeeded, 1);
    }
}

std::ptrdiff_t threads_alive() {
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    return std::distance(begin(tasks), end(tasks));
}

// The library's threads have ended when destroy returns.
TEST(Threads, EndWithTheirCache) {
    if (!std::filesystem::exists("/proc/self/task")) {
        GTEST_SKIP() << "skipped: no /proc/self/task to count threads with";
    }
    const std::ptrdiff_t before = threads_alive(), rounds = 50, each = 8;
    std::ptrdiff_t left = 0;
    for (std::ptrdiff_t round = 0; round < rounds; round++) {
        sinkcache::Cache cache(host::config().threads(each));
        host::step(cache.handle(), host::rows(8, 1));
        cache.close();
        left += threads_alive() - before;
    }
    // /proc may still list a thread that has just been joined.
    EXPECT_LE(left, rounds) << "of " << each << " threads in each of " << rounds << " rounds";
}

TEST(Threads, EachHasItsOwnErrorText) {
    EXPECT_EQ(skc_destroy_cache(nullptr), SKC_STATUS_INVALID_HANDLE);
    const std::string mine = skc_last_error();
    std::thread([] {
        EXPECT_STREQ(skc_last_error(), "");
        EXPECT_EQ(skc_capabilities(nullptr), SKC_STATUS_NULL_POINTER);
        EXPECT_NE(std::string(skc_last_error()).find("skc_capability_info"), std::string::npos);
    }).join();
    EXPECT_EQ(skc_last_error(), mine);
}

/** Thread-local variables of the program, which glibc takes out of the stack of every thread. */
thread_local volatile char large[3 << 20];

TEST(Threads, APoolStartsBesideLargeThreadLocalVariables) {
    large[1] = 1;
    sinkcache::Cache cache(host::config(1).threads(3));
    EXPECT_TRUE(host::step(cache.handle(), host::rows(40, 1)).finite());
}

}  // namespace
