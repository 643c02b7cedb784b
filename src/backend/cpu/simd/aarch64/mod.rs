//! Vectors of AArch64.

pub(crate) mod dotprod;
pub(crate) mod neon;
