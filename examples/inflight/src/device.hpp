// What a forward pass asks of an accelerator: memory, a stream, a few kernels, graphs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace inflight {

/**
 * Everything is put into one stream and done in order; only download() and wait() wait. Matrices are f32, rows packed.
 * Calls throw std::runtime_error. cuda/device.cu is CUDA's.
 */
class Device {
public:
    /** Of end_capture. */
    using Graph = void *;

    virtual ~Device() = default;
    /** As attention takes it: a CUstream. */
    virtual void *stream() = 0;
    /** Zeroed memory that lives as long as the device. */
    virtual void *allocate(std::size_t bytes) = 0;
    /** `from` may be changed when the call returns. */
    virtual void upload(void *to, const void *from, std::size_t bytes) = 0;
    virtual void download(void *to, const void *from, std::size_t bytes) = 0;

    /** x [rows, width] = the rows of table that tokens [rows] name. */
    virtual void gather(float *x, const float *table, const std::int32_t *tokens, std::size_t rows, std::size_t width) = 0;
    /** y = RMS norm of x [rows, width], times weight [width]. */
    virtual void norm(float *y, const float *x, const float *weight, std::size_t rows, std::size_t width, float eps) = 0;
    /** y [rows, n] = x [rows, k] W^T, W [n, k]. */
    virtual void multiply(float *y, const float *x, const float *w, std::size_t rows, std::size_t n, std::size_t k) = 0;
    /** y [rows, width] = silu of the first half of x [rows, 2 x width], times the second. */
    virtual void swiglu(float *y, const float *x, std::size_t rows, std::size_t width) = 0;
    /** x += y, of n. */
    virtual void add(float *x, const float *y, std::size_t n) = 0;
    /** best [rows] = the first of the largest of logits [rows, n]. */
    virtual void argmax(std::int32_t *best, const float *logits, std::size_t rows, std::size_t n) = 0;
    /** Sums x [n] over the ranks that share the model. */
    virtual void sum_ranks(float *x, std::size_t n) = 0;

    /** What is put into the stream until end_capture is recorded, not done. */
    virtual void begin_capture() = 0;
    virtual Graph end_capture() = 0;
    virtual void launch(Graph graph) = 0;
};

}  // namespace inflight
