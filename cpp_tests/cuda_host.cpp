// A C++ host with device pointers and its own CUDA stream.
#include "support/cuda.hpp"
#include "support/dtypes.hpp"
#include "support/host.hpp"

namespace {

using cuda::Driver;
using host::Ints;
using host::Results;
using host::Rows;

void *address(Driver::Pointer p) {
    return reinterpret_cast<void *>(static_cast<std::uintptr_t>(p));
}

const std::int32_t *ints(Driver::Pointer p) {
    return static_cast<const std::int32_t *>(address(p));
}

/** Tensors of a call in device memory. */
class Tensors {
public:
    Tensors(Driver &driver, const Rows &rows)
        : driver_(driver), n_(rows.n()), q_(driver.upload(rows.q)), k_(driver.upload(rows.k)),
          v_(driver.upload(rows.v)), out_(driver.upload(Results::of(n_).out)),
          lse_(driver.upload(Results::of(n_).lse)) {}
    ~Tensors() {
        for (Driver::Pointer p : {q_, k_, v_, out_, lse_}) {
            driver_.free(p);
        }
    }
    Tensors(const Tensors &) = delete;
    Tensors &operator=(const Tensors &) = delete;

    /** Sets the pointers and the stream of call arguments. */
    template <class Args>
    void set_kv(Args &a) const {
        a.k = address(k_);
        a.v = address(v_);
        a.stream = driver_.stream();
    }
    template <class Args>
    void set_q(Args &a) const {
        a.q = address(q_);
        a.out = address(out_);
        a.lse = static_cast<float *>(address(lse_));
        a.stream = driver_.stream();
    }
    Results results() const {
        return {driver_.download<float>(out_, n_ * host::OUT_ROW), driver_.download<float>(lse_, n_ * host::Q_HEADS)};
    }

private:
    Driver &driver_;
    std::size_t n_;
    Driver::Pointer q_, k_, v_, out_, lse_;
};

skc_step_args step_args(std::uint32_t layer, const Ints &ids, const Ints &counts, const Tensors &t) {
    auto a = host::batch_args<skc_step_args>(layer, ids, counts);
    t.set_kv(a);
    t.set_q(a);
    return a;
}

void expect_close(const Results &got, const Results &want) {
    ASSERT_EQ(got.out.size(), want.out.size());
    for (std::size_t i = 0; i < got.out.size(); i++) {
        // f32 in, f16 stored: both backends compute in f32 over the same stored values.
        ASSERT_NEAR(got.out[i], want.out[i], 1e-4f) << i;
    }
    for (std::size_t i = 0; i < got.lse.size(); i++) {
        ASSERT_NEAR(got.lse[i], want.lse[i], 1e-3f) << i;
    }
}

TEST(CudaHost, StreamsLikeTheCpu) {
    NEEDS_CUDA();
    Driver &driver = *Driver::get();
    auto config = host::config(2, 2);
    sinkcache::Cache cpu(config);
    sinkcache::Cache gpu(config.cuda());
    gpu.stream(driver.stream());
    const Ints ids{1, -1, 0};
    for (int round = 0; round < 8; round++) {
        const Ints counts{round % 4, 2, 1 + round % 3};
        const std::size_t n = static_cast<std::size_t>(counts[0] + counts[1] + counts[2]);
        for (std::uint32_t layer = 0; layer < 2; layer++) {
            const Rows rows = host::rows(n, 100 * round + layer);
            Results want = Results::of(n);
            auto a = host::step_args(layer, ids, counts, rows, want);
            ASSERT_OK(skc_step(cpu.handle(), &a));
            const Tensors t(driver, rows);
            const auto b = step_args(layer, ids, counts, t);
            ASSERT_OK(skc_step(gpu.handle(), &b));
            Results got = t.results();
            // The rows of the padding entry are untouched.
            const auto pad = static_cast<std::size_t>(counts[0]);
            EXPECT_TRUE(std::isnan(got.out[pad * host::OUT_ROW]));
            expect_close(got.slice(0, pad), want.slice(0, pad));
            expect_close(got.slice(pad + 2, n - pad - 2), want.slice(pad + 2, n - pad - 2));
        }
        if (round % 3 == 2) {
            gpu.rewind(Ints{0, 1}, Ints{1, 0});
            cpu.rewind(Ints{0, 1}, Ints{1, 0});
        }
    }
    gpu.fork(Ints{0}, Ints{1});
    EXPECT_EQ(gpu.info(1).length_min, cpu.info(0).length_min);
    EXPECT_EQ(gpu.info(1, 1, true).cached_tokens, cpu.info(0, 1).cached_tokens);
    EXPECT_EQ(gpu.poll_error().n_skipped, 0u);
}

TEST(CudaHost, ReplaysACapturedStep) {
    NEEDS_CUDA();
    Driver &driver = *Driver::get();
    auto config = host::config();
    sinkcache::Cache cpu(config);
    sinkcache::Cache gpu(config.cuda());
    gpu.stream(driver.stream());
    const Ints seq{0}, one{1};
    const Rows rows = host::rows(1, 7);
    const Tensors t(driver, rows);
    const auto args = step_args(0, seq, one, t);
    void *graph = driver.capture([&] { ASSERT_OK(skc_step(gpu.handle(), &args)); });
    // The capture recorded the step without running it: the host's counters are stale until the replay is reported.
    auto info = host::sized<skc_sequence_info>();
    EXPECT_REJECTED(skc_seq_info(gpu.handle(), 0, 0, &info), SKC_STATUS_LENGTH_UNKNOWN, "sequence 0");
    for (int i = 0; i < 40; i++) {
        driver.launch(graph);
        gpu.note_replay(seq, one);
        Results want = Results::of(1);
        auto a = host::step_args(0, seq, one, rows, want);
        ASSERT_OK(skc_step(cpu.handle(), &a));
        expect_close(t.results(), want);
    }
    EXPECT_EQ(gpu.info(0).length_min, 40u);
    EXPECT_EQ(gpu.info(0, 0, true).evicted_tokens, cpu.info(0).evicted_tokens);
}

TEST(CudaHost, ReportsItsKernels) {
    NEEDS_CUDA();
    auto config = host::config();
    config.raw().head_dim = config.raw().head_dim_v = 64;
    config.raw().kv_dtype = config.raw().in_dtype = SKC_DTYPE_F16;
    sinkcache::Cache gpu(config.cuda());
    const skc_kernel_info step = gpu.kernel_choice(SKC_CALL_STEP, 3, 1);
    EXPECT_STREQ(step.kernel, "skc_step_decode");
    EXPECT_EQ(step.n_launches, 1u);
    EXPECT_EQ(step.grid_x, 3u);
    EXPECT_EQ(step.grid_z, step.n_splits);
    EXPECT_EQ(step.block_threads, 128u);
    EXPECT_GT(step.shared_bytes, 48u * 1024);
    EXPECT_STREQ(gpu.kernel_choice(SKC_CALL_APPEND, 3, 1).kernel, "skc_append");
}

TEST(CudaHost, CountsOnTheDevice) {
    NEEDS_CUDA();
    Driver &driver = *Driver::get();
    auto config = host::config(2);
    sinkcache::Cache gpu(config.cuda());
    gpu.stream(driver.stream());
    const Ints ids{0, 5};
    const Driver::Pointer device_ids = driver.upload(ids), counts = driver.upload(Ints{2, 1});
    const Tensors t(driver, host::rows(3, 1));
    auto a = host::batch_args<skc_step_args>(0, ids, Ints{2, 1});
    t.set_kv(a);
    t.set_q(a);
    a.flags = SKC_ON_DEVICE;
    a.max_tokens = 4;
    a.n_rows = 3;
    a.seq_ids = ints(device_ids);
    a.n_tokens = ints(counts);
    ASSERT_OK(skc_step(gpu.handle(), &a));
    driver.wait();
    // There is no sequence 5: its entry is skipped in append and in attend, and reported.
    const skc_device_error error = gpu.poll_error();
    EXPECT_EQ(error.n_skipped, 2u);
    EXPECT_STREQ(skc_status_name(error.status), "SKC_STATUS_OUT_OF_RANGE");
    EXPECT_EQ(error.entry, 1u);
    EXPECT_EQ(error.seq_id, 5);
    EXPECT_EQ(error.call, SKC_CALL_APPEND);
    EXPECT_EQ(gpu.info(0, 0, true).length_min, 2u);
    driver.free(device_ids);
    driver.free(counts);
}

TEST(CudaHost, CountsOnTheDeviceThroughTheWrapper) {
    NEEDS_CUDA();
    Driver &driver = *Driver::get();
    auto config = host::config(3);
    sinkcache::Cache cpu(config);
    sinkcache::Cache gpu(config.cuda());
    gpu.stream(driver.stream());
    const Ints ids{2, -1, 0}, counts{2, 0, 1};
    const Driver::Pointer device_ids = driver.upload(ids), device_counts = driver.upload(counts);
    const sinkcache::DeviceBatch batch{ints(device_ids), ints(device_counts), 3, 3, 2};
    const sinkcache::In none;
    for (unsigned round = 0; round < 12; round++) {
        const Rows rows = host::rows(3, round);
        Results want = Results::of(3);
        auto c = host::step_args(0, ids, counts, rows, want);
        ASSERT_OK(skc_step(cpu.handle(), &c));
        const Tensors t(driver, rows);
        const auto a = step_args(0, ids, counts, t);
        const sinkcache::In k{a.k, a.k_token_stride, a.k_head_stride}, v{a.v, a.v_token_stride, a.v_head_stride};
        const sinkcache::In q{a.q, a.q_token_stride, a.q_head_stride};
        const sinkcache::Out out{a.out, a.out_token_stride, a.out_head_stride};
        const sinkcache::Lse lse{a.lse, a.lse_token_stride, a.lse_head_stride};
        if (round % 2) {
            gpu.step(0, batch, {k, v}, {q, out, lse});
        } else {
            gpu.append_kv(0, batch, {k, v});
            gpu.attend(0, batch, {q, out, lse});
        }
        gpu.note_replay(ids, counts);
        expect_close(t.results(), want);
    }
    EXPECT_EQ(gpu.info(2).length_min, 24u);
    EXPECT_EQ(gpu.poll_error().n_skipped, 0u);
    EXPECT_THROW(gpu.step(9, batch, {none, none}, {none, {}}), sinkcache::Error);
    driver.free(device_ids);
    driver.free(device_counts);
}

TEST(CudaHost, LeavesTheContextAlone) {
    NEEDS_CUDA();
    Driver &driver = *Driver::get();
    void *before = driver.context();
    auto config = host::config();
    {
        sinkcache::Cache gpu(config.cuda());
        EXPECT_EQ(driver.context(), before);
        EXPECT_THROW(gpu.evict(Ints{0}, Ints{1}), sinkcache::Error);
    }
    EXPECT_EQ(driver.context(), before);
}

}  // namespace
