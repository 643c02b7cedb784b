// Products with weights of f32, f16 and bf16, and SiLU, by vector instructions that are chosen when the program runs.
#pragma once

#include <stddef.h>

namespace inflight {

/** y[i, j] = sum of x[i, c] w[j, c] over c. Strides are those of rows, in elements; that of w in bytes. */
struct FloatProduct {
    const float *x;
    size_t rows, x_stride;
    const unsigned char *w;
    size_t n, w_stride;
    size_t k;
    float *y;
    size_t y_stride;
};

/**
 * The kernels of one instruction set. Every element of y is one chain of multiply-adds in each lane of a vector, then
 * one fixed tree over the lanes: its bits depend on its row of x and its row of w, and on nothing else. ggml's own
 * products for several rows are not like this: they add in another order than its products for one row.
 *
 * A vector of w is loaded and widened once for up to eight rows of x.
 */
struct FloatKernels {
    const char *name;
    void (*f32)(const FloatProduct &);
    void (*f16)(const FloatProduct &);
    void (*bf16)(const FloatProduct &);
    /**
     * out[i] = gate[i] / (1 + exp(-gate[i])) * up[i], for n elements. Relative to the exact value within 5e-7, and where gates
     * are below -87 at most 1e-38 |gate[i] up[i]| from zero. Bits depend on one element alone.
     */
    void (*silu_times)(const float *gate, const float *up, float *out, size_t n);
};

/** Those that this processor can run, the best first, then NULL. Elsewhere ggml's dot product does their work. */
const FloatKernels *const *float_kernels();

}  // namespace inflight
