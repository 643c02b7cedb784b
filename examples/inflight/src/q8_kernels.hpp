// Products with weights of q8_0 and q4_0, by integer instructions of AVX-512 (VNNI).
#pragma once

#include <stddef.h>

namespace inflight {

/**
 * y[i, j] = sum of x[i, c] w[j, c] over c. Rows of x are packed by `pack`. Strides are those of rows: of x and w in
 * bytes, of y in elements.
 */
struct Q8Product {
    const unsigned char *x;
    size_t rows, x_stride;
    const unsigned char *w;
    size_t n, w_stride;
    size_t k;
    float *y;
    size_t y_stride;
};

/**
 * As with FloatKernels, the bits of an element depend on its two rows alone. 64 columns at a time: the exact sum of the
 * products of 8-bit integers in 16 lanes, times the scales of both blocks, is added to 16 sums of f32; at the end one
 * fixed tree adds these. A block of w is unpacked once for up to eight rows of x.
 */
struct Q8Kernels {
    const char *name;
    /** Bytes of a packed row of `k` columns, a multiple of 32. */
    size_t (*packed_bytes)(size_t k);
    /** Packs a row of q8_0. */
    void (*pack)(const unsigned char *q8_0, size_t k, unsigned char *packed);
    void (*q8_0)(const Q8Product &);
    void (*q4_0)(const Q8Product &);
};

/** NULL if this processor lacks the instructions: ggml's dot product then does their work. */
const Q8Kernels *q8_kernels();

}  // namespace inflight
