//! AVX-512 FP16: products of fp16, and softmax of their results.

pub(crate) mod gemm;
pub(crate) mod pack;
pub(crate) mod softmax;
