// Matrix products by OpenBLAS whose rows do not depend on their neighbours.
#pragma once

#include "matrix.hpp"

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace inflight {

/**
 * y = x W^T in f32. A BLAS picks its kernel by the shape of a product, so that a row's last bits depend on how many rows
 * come with it, and in some kernels on where it stands among them. Requests in a batch must not feel each other: products
 * are done in tiles of a few fixed heights, admitted per shape of W only after a trial has shown, bit for bit, that a row
 * comes out the same at every place of every one of them.
 */
class Gemm {
public:
    /** `threads` of OpenBLAS, for the whole process. */
    explicit Gemm(int threads);

    /**
     * Tries the heights for a shape. Call it when weights are loaded, multiply does it otherwise.
     *
     * Throws std::runtime_error where products are wrong (old OpenBLAS on processors it does not know).
     */
    const std::vector<std::size_t> &prepare(std::size_t n, std::size_t k);

    /** `x` and `y` have room for whole tiles (Activations); rows of `y` beyond `rows` may be overwritten. */
    void multiply(const float *x, std::size_t rows, const Matrix &w, float *y);

    /** Kernel and heights, for a log. */
    std::string describe() const;

private:
    /** Heights of a shape [n, k], descending. */
    std::map<std::pair<std::size_t, std::size_t>, std::vector<std::size_t>> tiles_;
};

}  // namespace inflight
