// Structs of older, newer and broken callers: struct_size, flags, reserved members, unknown tails.
#include "support/host.hpp"

#include <cstddef>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

namespace {

/** A struct as a newer header would declare it. */
template <class T>
struct Longer {
    T known;
    std::uint64_t tail[3];
};

/** The least size of a struct that is accepted. That of arguments ends before `stream`, which the first had not. */
template <class T, class = decltype(std::declval<T>().stream)>
constexpr std::uint32_t first_size(int) {
    return offsetof(T, stream);
}
template <class T>
constexpr std::uint32_t first_size(long) {
    if (std::is_same<T, skc_cache_config>::value) {
        return offsetof(skc_cache_config, cuda_device);
    }
    if (std::is_same<T, skc_layer_config>::value) {
        return offsetof(skc_layer_config, max_pinned);
    }
    if (std::is_same<T, skc_sequence_info>::value) {
        return offsetof(skc_sequence_info, pinned_tokens);
    }
    return std::is_same<T, skc_capability_info>::value ? offsetof(skc_capability_info, snapshot_version) : sizeof(T);
}

/** Calls with valid and invalid values of struct_size, flags and the tail. `call` must accept `good`. */
template <class T>
void check_sizes(const char *name, const T &good, const std::function<skc_status(T *)> &call) {
    SCOPED_TRACE(name);
    EXPECT_OK(call(std::make_unique<T>(good).get()));
    T older = good;
    older.struct_size = first_size<T>(0);
    EXPECT_OK(call(&older));
    for (std::uint32_t size : {0u, 1u, 8u, first_size<T>(0) - 1, 4097u, UINT32_MAX}) {
        T broken = good;
        broken.struct_size = size;
        EXPECT_REJECTED(call(&broken), SKC_STATUS_VERSION_MISMATCH, "struct_size is " + std::to_string(size));
    }
    constexpr bool two_flags = std::is_same<T, skc_cache_config>::value ||
                               std::is_same<T, skc_append_kv_args>::value || std::is_same<T, skc_step_args>::value;
    constexpr std::uint32_t undefined = two_flags ? 4 : 2;
    for (std::uint32_t flags : {undefined, 0x80000000u}) {
        T broken = good;
        broken.flags = flags;
        EXPECT_REJECTED(call(&broken), SKC_STATUS_VERSION_MISMATCH, "flags is 0x");
    }
    Longer<T> longer;
    std::memset(&longer, 0, sizeof longer);
    longer.known = good;
    longer.known.struct_size = sizeof longer;
    EXPECT_OK(call(&longer.known));
    for (std::size_t at = sizeof(T); at < sizeof longer; at += 7) {
        Longer<T> newer;
        std::memset(&newer, 0, sizeof newer);
        newer.known = good;
        newer.known.struct_size = sizeof newer;
        reinterpret_cast<unsigned char *>(&newer)[at] = 1;
        EXPECT_REJECTED(call(&newer.known), SKC_STATUS_VERSION_MISMATCH, "byte " + std::to_string(at));
    }
}

template <class T>
void check_reserved(const T &good, skc_status (*call)(skc_cache *, const T *), skc_cache *cache) {
    T broken = good;
    broken.reserved = 5;
    EXPECT_REJECTED(call(cache, &broken), SKC_STATUS_VERSION_MISMATCH, "reserved is 5");
}

TEST(Structs, ArgumentsOfEveryCall) {
    sinkcache::Cache owner(host::config(2));
    skc_cache *cache = owner.handle();
    const host::Ints seq{0}, other{1}, one{1}, none{0};
    const host::Rows rows = host::rows(1, 1);
    host::Results results = host::Results::of(1);
    check_sizes<skc_append_kv_args>("append_kv", host::append_args(0, seq, one, rows),
                                    [&](auto *a) { return skc_append_kv(cache, a); });
    check_sizes<skc_attend_args>("attend", host::attend_args(0, seq, one, rows, results),
                                 [&](auto *a) { return skc_attend(cache, a); });
    check_sizes<skc_step_args>("step", host::step_args(0, seq, one, rows, results),
                               [&](auto *a) { return skc_step(cache, a); });
    check_sizes<skc_step_args>("step_part", host::step_args(0, seq, one, rows, results),
                               [&](auto *a) { return skc_step_part(cache, a, 0, 1); });
    const auto evict = host::edit_args<skc_evict_args>(seq, none);
    check_sizes<skc_evict_args>("evict", evict, [&](auto *a) { return skc_evict(cache, a); });
    check_reserved(evict, skc_evict, cache);
    const auto rewind = host::edit_args<skc_rewind_args>(seq, none);
    check_sizes<skc_rewind_args>("rewind", rewind, [&](auto *a) { return skc_rewind(cache, a); });
    check_reserved(rewind, skc_rewind, cache);
    const auto reset = host::sequence_args<skc_reset_args>(other);
    check_sizes<skc_reset_args>("reset", reset, [&](auto *a) { return skc_reset(cache, a); });
    check_reserved(reset, skc_reset, cache);
    const auto fork = host::fork_args(seq, other);
    check_sizes<skc_fork_args>("fork", fork, [&](auto *a) { return skc_fork(cache, a); });
    check_reserved(fork, skc_fork, cache);
    const host::Indices first{0};
    const auto pin = host::range_args<skc_pin_args>(seq, first, none);
    check_sizes<skc_pin_args>("pin", pin, [&](auto *a) { return skc_pin(cache, a); });
    check_reserved(pin, skc_pin, cache);
    const auto evict_range = host::range_args<skc_evict_range_args>(seq, first, none);
    check_sizes<skc_evict_range_args>("evict_range", evict_range, [&](auto *a) { return skc_evict_range(cache, a); });
    check_reserved(evict_range, skc_evict_range, cache);
    const auto abort = host::sized<skc_abort_step_args>();
    check_sizes<skc_abort_step_args>("abort_step", abort, [&](auto *a) { return skc_abort_step(cache, a); });
    check_reserved(abort, skc_abort_step, cache);
    std::vector<std::uint8_t> snapshot(host::snapshot_bytes(cache));
    const auto save = host::save_args(0, snapshot);
    check_sizes<skc_save_sequence_args>("snapshot_bytes", save, [&](auto *a) {
        std::uint64_t bytes = 0;
        return skc_snapshot_bytes(cache, a, &bytes);
    });
    check_sizes<skc_save_sequence_args>("save_sequence", save,
                                        [&](auto *a) { return skc_save_sequence(cache, a, nullptr); });
    const auto load = host::load_args(1, snapshot);
    check_sizes<skc_load_sequence_args>("load_sequence", load, [&](auto *a) { return skc_load_sequence(cache, a); });
    check_reserved(load, skc_load_sequence, cache);
    sinkcache::Cache second(host::config(2));
    check_sizes<skc_copy_sequence_args>("copy_sequence", host::copy_args(cache, 0, 1),
                                        [&](auto *a) { return skc_copy_sequence(second.handle(), a); });
    auto broken = save;
    broken.reserved = 5;
    EXPECT_REJECTED(skc_save_sequence(cache, &broken, nullptr), SKC_STATUS_VERSION_MISMATCH, "reserved is 5");
    // Rejected calls appended nothing: three successes (plain, older and longer) of each of three calls that append.
    EXPECT_EQ(host::info(cache).length_max, 9u);
}

TEST(Structs, OutputsOfCalls) {
    sinkcache::Cache owner(host::config());
    check_sizes<skc_sequence_info>("seq_info", host::sized<skc_sequence_info>(),
                                   [&](auto *i) { return skc_seq_info(owner.handle(), 0, 0, i); });
    check_sizes<skc_kernel_info>("kernel_choice", host::sized<skc_kernel_info>(),
                                 [&](auto *i) { return skc_kernel_choice(owner.handle(), 0, SKC_CALL_STEP, 1, 1, i); });
    check_sizes<skc_capability_info>("capabilities", host::sized<skc_capability_info>(),
                                     [&](auto *i) { return skc_capabilities(i); });
    // A newer caller's struct keeps its size and its zero tail.
    Longer<skc_sequence_info> longer;
    std::memset(&longer, 0, sizeof longer);
    longer.known.struct_size = sizeof longer;
    ASSERT_OK(skc_seq_info(owner.handle(), 0, 0, &longer.known));
    EXPECT_EQ(longer.known.struct_size, sizeof longer);
    EXPECT_EQ(longer.known.room, host::SINKS + host::WINDOW);
    EXPECT_EQ(longer.tail[0] | longer.tail[1] | longer.tail[2], 0u);
}

TEST(Structs, Configurations) {
    const auto owner = host::config();
    check_sizes<skc_cache_config>("cache_config", owner.get(), [](auto *c) {
        skc_cache *cache = nullptr;
        const skc_status status = skc_create_cache(c, &cache);
        EXPECT_EQ(status == SKC_STATUS_OK, cache != nullptr);
        return status == SKC_STATUS_OK ? skc_destroy_cache(cache) : status;
    });
    check_sizes<skc_layer_config>("layer_config", sinkcache::Layer(), [&](auto *layer) {
        auto config = owner.get();
        config.layers = layer;
        config.layer_stride = 0;
        std::uint64_t bytes;
        return skc_cache_bytes(&config, &bytes, &bytes);
    });
}

// An array of layers of a newer header: the stride is the newer size.
TEST(Structs, NewerLayersInAnArray) {
    Longer<skc_layer_config> layers[2];
    std::memset(layers, 0, sizeof layers);
    for (auto &layer : layers) {
        layer.known = sinkcache::Layer(1, 5);
        layer.known.struct_size = sizeof layer;
    }
    layers[1].known.window = 6;
    const auto owner = host::config();
    auto config = owner.get();
    config.n_layers = 2;
    config.n_layer_configs = 2;
    config.layers = &layers[0].known;
    config.layer_stride = 0;
    sinkcache::Cache cache(config);
    EXPECT_EQ(host::info(cache.handle(), 0).room, 6u);
    EXPECT_EQ(host::info(cache.handle(), 1).room, 7u);
}

template <class T>
void check_init(skc_status (*init)(T *, std::uint32_t)) {
    Longer<T> longer;
    std::memset(&longer, 0xAA, sizeof longer);
    EXPECT_OK(init(&longer.known, sizeof(T) + 8));
    EXPECT_EQ(longer.known.struct_size, sizeof(T) + 8);
    EXPECT_EQ(longer.tail[0], 0u);
    EXPECT_EQ(longer.tail[1], 0xAAAAAAAAAAAAAAAAu) << "written beyond struct_size";
    for (std::uint32_t size : {0u, 4u, first_size<T>(0) - 1, 4097u, UINT32_MAX}) {
        T untouched;
        std::memset(&untouched, 0xAA, sizeof untouched);
        EXPECT_REJECTED(init(&untouched, size), SKC_STATUS_VERSION_MISMATCH, std::to_string(size));
        EXPECT_EQ(untouched.struct_size, 0xAAAAAAAAu);
    }
}

TEST(Structs, Initialisers) {
    check_init(skc_cache_config_init);
    check_init(skc_layer_config_init);
}

}  // namespace
