//! The kernels of a cache, loaded.

use std::ffi::CStr;

use super::driver::{CurrentContext, DEFAULT_SHARED_LIMIT, Kernel, Module};
use super::jit::program::{COMMON, DIMS, FAST, FAST_ARCH, MAX_GROUP, TYPES, Variant};
use super::jit::{Compilation, load};
use super::launch_config::{
    CLUSTERS, THREADS, chunk_shared, cluster_merge_fits, decode_shared, decode_warps, step_shared,
};
use crate::config::{Layer, Shape, StorageType};
use crate::error::Result;

/// The largest y and z of a grid.
pub const MAX_GRID_YZ: u64 = 65_535;

/// A loaded program and its kernels.
#[derive(Debug)]
pub struct Loaded<K> {
    module: Module,
    pub kernels: K,
}

impl<K> Loaded<K> {
    /// `find` gets the kernels out of the module, which is unloaded where that fails.
    fn new(current: &CurrentContext<'_>, module: Module, find: impl FnOnce(&Module) -> Result<K>) -> Result<Self> {
        match find(&module) {
            Ok(kernels) => Ok(Self { module, kernels }),
            Err(error) => {
                module.unload(current);
                Err(error)
            }
        }
    }

    /// Its context must be current and its kernels idle.
    pub fn unload(self, current: &CurrentContext<'_>) {
        self.module.unload(current);
    }
}

/// The kernels that run for every configuration.
#[derive(Debug)]
pub struct CommonKernels {
    pub append: Kernel,
    pub append_quantised: Kernel,
    pub attend: Kernel,
    pub edit: Kernel,
    pub fork: Kernel,
    pub move_rows: Kernel,
    pub stage: Kernel,
}

/// Loads the kernels that run for every configuration. `disk_cache`: whether compiled kernels are kept on disk.
pub fn load_common(current: &CurrentContext<'_>, arch: u32, disk_cache: bool) -> Result<Loaded<CommonKernels>> {
    let module = load(current, &Compilation { source: COMMON, arch, macros: &[] }, disk_cache)?;
    Loaded::new(current, module, |module| {
        let kernel = |name: &'static CStr| module.kernel(name, THREADS, DEFAULT_SHARED_LIMIT);
        Ok(CommonKernels {
            append: kernel(c"skc_append")?,
            append_quantised: kernel(c"skc_append_quantised")?,
            attend: kernel(c"skc_attend_generic")?,
            edit: kernel(c"skc_edit")?,
            fork: kernel(c"skc_fork_copy")?,
            move_rows: kernel(c"skc_move_rows")?,
            stage: kernel(c"skc_stage")?,
        })
    })
}

/// The number in [`TYPES`] of a pair of storage types, if it has one.
pub fn type_of(k: StorageType, v: StorageType) -> Option<u32> {
    let (k_number, v_number) = (k as u32, v as u32);
    let number = match (k.is_quantised(), v.is_quantised()) {
        (true, true) => 10 * k_number + v_number,
        (false, false) if k == v => k_number,
        _ => return None,
    };
    TYPES.iter().map(|t| t.1).find(|&t| t == number)
}

/// The variant of the specialised kernels that fits a layer; `None` where only the kernels for every shape do.
/// `shared_limit`: bytes of shared memory that a block may use.
pub fn variant_of(shape: &Shape, layer: &Layer, arch: u32, shared_limit: u32) -> Option<Variant> {
    let (dim, group) = (shape.head_dim as u32, shape.group as u32);
    let dtype = type_of(shape.k_type, shape.v_type)?;
    let fits = shape.head_dim == shape.head_dim_v
        && DIMS.contains(&dim)
        && group <= MAX_GROUP
        // Those of numbers take rows as they are stored.
        && shape.k_type.element().is_none_or(|stored| stored == shape.in_dtype)
        && shape.n_kv_heads as u64 <= MAX_GRID_YZ
        // These kernels compute slots in 32 bits.
        && layer.ring.slots() < 1 << 31
        && arch >= FAST_ARCH
        && step_shared(dtype, dim, group).max(chunk_shared(dtype, dim)) <= shared_limit;
    fits.then(|| Variant {
        dim,
        group,
        dtype,
        features: u32::from(layer.softcap > 0.0)
            | u32::from(!layer.alibi_slopes.is_empty()) << 1
            | u32::from(layer.ring.max_segments > 0) << 2,
    })
}

/// A kernel that splits keys among blocks, and its occupancy.
#[derive(Clone, Copy, Debug)]
pub struct SplitKernel {
    pub kernel: Kernel,
    pub blocks_per_multiprocessor: u32,
    /// Blocks that run at the same time, by the clusters of [`CLUSTERS`] that they form; 0 where none do.
    pub clustered_blocks: [u32; CLUSTERS.len()],
}

/// The kernels of one variant.
#[derive(Debug)]
pub struct VariantKernels {
    pub variant: Variant,
    pub decode: SplitKernel,
    pub step: SplitKernel,
    pub chunk: SplitKernel,
}

/// Loads the kernels of a variant.
pub fn load_variant(
    current: &CurrentContext<'_>,
    arch: u32,
    variant: Variant,
    disk_cache: bool,
) -> Result<Loaded<VariantKernels>> {
    let module = load(current, &Compilation { source: FAST, arch, macros: &variant.macros() }, disk_cache)?;
    let dim = variant.dim;
    Loaded::new(current, module, |module| {
        let split = |name: &'static CStr, threads: u32, shared_bytes: u32| {
            let kernel = module.kernel(name, threads, shared_bytes)?;
            let blocks_per_multiprocessor = module.blocks_per_multiprocessor(&kernel, shared_bytes)?.max(1);
            Ok(SplitKernel { kernel, blocks_per_multiprocessor, clustered_blocks: [0; CLUSTERS.len()] })
        };
        let decode_threads = 32 * decode_warps(dim);
        let chunk_bytes = chunk_shared(variant.dtype, dim);
        let mut chunk = split(c"skc_attend_chunk", THREADS, chunk_bytes)?;
        if current.context().has_clusters() && cluster_merge_fits(variant.dtype, dim) {
            chunk.clustered_blocks =
                CLUSTERS.map(|blocks| blocks * module.resident_clusters(&chunk.kernel, chunk_bytes, blocks));
        }
        Ok(VariantKernels {
            variant,
            decode: split(c"skc_attend_decode", decode_threads, decode_shared(variant.dtype, dim))?,
            step: split(c"skc_step_decode", decode_threads, step_shared(variant.dtype, dim, variant.group))?,
            chunk,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_the_numbers_of_the_abi() {
        let (f16, bf16) = (StorageType::F16 as u32, StorageType::Bf16 as u32);
        let (q8, q4) = (StorageType::Q8 as u32, StorageType::Q4 as u32);
        let numbers = TYPES.map(|t| t.1);
        assert_eq!(numbers, [f16, bf16, 10 * q8 + q8, 10 * q8 + q4, 10 * q4 + q4]);
        assert_eq!(type_of(StorageType::Q8, StorageType::Q4), Some(45));
        assert_eq!(type_of(StorageType::F16, StorageType::F16), Some(2));
        for (k, v) in [(StorageType::Q4, StorageType::Q8), (StorageType::F16, StorageType::Q8)] {
            assert_eq!(type_of(k, v), None);
        }
    }
}
