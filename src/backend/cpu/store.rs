//! Where K and V lie: per layer, then sequence, then head, then slot, dims packed.

use std::marker::PhantomData;

use super::element::Stored;
use crate::config::{Layer, Shape};
use crate::memory::{ALIGN, Buffer, Memory, with_room};
use crate::status::{Error, Result, Status};

/// K and V of all layers, in one block.
#[derive(Debug)]
pub(super) struct Store {
    buffer: Buffer,
    layers: Vec<LayerStore>,
    n_kv_heads: usize,
    /// Bytes of one slot of one head.
    k_slot: usize,
    v_slot: usize,
}

/// Byte offsets of one layer.
#[derive(Clone, Copy, Debug)]
struct LayerStore {
    k: usize,
    v: usize,
    slots: usize,
}

/// Bytes of K and of V of one layer, rounded up to the alignment; `None` on overflow.
fn layer_bytes(shape: &Shape, layer: &Layer, n_seqs: u32) -> Option<[u64; 2]> {
    let slots = layer.ring.slots().checked_mul(n_seqs.into())?.checked_mul(shape.n_kv_heads as u64)?;
    let bytes = |dim: usize| {
        let bytes = slots.checked_mul((dim * shape.kv_dtype.size()) as u64)?;
        bytes.checked_next_multiple_of(ALIGN as u64)
    };
    Some([bytes(shape.head_dim)?, bytes(shape.head_dim_v)?])
}

fn too_large() -> Error {
    Error::new(Status::OutOfMemory, "K and V of this configuration exceed the address space")
}

impl Store {
    /// Bytes of K and V.
    pub fn bytes<'a>(shape: &Shape, mut layers: impl Iterator<Item = &'a Layer>, n_seqs: u32) -> Result<u64> {
        layers
            .try_fold(0_u64, |sum, layer| {
                let [k, v] = layer_bytes(shape, layer, n_seqs)?;
                sum.checked_add(k)?.checked_add(v)
            })
            .ok_or_else(too_large)
    }

    pub fn new<'a>(
        shape: &Shape,
        layers: impl Iterator<Item = &'a Layer> + Clone,
        n_seqs: u32,
        memory: Memory,
    ) -> Result<Self> {
        let total = Self::bytes(shape, layers.clone(), n_seqs)?;
        // Every offset below is at most `total`, which fits here.
        let total = usize::try_from(total).ok().filter(|&t| isize::try_from(t).is_ok()).ok_or_else(too_large)?;
        let mut offsets = with_room(layers.clone().count(), "layers")?;
        let mut at = 0;
        for layer in layers {
            let [k, v] = layer_bytes(shape, layer, n_seqs).ok_or_else(too_large)?.map(|b| b as usize);
            offsets.push(LayerStore { k: at, v: at + k, slots: layer.ring.slots() as usize });
            at += k + v;
        }
        let size = shape.kv_dtype.size();
        Ok(Self {
            buffer: Buffer::new(memory, total, "K and V")?,
            layers: offsets,
            n_kv_heads: shape.n_kv_heads,
            k_slot: shape.head_dim * size,
            v_slot: shape.head_dim_v * size,
        })
    }

    /// The rows of one sequence in one layer.
    pub fn rows<T: Stored>(&self, layer: usize, seq: usize) -> Rows<'_, T> {
        let l = self.layers[layer];
        let head_slots = seq * self.n_kv_heads * l.slots;
        let base = self.buffer.as_ptr();
        let size = size_of::<T>();
        Rows {
            k: base.wrapping_add(l.k + head_slots * self.k_slot).cast(),
            v: base.wrapping_add(l.v + head_slots * self.v_slot).cast(),
            slots: l.slots,
            n_heads: self.n_kv_heads,
            dim: self.k_slot / size,
            dim_v: self.v_slot / size,
            life: PhantomData,
        }
    }

    /// Copies the first `slots` slots of every head of `src` over those of `dst`.
    pub fn copy_sequence(&self, layer: usize, src: usize, dst: usize, slots: u64) {
        let l = self.layers[layer];
        assert!(slots <= l.slots as u64 && src != dst);
        for (base, slot) in [(l.k, self.k_slot), (l.v, self.v_slot)] {
            for head in 0..self.n_kv_heads {
                let at = |seq: usize| {
                    self.buffer.as_ptr().wrapping_add(base + (seq * self.n_kv_heads + head) * l.slots * slot)
                };
                // SAFETY: within the block by the size it was made with; different sequences do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(at(src), at(dst), slots as usize * slot) };
            }
        }
    }
}

/// Stored rows of one sequence in one layer.
#[derive(Debug)]
pub(super) struct Rows<'a, T> {
    k: *mut T,
    v: *mut T,
    slots: usize,
    n_heads: usize,
    dim: usize,
    dim_v: usize,
    life: PhantomData<&'a Store>,
}

impl<T: Stored> Rows<'_, T> {
    fn check(&self, head: usize, slot: u64, n: u64) -> usize {
        assert!(head < self.n_heads && slot + n <= self.slots as u64, "slots {slot}+{n} of head {head}");
        head * self.slots + slot as usize
    }

    /// K and V of `n` consecutive slots.
    ///
    /// # Safety
    /// Nobody may write them meanwhile.
    pub unsafe fn read(&self, head: usize, slot: u64, n: u64) -> (&[T], &[T]) {
        let at = self.check(head, slot, n);
        let n = n as usize;
        // SAFETY: in range by the check; the caller's contract.
        unsafe {
            (
                std::slice::from_raw_parts(self.k.add(at * self.dim), n * self.dim),
                std::slice::from_raw_parts(self.v.add(at * self.dim_v), n * self.dim_v),
            )
        }
    }

    /// K and V of one slot, to be written.
    ///
    /// # Safety
    /// Nobody else may read or write them meanwhile.
    #[expect(clippy::mut_from_ref, reason = "heads and slots are divided among threads by the caller")]
    pub unsafe fn write(&self, head: usize, slot: u64) -> (&mut [T], &mut [T]) {
        let at = self.check(head, slot, 1);
        // SAFETY: in range by the check; the caller's contract.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.k.add(at * self.dim), self.dim),
                std::slice::from_raw_parts_mut(self.v.add(at * self.dim_v), self.dim_v),
            )
        }
    }
}
