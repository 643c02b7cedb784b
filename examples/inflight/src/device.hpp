// What a forward pass needs of an accelerator: memory, a stream, a few kernels, graphs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace inflight {

/**
 * All calls enqueue into one stream and are executed in order; only download() waits. Matrices are f32, rows packed.
 * Calls throw std::runtime_error. The implementation for CUDA is cuda/cuda_device.cu.
 */
class Device {
public:
    /** An executable graph, owned by the device. */
    using Graph = void *;

    virtual ~Device() = default;
    /** The stream as attention takes it: a CUstream. */
    virtual void *stream() = 0;
    /** Zeroed memory, freed with the device. */
    virtual void *allocate(std::size_t bytes) = 0;
    /** `from` may be modified as soon as the call returns. */
    virtual void upload(void *to, const void *from, std::size_t bytes) = 0;
    virtual void download(void *to, const void *from, std::size_t bytes) = 0;

    /** x [rows, width] = rows of `table`; `indices` [rows] says which. */
    virtual void gather(float *x, const float *table, const std::int32_t *indices, std::size_t rows,
                        std::size_t width) = 0;
    /** y [rows, width] = RMS norm of x, times weight [width]. */
    virtual void norm(float *y, const float *x, const float *weight, std::size_t rows, std::size_t width,
                      float eps) = 0;
    /** y [rows, n] = x [rows, k] W^T, W [n, k]. */
    virtual void multiply(float *y, const float *x, const float *w, std::size_t rows, std::size_t n, std::size_t k) = 0;
    /** y [rows, width] = silu of the first half of x [rows, 2 x width], times the second. */
    virtual void swiglu(float *y, const float *x, std::size_t rows, std::size_t width) = 0;
    /** x [n] += y [n] */
    virtual void add(float *x, const float *y, std::size_t n) = 0;
    /** indices [rows] = the index of the largest of each row of logits [rows, n], of equal ones the first. */
    virtual void argmax(std::int32_t *indices, const float *logits, std::size_t rows, std::size_t n) = 0;
    /** Sums x [n] over the ranks of the model, in place. */
    virtual void all_reduce(float *x, std::size_t n) = 0;

    /** Until end_capture, work is recorded into a graph and not executed. */
    virtual void begin_capture() = 0;
    virtual Graph end_capture() = 0;
    virtual void launch(Graph graph) = 0;
};

}  // namespace inflight
