// Weights as a file stores them, and rows of f32.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <vector>

namespace inflight {

/** A range of a matrix's rows or columns. */
struct Range {
    std::size_t from, to;

    std::size_t size() const { return to - from; }
};

/** A matrix [n, k], or some of its rows and columns, of any type of ggml: a view into the file. */
struct Matrix {
    ggml_type type = GGML_TYPE_F32;
    std::size_t n = 0, k = 0;
    const unsigned char *data = nullptr;
    /** From one row to the next. */
    std::size_t row_bytes = 0;

    const unsigned char *row(std::size_t i) const { return data + i * row_bytes; }
    /** Row `i` as f32. */
    void unpack(std::size_t i, float *out) const;
};

/** A weight W [n, k] of y = x W^T: rows of k become rows of n. Its matrices are stacked. */
struct Weight {
    std::size_t n = 0, k = 0;
    std::vector<Matrix> parts;

    Weight() = default;
    explicit Weight(std::vector<Matrix> matrices);
};

/** Activations [rows, width]. */
class Activations {
public:
    explicit Activations(std::size_t width = 0) : width_(width) {}

    /** Grows the memory if needed; the contents stay. */
    void resize(std::size_t rows) {
        if (values_.size() < rows * width_) {
            values_.resize(rows * width_);
        }
    }
    std::size_t width() const { return width_; }
    float *data() { return values_.data(); }
    float *row(std::size_t i) { return values_.data() + i * width_; }

private:
    std::size_t width_;
    std::vector<float> values_;
};

}  // namespace inflight
