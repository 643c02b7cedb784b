//! The kernels of a cache, loaded.

use std::ffi::CStr;

use super::driver::{Current, Kernel, Module};
use super::geometry::{THREADS, chunk_shared, decode_shared, decode_warps, step_shared};
use super::jit::load;
use super::program::{COMMON, DIMS, FAST, FAST_ARCH, MOST_GROUP, Variant};
use crate::config::{DType, Layer, Shape};
use crate::status::Result;

/// Largest y and z of a grid.
pub const MOST: u64 = 65_535;

/// The kernels that run for every configuration.
#[derive(Debug)]
pub struct Common {
    module: Module,
    pub append: Kernel,
    pub attend: Kernel,
    pub edit: Kernel,
    pub fork: Kernel,
    pub stage: Kernel,
}

impl Common {
    pub fn load(current: &Current<'_>, arch: u32, disk: bool) -> Result<Self> {
        let module = load(current, COMMON, arch, &[], disk)?;
        let kernel = |name: &'static CStr| module.kernel(name, THREADS, 48 * 1024);
        let kernels = (|| {
            Ok((
                kernel(c"skc_append")?,
                kernel(c"skc_attend_generic")?,
                kernel(c"skc_edit")?,
                kernel(c"skc_fork_copy")?,
                kernel(c"skc_stage")?,
            ))
        })();
        match kernels {
            Ok((append, attend, edit, fork, stage)) => Ok(Self { module, append, attend, edit, fork, stage }),
            Err(error) => {
                module.unload(current);
                Err(error)
            }
        }
    }

    pub fn unload(self, current: &Current<'_>) {
        self.module.unload(current);
    }
}

/// What the fast kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    pub dim: u32,
    pub group: u32,
    pub dtype: DType,
    /// Bit 0: softcap, bit 1: `ALiBi`.
    pub transform: u32,
}

impl Special {
    /// The specialisation of a layer; `None` where only the kernels for every shape will do.
    pub fn of(shape: &Shape, layer: &Layer, arch: u32, shared: u32) -> Option<Self> {
        let (dim, group) = (shape.head_dim as u32, shape.group as u32);
        let fits = shape.head_dim == shape.head_dim_v
            && DIMS.contains(&(shape.head_dim as u32))
            && shape.group <= MOST_GROUP as usize
            && shape.kv_dtype != DType::F32
            && shape.in_dtype == shape.kv_dtype
            && shape.n_kv_heads as u64 <= MOST
            // Slots are counted in 32 bits there.
            && layer.ring.slots() < 1 << 31
            && arch >= FAST_ARCH
            && step_shared(dim, group).max(chunk_shared(dim)) <= shared;
        fits.then(|| Self {
            dim,
            group,
            dtype: shape.kv_dtype,
            transform: u32::from(layer.softcap > 0.0) | u32::from(!layer.alibi_slopes.is_empty()) << 1,
        })
    }

    /// As the compiler is told.
    pub fn variant(&self) -> Variant {
        Variant { dim: self.dim, group: self.group, dtype: self.dtype as u32, transform: self.transform }
    }
}

/// A kernel and how many of its blocks a multiprocessor holds at once.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    pub kernel: Kernel,
    pub at_once: u32,
}

/// The kernels of one specialisation.
#[derive(Debug)]
pub struct Fast {
    pub special: Special,
    module: Module,
    pub decode: Split,
    pub step: Split,
    pub chunk: Kernel,
}

impl Fast {
    pub fn load(current: &Current<'_>, arch: u32, special: Special, disk: bool) -> Result<Self> {
        let module = load(current, FAST, arch, &special.variant().macros(), disk)?;
        let dim = special.dim;
        let split = |name: &'static CStr, shared: u32| {
            let kernel = module.kernel(name, 32 * decode_warps(dim), shared)?;
            Ok(Split { kernel, at_once: module.blocks_at_once(&kernel, shared)?.max(1) })
        };
        let kernels = (|| {
            Ok((
                split(c"skc_attend_decode", decode_shared(dim))?,
                split(c"skc_step_decode", step_shared(dim, special.group))?,
                module.kernel(c"skc_attend_chunk", THREADS, chunk_shared(dim))?,
            ))
        })();
        match kernels {
            Ok((decode, step, chunk)) => Ok(Self { special, module, decode, step, chunk }),
            Err(error) => {
                module.unload(current);
                Err(error)
            }
        }
    }

    pub fn unload(self, current: &Current<'_>) {
        self.module.unload(current);
    }
}
