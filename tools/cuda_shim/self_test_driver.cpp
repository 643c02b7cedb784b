// Streams, capture, contexts, memory and limits of the fake driver; and the fake compiler.

#include <thread>

#include "self_test.hpp"

namespace {

const char* const kAdd = R"(
struct P { u32* x; u32 add; u32 times; };
SKC_KERNEL(32, test, P) { if (lane() == 0) *p.x = *p.x * p.times + p.add; }
)";

struct Add {
    CUdeviceptr x;
    uint32_t add, times;
};

class DriverTest : public Device {
protected:
    uint32_t value(CUdeviceptr p) { return download<uint32_t>(p, 1)[0]; }

    // 1 where `first` ran before `second`.
    bool in_order(CUfunction test, CUstream first, CUstream second) {
        CUdeviceptr x = 0;
        EXPECT_EQ(cuMemAlloc_v2(&x, 4), CUDA_SUCCESS);
        EXPECT_EQ(cuMemsetD32Async(x, 1, 1, stream), CUDA_SUCCESS);
        EXPECT_EQ(cuStreamSynchronize(stream), CUDA_SUCCESS);
        EXPECT_EQ(launch(test, Add{x, 0, 2}, 1, 32, 0, first), CUDA_SUCCESS);
        EXPECT_EQ(launch(test, Add{x, 1, 1}, 1, 32, 0, second), CUDA_SUCCESS);
        EXPECT_EQ(cuCtxSynchronize(), CUDA_SUCCESS);
        return value(x) == 3;
    }
};

CUstream legacy() { return reinterpret_cast<CUstream>(kLegacyStream); }

TEST_F(DriverTest, nothing_runs_before_somebody_waits) {
    CUfunction test = kernel(kAdd);
    CUdeviceptr x = upload(std::vector<uint32_t>{1});
    OK(cuStreamSynchronize(stream));
    uint64_t waits = skc_shim_count_sync(), launches = skc_shim_count_launches(), allocations = skc_shim_count_allocations();
    for (int i = 0; i < 10; ++i) OK(launch(test, Add{x, 1, 1}));
    EXPECT_EQ(*reinterpret_cast<uint32_t*>(x), 1u);
    EXPECT_EQ(skc_shim_count_sync(), waits);
    EXPECT_EQ(skc_shim_count_launches(), launches + 10);
    EXPECT_EQ(skc_shim_count_allocations(), allocations);
    OK(cuStreamSynchronize(stream));
    EXPECT_EQ(*reinterpret_cast<uint32_t*>(x), 11u);
    EXPECT_EQ(skc_shim_count_sync(), waits + 1);
    EXPECT_EQ(cuStreamQuery(stream), CUDA_SUCCESS);
}

TEST_F(DriverTest, streams_order_as_they_do) {
    CUfunction test = kernel(kAdd);
    CUstream other = nullptr, blocking = nullptr;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&blocking, 0));
    int same = 0, independent = 0, beside_legacy = 0, after_legacy = 0, before_legacy = 0;
    for (int run = 0; run < 40; ++run) {
        same += in_order(test, stream, stream);
        independent += in_order(test, stream, other);
        beside_legacy += in_order(test, stream, legacy());
        after_legacy += in_order(test, legacy(), blocking);
        before_legacy += in_order(test, blocking, legacy());
    }
    EXPECT_EQ(same, 40);
    EXPECT_EQ(after_legacy, 40);
    EXPECT_EQ(before_legacy, 40);
    for (int n : {independent, beside_legacy}) {
        EXPECT_GT(n, 3);
        EXPECT_LT(n, 37);
    }
}

TEST_F(DriverTest, events_order_streams) {
    CUfunction test = kernel(kAdd);
    CUstream other = nullptr;
    CUevent event = nullptr;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, 0));
    for (int run = 0; run < 30; ++run) {
        CUdeviceptr x = upload(std::vector<uint32_t>{1});
        OK(launch(test, Add{x, 0, 2}));
        OK(cuEventRecord(event, stream));
        OK(cuStreamWaitEvent(other, event, 0));
        OK(launch(test, Add{x, 1, 1}, 1, 32, 0, other));
        OK(cuStreamSynchronize(other));
        ASSERT_EQ(value(x), 3u);
    }
}

TEST_F(DriverTest, parameters_are_copied_at_launch) {
    CUfunction test = kernel(kAdd);
    Add add{upload(std::vector<uint32_t>{1}), 5, 1};
    OK(launch(test, add));
    CUdeviceptr x = add.x;
    add = {0, 0, 0};
    EXPECT_EQ(value(x), 6u);
}

TEST_F(DriverTest, pinned_memory_is_read_late_and_pageable_memory_at_once) {
    CUdeviceptr x = upload(std::vector<uint32_t>{1}), mapped = 0;
    OK(cuStreamSynchronize(stream));
    uint32_t pageable = 2;
    OK(cuMemcpyHtoDAsync_v2(x, &pageable, 4, stream));
    pageable = 3;
    EXPECT_EQ(value(x), 2u);
    void* pinned = nullptr;
    OK(cuMemHostAlloc(&pinned, 4, CU_MEMHOSTALLOC_DEVICEMAP));
    *static_cast<uint32_t*>(pinned) = 4;
    OK(cuMemcpyHtoDAsync_v2(x, pinned, 4, stream));
    *static_cast<uint32_t*>(pinned) = 5;
    EXPECT_EQ(value(x), 5u);
    OK(cuMemHostGetDevicePointer_v2(&mapped, pinned, 0));
    OK(launch(kernel(kAdd), Add{mapped, 1, 1}));
    OK(cuStreamSynchronize(stream));
    EXPECT_EQ(*static_cast<uint32_t*>(pinned), 6u);
    OK(cuMemFreeHost(pinned));
}

TEST_F(DriverTest, a_captured_graph_is_replayed) {
    CUfunction test = kernel(kAdd);
    CUdeviceptr x = upload(std::vector<uint32_t>{1});
    uint32_t step = 10;
    CUdeviceptr y = upload(std::vector<uint32_t>{0});
    OK(cuStreamSynchronize(stream));
    CUgraph graph = nullptr;
    CUgraphExec exec = nullptr;
    OK(cuStreamBeginCapture_v2(stream, CU_CAPTURE_GLOBAL));
    OK(launch(test, Add{x, 0, 2}));
    OK(launch(test, Add{x, 1, 1}));
    OK(cuMemcpyHtoDAsync_v2(y, &step, 4, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    EXPECT_EQ(value(x), 1u);  // recorded, not run
    uint32_t want = 1;
    for (uint32_t i = 0; i < 20; ++i) {
        step = i;
        OK(cuGraphLaunch(exec, stream));
        want = want * 2 + 1;
        if (i % 3 == 0) {
            EXPECT_EQ(value(x), want);
            EXPECT_EQ(value(y), i);  // the pointer was captured, not the bytes
        }
    }
    EXPECT_EQ(value(x), want);
    OK(cuGraphExecDestroy(exec));
}

TEST_F(DriverTest, host_functions_run_in_their_place) {
    CUfunction test = kernel(kAdd);
    CUdeviceptr x = upload(std::vector<uint32_t>{1});
    const auto twice = [](void* p) { *static_cast<uint32_t*>(p) *= 2; };
    auto* host = reinterpret_cast<uint32_t*>(x);
    const auto once = [&] {
        OK(launch(test, Add{x, 3, 1}));
        OK(cuLaunchHostFunc(stream, twice, host));
        OK(launch(test, Add{x, 1, 1}));
    };
    once();
    OK(cuStreamSynchronize(stream));
    EXPECT_EQ(*host, 9u);
    CUgraph graph = nullptr;
    CUgraphExec exec = nullptr;
    OK(cuStreamBeginCapture_v2(stream, CU_CAPTURE_GLOBAL));
    once();
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuStreamSynchronize(stream));
    EXPECT_EQ(*host, 9u);
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, stream));
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    EXPECT_EQ(*host, ((9u + 3) * 2 + 1 + 3) * 2 + 1);
    EXPECT_EQ(cuLaunchHostFunc(stream, nullptr, host), CUDA_ERROR_INVALID_VALUE);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
}

TEST_F(DriverTest, capture_forks_and_joins) {
    CUfunction test = kernel(kAdd);
    CUstream other = nullptr;
    CUevent fork = nullptr, join = nullptr;
    CUgraph graph = nullptr;
    CUgraphExec exec = nullptr;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&fork, 0));
    OK(cuEventCreate(&join, 0));
    CUdeviceptr x = upload(std::vector<uint32_t>{1}), y = upload(std::vector<uint32_t>{1});
    for (bool joined : {true, false}) {
        OK(cuStreamBeginCapture_v2(stream, CU_CAPTURE_THREAD_LOCAL));
        OK(launch(test, Add{x, 0, 2}));
        OK(cuEventRecord(fork, stream));
        OK(cuStreamWaitEvent(other, fork, 0));
        OK(launch(test, Add{y, 7, 1}, 1, 32, 0, other));
        OK(cuEventRecord(join, other));
        if (joined) {
            OK(cuStreamWaitEvent(stream, join, 0));
        }
        OK(launch(test, Add{x, 1, 1}));
        ASSERT_EQ(cuStreamEndCapture(stream, &graph), joined ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        if (!joined) break;
        OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
        OK(cuGraphLaunch(exec, stream));
        EXPECT_EQ(value(x), 3u);
        EXPECT_EQ(value(y), 8u);
    }
}

TEST_F(DriverTest, waiting_and_allocating_spoil_a_capture) {
    CUfunction test = kernel(kAdd);
    CUdeviceptr x = upload(std::vector<uint32_t>{1}), y = 0;
    OK(cuStreamSynchronize(stream));
    auto spoils = [&](auto call) {
        CUgraph graph = nullptr;
        CUstreamCaptureStatus status = CU_CAPTURE_NONE;
        OK(cuStreamBeginCapture_v2(stream, CU_CAPTURE_GLOBAL));
        EXPECT_EQ(call(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        OK(cuStreamIsCapturing(stream, &status));
        EXPECT_EQ(status, CU_CAPTURE_INVALIDATED);
        EXPECT_EQ(launch(test, Add{x, 1, 1}), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        EXPECT_EQ(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        EXPECT_EQ(graph, nullptr);
    };
    spoils([&] { return cuStreamSynchronize(stream); });
    spoils([&] { return cuCtxSynchronize(); });
    spoils([&] { return cuMemAlloc_v2(&y, 4); });
    spoils([&] { return cuMemFree_v2(x); });
    spoils([&] { return cuMemcpyHtoD_v2(x, &y, 4); });
    // Another thread, too, unless it says that it knows what it does.
    spoils([&] {
        CUresult result = CUDA_SUCCESS;
        std::thread([&] {
            (void)cuCtxPushCurrent_v2(context);
            result = cuMemAlloc_v2(&y, 4);
        }).join();
        return result;
    });
    OK(cuStreamBeginCapture_v2(stream, CU_CAPTURE_GLOBAL));
    auto mode = CU_CAPTURE_RELAXED;
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    OK(cuMemAlloc_v2(&y, 4));
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    OK(launch(test, Add{x, 1, 1}));
    CUgraph graph = nullptr;
    OK(cuStreamEndCapture(stream, &graph));
}

TEST_F(DriverTest, the_legacy_stream_is_barred_while_a_blocking_one_is_captured) {
    CUfunction test = kernel(kAdd);
    CUdeviceptr x = upload(std::vector<uint32_t>{1});
    CUstream blocking = nullptr;
    CUgraph graph = nullptr;
    CUstreamCaptureStatus status = CU_CAPTURE_NONE;
    OK(cuStreamCreate(&blocking, 0));
    OK(cuStreamBeginCapture_v2(blocking, CU_CAPTURE_RELAXED));
    EXPECT_EQ(cuStreamIsCapturing(nullptr, &status), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    EXPECT_EQ(launch(test, Add{x, 1, 1}, 1, 32, 0, legacy()), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    EXPECT_EQ(cuStreamEndCapture(blocking, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    EXPECT_EQ(cuStreamBeginCapture_v2(nullptr, CU_CAPTURE_RELAXED), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

TEST_F(DriverTest, contexts_are_apart) {
    CUfunction test = kernel(kAdd);
    CUdeviceptr x = upload(std::vector<uint32_t>{1});
    CUcontext other = nullptr, current = nullptr;
    OK(cuCtxCreate_v2(&other, 0, 0));
    EXPECT_EQ(launch(test, Add{x, 1, 1}), CUDA_ERROR_INVALID_HANDLE);
    EXPECT_EQ(cuStreamSynchronize(stream), CUDA_ERROR_INVALID_HANDLE);
    OK(cuCtxDestroy_v2(other));
    OK(cuCtxGetCurrent(&current));
    EXPECT_EQ(current, context);
    EXPECT_EQ(cuCtxPushCurrent_v2(other), CUDA_ERROR_INVALID_CONTEXT);
    OK(cuCtxPopCurrent_v2(&current));
    EXPECT_EQ(cuMemAlloc_v2(&x, 4), CUDA_ERROR_INVALID_CONTEXT);
    EXPECT_EQ(cuCtxPopCurrent_v2(&current), CUDA_ERROR_INVALID_CONTEXT);
    OK(cuCtxPushCurrent_v2(context));
}

TEST_F(DriverTest, the_primary_context_ends_with_its_last_user) {
    CUcontext primary = nullptr;
    CUdeviceptr x = 0;
    EXPECT_EQ(cuDevicePrimaryCtxRelease_v2(0), CUDA_ERROR_INVALID_CONTEXT);
    OK(cuDevicePrimaryCtxRetain(&primary, 0));
    OK(cuDevicePrimaryCtxRetain(&primary, 0));
    OK(cuCtxPushCurrent_v2(primary));
    OK(cuMemAlloc_v2(&x, 4));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    EXPECT_EQ(skc_shim_live_allocations(), 1u);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    EXPECT_EQ(skc_shim_live_allocations(), 0u);
    EXPECT_EQ(cuMemAlloc_v2(&x, 4), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    OK(cuCtxPopCurrent_v2(&primary));
}

TEST_F(DriverTest, memory_runs_out) {
    size_t free = 0, total = 0, after = 0;
    CUdeviceptr x = 0, y = 0;
    OK(cuMemGetInfo_v2(&free, &total));
    EXPECT_EQ(cuMemAlloc_v2(&x, free + 1), CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_EQ(cuMemAlloc_v2(&x, SIZE_MAX), CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_EQ(cuMemAlloc_v2(&x, 0), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemAlloc_v2(&x, 1000));
    OK(cuMemGetInfo_v2(&after, &total));
    EXPECT_EQ(after, free - 1000);
    EXPECT_EQ(download<uint8_t>(x, 1000), std::vector<uint8_t>(1000, 0xFF));
    skc_shim_fail_allocation(2);
    OK(cuMemAlloc_v2(&y, 4));
    EXPECT_EQ(cuMemAlloc_v2(&y, 4), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&y, 4));
    OK(cuMemFreeAsync(y, stream));
    EXPECT_EQ(skc_shim_live_allocations(), 3u);
    OK(cuStreamSynchronize(stream));
    EXPECT_EQ(skc_shim_live_allocations(), 2u);
    EXPECT_EQ(cuMemFree_v2(y), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(cuMemsetD32Async(x, 0, 251, stream), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFree_v2(x));
}

TEST_F(DriverTest, launches_have_limits) {
    CUfunction test = kernel(kAdd);
    Add add{upload(std::vector<uint32_t>{1}), 1, 1};
    EXPECT_EQ(launch(test, add, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(launch(test, add, 1, 64), CUDA_ERROR_INVALID_VALUE);  // above its launch bounds
    EXPECT_EQ(launch(test, add, 1, 32, 48 * 1024 + 1), CUDA_ERROR_INVALID_VALUE);
    int limit = 0;
    OK(cuDeviceGetAttribute(&limit, 97, 0));
    EXPECT_EQ(cuFuncSetAttribute(test, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit + 1), CUDA_ERROR_INVALID_VALUE);
    OK(cuFuncSetAttribute(test, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit));
    OK(launch(test, add, 1, 32, static_cast<unsigned>(limit)));
    EXPECT_EQ(value(add.x), 2u);
    void* args[] = {&add};
    EXPECT_EQ(cuLaunchKernel(test, 1, 65536, 1, 32, 1, 1, 0, stream, args, nullptr), CUDA_ERROR_INVALID_VALUE);
}

TEST_F(DriverTest, threads_may_wait_at_once) {
    CUfunction test = kernel(kAdd);
    std::vector<std::thread> threads;
    std::vector<uint32_t> results(4);
    for (uint32_t t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            CUstream own = nullptr;
            CUdeviceptr x = 0;
            OK(cuCtxPushCurrent_v2(context));
            OK(cuStreamCreate(&own, CU_STREAM_NON_BLOCKING));
            OK(cuMemAlloc_v2(&x, 4));
            OK(cuMemsetD32Async(x, t, 1, own));
            for (int i = 0; i < 300; ++i) OK(launch(test, Add{x, 1, 1}, 1, 32, 0, own));
            OK(cuMemcpyDtoHAsync_v2(&results[t], x, 4, own));
            OK(cuMemFree_v2(x));
        });
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(results, (std::vector<uint32_t>{300, 301, 302, 303}));
}

TEST_F(DriverTest, a_damaged_image_is_refused) {
    std::string cubin = compile(kAdd).cubin, old = compile(kAdd, {"--gpu-architecture=sm_80"}).cubin;
    CUmodule module = nullptr;
    OK(cuModuleLoadData(&module, cubin.data()));
    OK(cuModuleUnload(module));
    EXPECT_EQ(cuModuleUnload(module), CUDA_ERROR_INVALID_HANDLE);
    EXPECT_EQ(cuModuleLoadData(&module, old.data()), CUDA_ERROR_NO_BINARY_FOR_GPU);
    for (size_t at : {size_t{0}, cubin.size() / 2, cubin.size() - 1}) {
        std::string bad = cubin;
        bad[at] = static_cast<char>(bad[at] ^ 1);
        EXPECT_EQ(cuModuleLoadData(&module, bad.data()), CUDA_ERROR_INVALID_IMAGE) << at;
    }
}

TEST(Compiler, says_what_is_wrong) {
    Compilation bad = compile("SKC_KERNEL(32, test, Nothing) {}");
    EXPECT_EQ(bad.code, 6);
    EXPECT_NE(bad.log.find("Nothing"), std::string::npos) << bad.log;
    EXPECT_EQ(compile(kAdd, {"--gpu-architecture=sm_70"}).code, 5);
    EXPECT_EQ(compile(kAdd, {"--gpu-architecture=sm_90", "--no-such-option"}).code, 5);
    Compilation ptx = compile(kAdd, {"--gpu-architecture=compute_90"});
    EXPECT_EQ(ptx.code, 0);
    EXPECT_EQ(ptx.cubin.size(), 0u);
    Compilation macros = compile("#if A != 3 || B != 1\n#error macros\n#endif\n", {"--gpu-architecture=sm_90", "-DA=3", "--define-macro=B"});
    EXPECT_EQ(macros.code, 0) << macros.log;
}

}  // namespace
