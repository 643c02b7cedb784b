// Layers that read the K and V of others, and caches of several shapes: threads, and snapshots of several parts.
#include "support/host.hpp"

#include "op_loop.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

using sinkcache::Error;
using sinkcache::HostTag;
using sinkcache::LlamaContext;
using sinkcache::llama_cpp::OpLoop;

namespace {

class SharedKv : public testing::Test {
protected:
    llama_model_ptr model = load(supported_models().at("gemma4_shared_kv"), "shared_kv");
    Tokens tokens = random_tokens(model.get(), 300);
};

constexpr std::size_t HEADER = 16;

/** The header of a snapshot of two caches, and its parts with their sizes. */
std::vector<std::vector<std::uint8_t>> parts_of(const std::vector<std::uint8_t> &saved) {
    std::uint64_t first = 0;
    std::memcpy(&first, saved.data() + HEADER, sizeof first);
    const auto begin = saved.begin() + std::ptrdiff_t(HEADER), border = begin + std::ptrdiff_t(sizeof first + first);
    return {{begin, border}, {border, saved.end()}, {saved.begin(), begin}};
}

}  // namespace

// Few tokens, and no third thread: ggml's barriers spin, which takes long where processors are busy.
TEST_F(SharedKv, TwoThreadsGiveTheSameBits) {
    LlamaContext alone(model.get(), params(64), options(4, 20)), ctx(model.get(), params(64, 2), options(4, 20));
    EXPECT_EQ(run(ctx, slice(tokens, 0, 6), 1), run(alone, slice(tokens, 0, 6), 1));
    const Rows chunks = run(alone, slice(tokens, 6, 86), 40);
    EXPECT_EQ(run(ctx, slice(tokens, 6, 86), 40), chunks);
    // Edits outside of ops, with the same loop.
    ctx.rewind(0, 40);
    EXPECT_EQ(run(ctx, slice(tokens, 46, 86), 40), Rows(chunks.begin() + 40, chunks.end()));
}

TEST_F(SharedKv, SnapshotsWhosePartsDoNotBelongTogetherAreRefused) {
    const HostTag tag{7};
    LlamaContext ctx(model.get(), params(64), options(4, 60));
    run(ctx, slice(tokens, 0, 100), 50);
    const std::vector<std::uint8_t> at_100 = ctx.save(0, tag);
    run(ctx, slice(tokens, 100, 130), 30);
    const std::vector<std::uint8_t> at_130 = ctx.save(0, tag);
    const Rows want = run(ctx, slice(tokens, 130, 170), 20);
    ctx.load(0, at_130, tag);
    const auto refused = [&](const std::vector<std::uint8_t> &saved, const std::string &reason) {
        const std::string text = error_text([&] { ctx.load(0, saved, tag); });
        EXPECT_NE(text.find(reason), std::string::npos) << text;
        EXPECT_EQ(ctx.length(0), 130U);
    };
    const auto join = [](std::vector<std::uint8_t> a, const std::vector<std::uint8_t> &b) {
        a.insert(a.end(), b.begin(), b.end());
        return a;
    };
    const auto a = parts_of(at_100), b = parts_of(at_130);
    refused(join(b[2], join(a[0], b[1])), "parts of a snapshot have 100 tokens");
    refused(join(b[2], join(b[0], a[1])), "parts of a snapshot have 130 tokens");
    refused(join(b[2], join(b[1], b[0])), "");
    refused(join(b[2], b[0]), "ends before part 1 of 2");
    refused(b[0], "a snapshot of 1 cache, or a damaged one: this stream has 2");
    refused(b[2], "ends before part 0 of 2");
    refused(join(at_130, {0}), "goes on after its last part");
    refused({}, "a snapshot of 1 cache");
    std::vector<std::uint8_t> long_part = at_130;
    long_part[HEADER + 7] = 0xFF;
    refused(long_part, "has a part of");
    std::vector<std::uint8_t> damaged = at_130;
    damaged[damaged.size() - 9] ^= 1;
    refused(damaged, "");
    EXPECT_EQ(run(ctx, slice(tokens, 130, 170), 20), want);

    // Into memory that is too small.
    std::vector<std::uint8_t> small(at_130.size() - 1);
    const std::string text = error_text([&] { ctx.save_to(0, tag, small.data(), small.size()); });
    EXPECT_NE(text.find("n_bytes is " + std::to_string(small.size())), std::string::npos) << text;
}

TEST(OpLoop, RunsEachTaskOnce) {
    struct Tasks {
        std::atomic<int> n_done{0};
        std::vector<std::atomic<int>> times = std::vector<std::atomic<int>>(7);
    };
    const auto task = [](void *data, std::uint32_t i) noexcept {
        auto &tasks = *static_cast<Tasks *>(data);
        ++tasks.times[i];
        ++tasks.n_done;
    };
    for (const int n_threads : {1, 2, 4}) {
        OpLoop loop;
        constexpr int OPS = 300;
        std::vector<Tasks> ops(OPS);
        // The end of each thread's share of an op, as ggml's barrier between ops.
        std::atomic<int> arrived{0};
        const auto worker = [&](int ith) {
            for (int op = 0; op < OPS; ++op) {
                loop.run(ith, n_threads, [&] {
                    // Two loops in one call, the second with other tasks.
                    OpLoop::parallel_for(&loop, 7, task, &ops[std::size_t(op)]);
                    EXPECT_EQ(ops[std::size_t(op)].n_done, 7);
                    OpLoop::parallel_for(&loop, 3, task, &ops[std::size_t(op)]);
                    EXPECT_EQ(ops[std::size_t(op)].n_done, 10);
                });
                ++arrived;
                while (arrived < (op + 1) * n_threads) {
                    std::this_thread::yield();
                }
            }
        };
        std::vector<std::thread> others;
        for (int ith = 1; ith < n_threads; ++ith) {
            others.emplace_back(worker, ith);
        }
        worker(0);
        for (std::thread &t : others) {
            t.join();
        }
        for (const Tasks &tasks : ops) {
            for (std::size_t i = 0; i < 7; ++i) {
                EXPECT_EQ(tasks.times[i], i < 3 ? 2 : 1);
            }
        }
        // Outside of ops, on this thread alone.
        Tasks last;
        OpLoop::parallel_for(&loop, 7, task, &last);
        EXPECT_EQ(last.n_done, 7);
    }
}
