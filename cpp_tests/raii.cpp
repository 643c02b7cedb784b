// sinkcache.hpp: ownership, exceptions, builders, spans.
#include "support/host.hpp"

#include <array>
#include <type_traits>

namespace {

using sinkcache::Cache;
using sinkcache::Error;

static_assert(!std::is_copy_constructible_v<Cache> && !std::is_copy_assignable_v<Cache>);
static_assert(std::is_nothrow_move_constructible_v<Cache> && std::is_nothrow_move_assignable_v<Cache>);

template <class Body>
void expect_error(skc_status status, const char *text, Body body) {
    try {
        body();
        ADD_FAILURE() << "nothing was thrown";
    } catch (const Error &e) {
        EXPECT_EQ(e.status(), status);
        EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
        EXPECT_EQ(std::string(e.what()).find(skc_status_name(status)), 0u) << e.what();
    }
}

TEST(Raii, Ownership) {
    Cache a(host::config());
    skc_cache *const first = a.handle();
    Cache b(std::move(a));
    EXPECT_EQ(a.handle(), nullptr);
    EXPECT_EQ(b.handle(), first);
    Cache c(host::config());
    skc_cache *const second = c.handle();
    c = std::move(b);
    EXPECT_EQ(c.handle(), first);
    EXPECT_EQ(skc_destroy_cache(second), SKC_STATUS_INVALID_HANDLE) << "the old one was not destroyed";
    { Cache d(std::move(c)); }
    EXPECT_EQ(skc_destroy_cache(first), SKC_STATUS_INVALID_HANDLE);
    Cache e(host::config());
    e.close();
    EXPECT_EQ(e.handle(), nullptr);
    expect_error(SKC_STATUS_INVALID_HANDLE, "NULL", [&] { e.close(); });
    Cache f(host::config());
    skc_cache *const kept = f.release();
    EXPECT_EQ(skc_destroy_cache(kept), SKC_STATUS_OK);
}

TEST(Raii, Exceptions) {
    expect_error(SKC_STATUS_INVALID_CONFIG, "head_dim is 12", [] { Cache c(sinkcache::Config().heads(4, 2, 12)); });
    Cache cache(host::config(2));
    expect_error(SKC_STATUS_OUT_OF_RANGE, "seq_ids[0] is 5", [&] { cache.reset({5}); });
    expect_error(SKC_STATUS_OUT_OF_RANGE, "holds 0", [&] { cache.evict({0}, {1}); });
    expect_error(SKC_STATUS_OUT_OF_RANGE, "holds 0", [&] { cache.rewind({0}, {1}); });
    expect_error(SKC_STATUS_INVALID_ARGUMENT, "2 sequence ids for 1", [&] { cache.evict({0, 1}, {1}); });
    expect_error(SKC_STATUS_INVALID_ARGUMENT, "destination", [&] { cache.fork({0}, {0}); });
    expect_error(SKC_STATUS_NULL_POINTER, "k is NULL", [&] { cache.append_kv(0, {{0}, {1}}, {}); });
    expect_error(SKC_STATUS_OUT_OF_RANGE, "layer is 9", [&] { cache.info(0, 9); });
}

TEST(Raii, MethodsEqualTheCCalls) {
    const host::Rows rows = host::rows(12, 1);
    Cache one(host::config(2)), two(host::config(2)), parts(host::config(2).threads(2));
    const host::Results want = host::step(one.handle(), rows.slice(0, 8));
    host::Results got = host::Results::of(8);
    const std::array<std::int32_t, 1> seq{0};
    const std::vector<std::int32_t> eight{8};
    const sinkcache::KvRows kv{{rows.k.data()}, {rows.v.data()}};
    const auto query = [&] { return sinkcache::QueryRows{{rows.q.data()}, {got.out.data()}, {got.lse.data()}}; };
    two.append_kv(0, {seq, eight}, kv);
    two.attend(0, {seq, eight}, query());
    EXPECT_EQ(got, want);
    got = host::Results::of(8);
    for (std::uint32_t ith : {0u, 1u}) {
        parts.step_part(0, {seq, eight}, kv, query(), ith, 2);
    }
    EXPECT_EQ(got, want);

    two.fork({0}, {1});
    two.rewind({1}, {3});
    two.evict({0}, {2});
    EXPECT_EQ(two.info(1).length_max, 5u);
    EXPECT_EQ(two.info(0).evicted_tokens, 2u);
    two.reset({0, 1}, {7, 8});
    EXPECT_EQ(two.info(1).start_position, 8u);
    two.reset({0});
    EXPECT_EQ(two.info(0).start_position, 0u);
    two.append_kv(0, {{0, 1}, {1, 1}}, kv);
    two.abort_step();
    two.abort_step({1});
    two.abort_step(std::vector<std::int32_t>());
    EXPECT_EQ(two.info(0).length_max, 1u) << "with one layer there is nothing to abort";
    two.reset({0, 1});
    got = host::Results::of(8);
    two.step(0, {seq, eight}, kv, query());
    EXPECT_EQ(got, want);
}

TEST(Raii, Builders) {
    std::vector<sinkcache::Layer> layers{{1, 5}, {2, 7}};
    sinkcache::Config config;
    config.heads(8, 2, 64, 32).types(SKC_DTYPE_BF16, SKC_DTYPE_F16, SKC_DTYPE_F32).seqs(3).max_chunk(9).max_rewind(2);
    config.threads(2).layers(layers);
    const auto c = config.get();
    EXPECT_EQ(c.n_layers, 2u);
    EXPECT_EQ(c.head_dim_v, 32u);
    Cache cache(config);
    EXPECT_EQ(cache.info(2, 0).room, 6u);
    EXPECT_EQ(cache.info(2, 1).room, 9u);
    EXPECT_GT(config.bytes().first, 0u);
    // A copied configuration does not point into the original.
    const sinkcache::Config copy = config.layers(5, sinkcache::Layer(0, 3));
    config.layers(1, sinkcache::Layer(0, 0));
    EXPECT_EQ(Cache(copy).info(0, 4).room, 3u);
}

}  // namespace
