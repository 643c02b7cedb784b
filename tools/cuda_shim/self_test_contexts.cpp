// Contexts, memory, images, and the limits of a launch.

#include "self_test.hpp"

namespace {

TEST_F(DriverTest, contexts_are_separate) {
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

TEST_F(DriverTest, the_primary_context_ends_with_its_last_release) {
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
    EXPECT_EQ(cuFuncSetAttribute(test, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit + 1),
              CUDA_ERROR_INVALID_VALUE);
    OK(cuFuncSetAttribute(test, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit));
    OK(launch(test, add, 1, 32, static_cast<unsigned>(limit)));
    EXPECT_EQ(value(add.x), 2u);
    void* args[] = {&add};
    EXPECT_EQ(cuLaunchKernel(test, 1, 65536, 1, 32, 1, 1, 0, stream, args, nullptr), CUDA_ERROR_INVALID_VALUE);
}

TEST_F(DriverTest, a_damaged_image_is_rejected) {
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

}  // namespace
