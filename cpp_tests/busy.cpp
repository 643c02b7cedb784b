// A cache takes one call at a time: calls made from its own callbacks are rejected or run; none deadlocks.
#include "support/calls.hpp"

#include <atomic>
#include <cstdlib>
#include <thread>

namespace {

struct Host {
    /** Called at the beginning of every parallel loop. */
    std::function<void()> inside;
    int calls = 0;

    static void parallel_for(void *user, std::uint32_t n, skc_task_fn task, void *data) {
        auto &h = *static_cast<Host *>(user);
        h.calls++;
        if (h.inside) {
            h.inside();
        }
        for (std::uint32_t i = 0; i < n; i++) {
            task(data, i);
        }
    }
    sinkcache::Config config() {
        sinkcache::Config c = host::config(2);
        c.threads(2).raw().parallel_for = parallel_for;
        c.raw().parallel_for_user = this;
        return c;
    }
};

TEST(Busy, EveryCallInsideTheParallelLoop) {
    Host h;
    sinkcache::Cache cache(h.config()), other(host::config(2));
    const host::Rows rows = host::rows(5, 1);
    skc_cache *c = cache.handle();
    h.inside = [&] {
        for (const auto &call : host::handle_calls()) {
            SCOPED_TRACE(call.name);
            EXPECT_REJECTED(call.call(c), SKC_STATUS_BUSY, "another call");
        }
        // Calls on another cache are allowed.
        EXPECT_EQ(host::info(other.handle()).length_max, 0u);
    };
    const host::Results got = host::step(c, rows);
    EXPECT_GT(h.calls, 0) << "the parallel loop was not used";
    h.inside = nullptr;
    sinkcache::Cache twin(host::config(2));
    EXPECT_EQ(got, host::step(twin.handle(), rows));
    EXPECT_EQ(host::info(c).length_max, 5u);
    EXPECT_EQ(host::step(c, rows), host::step(twin.handle(), rows));
}

TEST(Busy, AlsoFromAnotherThread) {
    Host h;
    sinkcache::Cache cache(h.config());
    h.inside = [&] {
        std::thread([&] {
            for (const auto &call : host::handle_calls()) {
                EXPECT_EQ(call.call(cache.handle()), SKC_STATUS_BUSY) << call.name;
            }
        }).join();
    };
    EXPECT_TRUE(host::step(cache.handle(), host::rows(5, 1)).finite());
    EXPECT_GT(h.calls, 0);
}

TEST(Busy, CallsFromTheLogCallback) {
    struct Log {
        skc_cache *cache = nullptr;
        int lines = 0;

        static void line(void *user, std::uint32_t, const char *) {
            auto &log = *static_cast<Log *>(user);
            log.lines++;
            if (log.cache) {
                // The logged call has released the cache, so that others may run; their own errors are not logged.
                for (const auto &call : host::handle_calls()) {
                    call.call(log.cache);
                }
                EXPECT_EQ(skc_destroy_cache(log.cache), SKC_STATUS_BUSY);
            }
        }
    } log;
    auto owner = host::config(2);
    owner.raw().log = Log::line;
    owner.raw().log_user = &log;
    sinkcache::Cache cache(owner);
    log.cache = cache.handle();
    EXPECT_EQ(host::reset(cache.handle(), 99), SKC_STATUS_OUT_OF_RANGE);
    EXPECT_EQ(log.lines, 2);  // created, rejected
    log.cache = nullptr;
    EXPECT_OK(skc_destroy_cache(cache.release()));
    EXPECT_EQ(log.lines, 3);
}

TEST(Busy, CallsFromTheMemoryCallbacks) {
    struct Pool {
        skc_cache *self = nullptr, *other = nullptr;
        int allocs = 0, frees = 0;

        static void *alloc(void *user, std::size_t bytes, std::size_t align) {
            auto &p = *static_cast<Pool *>(user);
            p.allocs++;
            EXPECT_EQ(host::info(p.other).length_max, 0u);
            sinkcache::Cache nested(host::config());
            return std::aligned_alloc(align, (bytes + align - 1) / align * align);
        }
        static void free(void *user, void *ptr, std::size_t) {
            auto &p = *static_cast<Pool *>(user);
            p.frees++;
            EXPECT_EQ(host::info(p.other).length_max, 0u);
            for (const auto &call : host::handle_calls()) {
                EXPECT_EQ(call.call(p.self), SKC_STATUS_INVALID_HANDLE) << call.name;
            }
            std::free(ptr);
        }
    } pool;
    sinkcache::Cache other(host::config());
    pool.other = other.handle();
    auto owner = host::config(2);
    owner.raw().alloc = Pool::alloc;
    owner.raw().free = Pool::free;
    owner.raw().memory_user = &pool;
    sinkcache::Cache cache(owner);
    pool.self = cache.handle();
    EXPECT_OK(skc_destroy_cache(cache.release()));
    EXPECT_GT(pool.allocs, 0);
    EXPECT_EQ(pool.allocs, pool.frees);
}

}  // namespace
