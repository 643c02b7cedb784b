// Every allocation of a call fails in turn, alone or with all that follow: no call aborts, creation says
// SKC_STATUS_OUT_OF_MEMORY, and calls that allocate nothing do not notice.
#include "support/calls.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <functional>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define CAN_REPLACE_MALLOC 0
#else
#define CAN_REPLACE_MALLOC 1
#endif

namespace {

/** Allocations of this thread while `counting`, and which of them fail. */
thread_local bool counting = false, all_later = false;
thread_local long allocations = 0, fail_at = -1;

[[maybe_unused]] bool fails() {
    if (!counting) {
        return false;
    }
    const long at = allocations++;
    const bool failed = all_later ? at >= fail_at : at == fail_at;
    errno = failed ? ENOMEM : errno;
    return failed;
}

}  // namespace

#if CAN_REPLACE_MALLOC
extern "C" {
void *__libc_malloc(std::size_t);
void *__libc_calloc(std::size_t, std::size_t);
void *__libc_realloc(void *, std::size_t);
void *__libc_memalign(std::size_t, std::size_t);

void *malloc(std::size_t n) { return fails() ? nullptr : __libc_malloc(n); }
void *calloc(std::size_t n, std::size_t size) { return fails() ? nullptr : __libc_calloc(n, size); }
void *realloc(void *p, std::size_t n) { return fails() ? nullptr : __libc_realloc(p, n); }
void *aligned_alloc(std::size_t align, std::size_t n) { return fails() ? nullptr : __libc_memalign(align, n); }
int posix_memalign(void **p, std::size_t align, std::size_t n) {
    if (fails()) {
        return ENOMEM;
    }
    *p = __libc_memalign(align, n);
    return *p ? 0 : ENOMEM;
}
}
#endif

namespace {

/** How a call ended in a process of its own. */
struct Outcome {
    skc_status status = SKC_STATUS_INTERNAL;
    long allocations = 0;
    int signal = 0;
};

/** Makes `call` in a child, where nothing has been allocated for an earlier one, with failing allocations. */
Outcome run(const std::function<skc_status()> &call, long at, bool all) {
    int ends[2];
    Outcome outcome;
    if (pipe(ends) != 0) {
        ADD_FAILURE() << "pipe";
        return outcome;
    }
    const pid_t child = ::fork();
    if (child == 0) {
        fail_at = at;
        all_later = all;
        allocations = 0;
        counting = true;
        outcome.status = call();
        counting = false;
        outcome.allocations = allocations;
        _exit(write(ends[1], &outcome, sizeof outcome) == sizeof outcome ? 0 : 1);
    }
    close(ends[1]);
    const bool whole = read(ends[0], &outcome, sizeof outcome) == sizeof outcome;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    outcome.signal = WIFSIGNALED(status) ? WTERMSIG(status) : whole ? 0 : -1;
    return outcome;
}

void discard(void *, std::uint32_t, const char *) noexcept {}

class AllocationFailures : public testing::Test {
protected:
    void SetUp() override {
        if (!CAN_REPLACE_MALLOC) {
            GTEST_SKIP() << "skipped: malloc cannot be replaced here";
        }
    }

    /** Runs `call` with each of its allocations failing; `expected` is what it returns if none fails. */
    void check(const char *name, const std::function<skc_status()> &call, skc_status expected, bool allocates) {
        for (const bool all : {false, true}) {
            long ok = 0, out_of_memory = 0;
            for (long at = 0;; at++) {
                ASSERT_LT(at, 1000);
                const Outcome o = run(call, at, all);
                ASSERT_EQ(o.signal, 0) << name << ": killed when allocation " << at << " failed";
                if (o.allocations <= at) {
                    EXPECT_EQ(o.status, expected) << name << " without a failure";
                    EXPECT_TRUE(allocates || o.allocations == 0) << name << " allocates " << o.allocations;
                    break;
                }
                EXPECT_TRUE(o.status == expected || o.status == SKC_STATUS_OUT_OF_MEMORY)
                    << name << ", allocation " << at << ": " << skc_status_name(o.status);
                (o.status == expected ? ok : out_of_memory)++;
            }
            if (ok + out_of_memory > 0) {
                std::printf("%s%s: %ld OUT_OF_MEMORY, %ld as without failure\n", name,
                            all ? ", all later ones too" : "", out_of_memory, ok);
            }
        }
    }
};

/** Creates a cache; with 0 threads, asks for its size. */
skc_status create(std::uint32_t n_threads, bool rejected) {
    static skc_layer_config layers[3];
    static float numbers[64];
    static skc_cache_config config;
    for (skc_layer_config &layer : layers) {
        skc_layer_config_init(&layer, sizeof layer);
        layer.window = 100;
    }
    layers[1].sink_logits = numbers;
    layers[1].n_sink_logits = 4;
    layers[2].inv_freq = numbers;
    layers[2].n_inv_freq = rejected ? 31 : 32;
    skc_cache_config_init(&config, sizeof config);
    config.n_layers = config.n_layer_configs = 3;
    config.layers = layers;
    config.n_q_heads = 4;
    config.n_kv_heads = 2;
    config.head_dim = 64;
    config.n_threads = std::max(n_threads, 1u);
    config.log = discard;
    skc_cache *cache = nullptr;
    std::uint64_t host_bytes, device_bytes;
    return n_threads == 0 ? skc_cache_bytes(&config, &host_bytes, &device_bytes) : skc_create_cache(&config, &cache);
}

TEST_F(AllocationFailures, OfCreation) {
    check("cache_bytes", [] { return create(0, false); }, SKC_STATUS_OK, true);
    check("create, 1 thread", [] { return create(1, false); }, SKC_STATUS_OK, true);
    check("create, 3 threads", [] { return create(3, false); }, SKC_STATUS_OK, true);
    check("create, rejected", [] { return create(1, true); }, SKC_STATUS_INVALID_CONFIG, true);
    setenv("SINKCACHE_CPU", "scalar", 1);
    check("create, SINKCACHE_CPU", [] { return create(1, false); }, SKC_STATUS_OK, true);
    setenv("SINKCACHE_CPU", "an instruction set that does not exist on any processor", 1);
    check("create, wrong SINKCACHE_CPU", [] { return create(1, false); }, SKC_STATUS_INVALID_CONFIG, true);
    unsetenv("SINKCACHE_CPU");
    check("create, NULL", [] { return skc_create_cache(nullptr, nullptr); }, SKC_STATUS_NULL_POINTER, false);
}

TEST_F(AllocationFailures, OfDiscovery) {
    check("capabilities", [] {
        auto info = host::sized<skc_capability_info>();
        return skc_capabilities(&info);
    }, SKC_STATUS_OK, true);
    check("constant", [] {
        std::int64_t value;
        return skc_constant("SKC_DTYPE_F16", &value);
    }, SKC_STATUS_OK, false);
    check("constant, unknown", [] {
        std::int64_t value;
        return skc_constant("SKC_NO_CONSTANT_OF_THIS_HEADER_HAS_A_NAME_THAT_IS_AS_LONG_AS_THIS_ONE_IS", &value);
    }, SKC_STATUS_INVALID_ARGUMENT, false);
    check("status_name", [] { return skc_status_name(-3) == nullptr ? 1 : 0; }, 0, false);
    check("last_error", [] { return skc_last_error() == nullptr ? 1 : 0; }, 0, false);
    check("version", [] { return skc_version() == nullptr ? 1 : 0; }, 0, false);
}

TEST_F(AllocationFailures, OfCallsOnACache) {
    sinkcache::Cache owner(host::config(4, 1, 4, 8).log(discard));
    skc_cache *cache = owner.handle();
    const host::Rows rows = host::rows(20, 1);
    host::step(cache, rows);
    for (const host::HandleCall &call : host::handle_calls()) {
        check(call.name, [&] { return call.call(cache); }, host::expected_status(call), false);
    }

    host::Results results = host::Results::of(20);
    const host::Ints seq{0}, one{1}, twenty{20}, stranger{99};
    const auto step = host::step_args(0, seq, twenty, rows, results);
    const auto evict = host::edit_args<skc_evict_args>(seq, one);
    auto info = host::sized<skc_sequence_info>();
    check("step of a chunk", [&] { return skc_step(cache, &step); }, SKC_STATUS_OK, false);
    check("evict a token", [&] { return skc_evict(cache, &evict); }, SKC_STATUS_OK, false);
    const std::uint64_t length = host::info(cache).length_max;
    const host::Indices pinned{length - 5}, dropped{length - 3}, beyond{length};
    const auto pin = host::range_args<skc_pin_args>(seq, pinned, one);
    const auto drop = host::range_args<skc_evict_range_args>(seq, dropped, one);
    check("pin", [&] { return skc_pin(cache, &pin); }, SKC_STATUS_OK, false);
    check("evict_range", [&] { return skc_evict_range(cache, &drop); }, SKC_STATUS_OK, false);
    ASSERT_OK(skc_pin(cache, &pin));
    ASSERT_OK(skc_evict_range(cache, &drop));
    EXPECT_EQ(host::info(cache).counted_segments, 2u);
    check("step over segments", [&] { return skc_step(cache, &step); }, SKC_STATUS_OK, false);

    // Rejected by the cache's state or by their arguments, with a log callback.
    auto bad = step;
    bad.layer = 77;
    check("step, no such layer", [&] { return skc_step(cache, &bad); }, SKC_STATUS_OUT_OF_RANGE, false);
    check("step_part, no such layer", [&] { return skc_step_part(cache, &bad, 0, 1); }, SKC_STATUS_OUT_OF_RANGE,
          false);
    bad = step;
    bad.seq_ids = stranger.data();
    check("step, no such sequence", [&] { return skc_step(cache, &bad); }, SKC_STATUS_OUT_OF_RANGE, false);
    check("step on NULL", [&] { return skc_step(nullptr, &step); }, SKC_STATUS_INVALID_HANDLE, false);
    check("destroy NULL", [&] { return skc_destroy_cache(nullptr); }, SKC_STATUS_INVALID_HANDLE, false);
    const auto far = host::edit_args<skc_rewind_args>(seq, twenty);
    check("rewind, too far", [&] { return skc_rewind(cache, &far); }, SKC_STATUS_TOKENS_GONE, false);
    const auto no_range = host::range_args<skc_evict_range_args>(seq, beyond, twenty);
    check("evict_range, gone", [&] { return skc_evict_range(cache, &drop); }, SKC_STATUS_OK, false);
    check("evict_range, beyond", [&] { return skc_evict_range(cache, &no_range); }, SKC_STATUS_OUT_OF_RANGE, false);
    check("seq_info, no such layer", [&] { return skc_seq_info(cache, 9, 0, &info); }, SKC_STATUS_OUT_OF_RANGE, false);
}

}  // namespace
