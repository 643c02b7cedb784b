// For the shim's own tests, which use the two APIs alone: a context, kernels compiled from text, buffers.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cuda_api.hpp"

extern "C" {
CUresult cuInit(unsigned);
CUresult cuDeviceGetAttribute(int*, int, CUdevice);
CUresult cuDevicePrimaryCtxRetain(CUcontext*, CUdevice);
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice);
CUresult cuCtxCreate_v2(CUcontext*, unsigned, CUdevice);
CUresult cuCtxDestroy_v2(CUcontext);
CUresult cuCtxPushCurrent_v2(CUcontext);
CUresult cuCtxPopCurrent_v2(CUcontext*);
CUresult cuCtxGetCurrent(CUcontext*);
CUresult cuCtxSynchronize();
CUresult cuMemAlloc_v2(CUdeviceptr*, size_t);
CUresult cuMemFree_v2(CUdeviceptr);
CUresult cuMemFreeAsync(CUdeviceptr, CUstream);
CUresult cuMemGetInfo_v2(size_t*, size_t*);
CUresult cuMemHostAlloc(void**, size_t, unsigned);
CUresult cuMemFreeHost(void*);
CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr*, void*, unsigned);
CUresult cuMemsetD32Async(CUdeviceptr, unsigned, size_t, CUstream);
CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void*, size_t);
CUresult cuMemcpyDtoH_v2(void*, CUdeviceptr, size_t);
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr, const void*, size_t, CUstream);
CUresult cuMemcpyDtoHAsync_v2(void*, CUdeviceptr, size_t, CUstream);
CUresult cuStreamCreate(CUstream*, unsigned);
CUresult cuStreamDestroy_v2(CUstream);
CUresult cuStreamSynchronize(CUstream);
CUresult cuStreamQuery(CUstream);
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus*);
CUresult cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
CUresult cuStreamEndCapture(CUstream, CUgraph*);
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned);
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode*);
CUresult cuEventCreate(CUevent*, unsigned);
CUresult cuEventRecord(CUevent, CUstream);
CUresult cuEventDestroy_v2(CUevent);
CUresult cuGraphInstantiateWithFlags(CUgraphExec*, CUgraph, unsigned long long);
CUresult cuGraphLaunch(CUgraphExec, CUstream);
CUresult cuGraphDestroy(CUgraph);
CUresult cuGraphExecDestroy(CUgraphExec);
CUresult cuModuleLoadData(CUmodule*, const void*);
CUresult cuModuleUnload(CUmodule);
CUresult cuLaunchHostFunc(CUstream, void (*)(void*), void*);
CUresult cuModuleGetFunction(CUfunction*, CUmodule, const char*);
CUresult cuFuncSetAttribute(CUfunction, int, int);
CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                        void**, void**);
CUresult cuLaunchKernelEx(const CUlaunchConfig*, CUfunction, void**, void**);
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int*, CUfunction, int, size_t);
CUresult cuOccupancyMaxActiveClusters(int*, CUfunction, const CUlaunchConfig*);
CUresult cuGetErrorName(CUresult, const char**);

int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*, const char* const*);
int nvrtcCompileProgram(void*, int, const char* const*);
int nvrtcGetCUBINSize(void*, size_t*);
int nvrtcGetCUBIN(void*, char*);
int nvrtcGetProgramLogSize(void*, size_t*);
int nvrtcGetProgramLog(void*, char*);
int nvrtcDestroyProgram(void**);

uint64_t skc_shim_count_sync();
uint64_t skc_shim_count_allocations();
uint64_t skc_shim_count_launches();
uint64_t skc_shim_count_programmatic();
uint64_t skc_shim_count_clustered();
void skc_shim_set_cluster(int blocks);
uint64_t skc_shim_live_allocations();
void skc_shim_fail_allocation(int64_t);
}

struct Compilation {
    int code = 0;
    std::string log;
    std::string cubin;
};

inline std::string kernel_source(const std::string& name) {
    std::ifstream file(std::string(SKC_SHIM_KERNELS) + "/" + name);
    std::string text(std::istreambuf_iterator<char>(file), {});
    EXPECT_FALSE(text.empty()) << SKC_SHIM_KERNELS << "/" << name;
    return text;
}

inline Compilation compile(const std::string& source,
                           std::vector<const char*> options = {"--gpu-architecture=sm_90a"}) {
    Compilation result;
    void* program = nullptr;
    std::string text = "#include \"ptx.cuh\"\n" + source;
    const char* names[] = {"ptx.cuh", "types.cuh", "params.cuh", "error_record.cuh"};
    std::vector<std::string> texts;
    for (const char* name : names) texts.push_back(kernel_source(name));
    std::vector<const char*> headers;
    for (const std::string& header : texts) headers.push_back(header.c_str());
    EXPECT_EQ(nvrtcCreateProgram(&program, text.c_str(), "test.cu", 4, headers.data(), names), 0);
    result.code = nvrtcCompileProgram(program, static_cast<int>(options.size()), options.data());
    size_t size = 0;
    EXPECT_EQ(nvrtcGetProgramLogSize(program, &size), 0);
    result.log.resize(size);
    EXPECT_EQ(nvrtcGetProgramLog(program, result.log.data()), 0);
    EXPECT_EQ(nvrtcGetCUBINSize(program, &size), 0);
    result.cubin.resize(size);
    EXPECT_EQ(nvrtcGetCUBIN(program, result.cubin.data()), 0);
    EXPECT_EQ(nvrtcDestroyProgram(&program), 0);
    return result;
}

#define OK(call) ASSERT_EQ(call, CUDA_SUCCESS)

// A test in a context of its own, with one stream that does not synchronize with the legacy one.
class Device : public testing::Test {
protected:
    void SetUp() override {
        OK(cuInit(0));
        OK(cuCtxCreate_v2(&context, 0, 0));
        OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    }

    void TearDown() override {
        EXPECT_EQ(cuCtxDestroy_v2(context), CUDA_SUCCESS);
        EXPECT_EQ(skc_shim_live_allocations(), 0u);
    }

    // The kernel `test` of a program.
    CUfunction kernel(const std::string& source) {
        Compilation compiled = compile(source);
        EXPECT_EQ(compiled.code, 0) << compiled.log;
        CUmodule module = nullptr;
        CUfunction function = nullptr;
        EXPECT_EQ(cuModuleLoadData(&module, compiled.cubin.data()), CUDA_SUCCESS);
        EXPECT_EQ(cuModuleGetFunction(&function, module, "test"), CUDA_SUCCESS);
        return function;
    }

    // With `on` = NULL in the test's own stream.
    template <class P>
    CUresult launch(CUfunction function, const P& params, unsigned blocks = 1, unsigned threads = 32,
                    unsigned shared = 0, CUstream on = nullptr) {
        void* args[] = {const_cast<P*>(&params)};
        return cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, on ? on : stream, args, nullptr);
    }

    template <class T>
    CUdeviceptr upload(const std::vector<T>& values) {
        CUdeviceptr p = 0;
        EXPECT_EQ(cuMemAlloc_v2(&p, values.size() * sizeof(T)), CUDA_SUCCESS);
        EXPECT_EQ(cuMemcpyHtoDAsync_v2(p, values.data(), values.size() * sizeof(T), stream), CUDA_SUCCESS);
        return p;
    }

    template <class T>
    std::vector<T> download(CUdeviceptr p, size_t n) {
        std::vector<T> values(n);
        EXPECT_EQ(cuMemcpyDtoHAsync_v2(values.data(), p, n * sizeof(T), stream), CUDA_SUCCESS);
        return values;
    }

    CUcontext context = nullptr;
    CUstream stream = nullptr;
};

// *x = *x * times + add, by one thread.
inline const char* const kAdd = R"(
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
};

inline CUstream legacy_stream() { return reinterpret_cast<CUstream>(kLegacyStream); }
