//! Attention over a sinkcache as an operation of candle: q, k and v go in as the projections give them, before `RoPE`.
//! Nothing is copied: the cache reads candle's storage where it is.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Error, Layout, Result, Shape, Tensor, WithDType, bail};
use sinkcache::{Batch, Cache, CacheConfig, Element, RowsIn, RowsOut, StepTensors};

/// The layers of one text.
pub struct SinkAttention {
    /// candle's operations are called through `&self`; a cache takes one call at a time.
    cache: Mutex<Cache>,
}

impl SinkAttention {
    /// A cache with one sequence.
    pub fn new(config: &CacheConfig) -> Result<Self> {
        Ok(Self { cache: Mutex::new(Cache::new(config).map_err(Error::wrap)?) })
    }

    /// The library's cache, for edits and questions.
    pub fn cache(&self) -> MutexGuard<'_, Cache> {
        // A cache is as it was after any error: a panic elsewhere leaves it usable.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the next tokens of the text to a layer and attends with their queries. q is `[tokens, n_q_heads, dim]`,
    /// k and v `[tokens, n_kv_heads, dim]`; the result is like q.
    pub fn step(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        q.apply_op3_no_bwd(k, v, &Step { attention: self, layer })
    }
}

struct Step<'a> {
    attention: &'a SinkAttention,
    layer: usize,
}

impl Step<'_> {
    fn run<T: WithDType + Element>(&self, inputs: [(&CpuStorage, &Layout); 3]) -> Result<(CpuStorage, Shape)> {
        let [q, k, v] = [rows::<T>(inputs[0])?, rows::<T>(inputs[1])?, rows::<T>(inputs[2])?];
        let shape = inputs[0].1.shape().clone();
        let mut out = vec![T::zero(); shape.elem_count()];
        let tokens = i32::try_from(shape.dims3()?.0).map_err(Error::wrap)?;
        let tensors = StepTensors { q, k, v, out: RowsOut::packed(&mut out), lse: None };
        let layer = u32::try_from(self.layer).map_err(Error::wrap)?;
        // In step: after a forward pass that failed between two layers the next one is refused, not wrong.
        let batch = Batch::new(&[0], std::slice::from_ref(&tokens)).in_step();
        self.attention.cache().step(layer, batch, tensors).map_err(Error::wrap)?;
        Ok((T::to_cpu_storage_owned(out), shape))
    }
}

/// `[tokens, heads, dim]`: tokens and heads may be any distance apart, the dims of a head are contiguous.
fn rows<'a, T: WithDType + Element>((storage, layout): (&'a CpuStorage, &Layout)) -> Result<RowsIn<'a>> {
    let &[token, head, 1] = layout.stride() else {
        bail!("strides {:?}: [tokens, heads, dim] with a stride of 1 between dims is needed", layout.stride());
    };
    let elements = storage.as_slice::<T>()?;
    let [token, head] = [i64::try_from(token).map_err(Error::wrap)?, i64::try_from(head).map_err(Error::wrap)?];
    Ok(RowsIn::strided(&elements[layout.start_offset()..], token, head))
}

impl CustomOp3 for Step<'_> {
    fn name(&self) -> &'static str {
        "sinkcache"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [(q, q_layout), (k, k_layout), (v, v_layout)];
        match q.dtype() {
            DType::F32 => self.run::<f32>(inputs),
            DType::F16 => self.run::<half::f16>(inputs),
            DType::BF16 => self.run::<half::bf16>(inputs),
            other => bail!("q is {other:?}: F32, F16 and BF16 are allowed"),
        }
    }
}
