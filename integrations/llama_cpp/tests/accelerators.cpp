// Attention on the device of a model's layers: with a CUDA device of ggml that is none, and sinkcache's CUDA backend on
// the stand-in (LD_LIBRARY_PATH). Skipped where there is no stand-in.
#include "support/fake_cuda.hpp"
#include "support/host.hpp"

#include "ggml_abi.hpp"

#include <ggml-backend-impl.h>
#include <ggml-impl.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>

using sinkcache::HostTag;
using sinkcache::LlamaContext;
using namespace sinkcache::llama_cpp;

// What ggml lays out as the adapter believes.
static_assert(GGML_BACKEND_API_VERSION == ggml_abi::API_VERSION);
static_assert(sizeof(ggml_backend) == sizeof(ggml_abi::Backend));
static_assert(sizeof(ggml_backend_device) == sizeof(ggml_abi::Device));
static_assert(sizeof(ggml_backend_reg) == sizeof(ggml_abi::Registration));
static_assert(sizeof(ggml_custom_op_params) == sizeof(ggml_abi::CustomOp));
#define SAME_OFFSET(theirs, their_member, ours, member)                                                                \
    static_assert(offsetof(theirs, their_member) == offsetof(ggml_abi::ours, member))
SAME_OFFSET(ggml_backend, iface.get_name, Backend, get_name);
SAME_OFFSET(ggml_backend, iface.free, Backend, free);
SAME_OFFSET(ggml_backend, iface.synchronize, Backend, synchronize);
SAME_OFFSET(ggml_backend, iface.graph_compute, Backend, graph_compute);
SAME_OFFSET(ggml_backend, device, Backend, device);
SAME_OFFSET(ggml_backend, context, Backend, context);
SAME_OFFSET(ggml_backend_device, iface.get_memory, Device, get_memory);
SAME_OFFSET(ggml_backend_device, iface.get_type, Device, get_type);
SAME_OFFSET(ggml_backend_device, iface.get_props, Device, get_props);
SAME_OFFSET(ggml_backend_device, iface.init_backend, Device, init_backend);
SAME_OFFSET(ggml_backend_device, iface.get_buffer_type, Device, get_buffer_type);
SAME_OFFSET(ggml_backend_device, iface.supports_op, Device, supports_op);
SAME_OFFSET(ggml_backend_device, iface.supports_buft, Device, supports_buft);
SAME_OFFSET(ggml_backend_device, reg, Device, reg);
SAME_OFFSET(ggml_backend_device, context, Device, context);
SAME_OFFSET(ggml_backend_reg, iface.get_name, Registration, get_name);
SAME_OFFSET(ggml_backend_reg, iface.get_device_count, Registration, get_device_count);
SAME_OFFSET(ggml_backend_reg, iface.get_device, Registration, get_device);
SAME_OFFSET(ggml_backend_reg, iface.get_proc_address, Registration, get_proc_address);
SAME_OFFSET(ggml_backend_reg, context, Registration, context);
SAME_OFFSET(ggml_custom_op_params, fun, CustomOp, function);
SAME_OFFSET(ggml_custom_op_params, userdata, CustomOp, userdata);

namespace {

class Accelerators : public testing::Test {
protected:
    static FakeCuda &fake() {
        static FakeCuda &counters = register_fake_cuda();
        return counters;
    }

    void SetUp() override {
        skc_capability_info can{};
        can.struct_size = sizeof can;
        ASSERT_EQ(skc_capabilities(&can), SKC_STATUS_OK);
        if (!(can.backends & (1U << SKC_BACKEND_CUDA))) {
            GTEST_SKIP() << "no CUDA device and no stand-in";
        }
        fake();
    }

    /** A model with its last `n_layers` on the device; -1 = all, and the output. */
    static llama_model_ptr on_device(const std::string &name, int n_layers = -1, const char *on_cpu = nullptr) {
        return load(supported_models().at(name), name, n_layers, on_cpu);
    }

    /** Prompt in chunks and single tokens, past the window; K and V in f32. */
    static Rows stream(llama_model *model, const Tokens &tokens, bool gpu = true) {
        auto o = options(4, 60);
        o.gpu = gpu;
        LlamaContext ctx(model, params(64), o);
        Rows rows = run(ctx, slice(tokens, 0, 90), 30);
        for (auto &row : run(ctx, slice(tokens, 90, 110), 1)) {
            rows.push_back(std::move(row));
        }
        return rows;
    }
};

}  // namespace

TEST_F(Accelerators, LogitsAreThoseOfTheCpu) {
    for (const char *name : {"llama_gqa", "gemma2_windows", "gemma4_shared_kv", "granite_hybrid", "qwen3next_hybrid",
                             "jamba_hybrid_no_rope"}) {
        const llama_model_ptr cpu = on_device(name, 0), device = on_device(name);
        const Tokens tokens = random_tokens(cpu.get(), 110);
        const Rows want = stream(cpu.get(), tokens);
        const Difference d = compare(stream(device.get(), tokens), want);
        EXPECT_LE(d.largest, 1e-3) << name;
        EXPECT_EQ(d.same_argmax, 110U) << name;
        std::printf("%s: max logit difference %.2e\n", name, d.largest);
    }
}

TEST_F(Accelerators, NothingIsCopiedForAttention) {
    const llama_model_ptr model = on_device("llama_gqa");
    const Tokens tokens = random_tokens(model.get(), 30);
    const auto counts_of_a_token = [&](bool gpu) {
        auto o = options(4, 60);
        o.gpu = gpu;
        LlamaContext ctx(model.get(), params(64), o);
        run(ctx, slice(tokens, 0, 20), 20);
        run(ctx, slice(tokens, 20, 21), 1);
        const FakeCuda before = fake();
        run(ctx, slice(tokens, 21, 22), 1);
        return FakeCuda{fake().n_graphs - before.n_graphs, fake().n_sets - before.n_sets,
                        fake().n_gets - before.n_gets};
    };
    const FakeCuda here = counts_of_a_token(true), on_cpu = counts_of_a_token(false);
    const int n_layers = llama_model_n_layer(model.get());
    // A stretch of the graph before each attention and one behind the last, and the logits.
    EXPECT_EQ(here.n_graphs, n_layers + 1);
    EXPECT_EQ(here.n_gets, 1);
    // On the CPU q, k and v come out for each layer, and its result goes back.
    EXPECT_EQ(on_cpu.n_gets, here.n_gets + 3 * n_layers);
    EXPECT_EQ(on_cpu.n_sets, here.n_sets + n_layers);
    std::printf("a token of %d layers: %ld graphs, %ld copies in, %ld out; on the CPU %ld in, %ld out\n", n_layers,
                long(here.n_graphs), long(here.n_sets), long(here.n_gets), long(on_cpu.n_sets), long(on_cpu.n_gets));
}

TEST_F(Accelerators, LayersMayBeOnBoth) {
    const llama_model_ptr cpu = on_device("llama_gqa", 0), both = on_device("llama_gqa", 2);
    const Tokens tokens = random_tokens(cpu.get(), 110);
    const Rows want = stream(cpu.get(), tokens);
    const std::int64_t before = fake().n_graphs;
    EXPECT_LE(compare(stream(both.get(), tokens), want).largest, 1e-3);
    EXPECT_GT(fake().n_graphs, before);
    // And with the device's layers, too, on the CPU.
    EXPECT_LE(compare(stream(both.get(), tokens, false), want).largest, 1e-3);
}

// A layer that reads the K and V of one on the CPU is on the CPU, too; llama.cpp then has its frequency factors twice.
TEST_F(Accelerators, LayersThatShareMayBeOnBoth) {
    const llama_model_ptr cpu = on_device("gemma4_shared_kv", 0);
    const Tokens tokens = random_tokens(cpu.get(), 110);
    const Rows want = stream(cpu.get(), tokens);
    for (const int n : {1, 2, 3, 4, 5}) {
        const llama_model_ptr both = on_device("gemma4_shared_kv", n);
        EXPECT_LE(compare(stream(both.get(), tokens), want).largest, 1e-3) << n;
        EXPECT_LE(compare(stream(both.get(), tokens, false), want).largest, 1e-3) << n;
    }
}

// K or V that is computed on the CPU lies in memory that no kernel may read.
TEST_F(Accelerators, ALayerIsOnTheDeviceOnlyAsAWhole) {
    const llama_model_ptr cpu = on_device("llama_gqa", 0);
    const Tokens tokens = random_tokens(cpu.get(), 110);
    const Rows want = stream(cpu.get(), tokens);
    for (const char *weight : {"attn_q", "attn_k", "attn_v"}) {
        const llama_model_ptr model = on_device("llama_gqa", -1, weight);
        const std::int64_t before = fake().n_gets;
        EXPECT_LE(compare(stream(model.get(), tokens), want).largest, 1e-3) << weight;
        // More than logits are copied to the CPU: attention runs there.
        EXPECT_GT(fake().n_gets - before, 2 * 110) << weight;
    }
}

TEST_F(Accelerators, SnapshotsOfOtherPlacesAreNamed) {
    const llama_model_ptr cpu = on_device("llama_gqa", 0), both = on_device("llama_gqa", 2);
    LlamaContext whole(cpu.get(), params(64), options(4, 60)), parts(both.get(), params(64), options(4, 60));
    const Tokens tokens = random_tokens(cpu.get(), 20);
    run(whole, tokens, 20);
    run(parts, tokens, 20);
    for (const auto &[from, to] : {std::pair(&whole, &parts), std::pair(&parts, &whole)}) {
        const std::string text = error_text([&, f = from, t = to] { t->load(0, f->save(0, HostTag{}), HostTag{}); });
        EXPECT_NE(text.find("the same layers on the GPU (n_gpu_layers)"), std::string::npos) << text;
    }
}

TEST_F(Accelerators, AHostMayKeepKAndVOffTheDevice) {
    const llama_model_ptr model = on_device("llama_gqa");
    const auto copies_out = [&](bool offload) {
        llama_context_params p = params(64);
        p.offload_kqv = offload;
        LlamaContext ctx(model.get(), p, options(4, 60));
        const std::int64_t before = fake().n_gets;
        run(ctx, {1}, 1);
        return fake().n_gets - before;
    };
    EXPECT_EQ(copies_out(true), 1);
    EXPECT_GT(copies_out(false), 1);
}

TEST_F(Accelerators, SequencesAreEditedAndSaved) {
    const llama_model_ptr cpu = on_device("llama_gqa", 0), model = on_device("llama_gqa");
    const Tokens tokens = random_tokens(cpu.get(), 110);
    const Rows want = stream(cpu.get(), tokens);
    auto o = options(4, 60);
    o.n_seqs = 2;
    LlamaContext ctx(model.get(), params(64), o);
    run(ctx, slice(tokens, 0, 90), 30);
    run(ctx, random_tokens(cpu.get(), 7, 99), 7);
    ctx.rewind(0, 7);
    ctx.fork(0, 1);
    const auto expect_continues = [&](LlamaContext &with, llama_seq_id seq_id) {
        const Rows got = run(with, slice(tokens, 90, 110), 1, seq_id);
        EXPECT_LE(compare(got, Rows(want.begin() + 90, want.end())).largest, 1e-3);
    };
    const std::vector<std::uint8_t> saved = ctx.save(1, HostTag{5});
    expect_continues(ctx, 0);
    expect_continues(ctx, 1);
    // From the device to the CPU.
    LlamaContext other(cpu.get(), params(64), options(4, 60));
    other.load(0, saved, HostTag{5});
    expect_continues(other, 0);
}

TEST_F(Accelerators, AnErrorMakesNoLogitLookValid) {
    const llama_model_ptr model = on_device("llama_gqa");
    const Tokens tokens = random_tokens(model.get(), 20);
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, tokens, 20);
    const llama_pos newest = llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0);
    OwnBatch direct({1}, 0, newest + 1);
    llama_set_abort_callback(ctx.get(), nullptr, nullptr);
    EXPECT_EQ(llama_decode(ctx.get(), direct.get()), 0);
    for (const float x : logits(ctx.get(), 0)) {
        EXPECT_TRUE(std::isnan(x));
    }
    const std::string text = error_text([&] { ctx.decode(direct.get()); });
    EXPECT_NE(text.find("llama_decode was called directly"), std::string::npos) << text;
}
