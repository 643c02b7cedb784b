#include "cuda_device.hpp"

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <nccl.h>

#include <cfloat>
#include <cstring>
#include <stdexcept>
#include <string>

namespace inflight {
namespace {

void check(cudaError_t code, const char *what) {
    if (code != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
    }
}
void check(cublasStatus_t code, const char *what) {
    if (code != CUBLAS_STATUS_SUCCESS) {
        throw std::runtime_error(std::string(what) + ": " + cublasGetStatusString(code));
    }
}
void check(ncclResult_t code, const char *what) {
    if (code != ncclSuccess) {
        throw std::runtime_error(std::string(what) + ": " + ncclGetErrorString(code));
    }
}

// Threads of a block. A block computes a row, in all kernels but add_to.
constexpr unsigned THREADS = 256, WARPS = THREADS / 32;

__global__ void gather_rows(float *x, const float *table, const std::int32_t *indices, std::size_t width) {
    const float *from = table + static_cast<std::size_t>(indices[blockIdx.x]) * width;
    for (std::size_t j = threadIdx.x; j < width; j += THREADS) {
        x[blockIdx.x * width + j] = from[j];
    }
}

__global__ void norm_rows(float *y, const float *x, const float *weight, std::size_t width, float eps) {
    __shared__ float of_warps[WARPS];
    const float *row = x + blockIdx.x * width;
    float sum = 0;
    for (std::size_t j = threadIdx.x; j < width; j += THREADS) {
        sum += row[j] * row[j];
    }
    for (unsigned d = 16; d > 0; d /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, d);
    }
    if (threadIdx.x % 32 == 0) {
        of_warps[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    float squares = 0;
    for (unsigned w = 0; w < WARPS; w++) {
        squares += of_warps[w];
    }
    const float scale = rsqrtf(squares / static_cast<float>(width) + eps);
    for (std::size_t j = threadIdx.x; j < width; j += THREADS) {
        y[blockIdx.x * width + j] = row[j] * scale * weight[j];
    }
}

__global__ void swiglu_rows(float *y, const float *x, std::size_t width) {
    const float *gate = x + blockIdx.x * 2 * width, *up = gate + width;
    for (std::size_t j = threadIdx.x; j < width; j += THREADS) {
        y[blockIdx.x * width + j] = gate[j] / (1.0f + expf(-gate[j])) * up[j];
    }
}

__global__ void add_to(float *x, const float *y, std::size_t n) {
    const std::size_t i = std::size_t{blockIdx.x} * THREADS + threadIdx.x;
    if (i < n) {
        x[i] += y[i];
    }
}

/** A logit and its index. */
struct Candidate {
    float logit;
    std::int32_t index;
};

/** The larger logit; of equal ones the first. */
__device__ Candidate better(Candidate a, Candidate b) {
    return b.logit > a.logit || (b.logit == a.logit && b.index < a.index) ? b : a;
}

__global__ void argmax_rows(std::int32_t *out, const float *logits, std::int32_t n) {
    __shared__ Candidate best_of_warps[WARPS];
    const float *row = logits + std::size_t{blockIdx.x} * static_cast<std::size_t>(n);
    Candidate best{-FLT_MAX, 0};
    for (std::int32_t j = static_cast<std::int32_t>(threadIdx.x); j < n; j += THREADS) {
        // Indices ascend: an equal logit that comes later is not better.
        if (row[j] > best.logit) {
            best = {row[j], j};
        }
    }
    for (unsigned d = 16; d > 0; d /= 2) {
        const Candidate other{__shfl_xor_sync(0xffffffffu, best.logit, d), __shfl_xor_sync(0xffffffffu, best.index, d)};
        best = better(best, other);
    }
    if (threadIdx.x % 32 == 0) {
        best_of_warps[threadIdx.x / 32] = best;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < WARPS; w++) {
            best = better(best, best_of_warps[w]);
        }
        out[blockIdx.x] = best.index;
    }
}

class CudaDevice : public Device {
public:
    CudaDevice(int ordinal, Group &group) {
        int devices = 0;
        check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
        device_ = ordinal >= 0 ? ordinal : static_cast<int>(group.rank());
        if (device_ >= devices) {
            throw std::runtime_error("there is no GPU " + std::to_string(device_) + ": " + std::to_string(devices) +
                                     " were found");
        }
        check(cudaSetDevice(device_), "cudaSetDevice");
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
        check(cublasCreate(&blas_), "cublasCreate");
        check(cublasSetStream(blas_, stream_), "cublasSetStream");
        // A workspace that lives as long as the device: captured products use it in every graph launch.
        check(cublasSetWorkspace(blas_, allocate(WORKSPACE), WORKSPACE), "cublasSetWorkspace");
        check(cublasSetMathMode(blas_, CUBLAS_DEFAULT_MATH), "cublasSetMathMode");
        if (group.size() > 1) {
            ncclUniqueId id{};
            if (group.rank() == 0) {
                check(ncclGetUniqueId(&id), "ncclGetUniqueId");
            }
            // Broadcast as if it were tokens.
            std::vector<Token> words((sizeof id + sizeof(Token) - 1) / sizeof(Token));
            std::memcpy(words.data(), &id, sizeof id);
            group.broadcast(words);
            std::memcpy(&id, words.data(), sizeof id);
            check(ncclCommInitRank(&comm_, static_cast<int>(group.size()), id, static_cast<int>(group.rank())),
                  "ncclCommInitRank");
        }
    }
    ~CudaDevice() override {
        // Failures cannot be handled in a destructor.
        cudaStreamSynchronize(stream_);
        for (Graph graph : graphs_) {
            cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
        }
        if (comm_) {
            ncclCommDestroy(comm_);
        }
        cublasDestroy(blas_);
        for (void *p : memory_) {
            cudaFree(p);
        }
        cudaStreamDestroy(stream_);
    }
    CudaDevice(const CudaDevice &) = delete;
    CudaDevice &operator=(const CudaDevice &) = delete;

    void *stream() override { return stream_; }
    void *allocate(std::size_t bytes) override {
        void *p = nullptr;
        check(cudaMalloc(&p, bytes), "cudaMalloc");
        memory_.push_back(p);
        check(cudaMemsetAsync(p, 0, bytes, stream_), "cudaMemsetAsync");
        return p;
    }
    // From pageable memory the call returns when the bytes have been copied to a staging buffer.
    void upload(void *to, const void *from, std::size_t bytes) override {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    }
    void download(void *to, const void *from, std::size_t bytes) override {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
        check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    }

    void gather(float *x, const float *table, const std::int32_t *indices, std::size_t rows,
                std::size_t width) override {
        if (rows > 0) {
            gather_rows<<<blocks(rows), THREADS, 0, stream_>>>(x, table, indices, width);
            check(cudaGetLastError(), "gather_rows");
        }
    }
    void norm(float *y, const float *x, const float *weight, std::size_t rows, std::size_t width, float eps) override {
        norm_rows<<<blocks(rows), THREADS, 0, stream_>>>(y, x, weight, width, eps);
        check(cudaGetLastError(), "norm_rows");
    }
    void multiply(float *y, const float *x, const float *w, std::size_t rows, std::size_t n, std::size_t k) override {
        // cuBLAS is column-major: it computes y^T [n, rows] = W [n, k] x^T [k, rows].
        const float one = 1, zero = 0;
        const int cols = static_cast<int>(n), depth = static_cast<int>(k);
        check(cublasSgemm(blas_, CUBLAS_OP_T, CUBLAS_OP_N, cols, static_cast<int>(rows), depth, &one, w, depth, x,
                          depth, &zero, y, cols),
              "cublasSgemm");
    }
    void swiglu(float *y, const float *x, std::size_t rows, std::size_t width) override {
        swiglu_rows<<<blocks(rows), THREADS, 0, stream_>>>(y, x, width);
        check(cudaGetLastError(), "swiglu_rows");
    }
    void add(float *x, const float *y, std::size_t n) override {
        add_to<<<blocks((n + THREADS - 1) / THREADS), THREADS, 0, stream_>>>(x, y, n);
        check(cudaGetLastError(), "add_to");
    }
    void argmax(std::int32_t *indices, const float *logits, std::size_t rows, std::size_t n) override {
        argmax_rows<<<blocks(rows), THREADS, 0, stream_>>>(indices, logits, static_cast<std::int32_t>(n));
        check(cudaGetLastError(), "argmax_rows");
    }
    void all_reduce(float *x, std::size_t n) override {
        if (comm_) {
            check(ncclAllReduce(x, x, n, ncclFloat32, ncclSum, comm_, stream_), "ncclAllReduce");
        }
    }

    void begin_capture() override {
        check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    }
    Graph end_capture() override {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
        const cudaError_t code = cudaGraphInstantiate(&exec, graph, 0);
        cudaGraphDestroy(graph);
        check(code, "cudaGraphInstantiate");
        graphs_.push_back(exec);
        return exec;
    }
    void launch(Graph graph) override {
        check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_), "cudaGraphLaunch");
    }

private:
    /** The size that NVIDIA recommends for Hopper; smaller devices need less. */
    static constexpr std::size_t WORKSPACE = std::size_t{32} << 20;

    int device_ = 0;
    cudaStream_t stream_ = nullptr;
    cublasHandle_t blas_ = nullptr;
    ncclComm_t comm_ = nullptr;
    std::vector<void *> memory_;
    std::vector<Graph> graphs_;

    static unsigned blocks(std::size_t n) { return static_cast<unsigned>(n); }
};

}  // namespace

std::unique_ptr<Device> cuda_device(int ordinal, Group &group) { return std::make_unique<CudaDevice>(ordinal, group); }

}  // namespace inflight
