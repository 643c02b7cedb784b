// Every call with a handle that is NULL, garbage or destroyed. Other pointers: pointers.cpp.
#include "support/calls.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <regex>
#include <set>

namespace {

using host::HandleCall;
using host::handle_calls;

void expect_rejected_everywhere(skc_cache *handle, const char *text) {
    for (const HandleCall &call : handle_calls()) {
        SCOPED_TRACE(call.name);
        EXPECT_REJECTED(call.call(handle), SKC_STATUS_INVALID_HANDLE, text);
    }
}

skc_cache *handle_of(std::uintptr_t bits) {
    return reinterpret_cast<skc_cache *>(bits);
}

TEST(Handles, AllCallsSucceedOnALiveHandle) {
    sinkcache::Cache cache(host::config(2));
    for (const HandleCall &call : handle_calls()) {
        SCOPED_TRACE(call.name);
        EXPECT_STREQ(skc_status_name(call.call(cache.handle())), skc_status_name(host::expected_status(call)));
    }
    cache.release();
}

// A new call of the header cannot be forgotten in the tests below.
TEST(Handles, EveryCallOnACacheIsTested) {
    std::ifstream file(HEADER);
    const std::string header{std::istreambuf_iterator<char>(file), {}};
    std::set<std::string> in_header, tested;
    const std::regex declaration(R"(SKC_API\s+skc_status\s+skc_(\w+)\(\s*struct skc_cache \*cache\b)");
    for (std::sregex_iterator it(header.begin(), header.end(), declaration), end; it != end; ++it) {
        in_header.insert((*it)[1]);
    }
    for (const HandleCall &call : handle_calls()) {
        tested.insert(call.name);
    }
    EXPECT_GE(in_header.size(), 14u);
    EXPECT_EQ(in_header, tested);
}

TEST(Handles, Null) {
    expect_rejected_everywhere(nullptr, "NULL");
}

TEST(Handles, Garbage) {
    sinkcache::Cache live(host::config(2));
    const auto bits = reinterpret_cast<std::uintptr_t>(live.handle());
    long local = 0;
    const auto heap = std::make_unique<long>(0);
    std::vector<skc_cache *> garbage = {
        handle_of(1), handle_of(2), handle_of(0xFF), handle_of(UINTPTR_MAX), handle_of(UINTPTR_MAX / 2),
        handle_of(0xDEADBEEF),
        reinterpret_cast<skc_cache *>(&local), reinterpret_cast<skc_cache *>(heap.get()),
        // Values close to a live handle.
        handle_of(bits + 1), handle_of(bits - 1), handle_of(bits ^ 0x100), handle_of(bits ^ (std::uintptr_t{1} << 63)),
        handle_of(bits + (std::uintptr_t{1} << 32)), handle_of(bits - (std::uintptr_t{1} << 32)),
        handle_of(bits & 0xFFFFFFFF),
    };
    for (int bit = 0; bit < 64; bit++) {
        garbage.push_back(handle_of(std::uintptr_t{1} << bit));
        garbage.push_back(handle_of(bits ^ (std::uintptr_t{1} << bit)));
    }
    for (skc_cache *handle : garbage) {
        SCOPED_TRACE(testing::Message() << "handle " << handle);
        expect_rejected_everywhere(handle, "not a live cache");
    }
    EXPECT_EQ(host::info(live.handle()).length_max, 0u);
}

TEST(Handles, Destroyed) {
    sinkcache::Cache cache(host::config(2));
    skc_cache *old = cache.release();
    ASSERT_OK(skc_destroy_cache(old));
    expect_rejected_everywhere(old, "destroyed");
    // Still rejected after new caches have reused its slot.
    std::vector<sinkcache::Cache> others;
    for (int i = 0; i < 8; i++) {
        others.emplace_back(host::config(2));
        EXPECT_NE(others.back().handle(), old);
    }
    expect_rejected_everywhere(old, "destroyed");
    for (auto &other : others) {
        EXPECT_EQ(host::info(other.handle()).length_max, 0u);
    }
}

TEST(Handles, AreNeverReused) {
    std::vector<skc_cache *> used;
    for (int i = 0; i < 300; i++) {
        sinkcache::Cache cache(host::config());
        used.push_back(cache.handle());
    }
    std::sort(used.begin(), used.end());
    EXPECT_EQ(std::adjacent_find(used.begin(), used.end()), used.end());
}

}  // namespace
