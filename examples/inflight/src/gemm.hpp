// Batch-invariant matrix products with weights as the file stores them: a row of the result does not depend on others.
#pragma once

#include "float_kernels.hpp"
#include "matrix.hpp"
#include "q8_kernels.hpp"
#include "thread_team.hpp"

#include <cstddef>
#include <set>
#include <string>
#include <vector>

namespace inflight {

/**
 * y = x W^T in f32. A row's last bits must not depend on the rest of its batch, nor on the threads. So every element is
 * one dot product, whatever is computed beside it:
 *
 * - f32, f16 and bf16: FloatKernels, with activations in f32.
 * - q8_0 and q4_0: Q8Kernels, with activations in q8_0.
 * - Other types, and all types on processors without such kernels: ggml's `vec_dot` for one row and one column, with
 *   activations converted to what it takes. A block of weights stays in the cache of the processor for all rows.
 *
 * ggml's ggml_mul_mat is not used, nor are the types of its buffers that repack weights: they choose other kernels for
 * two rows and more, which add in another order.
 */
class Gemm {
public:
    /** Kernels of this processor; NULL = none. */
    struct Kernels {
        const FloatKernels *floats;
        const Q8Kernels *integers;
    };

    /** The team must outlive it. */
    Gemm(ThreadTeam &team, Kernels kernels);
    explicit Gemm(ThreadTeam &team) : Gemm(team, {*float_kernels(), q8_kernels()}) {}

    /** x [rows, k], y [rows, n] */
    void multiply(const float *x, std::size_t rows, const Weight &w, float *y);

    /** How products with these types are computed, for a log. */
    std::string describe(const std::set<ggml_type> &types) const;

private:
    using FloatKernel = void (*)(const FloatProduct &);
    using IntegerKernel = void (*)(const Q8Product &);
    /** Rows of x in the type that a dot product takes. */
    struct Converted {
        ggml_type type;
        std::size_t row_bytes;
        std::vector<unsigned char> rows;
    };
    /** A product with one of a weight's matrices. */
    struct Product;

    ThreadTeam &team_;
    Kernels kernels_;
    /** One for each type that was needed so far. */
    std::vector<Converted> converted_;
    /** Rows of x as integer kernels take them. */
    std::vector<unsigned char> packed_;

    FloatKernel float_kernel(ggml_type type) const;
    IntegerKernel integer_kernel(ggml_type type) const;
    void multiply_integers(const Product &product, IntegerKernel kernel);
    void multiply_dots(const Product &product);
    const Converted &convert(ggml_type type, const float *x, std::size_t rows, std::size_t k);
    void multiply(const Product &product);
};

}  // namespace inflight
