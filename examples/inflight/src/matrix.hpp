// Rows of f32 in host memory: weights, and activations that are padded to whole tiles.
#pragma once

#include <cstddef>
#include <vector>

namespace inflight {

/** A weight W [n, k] of y = x W^T: rows of k become rows of n. */
struct Matrix {
    std::size_t n = 0, k = 0;
    std::vector<float> values;

    const float *row(std::size_t i) const { return values.data() + i * k; }
};

/** Activations [rows, width], padded to whole tiles of Gemm, so that it can compute the last tile without a copy. */
class Activations {
public:
    /** Rows are padded to a multiple of this: Gemm may read and write the padding. */
    static constexpr std::size_t TILE = 64;

    explicit Activations(std::size_t width = 0) : width_(width) {}

    /** Grows the memory if needed; the contents stay. */
    void resize(std::size_t rows) {
        const std::size_t padded = (rows + TILE - 1) / TILE * TILE * width_;
        if (values_.size() < padded) {
            values_.resize(padded);
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
