// Detected bugs of device code: missing barriers, barriers that not all threads reach, copies used early, overruns.

#include <algorithm>

#include "self_test.hpp"

namespace {

struct Out {
    CUdeviceptr out;
};

const char* const kParams = "struct P { u32* out; };\n";

class DeviceBugs : public Device {
protected:
    // Runs a kernel of 128 threads and 512 bytes of shared memory that must fail. Returns what it printed.
    std::string failure(const std::string& source) {
        CUfunction test = kernel(kParams + source);
        Out out{upload(std::vector<uint32_t>(128))};
        testing::internal::CaptureStderr();
        EXPECT_EQ(launch(test, out, 4, 128, 512), CUDA_SUCCESS);
        EXPECT_EQ(cuStreamSynchronize(stream), CUDA_ERROR_LAUNCH_FAILED);
        std::string text = testing::internal::GetCapturedStderr();
        // The error is sticky.
        EXPECT_EQ(launch(test, out, 1, 128, 512), CUDA_ERROR_LAUNCH_FAILED);
        EXPECT_EQ(cuCtxSynchronize(), CUDA_ERROR_LAUNCH_FAILED);
        return text;
    }

    // In how many of 100 runs every thread t reads what thread t + 1 (mod 128) wrote, with `between` in between.
    int right(const std::string& between) {
        CUfunction test = kernel(
            kParams + ("SKC_KERNEL(128, test, P) {\n u32* s = (u32*)shared_memory();\n s[thread()] = thread();\n" +
                       between + "\n p.out[thread()] = s[(thread() + 1) % 128];\n}"));
        int right = 0;
        for (int run = 0; run < 100; ++run) {
            Out out{upload(std::vector<uint32_t>(128))};
            EXPECT_EQ(launch(test, out, 1, 128, 512), CUDA_SUCCESS);
            auto got = download<uint32_t>(out.out, 128);
            bool same = true;
            for (uint32_t t = 0; t < 128; ++t) same = same && got[t] == (t + 1) % 128;
            right += same;
        }
        return right;
    }
};

TEST_F(DeviceBugs, a_missing_block_sync_shows) {
    EXPECT_EQ(right("block_sync();"), 100);
    EXPECT_EQ(right(""), 0);
    EXPECT_LT(right("warp_sync();"), 30);
}

TEST_F(DeviceBugs, a_missing_barrier_before_the_last_block_shows) {
    // The last block to arrive sums what all have written. Without the barrier some of that is not written yet.
    auto source = [](const char* barrier) {
        return std::string(R"(
struct P { u32* out; u32* arrived; u32* sum; };
SKC_KERNEL(64, test, P) {
    u32* last = (u32*)shared_memory();
    p.out[block_x() * 64 + thread()] = 1;
    fence_system();
    )") + barrier + R"(
    if (thread() == 0) *last = atomic_inc(p.arrived, grid_x() - 1) == grid_x() - 1;
    block_sync();
    if (*last && thread() == 0) {
        u32 sum = 0;
        for (u32 i = 0; i < grid_x() * 64; ++i) sum += p.out[i];
        *p.sum = sum;
    }
})";
    };
    struct {
        CUdeviceptr out, arrived, sum;
    } params{upload(std::vector<uint32_t>(64 * 5)), upload(std::vector<uint32_t>(1)), upload(std::vector<uint32_t>(1))};
    for (bool sound : {true, false}) {
        CUfunction test = kernel(source(sound ? "block_sync();" : ""));
        int right = 0;
        for (int run = 0; run < 100; ++run) {
            OK(cuMemsetD32Async(params.out, 0, 64 * 5, stream));
            OK(launch(test, params, 5, 64, 16));
            right += download<uint32_t>(params.sum, 1)[0] == 64 * 5;
            ASSERT_EQ(download<uint32_t>(params.arrived, 1)[0], 0u);
        }
        EXPECT_TRUE(sound ? right == 100 : right < 95) << right;
    }
}

TEST_F(DeviceBugs, a_barrier_some_do_not_reach_is_an_error) {
    EXPECT_NE(failure("SKC_KERNEL(128, test, P) { if (thread() != 70) block_sync(); p.out[thread()] = 0; }")
                  .find("test: block ("),
              std::string::npos);
}

TEST_F(DeviceBugs, a_warp_that_returned_is_an_error) {
    EXPECT_NE(failure("SKC_KERNEL(128, test, P) { if (warp() == 2) return; block_sync(); }").find("block_sync"),
              std::string::npos);
}

TEST_F(DeviceBugs, lanes_at_different_instructions_are_an_error) {
    std::string text =
        failure("SKC_KERNEL(128, test, P) {\n if (lane() < 4) warp_sync();\n else p.out[0] = shuffle(1u, 0); }");
    EXPECT_NE(text.find("divergent"), std::string::npos) << text;
    EXPECT_NE(text.find("shuffle"), std::string::npos) << text;
    EXPECT_NE(text.find("SKC_SHIM_SEED="), std::string::npos) << text;
}

TEST_F(DeviceBugs, a_misaligned_matrix_row_is_an_error) {
    EXPECT_NE(
        failure("SKC_KERNEL(128, test, P) { u32 r[4]; load_matrix_x4(r, shared_memory() + 8); }").find("not aligned"),
        std::string::npos);
}

TEST_F(DeviceBugs, a_copy_past_the_end_of_shared_memory_is_an_error) {
    EXPECT_NE(
        failure(
            "SKC_KERNEL(128, test, P) { copy_async<16>(shared_memory() + 4 * thread() / 16 * 16 + 16, p.out, true); }")
            .find("outside shared memory"),
        std::string::npos);
}

// A destination is garbage until its group has been waited for. A wait completes no later group. An invalid copy writes
// zeros.
TEST_F(DeviceBugs, copies_arrive_when_waited_for) {
    CUfunction test = kernel(R"(
struct P { const u32* in; u32* out; };
SKC_KERNEL(32, test, P) {
    u32* mine = (u32*)shared_memory() + lane() * 12;
    for (u32 i = 0; i < 12; ++i) mine[i] = 7;
    copy_async<16>(mine, p.in + lane() * 4, true);
    copy_async_commit();
    copy_async<16>(mine + 4, p.in + lane() * 4, true);
    copy_async<16>(mine + 8, (const void*)64, false);
    copy_async_commit();
    u32* out = p.out + lane() * 9;
    for (u32 i = 0; i < 3; ++i) out[i] = mine[4 * i];
    copy_async_wait<1>();
    for (u32 i = 0; i < 3; ++i) out[3 + i] = mine[4 * i];
    copy_async_wait<0>();
    for (u32 i = 0; i < 3; ++i) out[6 + i] = mine[4 * i];
})");
    std::vector<uint32_t> in(128);
    for (uint32_t i = 0; i < 128; ++i) in[i] = i + 100;
    struct {
        CUdeviceptr in, out;
    } params{upload(in), upload(std::vector<uint32_t>(32 * 9))};
    OK(launch(test, params, 1, 32, 32 * 48));
    auto out = download<uint32_t>(params.out, 32 * 9);
    for (uint32_t l = 0; l < 32; ++l) {
        std::vector<uint32_t> got(out.begin() + l * 9, out.begin() + l * 9 + 9);
        uint32_t value = l * 4 + 100, poison = ~0u;
        ASSERT_EQ(got, (std::vector<uint32_t>{poison, poison, poison, value, poison, poison, value, value, 0}));
    }
}

// Words and pairs of words, likewise; each at a multiple of its own size.
TEST_F(DeviceBugs, short_copies_arrive_when_waited_for) {
    CUfunction test = kernel(R"(
struct P { const u32* in; u32* out; };
SKC_KERNEL(32, test, P) {
    u32* mine = (u32*)shared_memory() + lane() * 4;
    for (u32 i = 0; i < 4; ++i) mine[i] = 7;
    copy_async<4>(mine, p.in + lane() * 4 + 1, true);
    copy_async<8>(mine + 2, p.in + lane() * 4 + 2, lane() % 2 == 0);
    copy_async_commit();
    u32* out = p.out + lane() * 6;
    for (u32 i = 0; i < 2; ++i) out[i] = mine[i];
    copy_async_wait<0>();
    for (u32 i = 0; i < 4; ++i) out[2 + i] = mine[i];
})");
    std::vector<uint32_t> in(128);
    for (uint32_t i = 0; i < 128; ++i) in[i] = i + 100;
    struct {
        CUdeviceptr in, out;
    } params{upload(in), upload(std::vector<uint32_t>(32 * 6))};
    OK(launch(test, params, 1, 32, 32 * 16));
    auto out = download<uint32_t>(params.out, 32 * 6);
    for (uint32_t l = 0; l < 32; ++l) {
        std::vector<uint32_t> got(out.begin() + l * 6, out.begin() + l * 6 + 6);
        uint32_t value = l * 4 + 100, even = l % 2 == 0;
        ASSERT_EQ(got, (std::vector<uint32_t>{~0u, 7, value + 1, 7, even * (value + 2), even * (value + 3)}));
    }
}

TEST_F(DeviceBugs, a_misaligned_copy_is_an_error) {
    for (const char* copy : {"<4>(shared_memory() + 2, p.out", "<8>(shared_memory() + 4, p.out",
                             "<8>(shared_memory(), (u8*)p.out + 4", "<16>(shared_memory() + 8, p.out"}) {
        std::string text = failure(std::string("SKC_KERNEL(128, test, P) { copy_async") + copy + ", true); }");
        EXPECT_NE(text.find("not aligned"), std::string::npos) << copy;
        // The error is sticky: the next copy needs another context.
        TearDown();
        SetUp();
    }
}

// ldmatrix converges the warp but does not order memory: rows that other lanes write or copy need a barrier before it.
TEST_F(DeviceBugs, a_missing_warp_sync_before_ldmatrix_shows) {
    for (bool copied : {true, false}) {
        for (bool sound : {true, false}) {
            CUfunction test = kernel(std::string("#define BARRIER ") + (sound ? "warp_sync()" : "") +
                                     "\n#define COPIED " + (copied ? "1" : "0") + R"(
struct P { const u32* in; u32* out; };
SKC_KERNEL(32, test, P) {
    u32* shared = (u32*)shared_memory();
    u32 row = lane() * 4;
#if COPIED
    copy_async<16>(shared + row, p.in + row, true);
    copy_async_commit();
    copy_async_wait<0>();
#else
    for (u32 i = 0; i < 4; ++i) shared[row + i] = p.in[row + i];
#endif
    BARRIER;
    u32 r[4];
    load_matrix_x4(r, shared + (row + 16) % 128);
    for (u32 i = 0; i < 4; ++i) p.out[row + i] = r[i];
})");
            struct {
                CUdeviceptr in, out;
            } params{upload(std::vector<uint32_t>(128, 5)), upload(std::vector<uint32_t>(128))};
            int right = 0;
            for (int run = 0; run < 50; ++run) {
                OK(launch(test, params, 1, 32, 512));
                right += download<uint32_t>(params.out, 128) == std::vector<uint32_t>(128, 5);
            }
            EXPECT_EQ(right, sound ? 50 : 0) << copied;
        }
    }
}

TEST_F(DeviceBugs, every_block_runs_once_in_no_fixed_order) {
    CUfunction test = kernel(
        "struct P { u32* order; u32* next; };\n"
        "SKC_KERNEL(32, test, P) { if (lane() == 0) p.order[atomic_inc(p.next, ~0u)] = block_x(); }");
    std::vector<std::vector<uint32_t>> orders;
    for (int run = 0; run < 2; ++run) {
        struct {
            CUdeviceptr order, next;
        } params{upload(std::vector<uint32_t>(50)), upload(std::vector<uint32_t>(1))};
        OK(launch(test, params, 50));
        orders.push_back(download<uint32_t>(params.order, 50));
    }
    EXPECT_NE(orders[0], orders[1]);
    for (auto& order : orders) {
        std::sort(order.begin(), order.end());
        for (uint32_t i = 0; i < 50; ++i) EXPECT_EQ(order[i], i);
    }
}

// Shared memory is garbage at the start of each block, whatever the preceding block wrote.
TEST_F(DeviceBugs, shared_memory_is_poisoned_for_every_block) {
    CUfunction test = kernel(
        "struct P { u32* out; };\nSKC_KERNEL(32, test, P) { u32* s = (u32*)shared_memory() + lane();\n"
        "p.out[block_x() * 32 + lane()] = *s; *s = 5; }");
    Out out{upload(std::vector<uint32_t>(320))};
    OK(launch(test, out, 10, 32, 128));
    EXPECT_EQ(download<uint32_t>(out.out, 320), std::vector<uint32_t>(320, ~0u));
}

#if defined(__SANITIZE_ADDRESS__)
// AddressSanitizer ends the process, hence death tests.
TEST_F(DeviceBugs, overruns_are_seen) {
    CUfunction past_shared =
        kernel("struct P { u32* out; };\nSKC_KERNEL(32, test, P) { ((volatile u32*)shared_memory())[lane()] = 1; }");
    CUfunction past_global = kernel("struct P { u32* out; };\nSKC_KERNEL(32, test, P) { p.out[lane()] = 1; }");
    Out out{upload(std::vector<uint32_t>(31))};
    auto run = [&](CUfunction test, unsigned shared) {
        (void)launch(test, out, 1, 32, shared);
        (void)cuStreamSynchronize(stream);
    };
    EXPECT_DEATH(run(past_shared, 124), "heap-buffer-overflow");
    EXPECT_DEATH(run(past_global, 128), "heap-buffer-overflow");
    OK(cuStreamSynchronize(stream));
    OK(cuMemFree_v2(out.out));
    EXPECT_DEATH(run(past_global, 128), "heap-use-after-free");
}
#endif

}  // namespace
