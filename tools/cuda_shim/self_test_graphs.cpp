// Capture of streams, and graphs.

#include <thread>

#include "self_test.hpp"

namespace {

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

TEST_F(DriverTest, waiting_and_allocating_invalidate_a_capture) {
    CUfunction test = kernel(kAdd);
    CUdeviceptr x = upload(std::vector<uint32_t>{1}), y = 0;
    OK(cuStreamSynchronize(stream));
    auto invalidates = [&](auto call) {
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
    invalidates([&] { return cuStreamSynchronize(stream); });
    invalidates([&] { return cuCtxSynchronize(); });
    invalidates([&] { return cuMemAlloc_v2(&y, 4); });
    invalidates([&] { return cuMemFree_v2(x); });
    invalidates([&] { return cuMemcpyHtoD_v2(x, &y, 4); });
    // In another thread, too, unless its capture mode is relaxed.
    invalidates([&] {
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

TEST_F(DriverTest, the_legacy_stream_is_rejected_while_a_blocking_one_is_captured) {
    CUfunction test = kernel(kAdd);
    CUdeviceptr x = upload(std::vector<uint32_t>{1});
    CUstream blocking = nullptr;
    CUgraph graph = nullptr;
    CUstreamCaptureStatus status = CU_CAPTURE_NONE;
    OK(cuStreamCreate(&blocking, 0));
    OK(cuStreamBeginCapture_v2(blocking, CU_CAPTURE_RELAXED));
    EXPECT_EQ(cuStreamIsCapturing(nullptr, &status), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    EXPECT_EQ(launch(test, Add{x, 1, 1}, 1, 32, 0, legacy_stream()), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    EXPECT_EQ(cuStreamEndCapture(blocking, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    EXPECT_EQ(cuStreamBeginCapture_v2(nullptr, CU_CAPTURE_RELAXED), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

}  // namespace
