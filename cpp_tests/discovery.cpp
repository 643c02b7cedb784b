// What a program can query of the library it has loaded: versions, constants, status names, capabilities.
#include "support/host.hpp"

#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>

namespace {

TEST(Discovery, Versions) {
    EXPECT_STREQ(skc_version(), VERSION);
    EXPECT_EQ(skc_abi_version(), std::uint32_t{SKC_ABI_VERSION});
}

/**
 * The number that a macro of the header stands for, such as -1, (-1), 4294967295 or UINT32_MAX; none for other macros.
 */
std::optional<std::int64_t> number(std::string value) {
    if (value.size() > 2 && value.front() == '(' && value.back() == ')') {
        value = value.substr(1, value.size() - 2);
    }
    if (value == "UINT32_MAX") {
        return UINT32_MAX;
    }
    char *end = nullptr;
    const std::int64_t n = std::strtoll(value.c_str(), &end, 0);
    const std::string suffix = end;
    const bool whole = end != value.c_str() && (suffix.empty() || suffix == "u" || suffix == "U");
    return whole ? std::optional<std::int64_t>(n) : std::nullopt;
}

// skc_constant knows every number that the header defines.
TEST(Discovery, EveryConstant) {
    std::ifstream header(HEADER);
    std::string line, define, name, value;
    int constants = 0;
    while (std::getline(header, line)) {
        std::istringstream words(line);
        if (!(words >> define >> name >> value) || define != "#define") {
            continue;
        }
        if (const auto want = number(value)) {
            std::int64_t got = 12345;
            EXPECT_OK(skc_constant(name.c_str(), &got));
            EXPECT_EQ(got, *want) << name;
            constants++;
        }
    }
    EXPECT_GE(constants, 45);
    std::int64_t untouched = 9;
    EXPECT_REJECTED(skc_constant("SKC_NO_SUCH_THING", &untouched), SKC_STATUS_INVALID_ARGUMENT, "SKC_NO_SUCH_THING");
    EXPECT_REJECTED(skc_constant("", &untouched), SKC_STATUS_INVALID_ARGUMENT, "\"\"");
    EXPECT_REJECTED(skc_constant("\xFF\xFE", &untouched), SKC_STATUS_INVALID_ARGUMENT, "not a constant");
    EXPECT_EQ(untouched, 9);
}

TEST(Discovery, StatusNames) {
    for (skc_status status = 0; status >= SKC_STATUS_NO_ROOM; status--) {
        std::int64_t value = 1;
        ASSERT_OK(skc_constant(skc_status_name(status), &value));
        EXPECT_EQ(value, status);
    }
    for (skc_status status : {1, SKC_STATUS_NO_ROOM - 1, INT32_MIN, INT32_MAX}) {
        EXPECT_STREQ(skc_status_name(status), "unknown status");
    }
}

TEST(Discovery, Capabilities) {
    auto can = host::sized<skc_capability_info>();
    ASSERT_OK(skc_capabilities(&can));
    EXPECT_EQ(can.abi_version, std::uint32_t{SKC_ABI_VERSION});
    EXPECT_TRUE(can.backends & 1u << SKC_BACKEND_CPU);
    EXPECT_EQ(can.snapshot_version, std::uint32_t{SKC_SNAPSHOT_VERSION});
    EXPECT_EQ(can.io_dtypes, 0b1110u);
    EXPECT_EQ(can.kv_dtypes, 0b111110u);
    EXPECT_EQ(can.position_modes, 0b11110u);
    EXPECT_EQ(can.rope_styles, 0b110u);
    // The reported limits are those that configurations are checked against.
    const auto status_with = [](auto change) {
        auto config = host::config();
        change(config.raw());
        const auto c = config.get();
        std::uint64_t bytes;
        return skc_cache_bytes(&c, &bytes, &bytes);
    };
    EXPECT_EQ(status_with([&](auto &c) { c.head_dim = can.max_head_dim; }), SKC_STATUS_OK);
    EXPECT_EQ(status_with([&](auto &c) { c.head_dim = can.max_head_dim + can.head_dim_multiple; }),
              SKC_STATUS_INVALID_CONFIG);
    EXPECT_EQ(status_with([&](auto &c) { c.n_layers = can.max_layers + 1; }), SKC_STATUS_INVALID_CONFIG);
    EXPECT_EQ(status_with([&](auto &c) { c.n_seqs = can.max_seqs; }), SKC_STATUS_OK);
    EXPECT_EQ(status_with([&](auto &c) { c.n_seqs = can.max_seqs + 1; }), SKC_STATUS_INVALID_CONFIG);
    EXPECT_EQ(status_with([&](auto &c) { c.n_threads = can.max_threads; }), SKC_STATUS_OK);
    EXPECT_EQ(status_with([&](auto &c) { c.n_threads = can.max_threads + 1; }), SKC_STATUS_INVALID_CONFIG);
    EXPECT_EQ(status_with([&](auto &c) { c.max_chunk = can.max_chunk; }), SKC_STATUS_OK);
    EXPECT_EQ(status_with([&](auto &c) { c.max_chunk = can.max_chunk + 1; }), SKC_STATUS_INVALID_CONFIG);
    EXPECT_EQ(can.max_segments, 1024u);
    for (const std::uint32_t more : {0u, 1u}) {
        auto config = host::config();
        config.layers(1, sinkcache::Layer(host::SINKS, host::WINDOW).room(0, can.max_segments + more));
        const auto c = config.get();
        std::uint64_t bytes;
        EXPECT_EQ(skc_cache_bytes(&c, &bytes, &bytes), more ? SKC_STATUS_INVALID_CONFIG : SKC_STATUS_OK);
    }
}

TEST(Discovery, AnUnavailableBackend) {
    auto can = host::sized<skc_capability_info>();
    ASSERT_OK(skc_capabilities(&can));
    if (can.backends & 1u << SKC_BACKEND_CUDA) {
        GTEST_SKIP() << "there is a CUDA device";
    }
    auto owner = host::config();
    owner.raw().backend = SKC_BACKEND_CUDA;
    const auto config = owner.get();
    skc_cache *cache = nullptr;
    std::uint64_t bytes;
    EXPECT_REJECTED(skc_create_cache(&config, &cache), SKC_STATUS_BACKEND_UNAVAILABLE, "CUDA");
    EXPECT_REJECTED(skc_cache_bytes(&config, &bytes, &bytes), SKC_STATUS_BACKEND_UNAVAILABLE, "CUDA");
    EXPECT_EQ(cache, nullptr);
}

}  // namespace
