// Memory layouts and element types of tensors: strides, packed QKV, head-major, mixed types, writes between rows.
#include "support/dtypes.hpp"
#include "support/host.hpp"

namespace {

using host::Ints;
using host::Results;
using host::Rows;

constexpr std::size_t N = 21;
constexpr float CANARY = 123.25f;
const Ints SEQ{0}, COUNT{static_cast<std::int32_t>(N)};

/** Results of the same rows in packed tensors. */
Results packed(const Rows &rows) {
    sinkcache::Cache cache(host::config());
    return host::step(cache.handle(), rows);
}

TEST(Layouts, PackedQkvBuffer) {
    const Rows rows = host::rows(N, 1);
    constexpr std::size_t ROW = host::Q_ROW + host::K_ROW + host::V_ROW;
    std::vector<float> qkv;
    for (std::size_t i = 0; i < N; i++) {
        const Rows one = rows.slice(i, 1);
        for (const auto *part : {&one.q, &one.k, &one.v}) {
            qkv.insert(qkv.end(), part->begin(), part->end());
        }
    }
    sinkcache::Cache cache(host::config());
    Results got = Results::of(N);
    auto a = host::step_args(0, SEQ, COUNT, rows, got);
    a.q = qkv.data();
    a.k = qkv.data() + host::Q_ROW;
    a.v = qkv.data() + host::Q_ROW + host::K_ROW;
    a.q_token_stride = a.k_token_stride = a.v_token_stride = ROW;
    ASSERT_OK(skc_step(cache.handle(), &a));
    EXPECT_EQ(got, packed(rows));
}

/** [tokens, heads, dim] to [heads, tokens, dim], with `gap` canaries after every head. */
std::vector<float> head_major(const std::vector<float> &x, std::size_t heads, std::size_t dim, std::size_t gap) {
    std::vector<float> y;
    for (std::size_t h = 0; h < heads; h++) {
        for (std::size_t t = 0; t < N; t++) {
            const auto at = x.begin() + static_cast<std::ptrdiff_t>((t * heads + h) * dim);
            y.insert(y.end(), at, at + static_cast<std::ptrdiff_t>(dim));
        }
        y.insert(y.end(), gap, CANARY);
    }
    return y;
}

TEST(Layouts, HeadMajorWithGaps) {
    const Rows rows = host::rows(N, 2);
    const std::size_t gap = 5;
    const auto q = head_major(rows.q, host::Q_HEADS, host::DIM, gap);
    const auto k = head_major(rows.k, host::KV_HEADS, host::DIM, gap);
    const auto v = head_major(rows.v, host::KV_HEADS, host::DIM_V, gap);
    const Results want = packed(rows);
    const auto out = head_major(want.out, host::Q_HEADS, host::DIM_V, gap);
    const auto lse = head_major(want.lse, host::Q_HEADS, 1, gap);
    std::vector<float> got_out(out.size(), CANARY), got_lse(lse.size(), CANARY);
    sinkcache::Cache cache(host::config());
    Results unused = Results::of(N);
    auto a = host::step_args(0, SEQ, COUNT, rows, unused);
    a.q = q.data();
    a.k = k.data();
    a.v = v.data();
    a.out = got_out.data();
    a.lse = got_lse.data();
    a.q_token_stride = a.k_token_stride = host::DIM;
    a.v_token_stride = a.out_token_stride = host::DIM_V;
    a.q_head_stride = a.k_head_stride = N * host::DIM + gap;
    a.v_head_stride = a.out_head_stride = N * host::DIM_V + gap;
    a.lse_token_stride = 1;
    a.lse_head_stride = N + gap;
    ASSERT_OK(skc_step(cache.handle(), &a));
    EXPECT_EQ(got_out, out);
    EXPECT_EQ(got_lse, lse);
}

// Rows stored from the last to the first.
TEST(Layouts, NegativeStrides) {
    const Rows rows = host::rows(N, 3);
    auto reversed = [](const std::vector<float> &x, std::size_t row) {
        std::vector<float> y;
        for (std::size_t t = x.size() / row; t-- > 0;) {
            y.insert(y.end(), x.begin() + static_cast<std::ptrdiff_t>(t * row),
                     x.begin() + static_cast<std::ptrdiff_t>((t + 1) * row));
        }
        return y;
    };
    const auto q = reversed(rows.q, host::Q_ROW), k = reversed(rows.k, host::K_ROW), v = reversed(rows.v, host::V_ROW);
    Results got = Results::of(N);
    sinkcache::Cache cache(host::config());
    auto a = host::step_args(0, SEQ, COUNT, rows, got);
    a.q = &q[(N - 1) * host::Q_ROW];
    a.k = &k[(N - 1) * host::K_ROW];
    a.v = &v[(N - 1) * host::V_ROW];
    a.out = &got.out[(N - 1) * host::OUT_ROW];
    a.lse = &got.lse[(N - 1) * host::Q_HEADS];
    a.q_token_stride = -static_cast<std::int64_t>(host::Q_ROW);
    a.k_token_stride = -static_cast<std::int64_t>(host::K_ROW);
    a.v_token_stride = -static_cast<std::int64_t>(host::V_ROW);
    a.out_token_stride = -static_cast<std::int64_t>(host::OUT_ROW);
    a.lse_token_stride = -static_cast<std::int64_t>(host::Q_HEADS);
    ASSERT_OK(skc_step(cache.handle(), &a));
    const Results want = packed(rows);
    EXPECT_EQ(reversed(got.out, host::OUT_ROW), want.out);
    EXPECT_EQ(reversed(got.lse, host::Q_HEADS), want.lse);
}

// Memory between output rows and between heads is not written.
TEST(Layouts, NothingIsWrittenBetweenRows) {
    const Rows rows = host::rows(N, 4);
    constexpr std::size_t HEAD = host::DIM_V + 3, ROW = host::Q_HEADS * HEAD + 7;
    std::vector<float> out(N * ROW, CANARY);
    Results unused = Results::of(N);
    sinkcache::Cache cache(host::config());
    auto a = host::step_args(0, SEQ, COUNT, rows, unused);
    a.out = out.data();
    a.out_token_stride = ROW;
    a.out_head_stride = HEAD;
    ASSERT_OK(skc_step(cache.handle(), &a));
    const Results want = packed(rows);
    for (std::size_t i = 0; i < out.size(); i++) {
        const std::size_t t = i / ROW, h = i % ROW / HEAD, d = i % ROW % HEAD;
        const bool is_output = h < host::Q_HEADS && d < host::DIM_V;
        ASSERT_EQ(out[i], is_output ? want.out[(t * host::Q_HEADS + h) * host::DIM_V + d] : CANARY) << "element " << i;
    }
}

// Input rows may overlap in memory; output rows that overlap are rejected.
TEST(Layouts, SharedInputRowsAndOverlappingOutputRows) {
    const Rows one = host::rows(1, 5);
    Results got = Results::of(4), want = Results::of(4);
    const Ints four{4};
    Rows repeated;
    for (int i = 0; i < 4; i++) {
        repeated.add(one);
    }
    sinkcache::Cache cache(host::config()), twin(host::config());
    auto a = host::step_args(0, SEQ, four, repeated, want);
    ASSERT_OK(skc_step(twin.handle(), &a));
    host::set_results(a, got);
    // Rows one element apart: a stride of 0 would mean packed.
    std::vector<float> v(host::V_ROW + 3, 0.5f);
    a.v = v.data();
    a.v_token_stride = 1;
    ASSERT_OK(skc_step(cache.handle(), &a));
    a.out_token_stride = host::OUT_ROW - 1;
    EXPECT_REJECTED(skc_step(cache.handle(), &a), SKC_STATUS_INVALID_ARGUMENT, "overlap");
    a.out_token_stride = 0;
    a.lse_head_stride = 4;
    EXPECT_REJECTED(skc_step(cache.handle(), &a), SKC_STATUS_INVALID_ARGUMENT, "overlap");
}

// Results of another type than the inputs are the f32 results, rounded once.
TEST(Layouts, OutTypeDiffersFromInType) {
    const Rows rows = host::rows(N, 6);
    for (std::uint32_t in : {SKC_DTYPE_F32, SKC_DTYPE_F16, SKC_DTYPE_BF16}) {
        const auto q = dtypes::encode(rows.q, in), k = dtypes::encode(rows.k, in), v = dtypes::encode(rows.v, in);
        std::vector<float> exact;
        for (std::uint32_t out : {SKC_DTYPE_F32, SKC_DTYPE_F16, SKC_DTYPE_BF16}) {
            sinkcache::Cache cache(host::config().types(in, SKC_DTYPE_F32, out));
            std::vector<std::uint8_t> bytes(N * host::OUT_ROW * dtypes::size(out));
            Results unused = Results::of(N);
            auto a = host::step_args(0, SEQ, COUNT, rows, unused);
            a.q = q.data();
            a.k = k.data();
            a.v = v.data();
            a.out = bytes.data();
            ASSERT_OK(skc_step(cache.handle(), &a));
            if (out == SKC_DTYPE_F32) {
                exact = dtypes::decode(bytes, out);
            } else {
                EXPECT_EQ(bytes, dtypes::encode(exact, out)) << "from type " << in << " to " << out;
            }
        }
    }
}

// Layer settings as members of larger structs of the host.
TEST(Layouts, LayerStride) {
    struct Record {
        skc_layer_config layer;
        char name[40];
    };
    std::vector<Record> records(3);
    std::vector<sinkcache::Layer> plain(3);
    for (std::uint32_t i = 0; i < 3; i++) {
        plain[i].n_sink = i;
        plain[i].window = 4 + 3 * i;
        plain[i].position_mode = i == 1 ? SKC_POSITION_NONE : SKC_POSITION_ROPE;
        records[i].layer = plain[i];
        std::memset(records[i].name, 0xEE, sizeof records[i].name);
    }
    sinkcache::Config config = host::config();
    config.layers(plain);
    sinkcache::Cache want(config);
    auto raw = config.get();
    raw.layers = &records[0].layer;
    raw.layer_stride = sizeof(Record);
    sinkcache::Cache got(raw);
    const Rows rows = host::rows(N, 7);
    for (std::uint32_t layer = 0; layer < 3; layer++) {
        EXPECT_EQ(host::step(got.handle(), rows, layer), host::step(want.handle(), rows, layer)) << "layer " << layer;
        EXPECT_EQ(host::info(got.handle(), layer).cached_tokens, 5 * layer - layer + 4);
    }
}

}  // namespace
