// How much stack calls need: engines run attention on threads with small stacks (coroutines, Go, musl).
#include "support/calls.hpp"

#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <functional>

namespace {

/** docs/c-api.md promises that this is enough for every call of a CPU cache. */
constexpr std::size_t PROMISED = 16 << 10;

constexpr unsigned char PAINT = 0xA5;

/** Runs `work` on a thread whose stack is painted before; returns how many bytes of it were written. */
std::size_t stack_of(const std::function<void()> &work) {
    std::vector<unsigned char> stack(1 << 20, PAINT);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, stack.data(), stack.size());
    pthread_t thread;
    const auto run = [](void *data) -> void * {
        (*static_cast<const std::function<void()> *>(data))();
        return nullptr;
    };
    if (pthread_create(&thread, &attributes, run, const_cast<std::function<void()> *>(&work)) != 0) {
        std::abort();
    }
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
    const auto lowest = std::find_if(stack.begin(), stack.end(), [](unsigned char byte) { return byte != PAINT; });
    return static_cast<std::size_t>(stack.end() - lowest);
}

/** Measures calls; the stack that a thread needs by itself is taken off. */
class Stack : public testing::Test {
protected:
    void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        GTEST_SKIP() << "skipped: sanitizers need more stack";
#endif
    }
    void TearDown() override { std::printf("at most %zu bytes of stack\n", most_); }

    void measure(const std::string &name, const std::function<void()> &work) {
        const std::size_t used = stack_of(work), bytes = used - std::min(used, empty_);
        most_ = std::max(most_, bytes);
        EXPECT_LE(bytes, PROMISED) << name;
    }

private:
    std::size_t empty_ = stack_of([] {}), most_ = 0;
};

TEST_F(Stack, StepsNeedLittle) {
    const auto x = host::noise(400 * 8 * 64, 1);
    std::vector<float> out(x.size());
    for (const std::uint32_t dtype : {SKC_DTYPE_F32, SKC_DTYPE_F16, SKC_DTYPE_BF16}) {
        for (const std::uint32_t threads : {1u, 3u}) {
            SCOPED_TRACE("storage type " + std::to_string(dtype) + ", threads " + std::to_string(threads));
            const auto settings = sinkcache::Config().heads(8, 2, 64).types(SKC_DTYPE_F32, dtype).threads(threads);
            const auto config = sinkcache::Config(settings).layers(1, sinkcache::Layer(4, 300));
            const auto raw = config.get();
            skc_cache *cache = nullptr;
            skc_status status = SKC_STATUS_INTERNAL;
            measure("create", [&] { status = skc_create_cache(&raw, &cache); });
            ASSERT_EQ(status, SKC_STATUS_OK);
            for (const std::int32_t n : {1, 2, 16, 400}) {
                const std::int32_t seq = 0;
                auto a = host::sized<skc_step_args>();
                a.n_entries = 1;
                a.seq_ids = &seq;
                a.n_tokens = &n;
                a.q = a.k = a.v = x.data();
                a.out = out.data();
                measure("step", [&] { status = skc_step(cache, &a); });
                EXPECT_EQ(status, SKC_STATUS_OK);
                measure("step_part", [&] { status = skc_step_part(cache, &a, 0, 1); });
                EXPECT_EQ(status, SKC_STATUS_OK);
                a.layer = 9;
                measure("step, rejected", [&] { status = skc_step(cache, &a); });
                EXPECT_EQ(status, SKC_STATUS_OUT_OF_RANGE);
            }
            measure("destroy", [&] { status = skc_destroy_cache(cache); });
            EXPECT_EQ(status, SKC_STATUS_OK);
        }
    }
}

TEST_F(Stack, OtherCallsNeedLittle) {
    sinkcache::Cache owner(host::config(4, 1));
    skc_cache *cache = owner.handle();
    host::step(cache, host::rows(20, 1));
    const host::Ints seq{0}, one{1}, many{100};
    const auto evict = host::edit_args<skc_evict_args>(seq, one);
    const auto rewind = host::edit_args<skc_rewind_args>(seq, one);
    const auto too_far = host::edit_args<skc_rewind_args>(seq, many);
    const auto reset = host::sequence_args<skc_reset_args>(seq);
    const auto fork = host::fork_args(seq, one);
    const auto abort = host::sized<skc_abort_step_args>();
    auto info = host::sized<skc_sequence_info>();
    auto kernel = host::sized<skc_kernel_info>();
    skc_status status = SKC_STATUS_INTERNAL;
    const auto ok = [&](const char *name, const std::function<skc_status()> &call) {
        measure(name, [&] { status = call(); });
        EXPECT_EQ(status, SKC_STATUS_OK) << name;
    };
    ok("rewind", [&] { return skc_rewind(cache, &rewind); });
    ok("evict", [&] { return skc_evict(cache, &evict); });
    ok("fork", [&] { return skc_fork(cache, &fork); });
    ok("abort_step", [&] { return skc_abort_step(cache, &abort); });
    ok("seq_info", [&] { return skc_seq_info(cache, 0, 0, &info); });
    ok("kernel_choice", [&] { return skc_kernel_choice(cache, 0, SKC_CALL_STEP, 1, 1, &kernel); });
    measure("rewind, rejected", [&] { status = skc_rewind(cache, &too_far); });
    EXPECT_EQ(status, SKC_STATUS_OUT_OF_RANGE);
    ok("reset", [&] { return skc_reset(cache, &reset); });
    const auto settings = host::config();
    const auto config = settings.get();
    std::uint64_t host_bytes, device_bytes;
    ok("cache_bytes", [&] { return skc_cache_bytes(&config, &host_bytes, &device_bytes); });
}

}  // namespace
