// The engine on an accelerator, without its kernels, and sinkcache's CUDA backend, both on the stand-in of
// tools/cuda_shim.
#include "device_model.hpp"
#include "shim_device.hpp"
#include "support.hpp"

namespace {

using namespace test;

PluginConfig cuda_config(std::uint32_t max_seqs, std::uint32_t draft = 0) {
    PluginConfig c = plugin_config(max_seqs, draft);
    c.cuda = true;
    return c;
}

#define NEEDS_SHIM(device)                                                                                             \
    const auto device = shim_device();                                                                                 \
    if (!device) {                                                                                                     \
        GTEST_SKIP() << "skipped: no CUDA stand-in (LD_LIBRARY_PATH=build/shim)";                                      \
    }                                                                                                                  \
    static_assert(true, "")

/** Prompts of all lengths, conversations, forks, sampling, cancellation; at most `out` tokens each. */
std::vector<Request> many(std::uint32_t n, std::uint32_t out) {
    std::mt19937 random(11);
    const auto below = [&](std::uint32_t n) { return random() % n; };
    std::vector<Request> all;
    for (std::uint32_t i = 0; i < n; i++) {
        Request r = new_sequence("r" + std::to_string(i), below(400000), 1 + below(3 * WINDOW), 1 + below(out));
        r.arrival = below(25);
        if (i % 4 == 0) {
            r.conversation = r.id;
        } else if (i % 4 < 3) {
            r.start = i % 4 == 1 ? Start::continued : Start::forked;
            r.source = "r" + std::to_string(i / 4 * 4);
            r.prompt.erase(r.prompt.begin());
        } else {
            r.sampling = {0.8f, i};
            r.cancel_after = 60;
        }
        all.push_back(r);
    }
    return all;
}

TEST(Cuda, GivesTheTokensOfTheCpu) {
    NEEDS_SHIM(device);
    const auto all = many(20, 16);
    ExecutorConfig config = executor_config(6, 50);
    config.reclaim_idle = true;
    CpuModel cpu(weights(), plugin_config(6), single_rank(), 1);
    Executor on_cpu(cpu, config);
    const auto want = run(on_cpu, all);
    DeviceModel model(weights(), cuda_config(6), single_rank(), *device, config.budget);
    const std::uint64_t before = graph_launches();
    Executor executor(model, config);
    const auto got = run(executor, all);
    ASSERT_EQ(got.size(), want.size());
    for (const auto &[id, r] : want) {
        EXPECT_NE(got.at(id).outcome, Outcome::failed) << id << ": " << got.at(id).error;
        EXPECT_EQ(got.at(id).tokens, r.tokens) << id;
        EXPECT_EQ(got.at(id).stream_length, r.stream_length) << id;
    }
    EXPECT_EQ(executor.counters().evicted_tokens, on_cpu.counters().evicted_tokens);
    EXPECT_EQ(graph_launches() - before, model.graph_launches());
    // Iterations without a prompt are graph launches.
    EXPECT_GT(model.graph_launches(), executor.counters().iterations / 3);
    EXPECT_LT(model.graph_launches(), executor.counters().iterations);
}

TEST(Cuda, RemovesRejectedDrafts) {
    NEEDS_SHIM(device);
    auto all = many(8, 30);
    for (Request &r : all) {
        r.cancel_after.reset();
    }
    CpuModel cpu(weights(), plugin_config(4), single_rank(), 1);
    Executor on_cpu(cpu, executor_config(4, 60));
    DeviceModel model(weights(), cuda_config(4, 4), single_rank(), *device, 60);
    Executor executor(model, executor_config(4, 60, 4));
    for (std::uint32_t i = 0; i < 8; i += 4) {
        const std::vector<Request> some(all.begin() + i, all.begin() + i + 4);
        const auto want = run(on_cpu, some), got = run(executor, some);
        for (const auto &[id, r] : want) {
            EXPECT_EQ(got.at(id).tokens, r.tokens) << id;
        }
        EXPECT_TRUE(executor.close("r" + std::to_string(i)) && on_cpu.close("r" + std::to_string(i)));
    }
    EXPECT_GT(executor.counters().accepted_tokens, 0u);
    EXPECT_LT(executor.counters().accepted_tokens, executor.counters().drafted_tokens);
}

/** Rounds on two slots: sequences leave the device and come back, into its captured steps too. */
TEST(Cuda, ParkedConversationsComeBackToTheDevice) {
    NEEDS_SHIM(device);
    constexpr std::size_t CONVERSATIONS = 5, ROUNDS = 3;
    std::vector<Request> rounds;
    for (std::size_t r = 0; r < ROUNDS; r++) {
        for (std::size_t c = 0; c < CONVERSATIONS; c++) {
            const std::string id = std::to_string(c) + "." + std::to_string(r), talk = "talk " + std::to_string(c);
            Request request = new_sequence(id, 1000 * c + 100 * r, 20 + 3 * c, 8);
            if (r == 0) {
                request.conversation = talk;
            } else {
                request.prompt.erase(request.prompt.begin());
                request.start = Start::continued;
                request.source = talk;
            }
            rounds.push_back(std::move(request));
        }
    }
    CpuModel cpu(weights(), plugin_config(CONVERSATIONS), single_rank(), 1);
    Executor on_cpu(cpu, executor_config(CONVERSATIONS));
    const auto want = run(on_cpu, rounds);
    DeviceModel model(weights(), cuda_config(2), single_rank(), *device, 64);
    Parking parking({std::uint64_t{1} << 30, "", 0, {}}, single_rank());
    Executor executor(model, executor_config(2), &parking);
    const auto got = run(executor, rounds);
    ASSERT_EQ(got.size(), want.size());
    expect_done(got);
    for (const auto &[id, r] : want) {
        EXPECT_EQ(got.at(id).tokens, r.tokens) << id;
        EXPECT_EQ(got.at(id).stream_length, r.stream_length) << id;
    }
    EXPECT_GE(parking.counters().memory_hits, (ROUNDS - 1) * (CONVERSATIONS - 2));
    EXPECT_EQ(parking.counters().misses, 0u);
    EXPECT_GT(model.graph_launches(), 0u);
}

TEST(Cuda, ModelsThatAreNoPlainLlamasAreRejected) {
    NEEDS_SHIM(device);
    LlamaWeights biased = weights();
    biased.layers[0].qkv_bias.resize(biased.qkv_width());
    LlamaWeights softcapped = weights();
    softcapped.config.logit_softcap = 30;
    for (const LlamaWeights &w : {biased, softcapped}) {
        try {
            DeviceModel model(w, cuda_config(2), single_rank(), *device, 40);
            ADD_FAILURE() << "accepted";
        } catch (const std::runtime_error &error) {
            EXPECT_NE(std::string(error.what()).find("is no plain Llama"), std::string::npos) << error.what();
        }
    }
}

TEST(Cuda, AFailureIsUndone) {
    NEEDS_SHIM(device);
    DeviceModel model(weights(), cuda_config(2), single_rank(), *device, 40);
    Executor executor(model, executor_config(2, 40));
    Batch wide;
    wide.tokens.resize(41);
    wide.seq_ids = {0};
    wide.n_tokens = {41};
    EXPECT_THROW(model.forward(wide), std::runtime_error);
    // An invalid sequence id, which only the device detects.
    Batch unknown;
    unknown.tokens = {5};
    unknown.seq_ids = {7};
    unknown.n_tokens = {1};
    unknown.output_rows = {{0, {}, 0}};
    EXPECT_THROW(model.forward(unknown), sinkcache::Error);
    expect_done(run(executor, {new_sequence("a", 0, 60, 5), new_sequence("b", 9, 20, 5)}));
}

}  // namespace
