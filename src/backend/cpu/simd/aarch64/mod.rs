//! Vectors of AArch64.

pub(crate) mod neon;
