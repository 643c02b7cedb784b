//! AMX: products of bf16 tiles, and softmax of their results.

pub(crate) mod fused_softmax;
pub(crate) mod gemm;
pub(crate) mod pack;
pub(crate) mod softmax;
