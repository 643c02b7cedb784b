//! The types that K and V are stored in, as the definition rounds to them: numbers one by one, quantised rows as a
//! whole. Written from the definition (docs/semantics.md), not from the library's code.

use half::{bf16, f16};
use sinkcache::{CacheConfig, DType, StorageType};

/// The types of K and of V.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KvTypes {
    pub k: StorageType,
    pub v: StorageType,
}

impl std::fmt::Debug for KvTypes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}/{:?}", self.k, self.v)
    }
}

impl From<StorageType> for KvTypes {
    fn from(both: StorageType) -> Self {
        Self { k: both, v: both }
    }
}

impl From<DType> for KvTypes {
    fn from(both: DType) -> Self {
        StorageType::from(both).into()
    }
}

impl KvTypes {
    pub const fn new(k: StorageType, v: StorageType) -> Self {
        Self { k, v }
    }

    /// Those of a cache.
    pub fn of(config: &CacheConfig) -> Self {
        Self { k: config.k_dtype.unwrap_or(config.kv_dtype), v: config.v_dtype.unwrap_or(config.kv_dtype) }
    }

    /// The settings of a cache with these types.
    pub fn config(self, base: CacheConfig) -> CacheConfig {
        CacheConfig { k_dtype: Some(self.k), v_dtype: Some(self.v), ..base }
    }

    /// What queries, probabilities and results are rounded to.
    pub fn narrow(self) -> DType {
        match self.k {
            StorageType::F32 => DType::F32,
            StorageType::Bf16 => DType::Bf16,
            StorageType::F16 | StorageType::Q8 | StorageType::Q4 => DType::F16,
        }
    }

    /// A head's key after RoPE, as it takes effect.
    pub fn key(self, row: &[f32]) -> Vec<f32> {
        stored(self.k, &self.turned(row))
    }

    /// A head's value, as it takes effect.
    pub fn value(self, row: &[f32]) -> Vec<f32> {
        stored(self.v, row)
    }

    /// A head's query after RoPE, as it is multiplied.
    pub fn query(self, row: &[f32]) -> Vec<f32> {
        self.turned(row).into_iter().map(|x| round(self.narrow(), x)).collect()
    }

    fn turned(self, row: &[f32]) -> Vec<f32> {
        if matches!(self.k, StorageType::Q8 | StorageType::Q4) { hadamard(row) } else { row.to_vec() }
    }
}

/// A number in the given type and back.
pub fn round(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

/// A row as it takes effect once it is stored.
pub fn stored(storage: StorageType, row: &[f32]) -> Vec<f32> {
    match storage {
        StorageType::F32 => row.to_vec(),
        StorageType::F16 => row.iter().map(|&x| round(DType::F16, x)).collect(),
        StorageType::Bf16 => row.iter().map(|&x| round(DType::Bf16, x)).collect(),
        StorageType::Q8 => {
            let most = row.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            quantised(row, most / 127.0, -127.0, 127.0)
        }
        StorageType::Q4 => {
            let of_group = |group: &[f32]| {
                let most = group.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                let first = *group.iter().find(|x| x.abs() == most || x.is_nan()).unwrap();
                quantised(group, first / -8.0, -8.0, 7.0)
            };
            row.chunks(32).flat_map(of_group).collect()
        }
    }
}

/// Codes times scale.
fn quantised(row: &[f32], scale: f32, low: f32, high: f32) -> Vec<f32> {
    let scale = round(DType::Bf16, scale);
    let finite = scale.is_finite() && row.iter().all(|x| x.is_finite());
    let code = |x: f32| if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even().clamp(low, high) };
    row.iter().map(|&x| if finite { code(x) * scale } else { f32::NAN }).collect()
}

/// The orthonormal Hadamard transform of each block of dims.
pub fn hadamard(row: &[f32]) -> Vec<f32> {
    let n = 1 << row.len().trailing_zeros();
    let mut x = row.to_vec();
    for block in x.chunks_mut(n) {
        let mut h = 1;
        while h < n {
            for i in (0..n).filter(|i| i & h == 0) {
                (block[i], block[i + h]) = (block[i] + block[i + h], block[i] - block[i + h]);
            }
            h *= 2;
        }
        block.iter_mut().for_each(|x| *x *= (n as f64).powf(-0.5) as f32);
    }
    x
}
