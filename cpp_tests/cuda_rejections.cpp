// How a CPU cache, or a machine without CUDA, rejects settings and calls that need CUDA.
#include "support/cuda.hpp"
#include "support/host.hpp"

namespace {

using host::Ints;

const Ints SEQ{0}, ONE{1};

TEST(CudaRejections, ACpuCacheHasNoStreamAndNoDeviceArrays) {
    sinkcache::Cache owner(host::config());
    skc_cache *cache = owner.handle();
    const host::Rows rows = host::rows(1, 1);
    host::Results results = host::Results::of(1);
    auto a = host::step_args(0, SEQ, ONE, rows, results);
    int stream;
    a.stream = &stream;
    EXPECT_REJECTED(skc_step(cache, &a), SKC_STATUS_INVALID_ARGUMENT, "a CPU cache has none");
    EXPECT_REJECTED(skc_step_part(cache, &a, 0, 1), SKC_STATUS_INVALID_ARGUMENT, "a CPU cache has none");
    a.stream = nullptr;
    a.flags = SKC_ON_DEVICE;
    a.max_tokens = 1;
    a.n_rows = 1;
    EXPECT_REJECTED(skc_step(cache, &a), SKC_STATUS_INVALID_ARGUMENT, "this cache is on the CPU");
    a.flags = 0;
    EXPECT_REJECTED(skc_step(cache, &a), SKC_STATUS_INVALID_ARGUMENT, "n_rows is 1 and max_tokens 1");
    a.max_tokens = 0;
    a.n_rows = 0;
    a.reserved = 3;
    EXPECT_REJECTED(skc_step(cache, &a), SKC_STATUS_VERSION_MISMATCH, "reserved is 3");
    auto evict = host::edit_args<skc_evict_args>(SEQ, ONE);
    evict.flags = SKC_ON_DEVICE;
    EXPECT_REJECTED(skc_evict(cache, &evict), SKC_STATUS_INVALID_ARGUMENT, "this cache is on the CPU");
    const host::Indices first{0};
    auto range = host::range_args<skc_evict_range_args>(SEQ, first, ONE);
    range.flags = SKC_ON_DEVICE;
    EXPECT_REJECTED(skc_evict_range(cache, &range), SKC_STATUS_INVALID_ARGUMENT, "this cache is on the CPU");
    EXPECT_EQ(owner.info(0).length_min, 0u);
    auto note = host::sized<skc_note_replay_args>();
    EXPECT_REJECTED(skc_note_replay(cache, &note), SKC_STATUS_INVALID_ARGUMENT, "this cache is on the CPU");
    // A CPU cache never has device errors, and its lengths are always known.
    EXPECT_EQ(owner.poll_error().n_skipped, 0u);
    EXPECT_EQ(owner.info(0, 0, true).length_min, 0u);
    EXPECT_REJECTED(skc_poll_error(cache, nullptr), SKC_STATUS_NULL_POINTER, "skc_device_error is NULL");
}

TEST(CudaRejections, Configurations) {
    auto owner = host::config();
    auto config = owner.cuda(0).get();
    skc_cache *cache = nullptr;
    config.device_alloc = [](void *, std::size_t, std::size_t) -> void * { return nullptr; };
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_INVALID_CONFIG, "device_free is NULL");
    config.device_alloc = nullptr;
    config.reserved = 1;
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_VERSION_MISMATCH, "reserved is 1");
    EXPECT_EQ(cache, nullptr);
}

TEST(CudaRejections, WithoutADeviceTheTextSaysWhatWasNotFound) {
    if (cuda::Driver::get()) {
        GTEST_SKIP() << "there is a CUDA device";
    }
    auto owner = host::config();
    const auto config = owner.cuda().get();
    skc_cache *cache = nullptr;
    const skc_status status = skc_create_cache(&config, &cache);
    EXPECT_STREQ(skc_status_name(status), "SKC_STATUS_BACKEND_UNAVAILABLE");
    const std::string text = skc_last_error();
    EXPECT_TRUE(text.find("libcuda.so.1 was not found") != std::string::npos ||
                text.find("no CUDA device") != std::string::npos || text.find("cuInit") != std::string::npos)
        << text;
}

}  // namespace
