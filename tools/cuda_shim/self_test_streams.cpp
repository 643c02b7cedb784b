// Streams, events, copies and launches: what runs when, and what is read when.

#include <thread>

#include "self_test.hpp"

namespace {

class StreamTest : public DriverTest {
protected:
    // Whether `first` ran before `second`.
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

TEST_F(DriverTest, nothing_runs_before_a_call_waits) {
    CUfunction test = kernel(kAdd);
    CUdeviceptr x = upload(std::vector<uint32_t>{1});
    OK(cuStreamSynchronize(stream));
    uint64_t waits = skc_shim_count_sync(), launches = skc_shim_count_launches(),
             allocations = skc_shim_count_allocations();
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

TEST_F(StreamTest, streams_are_ordered_as_by_cuda) {
    CUfunction test = kernel(kAdd);
    CUstream other = nullptr, blocking = nullptr;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&blocking, 0));
    int same = 0, independent = 0, beside_legacy = 0, after_legacy = 0, before_legacy = 0;
    for (int run = 0; run < 40; ++run) {
        same += in_order(test, stream, stream);
        independent += in_order(test, stream, other);
        beside_legacy += in_order(test, stream, legacy_stream());
        after_legacy += in_order(test, legacy_stream(), blocking);
        before_legacy += in_order(test, blocking, legacy_stream());
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

TEST_F(DriverTest, pinned_memory_is_read_late_and_pageable_memory_immediately) {
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

TEST_F(DriverTest, host_functions_run_in_stream_order) {
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

TEST_F(DriverTest, threads_may_wait_at_the_same_time) {
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

}  // namespace
