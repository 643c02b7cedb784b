//! Kernels for AVX-512 FP16: products of halves, and softmax of their results.

pub(crate) mod gemm;
pub(crate) mod pack;
pub(crate) mod softmax;
