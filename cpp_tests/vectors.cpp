// Every shared vector through the C calls, with all storage types, chunkings, start positions, position modes and
// calls.
#include "support/dtypes.hpp"
#include "support/host.hpp"
#include "support/vectors.hpp"

namespace {

using vectors::Vector;

enum class Call { AppendAttend, Step, StepPart };

/** How a vector's tokens are passed to the library. */
struct Way {
    const char *name;
    /** Most tokens of one call. */
    int chunk;
    std::uint32_t max_chunk;
    Call call;
};

constexpr Way WAYS[] = {
    {"whole", 1 << 20, 128, Call::AppendAttend}, {"ones", 1, 1, Call::AppendAttend},
    {"sevens", 7, 7, Call::AppendAttend},        {"step, whole in chunks of 5", 1 << 20, 5, Call::Step},
    {"step, ones", 1, 16, Call::Step},           {"step, sevens", 7, 64, Call::Step},
    {"parts, whole", 1 << 20, 5, Call::StepPart}, {"parts, ones", 1, 16, Call::StepPart},
    {"parts, sevens", 7, 7, Call::StepPart},
};
constexpr std::uint64_t STARTS[] = {0, 1ull << 24, (1ull << 32) + 7, 1ull << 40};
constexpr std::uint32_t N_PARTS = 3;

struct Outputs {
    std::vector<float> out, lse;
};

/** Types of K and V by the name of their bound. `lse`: how far rounded keys move a score, beside its size. */
struct KvTypes {
    const char *name;
    std::uint32_t k, v;
    double lse;
};

const KvTypes F16{"f16", SKC_DTYPE_F16, SKC_DTYPE_F16, 1e-2}, BF16{"bf16", SKC_DTYPE_BF16, SKC_DTYPE_BF16, 8e-2};
const KvTypes TYPES[] = {
    {"f32", SKC_DTYPE_F32, SKC_DTYPE_F32, 1e-5},
    F16,
    BF16,
    {"q8", SKC_DTYPE_Q8, SKC_DTYPE_Q8, 4e-2},
    {"q8/q4", SKC_DTYPE_Q8, SKC_DTYPE_Q4, 4e-2},
    {"q4", SKC_DTYPE_Q4, SKC_DTYPE_Q4, 0.4},
    {"f16/q8", SKC_DTYPE_F16, SKC_DTYPE_Q8, 1e-2},
};

/** Runs the events of a vector on a cache. */
class Replay {
public:
    Replay(const Vector &vector, const Way &way, std::uint32_t mode, std::uint32_t in, const KvTypes &kv,
           std::uint64_t start)
        : v_(vector), way_(way), io_(in), start_(start), cache_(config(mode, kv)) {
        const bool applied = mode == SKC_POSITION_ROPE_APPLIED;
        q_ = dtypes::encode(v_.tensors.at(applied ? "q_rotated" : "q"), in);
        k_ = dtypes::encode(v_.tensors.at(applied ? "k_rotated" : "k"), in);
        values_ = dtypes::encode(v_.tensors.at("v"), in);
    }

    Outputs run() {
        EXPECT_OK(host::reset(cache_.handle(), 0, start_));
        for (const auto &event : v_.events) {
            const auto before = host::info(cache_.handle());
            if (event.kind == "chunk") {
                for (int done = 0; done < event.n; done += way_.chunk) {
                    feed(std::min(way_.chunk, event.n - done));
                }
            } else if (event.refused) {
                EXPECT_EQ(edit(event), refusal(event, before.length_min)) << event.kind << " " << event.n;
                EXPECT_TRUE(host::operator==(host::info(cache_.handle()), before));
            } else {
                EXPECT_OK(edit(event));
            }
        }
        return {dtypes::decode(out_, io_), lse_};
    }

private:
    const Vector &v_;
    const Way &way_;
    std::uint32_t io_;
    std::uint64_t start_;
    std::vector<std::uint8_t> q_, k_, values_, out_;
    std::vector<float> lse_;
    std::size_t at_ = 0;
    sinkcache::Cache cache_;

    skc_status edit(const vectors::Event &event) {
        skc_cache *cache = cache_.handle();
        if (event.kind == "evict") {
            return host::edit(skc_evict, cache, event.n);
        }
        if (event.kind == "rewind") {
            return host::edit(skc_rewind, cache, event.n);
        }
        if (event.kind == "pin") {
            return host::edit_range(skc_pin, cache, event.first, event.n);
        }
        if (event.kind == "evict_range") {
            return host::edit_range(skc_evict_range, cache, event.first, event.n);
        }
        EXPECT_EQ(event.kind, "reset");
        return host::reset(cache, 0, start_);
    }

    /** The status of an edit that is refused for a sequence of `length` tokens. */
    skc_status refusal(const vectors::Event &event, std::uint64_t length) const {
        if (event.kind == "evict") {
            return SKC_STATUS_OUT_OF_RANGE;
        }
        if (event.kind == "rewind") {
            return SKC_STATUS_TOKENS_GONE;
        }
        const bool sink = event.kind == "evict_range" && event.first < v_.number("n_sink");
        const bool beyond = event.first + static_cast<std::uint64_t>(event.n) > length;
        return sink || beyond ? SKC_STATUS_OUT_OF_RANGE : SKC_STATUS_NO_ROOM;
    }

    std::uint32_t dim_v() const { return v_.number("head_dim_v", v_.number("head_dim")); }

    sinkcache::Config config(std::uint32_t mode, const KvTypes &kv) const {
        sinkcache::Layer layer(v_.number("n_sink"), v_.number("window"));
        layer.room(v_.number("max_pinned"), v_.number("max_segments"));
        layer.position_mode = mode;
        layer.rope_style = v_.config.at("rope") == "interleaved" ? SKC_ROPE_INTERLEAVED : SKC_ROPE_NEOX;
        layer.rope_dim = v_.number("rope_dim");
        layer.rope_base = v_.config.at("rope_base");
        layer.rope_scale = v_.config.at("rope_scale");
        layer.rope_mscale = v_.config.at("rope_mscale");
        layer.softcap = v_.config.at("softcap");
        layer.scale = v_.config.at("scale").is_null() ? 0.0 : v_.config.at("scale").get<double>();
        auto array = [&](const char *name, const float *&data, std::uint32_t &n) {
            if (const auto *values = v_.find(name)) {
                data = values->data();
                n = static_cast<std::uint32_t>(values->size());
            }
        };
        array("inv_freq", layer.inv_freq, layer.n_inv_freq);
        array("alibi", layer.alibi_slopes, layer.n_alibi_slopes);
        array("sink_logits", layer.sink_logits, layer.n_sink_logits);
        sinkcache::Config c;
        c.heads(v_.number("n_q_heads"), v_.number("n_kv_heads"), v_.number("head_dim"), dim_v());
        c.types(io_, SKC_DTYPE_F16).storage(kv.k, kv.v).max_chunk(way_.max_chunk);
        c.max_rewind(v_.number("max_rewind")).layers(1, layer);
        if (way_.call == Call::StepPart) {
            c.threads(N_PARTS);
        }
        return c;
    }

    void feed(int n) {
        const std::size_t count = static_cast<std::size_t>(n), size = dtypes::size(io_);
        const std::size_t n_q = v_.number("n_q_heads"), n_kv = v_.number("n_kv_heads"), dim = v_.number("head_dim");
        const host::Ints seq{0}, counts{n};
        auto a = host::batch_args<skc_step_args>(0, seq, counts);
        a.q = &q_[at_ * n_q * dim * size];
        a.k = &k_[at_ * n_kv * dim * size];
        a.v = &values_[at_ * n_kv * dim_v() * size];
        out_.resize(out_.size() + count * n_q * dim_v() * size, 0xFF);
        lse_.resize(lse_.size() + count * n_q, NAN);
        a.out = &out_[out_.size() - count * n_q * dim_v() * size];
        a.lse = &lse_[lse_.size() - count * n_q];
        at_ += count;
        if (way_.call == Call::Step) {
            ASSERT_OK(skc_step(cache_.handle(), &a));
        } else if (way_.call == Call::StepPart) {
            for (std::uint32_t ith = N_PARTS; ith-- > 0;) {
                ASSERT_OK(skc_step_part(cache_.handle(), &a, ith, N_PARTS));
            }
        } else {
            auto append = host::batch_args<skc_append_kv_args>(0, seq, counts);
            append.k = a.k;
            append.v = a.v;
            auto attend = host::batch_args<skc_attend_args>(0, seq, counts);
            attend.q = a.q;
            attend.out = a.out;
            attend.lse = a.lse;
            ASSERT_OK(skc_append_kv(cache_.handle(), &append));
            ASSERT_OK(skc_attend(cache_.handle(), &attend));
        }
    }
};

struct Errors {
    double rms = 0, max = 0, largest = 0;
};

Errors compare(const std::vector<float> &got, const std::vector<float> &want) {
    Errors e;
    EXPECT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < std::min(got.size(), want.size()); i++) {
        // A NaN would be ignored by std::max.
        const double error = std::isfinite(got[i]) ? std::fabs(double{got[i]} - double{want[i]}) : 1e30;
        e.rms += error * error;
        e.max = std::max(e.max, error);
        e.largest = std::max(e.largest, std::fabs(double{want[i]}));
    }
    e.rms = std::sqrt(e.rms / static_cast<double>(want.size()));
    return e;
}

void check(const Vector &vector, const Outputs &got, const KvTypes &kv, const nlohmann::json &plain) {
    const Errors out = compare(got.out, vector.tensors.at("out")), lse = compare(got.lse, vector.tensors.at("lse"));
    EXPECT_LE(lse.max, kv.lse * std::max(1.0, lse.largest));
    if (kv.k == SKC_DTYPE_F32) {
        EXPECT_LE(out.max, 1e-5 * out.largest);
        return;
    }
    const auto &bound = plain.at("cases").at(vector.name).at(kv.name);
    EXPECT_LE(out.rms, 1.5 * bound.at("rms").get<double>() + 1e-6);
    EXPECT_LE(out.max, 3 * bound.at("max").get<double>() + 1e-6);
}

class Vectors : public testing::TestWithParam<Vector> {};

nlohmann::json plain_errors() {
    std::ifstream file(PLAIN_ERRORS);
    return nlohmann::json::parse(file);
}

std::vector<std::uint32_t> modes(const Vector &v) {
    if (v.config.at("rope") != "none") {
        return {SKC_POSITION_ROPE, SKC_POSITION_ROPE_APPLIED};
    }
    return {static_cast<std::uint32_t>(v.find("alibi") ? SKC_POSITION_ALIBI : SKC_POSITION_NONE)};
}

TEST_P(Vectors, EveryWay) {
    const auto plain = plain_errors();
    for (const KvTypes &kv : TYPES) {
        for (const Way &way : WAYS) {
            for (std::uint64_t start : STARTS) {
                for (std::uint32_t mode : modes(GetParam())) {
                    SCOPED_TRACE(testing::Message() << "K/V " << kv.name << ", " << way.name << ", start " << start
                                                    << ", position mode " << mode);
                    check(GetParam(), Replay(GetParam(), way, mode, SKC_DTYPE_F32, kv, start).run(), kv, plain);
                    if (HasFailure()) {
                        return;
                    }
                }
            }
        }
    }
}

// Inputs and outputs of f16 and bf16: q, k and v of the files are exact in both types.
TEST_P(Vectors, SixteenBitInputsAndOutputs) {
    const auto plain = plain_errors();
    for (const KvTypes &kv : {F16, BF16}) {
        for (const Way &way : WAYS) {
            SCOPED_TRACE(testing::Message() << "type " << kv.name << ", " << way.name);
            check(GetParam(), Replay(GetParam(), way, modes(GetParam())[0], kv.k, kv, 0).run(), kv, plain);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(All, Vectors, testing::ValuesIn(vectors::all(VECTORS)),
                         [](const auto &info) { return info.param.name; });

TEST(VectorFiles, Exist) {
    EXPECT_GE(vectors::all(VECTORS).size(), 44u);
}

}  // namespace
