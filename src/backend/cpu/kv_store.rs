//! K and V in memory: by layer, sequence, KV head and slot.
//!
//! The slots of sinks and of the ring each begin and end at a multiple of [`SLOT_ALIGN`]. Within a head, K lies in
//! groups of [`KEY_GROUP`] slots: f16 as `[dim][slot]`, bf16 as `[dim / 2][slot][2]` (a vector holds one dim, or a pair
//! of dims, of 16 keys: no sums across lanes), f32 in rows. V lies in rows padded to 16 dims; bf16 in groups of 32
//! slots as `[dim / 16][slot / 2][dim % 16][2]`. AMX multiplies both bf16 layouts without conversion. Quantised rows
//! lie as [`CodeLayout`] says.

use std::marker::PhantomData;

use super::code_store::CodeBlock;
use super::element::Stored;
use super::kv_layout::{CodeLayout, KEY_GROUP, SLOT_ALIGN, bf16_pair_index, padded_dim, physical_slots, ring_begin};
use super::simd::transpose::{GroupRows, TransposeFn};
use crate::config::{DType, Layer, Shape, StorageType, Which};
use crate::error::{Error, Result, Status};
use crate::memory::{ALIGN, Buffer, Memory, with_room};
use crate::ring::Ring;

/// K and V of all layers, in one block.
#[derive(Debug)]
pub(super) struct KvStore {
    buffer: Buffer,
    layers: Vec<LayerOffsets>,
    n_kv_heads: usize,
    /// Rows of K and of V.
    k_rows: RowLayout,
    v_rows: RowLayout,
}

/// Rows of K or of V as they are stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowLayout {
    pub storage: StorageType,
    /// Dims, of values padded.
    pub dim: usize,
    /// Bytes of one slot of one head, on average over a block of [`SLOT_ALIGN`] slots.
    pub slot_bytes: usize,
}

impl RowLayout {
    /// Those of K and of V.
    pub fn of(shape: &Shape) -> [Self; 2] {
        [(shape.k_type, shape.head_dim), (shape.v_type, padded_dim(shape.head_dim_v))].map(|(storage, dim)| Self {
            storage,
            dim,
            slot_bytes: storage.row_bytes(dim),
        })
    }
}

/// Byte offsets of one layer.
#[derive(Clone, Copy, Debug)]
struct LayerOffsets {
    k: usize,
    v: usize,
    slots: usize,
}

/// Bytes of K and of V of one layer, rounded up to the alignment; `None` on overflow.
fn layer_bytes(shape: &Shape, layer: &Layer, n_seqs: u32) -> Option<[u64; 2]> {
    let slots = physical_slots(&layer.ring).checked_mul(n_seqs.into())?.checked_mul(shape.n_kv_heads as u64)?;
    let [k, v] = RowLayout::of(shape)
        .map(|rows| slots.checked_mul(rows.slot_bytes as u64)?.checked_next_multiple_of(ALIGN as u64));
    Some([k?, v?])
}

fn too_large() -> Error {
    Error::new(Status::OutOfMemory, "K and V of this configuration exceed the address space")
}

impl KvStore {
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
        // Every offset below is at most `total`, which fits a usize.
        let total = usize::try_from(total).ok().filter(|&t| isize::try_from(t).is_ok()).ok_or_else(too_large)?;
        let mut offsets = with_room(layers.clone().count(), "layers")?;
        let mut at = 0;
        for layer in layers {
            let [k, v] = layer_bytes(shape, layer, n_seqs).ok_or_else(too_large)?.map(|b| b as usize);
            offsets.push(LayerOffsets { k: at, v: at + k, slots: physical_slots(&layer.ring) as usize });
            at += k + v;
        }
        let [k_rows, v_rows] = RowLayout::of(shape);
        Ok(Self {
            // Kernels read whole groups and mask what is not visible: masked slots may be stale, but must be
            // initialised.
            buffer: Buffer::new(memory, total, "K and V")?,
            layers: offsets,
            n_kv_heads: shape.n_kv_heads,
            k_rows,
            v_rows,
        })
    }

    /// The slots of one sequence in one layer.
    pub fn slots(&self, layer: usize, seq: usize) -> Slots<'_> {
        let l = self.layers[layer];
        let head_slots = seq * self.n_kv_heads * l.slots;
        let base = self.buffer.as_ptr();
        Slots {
            k: base.wrapping_add(l.k + head_slots * self.k_rows.slot_bytes),
            v: base.wrapping_add(l.v + head_slots * self.v_rows.slot_bytes),
            slots: l.slots,
            n_heads: self.n_kv_heads,
            k_rows: self.k_rows,
            v_rows: self.v_rows,
            life: PhantomData,
        }
    }

    pub fn n_kv_heads(&self) -> usize {
        self.n_kv_heads
    }

    /// The first byte of K or V of a head, which has at least `slots` slots, and how its rows are stored.
    pub fn head(&self, layer: usize, seq: usize, which: Which, head: usize, slots: usize) -> (*mut u8, RowLayout) {
        let of = self.slots(layer, seq);
        let at = of.check(head, 0, slots as u64);
        let (base, rows) = match which {
            Which::K => (of.k, of.k_rows),
            Which::V => (of.v, of.v_rows),
        };
        (base.wrapping_add(at * rows.slot_bytes), rows)
    }

    /// All bytes of K and V.
    #[cfg(test)]
    #[expect(clippy::mut_from_ref, reason = "a test has it alone")]
    pub fn contents(&self) -> &mut [u8] {
        let last = self.layers.last().map_or(0, |l| l.v + self.n_kv_heads * l.slots * self.v_rows.slot_bytes);
        // SAFETY: within the block of a cache of one sequence; initialised.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.as_ptr(), last) }
    }

    /// Copies the used slots of every head of `src` over those of `dst`: the first ones of both regions.
    pub fn copy_sequence(&self, layer: usize, ring: &Ring, (src, dst): (usize, usize), [fixed, in_ring]: [u64; 2]) {
        self.copy_slots(layer, (src, dst), 0, fixed);
        self.copy_slots(layer, (src, dst), ring_begin(ring), in_ring);
    }

    /// Copies `n` physical slots from `first` on, a multiple of [`SLOT_ALIGN`].
    fn copy_slots(&self, layer: usize, (src, dst): (usize, usize), first: u64, n: u64) {
        let l = self.layers[layer];
        // Whole groups: the further slots that are copied are not visible.
        let (first, n) = (first as usize, n.next_multiple_of(SLOT_ALIGN) as usize);
        assert!(first + n <= l.slots && src != dst, "{first}+{n} slots of {}, {src} to {dst}", l.slots);
        for (base, slot) in [(l.k, self.k_rows.slot_bytes), (l.v, self.v_rows.slot_bytes)] {
            for head in 0..self.n_kv_heads {
                let at = |seq: usize| {
                    let head = (seq * self.n_kv_heads + head) * l.slots;
                    self.buffer.as_ptr().wrapping_add(base + (head + first) * slot)
                };
                // SAFETY: the offsets are within the block, which was allocated for all layers, sequences and heads;
                // sequences do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(at(src), at(dst), n * slot) };
            }
        }
    }
}

/// Slots of one sequence in one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots<'a> {
    k: *mut u8,
    v: *mut u8,
    slots: usize,
    n_heads: usize,
    k_rows: RowLayout,
    v_rows: RowLayout,
    life: PhantomData<&'a KvStore>,
}

impl Slots<'_> {
    fn check(&self, head: usize, slot: u64, n: u64) -> usize {
        assert!(head < self.n_heads && slot + n <= self.slots as u64, "slots {slot}+{n} of head {head}");
        head * self.slots + slot as usize
    }

    /// K and V of `n` slots, a multiple of [`KEY_GROUP`], from `slot` on, a multiple of [`SLOT_ALIGN`].
    pub fn read(&self, head: usize, slot: u64, n: u64) -> (*const u8, *const u8) {
        debug_assert!(slot.is_multiple_of(SLOT_ALIGN) && n.is_multiple_of(KEY_GROUP as u64));
        let at = self.check(head, slot, n);
        (self.k.wrapping_add(at * self.k_rows.slot_bytes), self.v.wrapping_add(at * self.v_rows.slot_bytes))
    }

    /// Stores a key as numbers.
    ///
    /// # Safety
    /// Nobody else may read or write the group at the same time. `T` is the storage type of K.
    pub unsafe fn write_key<T: Stored>(&self, head: usize, slot: u64, k: &[T]) {
        let at = self.check(head, slot, 1);
        let lane = at % KEY_GROUP;
        assert!(size_of_val(k) == self.k_rows.slot_bytes, "{} dims", k.len());
        // SAFETY: `check` keeps the slot in range; heads begin at whole groups; the caller alone has the group.
        unsafe {
            let group = self.k.add((at - lane) * self.k_rows.slot_bytes).cast::<T>();
            match T::DTYPE {
                DType::F32 => std::ptr::copy_nonoverlapping(k.as_ptr(), group.add(lane * k.len()), k.len()),
                // mutant: key_in_another_lane
                DType::F16 => k.iter().enumerate().for_each(|(d, &x)| group.add(d * KEY_GROUP + lane).write(x)),
                DType::Bf16 => {
                    let pairs = k.as_chunks::<2>().0.iter().enumerate();
                    pairs.for_each(|(d, &pair)| group.cast::<[T; 2]>().add(d * KEY_GROUP + lane).write(pair));
                }
            }
        }
    }

    /// Stores a value as numbers.
    ///
    /// # Safety
    /// Nobody else may read or write the group at the same time. `T` is the storage type of V.
    pub unsafe fn write_value<T: Stored>(&self, head: usize, slot: u64, v: &[T]) {
        let at = self.check(head, slot, 1);
        let row = self.v_rows.slot_bytes / size_of::<T>();
        assert!(v.len() <= row, "{} dims", v.len());
        // SAFETY: `check` keeps the slot in range; heads begin at whole groups; the caller alone has the group.
        unsafe {
            let in_tile = at % SLOT_ALIGN as usize;
            let values = self.v.add((at - in_tile) * self.v_rows.slot_bytes).cast::<T>();
            match T::DTYPE {
                DType::Bf16 => {
                    // Two tokens share each word, the even one its low half (little-endian). Read-modify-write of words
                    // is vectorised; stores of 16 bits are not.
                    let shift = in_tile % 2 * 16;
                    let other = !(0xFFFF_u32 << shift);
                    for (i, dims) in v.chunks(KEY_GROUP).enumerate() {
                        let to = values.cast::<u32>().add(bf16_pair_index(row, in_tile, i * KEY_GROUP));
                        let dims = std::slice::from_raw_parts(dims.as_ptr().cast::<u16>(), dims.len());
                        match <&[u16; KEY_GROUP]>::try_from(dims) {
                            // A constant length is unrolled.
                            Ok(dims) => set_halves(to, dims, shift, other),
                            Err(_) => set_halves(to, dims, shift, other),
                        }
                    }
                }
                _ => std::ptr::copy_nonoverlapping(v.as_ptr(), values.add(in_tile * row), v.len()),
            }
        }
    }

    /// The block of a quantised key, and its slot there.
    pub fn key_block(&self, head: usize, slot: u64) -> (CodeBlock, usize) {
        self.code_block(head, slot, self.k, self.k_rows)
    }

    /// The block of a quantised value, and its slot there.
    pub fn value_block(&self, head: usize, slot: u64) -> (CodeBlock, usize) {
        self.code_block(head, slot, self.v, self.v_rows)
    }

    fn code_block(&self, head: usize, slot: u64, base: *mut u8, rows: RowLayout) -> (CodeBlock, usize) {
        let layout = CodeLayout::new(rows.storage, rows.dim).expect("only quantised rows lie in blocks of codes");
        CodeBlock::of(base, layout, self.check(head, slot, 1))
    }

    /// Stores the keys of a whole key group in f16 or bf16, as [`Self::write_key`] of each would. `slot` is a multiple
    /// of [`KEY_GROUP`].
    ///
    /// # Safety
    /// Nobody else may read or write the group at the same time. `transpose` is the kernel of the storage type, and its
    /// instruction set is available; each row is readable for the head's dims.
    pub unsafe fn write_key_group(&self, head: usize, slot: u64, rows: &GroupRows, transpose: TransposeFn) {
        let at = self.check(head, slot, KEY_GROUP as u64);
        assert!(at.is_multiple_of(KEY_GROUP), "a group at {slot}");
        // SAFETY: `check` keeps the group within the head's slots, which begin at a multiple of SLOT_ALIGN; the caller
        // alone has the group, and its rows are readable.
        unsafe { transpose(rows, self.k_rows.dim, self.k.add(at * self.k_rows.slot_bytes).cast()) };
    }

    /// Stores the values of a whole key group in f16 or bf16, as [`Self::write_value`] of each would: rows of `dim`
    /// dims.
    ///
    /// # Safety
    /// As [`Self::write_key_group`], with `interleave` of the same instruction set.
    pub unsafe fn write_value_group(&self, head: usize, slot: u64, values: &GroupRows, layout: ValueGroup) {
        let at = self.check(head, slot, KEY_GROUP as u64);
        let ValueGroup { dim, interleave } = layout;
        let row = self.v_rows.dim;
        assert!(at.is_multiple_of(KEY_GROUP) && dim <= row, "a group at {slot}, {dim} dims");
        // SAFETY: as in `write_key_group`.
        unsafe {
            if self.v_rows.storage == StorageType::Bf16 {
                let in_tile = at % SLOT_ALIGN as usize;
                let to = self.v.add((at - in_tile) * self.v_rows.slot_bytes).cast::<u16>();
                // mutant: values_of_another_half
                interleave(values, dim, to.add(2 * bf16_pair_index(row, in_tile, 0)));
            } else {
                let to = self.v.add(at * self.v_rows.slot_bytes).cast::<u16>();
                for (i, &v) in values.iter().enumerate() {
                    std::ptr::copy_nonoverlapping(v, to.add(i * row), dim);
                }
            }
        }
    }
}

/// `to[i] = to[i] & other | dims[i] << shift`.
///
/// # Safety
/// `to` is readable and writable for as many words as there are dims.
#[inline(always)]
unsafe fn set_halves(to: *mut u32, dims: &[u16], shift: usize, other: u32) {
    for (i, &x) in dims.iter().enumerate() {
        // SAFETY: the caller's words are as many as the dims.
        unsafe { to.add(i).write(to.add(i).read() & other | u32::from(x) << shift) };
    }
}

/// How the values of a key group are stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct ValueGroup {
    /// Dims of a row.
    pub dim: usize,
    pub interleave: TransposeFn,
}
