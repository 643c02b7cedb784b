// The CUDA driver calls that a host with device pointers needs, loaded at run time so that the tests build without
// CUDA.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <dlfcn.h>
#include <stdexcept>
#include <string>
#include <vector>

namespace cuda {

/** The driver with device 0, whose primary context is made current on this thread, and a stream. Never destroyed. */
class Driver {
public:
    using Pointer = unsigned long long;

    /** NULL where there is no driver or no device. */
    static Driver *get() {
        static Driver driver;
        return driver.ready_ ? &driver : nullptr;
    }

    void *stream() { return stream_; }
    void *context() {
        void *current = nullptr;
        call("cuCtxGetCurrent", &current);
        return current;
    }
    void wait() { call("cuStreamSynchronize", stream_); }

    template <class T>
    Pointer upload(const std::vector<T> &values) {
        Pointer p = 0;
        call("cuMemAlloc_v2", &p, values.size() * sizeof(T));
        call("cuMemcpyHtoDAsync_v2", p, static_cast<const void *>(values.data()), values.size() * sizeof(T), stream_);
        wait();
        return p;
    }
    template <class T>
    std::vector<T> download(Pointer p, std::size_t n) {
        std::vector<T> values(n);
        call("cuMemcpyDtoHAsync_v2", static_cast<void *>(values.data()), p, n * sizeof(T), stream_);
        wait();
        return values;
    }
    void free(Pointer p) { call("cuMemFree_v2", p); }

    /** Captures the work that `body` enqueues on the stream into a graph; returns a CUgraphExec. */
    template <class Body>
    void *capture(Body body) {
        void *graph = nullptr, *exec = nullptr;
        call("cuStreamBeginCapture_v2", stream_, 0);
        body();
        call("cuStreamEndCapture", stream_, &graph);
        call("cuGraphInstantiateWithFlags", &exec, graph, 0ull);
        return exec;
    }
    void launch(void *exec) { call("cuGraphLaunch", exec, stream_); }

private:
    void *library_ = nullptr;
    void *stream_ = nullptr;
    bool ready_ = false;

    Driver() {
        library_ = dlopen("libcuda.so.1", RTLD_NOW);
        int device = 0, count = 0;
        if (!library_ || status("cuInit", 0u) != 0 || status("cuDeviceGetCount", &count) != 0 || count == 0) {
            return;
        }
        void *context = nullptr;
        call("cuDeviceGet", &device, 0);
        call("cuDevicePrimaryCtxRetain", &context, device);
        call("cuCtxSetCurrent", context);
        call("cuStreamCreate", &stream_, 1u);
        ready_ = true;
    }

    template <class... Args>
    int status(const char *name, Args... args) {
        void *symbol = dlsym(library_, name);
        if (!symbol) {
            throw std::runtime_error(std::string("the CUDA driver lacks ") + name);
        }
        return reinterpret_cast<int (*)(Args...)>(symbol)(args...);
    }
    template <class... Args>
    void call(const char *name, Args... args) {
        const int code = status(name, args...);
        if (code != 0) {
            throw std::runtime_error(std::string(name) + " gave CUDA error " + std::to_string(code));
        }
    }
};

}  // namespace cuda

/** Skips a test, with a message, if there is no device. */
#define NEEDS_CUDA()                                                                                                   \
    if (!cuda::Driver::get()) {                                                                                        \
        GTEST_SKIP() << "skipped: no CUDA device";                                                                     \
    }                                                                                                                  \
    static_assert(true, "")
