// Every call on a thread whose stack is as small as docs/c-api.md allows, in every storage type and instruction set: a
// call that needs more ends the process. Prints how much creation, steps and the rest use.
#include "support/host.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

/** What docs/c-api.md promises to be enough for a call, beside what its thread needs by itself. */
constexpr std::size_t PROMISED = 16 << 10;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool SANITIZED = true;
#else
constexpr bool SANITIZED = false;
#endif

void *run(void *body) {
    (*static_cast<std::function<void()> *>(body))();
    return nullptr;
}

/** Runs `body` on a thread with a stack of `bytes`, below which nothing is mapped; returns how many were written. */
std::size_t on_stack(std::size_t bytes, std::function<void()> body) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    auto *memory = static_cast<unsigned char *>(
        mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(memory, MAP_FAILED);
    EXPECT_EQ(mprotect(memory, page, PROT_NONE), 0);
    std::memset(memory + page, 0xA5, bytes);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    EXPECT_EQ(pthread_attr_setstack(&attributes, memory + page, bytes), 0);
    pthread_t thread;
    EXPECT_EQ(pthread_create(&thread, &attributes, run, &body), 0);
    EXPECT_EQ(pthread_join(thread, nullptr), 0);
    pthread_attr_destroy(&attributes);
    std::size_t unused = 0;
    while (unused < bytes && memory[page + unused] == 0xA5) {
        unused++;
    }
    munmap(memory, bytes + page);
    return bytes - unused;
}

/** What a thread uses that calls nothing. */
std::size_t idle_stack() {
    static const std::size_t idle = on_stack(1 << 18, [] {});
    return idle;
}

/** The promise and what an idle thread uses, or the least that the system allows. */
std::size_t small_stack() {
    return std::max((PROMISED + idle_stack() + 15) / 16 * 16, static_cast<std::size_t>(sysconf(_SC_THREAD_STACK_MIN)));
}

struct Setting {
    std::int32_t dtype;
    std::uint32_t dim, n_threads;
};

/** Makes every call of a CPU cache, each on a new thread. Only the library's own frames are on its stack. */
struct Host {
    Setting setting;
    /** Bytes of stack, beside what an idle thread uses, by call. */
    std::map<std::string, std::size_t> &most;

    void call(const char *name, const std::function<skc_status()> &body, skc_status want = SKC_STATUS_OK) {
        skc_status got = SKC_STATUS_INTERNAL;
        const std::size_t used = on_stack(small_stack(), [&] { got = body(); });
        EXPECT_STREQ(skc_status_name(got), skc_status_name(want)) << name;
        most[name] = std::max(most[name], used - std::min(used, idle_stack()));
    }

    void run() {
        const std::uint32_t heads = 8, kv_heads = 2, tokens = 300;
        skc_layer_config layer;
        skc_cache_config config;
        std::memset(&layer, 0, sizeof layer);
        std::memset(&config, 0, sizeof config);
        call("layer_config_init", [&] { return skc_layer_config_init(&layer, sizeof layer); });
        call("cache_config_init", [&] { return skc_cache_config_init(&config, sizeof config); });
        layer.n_sink = 4;
        layer.window = 260;
        layer.max_pinned = 40;
        layer.max_segments = 2;
        config.n_layers = 1;
        config.n_seqs = 2;
        config.n_q_heads = heads;
        config.n_kv_heads = kv_heads;
        config.head_dim = setting.dim;
        config.max_chunk = tokens;
        config.max_rewind = 8;
        config.kv_dtype = setting.dtype;
        config.n_threads = setting.n_threads;
        config.n_layer_configs = 1;
        config.layers = &layer;
        std::uint64_t on_host = 0, on_device = 0;
        call("cache_bytes", [&] { return skc_cache_bytes(&config, &on_host, &on_device); });
        skc_cache *cache = nullptr;
        call("create_cache", [&] { return skc_create_cache(&config, &cache); });
        ASSERT_NE(cache, nullptr);

        const std::vector<float> q = host::noise(std::size_t{tokens} * heads * setting.dim, 1);
        const std::vector<float> k = host::noise(std::size_t{tokens} * kv_heads * setting.dim, 2);
        std::vector<float> out(q.size()), lse(std::size_t{tokens} * heads);
        const host::Ints seq{0}, other{1};
        auto step = host::sized<skc_step_args>();
        step.q = q.data();
        step.k = step.v = k.data();
        step.out = out.data();
        step.lse = lse.data();
        // Decodes of one and of a few rows, chunks of few tokens and of more than a block of keys.
        for (const std::int32_t n : {1, 2, 7, 40, 300, 1}) {
            rows(cache, step, seq, n);
        }
        ranges(cache, seq);
        // The same over several segments.
        for (const std::int32_t n : {1, 2, 7, 40, 300, 1}) {
            rows(cache, step, seq, n);
        }
        skc_cache *twin = nullptr;
        EXPECT_OK(skc_create_cache(&config, &twin));
        edits(cache, twin, seq, other);
        EXPECT_OK(skc_destroy_cache(twin));
        call("destroy_cache", [&] { return skc_destroy_cache(cache); });
        call("destroyed", [&] { return skc_destroy_cache(cache); }, SKC_STATUS_INVALID_HANDLE);
    }

    /** The calls on `n` tokens, with the tensors of `step`. */
    void rows(skc_cache *cache, skc_step_args step, const host::Ints &seq, std::int32_t n) {
        const host::Ints count{n};
        auto append = host::batch_args<skc_append_kv_args>(0, seq, count);
        append.k = step.k;
        append.v = step.v;
        call("append_kv", [&] { return skc_append_kv(cache, &append); });
        auto attend = host::batch_args<skc_attend_args>(0, seq, count);
        attend.q = step.q;
        attend.out = step.out;
        attend.lse = step.lse;
        call("attend", [&] { return skc_attend(cache, &attend); });
        step.n_entries = 1;
        step.seq_ids = seq.data();
        step.n_tokens = count.data();
        call("step", [&] { return skc_step(cache, &step); });
        call("step_part", [&] { return skc_step_part(cache, &step, 0, 1); });
        auto kernel = host::sized<skc_kernel_info>();
        const auto most_tokens = static_cast<std::uint32_t>(n);
        call("kernel_choice", [&] { return skc_kernel_choice(cache, 0, SKC_CALL_STEP, 1, most_tokens, &kernel); });
    }

    /** Pins tokens in the middle of the window and drops others behind them: both move rows. */
    void ranges(skc_cache *cache, const host::Ints &seq) {
        const std::uint64_t length = host::info(cache).length_max;
        const host::Indices pinned{length - 200}, dropped{length - 50};
        const host::Ints n_pinned{40}, n_dropped{7};
        const auto pin = host::range_args<skc_pin_args>(seq, pinned, n_pinned);
        call("pin", [&] { return skc_pin(cache, &pin); });
        const auto drop = host::range_args<skc_evict_range_args>(seq, dropped, n_dropped);
        call("evict_range", [&] { return skc_evict_range(cache, &drop); });
        const auto too_many = host::range_args<skc_pin_args>(seq, dropped, n_dropped);
        call("rejected", [&] { return skc_pin(cache, &too_many); }, SKC_STATUS_TOKENS_GONE);
    }

    void edits(skc_cache *cache, skc_cache *twin, const host::Ints &seq, const host::Ints &other) {
        const host::Ints one{1};
        const auto rewind = host::edit_args<skc_rewind_args>(seq, one);
        call("rewind", [&] { return skc_rewind(cache, &rewind); });
        const auto evict = host::edit_args<skc_evict_args>(seq, one);
        call("evict", [&] { return skc_evict(cache, &evict); });
        const auto fork = host::fork_args(seq, other);
        call("fork", [&] { return skc_fork(cache, &fork); });
        const auto abort = host::sequence_args<skc_abort_step_args>(seq);
        call("abort_step", [&] { return skc_abort_step(cache, &abort); });
        std::vector<std::uint8_t> snapshot(host::snapshot_bytes(cache));
        const auto save = host::save_args(0, snapshot);
        std::uint64_t n_bytes = 0;
        call("snapshot_bytes", [&] { return skc_snapshot_bytes(cache, &save, &n_bytes); });
        call("save_sequence", [&] { return skc_save_sequence(cache, &save, &n_bytes); });
        const auto load = host::load_args(1, snapshot);
        call("load_sequence", [&] { return skc_load_sequence(cache, &load); });
        const auto copy = host::copy_args(cache, 0, 0);
        call("copy_sequence", [&] { return skc_copy_sequence(twin, &copy); });
        auto info = host::sized<skc_sequence_info>();
        call("seq_info", [&] { return skc_seq_info(cache, 0, 0, &info); });
        // For CUDA only: rejected.
        const auto replay = host::batch_args<skc_note_replay_args>(0, seq, one);
        call("note_replay", [&] { return skc_note_replay(cache, &replay); }, SKC_STATUS_INVALID_ARGUMENT);
        auto error = host::sized<skc_device_error>();
        call("poll_error", [&] { return skc_poll_error(cache, &error); });
        const auto reset = host::sequence_args<skc_reset_args>(seq);
        call("reset", [&] { return skc_reset(cache, &reset); });
        // Rejected: the text is made on this stack too.
        call("rejected", [&] { return skc_seq_info(cache, 7, 0, &info); }, SKC_STATUS_OUT_OF_RANGE);
        const host::Ints many{100};
        const auto too_far = host::edit_args<skc_rewind_args>(seq, many);
        call("rejected", [&] { return skc_rewind(cache, &too_far); }, SKC_STATUS_OUT_OF_RANGE);
    }
};

TEST(SmallStack, EveryCallRunsOnTheDocumentedStack) {
    if (SANITIZED) {
        GTEST_SKIP() << "skipped: sanitizers need more stack";
    }
    std::map<std::string, std::size_t> most;
    for (const char *isa : {"scalar", "avx2", "avx512", "amx", "neon"}) {
        setenv("SINKCACHE_CPU", isa, 1);
        auto config = host::config();
        try {
            sinkcache::Cache cache(config);
        } catch (const sinkcache::Error &) {
            std::printf("skipped: no %s\n", isa);
            continue;
        }
        for (const std::int32_t dtype : {SKC_DTYPE_F32, SKC_DTYPE_F16, SKC_DTYPE_BF16, SKC_DTYPE_Q8, SKC_DTYPE_Q4}) {
            for (const std::uint32_t dim : {64u, 512u}) {
                for (const std::uint32_t n_threads : {1u, 2u}) {
                    Host{{dtype, dim, n_threads}, most}.run();
                }
            }
        }
    }
    unsetenv("SINKCACHE_CPU");
    for (const auto &[call, bytes] : most) {
        std::printf("%s: %zu bytes\n", call.c_str(), bytes);
    }
}

TEST(SmallStack, CallsWithoutACache) {
    if (SANITIZED) {
        GTEST_SKIP() << "skipped: sanitizers need more stack";
    }
    auto can = host::sized<skc_capability_info>();
    std::int64_t value = 0;
    std::size_t read = 0;
    on_stack(small_stack(), [&] {
        read += skc_capabilities(&can) == SKC_STATUS_OK;
        read += skc_constant("SKC_ABI_VERSION", &value) == SKC_STATUS_OK;
        read += skc_status_name(SKC_STATUS_OK) != nullptr;
        read += skc_last_error() != nullptr;
        read += skc_version() != nullptr;
        read += skc_abi_version() == SKC_ABI_VERSION;
    });
    EXPECT_EQ(read, 6u);
}

}  // namespace
