//! The kernels of a cache, loaded.

use std::ffi::CStr;

use super::driver::{Current, Kernel, Module};
use super::jit::load;
use super::jit::program::{COMMON, DIMS, FAST, FAST_ARCH, MOST_GROUP, Variant};
use super::launch_config::{THREADS, chunk_shared, decode_shared, decode_warps, step_shared};
use crate::config::{DType, Layer, Shape};
use crate::error::Result;

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

/// The variant of the fast kernels that a layer takes; `None` where only the kernels for every shape will do.
pub fn variant_of(shape: &Shape, layer: &Layer, arch: u32, shared: u32) -> Option<Variant> {
    let (dim, group) = (shape.head_dim as u32, shape.group as u32);
    let fits = shape.head_dim == shape.head_dim_v
        && DIMS.contains(&dim)
        && group <= MOST_GROUP
        && shape.kv_dtype != DType::F32
        && shape.in_dtype == shape.kv_dtype
        && shape.n_kv_heads as u64 <= MOST
        // Slots are counted in 32 bits there.
        && layer.ring.slots() < 1 << 31
        && arch >= FAST_ARCH
        && step_shared(dim, group).max(chunk_shared(dim)) <= shared;
    fits.then(|| Variant {
        dim,
        group,
        dtype: shape.kv_dtype as u32,
        transform: u32::from(layer.softcap > 0.0) | u32::from(!layer.alibi_slopes.is_empty()) << 1,
    })
}

/// A kernel and how many of its blocks a multiprocessor holds at once.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    pub kernel: Kernel,
    pub at_once: u32,
}

/// The kernels of one variant.
#[derive(Debug)]
pub struct Fast {
    pub variant: Variant,
    module: Module,
    pub decode: Split,
    pub step: Split,
    pub chunk: Kernel,
}

impl Fast {
    pub fn load(current: &Current<'_>, arch: u32, variant: Variant, disk: bool) -> Result<Self> {
        let module = load(current, FAST, arch, &variant.macros(), disk)?;
        let dim = variant.dim;
        let split = |name: &'static CStr, shared: u32| {
            let kernel = module.kernel(name, 32 * decode_warps(dim), shared)?;
            Ok(Split { kernel, at_once: module.blocks_at_once(&kernel, shared)?.max(1) })
        };
        let kernels = (|| {
            Ok((
                split(c"skc_attend_decode", decode_shared(dim))?,
                split(c"skc_step_decode", step_shared(dim, variant.group))?,
                module.kernel(c"skc_attend_chunk", THREADS, chunk_shared(dim))?,
            ))
        })();
        match kernels {
            Ok((decode, step, chunk)) => Ok(Self { variant, module, decode, step, chunk }),
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
