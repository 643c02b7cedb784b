// Handles that are NULL, garbage or destroyed, and NULL arguments, into every call.
#include "support/verbs.hpp"

#include <algorithm>
#include <memory>

namespace {

using host::Verb;
using host::verbs;

void expect_refused_everywhere(skc_cache *handle, const char *text) {
    for (const Verb &verb : verbs()) {
        SCOPED_TRACE(verb.name);
        EXPECT_REFUSED(verb.call(handle), SKC_STATUS_INVALID_HANDLE, text);
    }
}

skc_cache *number(std::uintptr_t bits) {
    return reinterpret_cast<skc_cache *>(bits);
}

TEST(Handles, TheVerbsAreRight) {
    sinkcache::Cache cache(host::config(2));
    for (const Verb &verb : verbs()) {
        SCOPED_TRACE(verb.name);
        EXPECT_OK(verb.call(cache.handle()));
    }
    cache.release();
}

TEST(Handles, Null) {
    expect_refused_everywhere(nullptr, "NULL");
}

TEST(Handles, Garbage) {
    sinkcache::Cache live(host::config(2));
    const auto bits = reinterpret_cast<std::uintptr_t>(live.handle());
    long local = 0;
    const auto heap = std::make_unique<long>(0);
    std::vector<skc_cache *> garbage = {
        number(1), number(2), number(0xFF), number(UINTPTR_MAX), number(UINTPTR_MAX / 2), number(0xDEADBEEF),
        reinterpret_cast<skc_cache *>(&local), reinterpret_cast<skc_cache *>(heap.get()),
        // Near misses of a live handle.
        number(bits + 1), number(bits - 1), number(bits ^ 0x100), number(bits ^ (std::uintptr_t{1} << 63)),
        number(bits + (std::uintptr_t{1} << 32)), number(bits - (std::uintptr_t{1} << 32)), number(bits & 0xFFFFFFFF),
    };
    for (int bit = 0; bit < 64; bit++) {
        garbage.push_back(number(std::uintptr_t{1} << bit));
        garbage.push_back(number(bits ^ (std::uintptr_t{1} << bit)));
    }
    for (skc_cache *handle : garbage) {
        SCOPED_TRACE(testing::Message() << "handle " << handle);
        expect_refused_everywhere(handle, "not a live cache");
    }
    EXPECT_EQ(host::info(live.handle()).length_max, 0u);
}

TEST(Handles, Destroyed) {
    sinkcache::Cache cache(host::config(2));
    skc_cache *old = cache.release();
    ASSERT_OK(skc_destroy_cache(old));
    expect_refused_everywhere(old, "destroyed");
    // Still so when others have taken its place.
    std::vector<sinkcache::Cache> others;
    for (int i = 0; i < 8; i++) {
        others.emplace_back(host::config(2));
        EXPECT_NE(others.back().handle(), old);
    }
    expect_refused_everywhere(old, "destroyed");
    for (auto &other : others) {
        EXPECT_EQ(host::info(other.handle()).length_max, 0u);
    }
}

TEST(Handles, NeverTheSameAgain) {
    std::vector<skc_cache *> seen;
    for (int i = 0; i < 300; i++) {
        sinkcache::Cache cache(host::config());
        seen.push_back(cache.handle());
    }
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
}

TEST(NullArguments, EveryCall) {
    sinkcache::Cache cache(host::config(2));
    skc_cache *c = cache.handle(), *made = nullptr;
    const auto owner = host::config();
    const auto config = owner.get();
    std::uint64_t bytes;
    std::int64_t value;
#define EXPECT_NULL(call) EXPECT_REFUSED(call, SKC_STATUS_NULL_POINTER, "NULL")
    EXPECT_NULL(skc_append_kv(c, nullptr));
    EXPECT_NULL(skc_attend(c, nullptr));
    EXPECT_NULL(skc_step(c, nullptr));
    EXPECT_NULL(skc_step_part(c, nullptr, 0, 1));
    EXPECT_NULL(skc_evict(c, nullptr));
    EXPECT_NULL(skc_rewind(c, nullptr));
    EXPECT_NULL(skc_reset(c, nullptr));
    EXPECT_NULL(skc_fork(c, nullptr));
    EXPECT_NULL(skc_abort_step(c, nullptr));
    EXPECT_NULL(skc_seq_info(c, 0, 0, nullptr));
    EXPECT_NULL(skc_kernel_choice(c, 0, SKC_CALL_STEP, 1, 1, nullptr));
    EXPECT_NULL(skc_capabilities(nullptr));
    EXPECT_NULL(skc_create_cache(nullptr, &made));
    EXPECT_NULL(skc_create_cache(&config, nullptr));
    EXPECT_NULL(skc_cache_bytes(nullptr, &bytes, &bytes));
    EXPECT_NULL(skc_cache_bytes(&config, nullptr, &bytes));
    EXPECT_NULL(skc_cache_bytes(&config, &bytes, nullptr));
    EXPECT_NULL(skc_cache_config_init(nullptr, sizeof(skc_cache_config)));
    EXPECT_NULL(skc_layer_config_init(nullptr, sizeof(skc_layer_config)));
    EXPECT_NULL(skc_constant(nullptr, &value));
    EXPECT_NULL(skc_constant("SKC_DTYPE_F16", nullptr));
    EXPECT_EQ(made, nullptr);
}

}  // namespace
