// Batch-invariant matrix products by OpenBLAS: a row of the result does not depend on the other rows.
#pragma once

#include "matrix.hpp"

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace inflight {

/**
 * y = x W^T in f32. A BLAS chooses its kernel by the shape of a product. So a row's last bits depend on the number of
 * rows, and in some kernels on its index. The result of a request must not depend on the rest of its batch. Therefore
 * products are computed in tiles of a few fixed heights. A height is used for a shape of W only if a test has shown
 * that every row of the tile gets the same bits.
 */
class Gemm {
public:
    /** `threads` of OpenBLAS, for the whole process. */
    explicit Gemm(int threads);

    /**
     * Finds the heights for a shape. Called when weights are loaded; otherwise the first product does it.
     *
     * Throws std::runtime_error if products are wrong, as with an old OpenBLAS on a processor that it does not know.
     */
    const std::vector<std::size_t> &prepare(std::size_t n, std::size_t k);

    /** `x` and `y` are padded to whole tiles (Activations); the padding of `y` may be overwritten. */
    void multiply(const float *x, std::size_t rows, const Matrix &w, float *y);

    /** Kernel and heights, for a log. */
    std::string describe() const;

private:
    /** Heights for each shape [n, k], descending. */
    std::map<std::pair<std::size_t, std::size_t>, std::vector<std::size_t>> tiles_;
};

}  // namespace inflight
