#include "shim_device.hpp"

#include "gemm.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <stdexcept>
#include <string>

namespace test {
namespace {

void *library() {
    static void *const handle = dlopen("libcuda.so.1", RTLD_NOW);
    return handle;
}

template <class... Args>
void call(const char *name, Args... args) {
    void *symbol = dlsym(library(), name);
    const int code = symbol ? reinterpret_cast<int (*)(Args...)>(symbol)(args...) : -1;
    if (code != 0) {
        throw std::runtime_error(std::string(name) + " gave " + std::to_string(code));
    }
}

class ShimDevice : public inflight::Device {
public:
    ShimDevice() {
        int device = 0;
        call("cuInit", 0u);
        call("cuDeviceGet", &device, 0);
        call("cuDevicePrimaryCtxRetain", &context_, device);
        call("cuCtxSetCurrent", context_);
        call("cuStreamCreate", &stream_, 1u);
    }
    ~ShimDevice() override {
        try {
            call("cuStreamSynchronize", stream_);
            for (void *graph : graphs_) {
                call("cuGraphExecDestroy", graph);
            }
            for (unsigned long long p : memory_) {
                call("cuMemFree_v2", p);
            }
            call("cuStreamDestroy_v2", stream_);
            call("cuDevicePrimaryCtxRelease_v2", 0);
        } catch (const std::runtime_error &) {
            // The test has failed already.
        }
    }

    void *stream() override { return stream_; }
    void *allocate(std::size_t bytes) override {
        unsigned long long p = 0;
        call("cuMemAlloc_v2", &p, bytes);
        memory_.push_back(p);
        call("cuMemsetD8Async", p, static_cast<unsigned char>(0), bytes, stream_);
        return reinterpret_cast<void *>(static_cast<std::uintptr_t>(p));
    }
    void upload(void *to, const void *from, std::size_t bytes) override {
        call("cuMemcpyHtoDAsync_v2", address(to), from, bytes, stream_);
    }
    void download(void *to, const void *from, std::size_t bytes) override {
        call("cuMemcpyDtoHAsync_v2", to, address(from), bytes, stream_);
        call("cuStreamSynchronize", stream_);
    }

    void gather(float *x, const float *table, const std::int32_t *indices, std::size_t rows,
                std::size_t width) override {
        enqueue([=] {
            for (std::size_t i = 0; i < rows; i++) {
                std::copy_n(table + static_cast<std::size_t>(indices[i]) * width, width, x + i * width);
            }
        });
    }
    void norm(float *y, const float *x, const float *weight, std::size_t rows, std::size_t width, float eps) override {
        enqueue([=] {
            for (std::size_t i = 0; i < rows; i++) {
                float squares = 0;
                for (std::size_t j = 0; j < width; j++) {
                    squares += x[i * width + j] * x[i * width + j];
                }
                const float scale = 1 / std::sqrt(squares / static_cast<float>(width) + eps);
                for (std::size_t j = 0; j < width; j++) {
                    y[i * width + j] = x[i * width + j] * scale * weight[j];
                }
            }
        });
    }
    void multiply(float *y, const float *x, const float *w, std::size_t rows, std::size_t n, std::size_t k) override {
        enqueue([=] {
            const inflight::Matrix matrix{GGML_TYPE_F32, n, k, reinterpret_cast<const unsigned char *>(w),
                                          k * sizeof(float)};
            gemm_.multiply(x, rows, inflight::Weight({matrix}), y);
        });
    }
    void swiglu(float *y, const float *x, std::size_t rows, std::size_t width) override {
        enqueue([=] {
            for (std::size_t i = 0; i < rows * width; i++) {
                const float gate = x[i / width * 2 * width + i % width],
                            up = x[i / width * 2 * width + width + i % width];
                y[i] = gate / (1 + std::exp(-gate)) * up;
            }
        });
    }
    void add(float *x, const float *y, std::size_t n) override {
        enqueue([=] { std::transform(x, x + n, y, x, std::plus<>()); });
    }
    void argmax(std::int32_t *indices, const float *logits, std::size_t rows, std::size_t n) override {
        enqueue([=] {
            for (std::size_t i = 0; i < rows; i++) {
                indices[i] = static_cast<std::int32_t>(std::max_element(logits + i * n, logits + (i + 1) * n) -
                                                       (logits + i * n));
            }
        });
    }
    void all_reduce(float *, std::size_t) override {}

    void begin_capture() override { call("cuStreamBeginCapture_v2", stream_, 0); }
    Graph end_capture() override {
        void *graph = nullptr, *exec = nullptr;
        call("cuStreamEndCapture", stream_, &graph);
        call("cuGraphInstantiateWithFlags", &exec, graph, 0ull);
        call("cuGraphDestroy", graph);
        graphs_.push_back(exec);
        return exec;
    }
    void launch(Graph graph) override { call("cuGraphLaunch", graph, stream_); }

private:
    void *context_ = nullptr, *stream_ = nullptr;
    std::vector<unsigned long long> memory_;
    std::vector<void *> graphs_;
    inflight::ThreadTeam team_{1};
    inflight::Gemm gemm_{team_};
    /** Kept, as graph launches call them again. */
    std::deque<std::function<void()>> work_;

    static unsigned long long address(const void *p) { return reinterpret_cast<std::uintptr_t>(p); }
    void enqueue(std::function<void()> work) {
        work_.push_back(std::move(work));
        void (*const run)(void *) = [](void *f) { (*static_cast<std::function<void()> *>(f))(); };
        call("cuLaunchHostFunc", stream_, run, static_cast<void *>(&work_.back()));
    }
};

}  // namespace

std::unique_ptr<inflight::Device> shim_device() {
    const bool is_stand_in = library() && dlsym(library(), "skc_shim_count_graph_launches");
    return is_stand_in ? std::make_unique<ShimDevice>() : nullptr;
}

std::uint64_t graph_launches() {
    return reinterpret_cast<std::uint64_t (*)()>(dlsym(library(), "skc_shim_count_graph_launches"))();
}

}  // namespace test
