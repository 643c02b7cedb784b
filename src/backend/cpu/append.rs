//! Append: rotates keys once, at their stream positions, and stores K and V in their slots.

use std::mem::take;
use std::ops::Range;

use half::{bf16, f16};

use super::element::{Stored, as_f32, code_rows};
use super::kv_layout::{KEY_GROUP, physical};
use super::kv_store::{Slots, ValueGroup};
use super::rope_cache::{EntryTokens, RopeCache};
use super::scratch::Scratch;
use super::simd::Kernels;
use super::simd::prefetch::prefetch;
use super::simd::transpose::GroupRows;
use crate::backend::{AppendRows, LayerCall};
use crate::batch::Entry;
use crate::config::{DType, PositionMode, StorageType};

/// Distance in tokens of the prefetch of rows.
const PREFETCH_TOKENS: u64 = 4;

/// The tokens of an entry that are appended, and where they go.
#[derive(Clone, Copy, Debug)]
pub(super) struct AppendTarget<'a> {
    pub call: &'a LayerCall<'a>,
    pub io: &'a AppendRows,
    pub slots: Slots<'a>,
    pub entry: &'a Entry,
    /// Relative to the entry.
    pub tokens: &'a Range<u64>,
    pub kernels: &'a Kernels,
}

/// Tokens of one KV head that lie in one key group.
#[derive(Clone, Debug)]
struct Run {
    /// Relative to the entry.
    tokens: Range<u64>,
    /// Slot of the first.
    slot: u64,
    head: usize,
    /// Whether the next head of the same tokens is stored next, so that its rows are worth prefetching.
    has_next_head: bool,
}

/// Stores the tokens of an entry for some KV heads.
pub(super) fn append(
    target: &AppendTarget<'_>,
    heads: &Range<usize>,
    angles: &mut RopeCache,
    scratch: &mut Scratch<'_>,
) {
    // One key group of one head after the other: rows are read near the last ones, and a group is filled while it is in
    // the processor's cache.
    let (ring, first) = (&target.call.layer.ring, target.entry.first);
    for run in ring.runs(first + target.tokens.start, first + target.tokens.end) {
        let (mut begin, end) = (run.first - first, run.first - first + run.n);
        while begin < end {
            let (slot, _) = physical(ring, ring.slot(first + begin));
            let stop = end.min(begin + KEY_GROUP as u64 - slot % KEY_GROUP as u64);
            for head in heads.clone() {
                let run = Run { tokens: begin..stop, slot, head, has_next_head: head + 1 < heads.end };
                target.store_run(&run, angles, scratch);
            }
            begin = stop;
        }
    }
}

impl AppendTarget<'_> {
    fn store_run(&self, run: &Run, angles: &mut RopeCache, scratch: &mut Scratch<'_>) {
        let shape = self.call.shape;
        match shape.k_type {
            StorageType::F32 => self.store_keys::<f32>(run, angles, scratch),
            StorageType::F16 => self.store_keys::<f16>(run, angles, scratch),
            StorageType::Bf16 => self.store_keys::<bf16>(run, angles, scratch),
            StorageType::Q8 | StorageType::Q4 => self.quantise_keys(run, angles, scratch),
        }
        match shape.v_type {
            StorageType::F32 => self.store_values::<f32>(run, scratch),
            StorageType::F16 => self.store_values::<f16>(run, scratch),
            StorageType::Bf16 => self.store_values::<bf16>(run, scratch),
            StorageType::Q8 | StorageType::Q4 => self.quantise_values(run, scratch),
        }
    }

    /// Whether the tokens of a run are all 16 of their group: only then may it be written as a whole, as other slots
    /// keep their tokens.
    fn whole_group(run: &Run) -> bool {
        // mutant: part_of_group_written_whole
        run.tokens.end - run.tokens.start == KEY_GROUP as u64
    }

    fn store_keys<T: Stored>(&self, run: &Run, angles: &mut RopeCache, scratch: &mut Scratch<'_>) {
        let dim = self.call.shape.head_dim;
        let whole = self.kernels.transpose_keys.filter(|_| Self::whole_group(run));
        let mut group: GroupRows = [std::ptr::null(); KEY_GROUP];
        // Attention packs blocks into this field, and needs none of it between calls.
        let rows = take(&mut scratch.k);
        for ((i, token), to) in run.tokens.clone().enumerate().zip(rows.chunks_mut(dim)) {
            self.prefetch_after(run, token);
            let angle = self.angle_offset(token, angles, scratch);
            let src = self.io.k.at(self.entry.row + token, run.head);
            // SAFETY: the rows are resolved for this batch and these dims. Each KV head belongs to one worker, and the
            // token is new, so that no query reads its slot; the slot is one of this ring.
            unsafe {
                let key: &[T] = match angle {
                    Some(angle) => T::converted(self.rotated(src, angle, scratch), to, self.kernels),
                    None => self.converted(src, dim, Buffers { wide: scratch.row, narrow: to }),
                };
                match whole {
                    Some(_) => group[i] = key.as_ptr().cast(),
                    None => self.slots.write_key(run.head, run.slot + i as u64, key),
                }
            }
        }
        if let Some(transpose) = whole {
            // SAFETY: as above; the rows are the caller's or lie in `rows`.
            unsafe { self.slots.write_key_group(run.head, run.slot, &group, transpose) };
        }
        scratch.k = rows;
    }

    fn store_values<T: Stored>(&self, run: &Run, scratch: &mut Scratch<'_>) {
        let dim = self.call.shape.head_dim_v;
        let whole = Self::whole_group(run) && T::DTYPE != DType::F32;
        let mut group: GroupRows = [std::ptr::null(); KEY_GROUP];
        let rows = take(&mut scratch.v);
        for ((i, token), to) in run.tokens.clone().enumerate().zip(rows.chunks_mut(dim)) {
            let src = self.io.v.at(self.entry.row + token, run.head);
            // SAFETY: as in `store_keys`.
            unsafe {
                let value: &[T] = self.converted(src, dim, Buffers { wide: scratch.row_v, narrow: to });
                if whole {
                    group[i] = value.as_ptr().cast();
                } else {
                    self.slots.write_value(run.head, run.slot + i as u64, value);
                }
            }
        }
        if whole {
            let layout = ValueGroup { dim, interleave: self.kernels.interleave_values };
            // SAFETY: as in `store_keys`.
            unsafe { self.slots.write_value_group(run.head, run.slot, &group, layout) };
        }
        scratch.v = rows;
    }

    fn quantise_keys(&self, run: &Run, angles: &mut RopeCache, scratch: &mut Scratch<'_>) {
        let shape = self.call.shape;
        let dim = shape.head_dim;
        for (i, token) in run.tokens.clone().enumerate() {
            self.prefetch_after(run, token);
            let angle = self.angle_offset(token, angles, scratch);
            let src = self.io.k.at(self.entry.row + token, run.head);
            // SAFETY: as in `store_keys`; the kernels' instruction set is available.
            unsafe {
                match angle {
                    Some(angle) => _ = self.rotated(src, angle, scratch),
                    None => scratch.rotated[..dim].copy_from_slice(as_f32(shape.in_dtype, src, dim, scratch.row)),
                }
                let row = &mut scratch.rotated[..dim];
                (self.kernels.hadamard)(row); // mutant: key_not_turned
                let (codes, scales) = self.quantised(shape.k_type, row, scratch.k);
                let (block, slot) = self.slots.key_block(run.head, run.slot + i as u64);
                block.write_key(slot, codes, scales);
            }
        }
    }

    fn quantise_values(&self, run: &Run, scratch: &mut Scratch<'_>) {
        let shape = self.call.shape;
        for (i, token) in run.tokens.clone().enumerate() {
            let src = self.io.v.at(self.entry.row + token, run.head);
            // SAFETY: as in `quantise_keys`.
            unsafe {
                let row = as_f32(shape.in_dtype, src, shape.head_dim_v, scratch.row_v);
                let (codes, scales) = self.quantised(shape.v_type, row, scratch.v);
                let (block, slot) = self.slots.value_block(run.head, run.slot + i as u64);
                block.write_value(slot, codes, scales);
            }
        }
    }

    /// Codes and scales of a row, in `to`.
    ///
    /// # Safety
    /// The kernels' instruction set is available.
    unsafe fn quantised<'a>(&self, storage: StorageType, row: &[f32], to: &'a mut [f32]) -> (&'a [u8], &'a [u16]) {
        let (codes, scales) = code_rows(to, row.len(), storage.scales(row.len()));
        // SAFETY: the instruction set is available, by the caller.
        unsafe {
            if storage == StorageType::Q8 {
                scales[0] = (self.kernels.quantise_q8)(row, codes);
            } else {
                (self.kernels.quantise_q4)(row, codes, scales);
            }
        }
        (codes, scales)
    }

    /// Prefetches the rows that are stored a few tokens after `token`: of this head, or of the next. Rows of one head
    /// lie far apart, beyond the hardware's prefetchers.
    fn prefetch_after(&self, run: &Run, token: u64) {
        let ahead = token + PREFETCH_TOKENS;
        let n = run.tokens.end - run.tokens.start;
        let (head, token) = if ahead < run.tokens.end {
            (run.head, ahead)
        } else if run.has_next_head && run.tokens.contains(&(ahead - n)) {
            (run.head + 1, ahead - n)
        } else {
            return;
        };
        let (shape, size) = (self.call.shape, self.call.shape.in_dtype.size());
        prefetch::<false>(self.io.k.at(self.entry.row + token, head), shape.head_dim * size);
        prefetch::<false>(self.io.v.at(self.entry.row + token, head), shape.head_dim_v * size);
    }

    /// Where the angles of a token begin in scratch, if keys are rotated.
    fn angle_offset(&self, token: u64, angles: &mut RopeCache, scratch: &mut Scratch<'_>) -> Option<usize> {
        let layer = self.call.layer;
        let tokens = EntryTokens { call: self.call, entry: self.entry, tokens: self.tokens };
        (layer.position_mode == PositionMode::Rope)
            .then(|| angles.of_key(&tokens, token, self.kernels, scratch) * layer.frequencies.len())
    }

    /// A row of keys, rotated by the angles at `angle`, in scratch.
    ///
    /// # Safety
    /// `src` must be readable for a row of keys, and aligned to its elements.
    unsafe fn rotated<'a>(&self, src: *const u8, angle: usize, scratch: &'a mut Scratch<'_>) -> &'a [f32] {
        let (layer, shape) = (self.call.layer, self.call.shape);
        let angles = angle..angle + layer.frequencies.len();
        let (cos, sin) = (&scratch.cos[angles.clone()], &scratch.sin[angles]);
        let to = &mut scratch.rotated[..shape.head_dim];
        // SAFETY: the row is readable, by the caller; the kernels' instruction set is available.
        unsafe {
            let x = as_f32(shape.in_dtype, src, shape.head_dim, scratch.row);
            (self.kernels.rotate)(layer.rope_style, cos, sin, x, to);
        }
        to
    }

    /// A row in the storage type: the caller's own, or converted by way of f32.
    ///
    /// # Safety
    /// `src` must be readable for `n` elements while the result lives, and aligned to them.
    unsafe fn converted<'a, T: Stored>(&self, src: *const u8, n: usize, buffers: Buffers<'a>) -> &'a [T] {
        let dtype = self.call.shape.in_dtype;
        // SAFETY: `src` is readable and aligned, by the caller; in the first case its elements are `T`.
        unsafe {
            if T::DTYPE == dtype {
                std::slice::from_raw_parts(src.cast(), n)
            } else {
                T::converted(as_f32(dtype, src, n, buffers.wide), buffers.narrow, self.kernels)
            }
        }
    }
}

/// Room for a row as f32, and as the storage type.
#[derive(Debug)]
struct Buffers<'a> {
    wide: &'a mut [f32],
    narrow: &'a mut [f32],
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::backend::cpu::kv_store::KvStore;
    use crate::backend::cpu::scratch::ScratchPool;
    use crate::config::{CacheConfig, LayerConfig, RopeStyle};
    use crate::cpu_features::Isa;
    use crate::memory::Memory;
    use crate::tensor::{Element, RowsIn};

    /// The bytes of all slots, which held something else before, after tokens `first..` were appended in calls of so
    /// many.
    fn slots_after<I: Element>(config: &CacheConfig, first: u64, calls: &[u64], bits: &[u32]) -> Vec<u8> {
        let (shape, layer) = (config.shape().unwrap(), config.layer(&config.layers[0]).unwrap());
        let store = KvStore::new(&shape, std::iter::once(&layer), 1, Memory::default()).unwrap();
        store.contents().iter_mut().enumerate().for_each(|(i, x)| *x = (i * 37 % 251) as u8);
        let pool = ScratchPool::new(&shape, 1, Memory::default()).unwrap();
        let kernels = Kernels::new(config.isa.unwrap(), shape.k_type, shape.v_type);
        let (mut at, mut row) = (first, 0);
        for &n in calls {
            let rows = |dim: usize, salt: usize| -> Vec<I> {
                let from = row * shape.n_kv_heads * dim;
                let element = |i: usize| bits[(from + i).wrapping_mul(salt) % bits.len()];
                (0..n as usize * shape.n_kv_heads * dim).map(|i| from_bits(element(i))).collect()
            };
            let (k, v) = (rows(shape.head_dim, 3), rows(shape.head_dim_v, 5));
            let resolved = |x, dim| RowsIn::packed(x).resolve("rows", n, shape.n_kv_heads, dim, I::DTYPE).unwrap();
            let io = AppendRows { k: resolved(&k, shape.head_dim), v: resolved(&v, shape.head_dim_v) };
            let entry = Entry { seq: 0, row: 0, n, first: at, start: 1 << 40, floor: 0, n_ranges: 0, n_pinned: 0 };
            let call = LayerCall {
                layer_index: 0,
                layer: &layer,
                shape: &shape,
                entries: &[entry],
                ranges: &[],
                append: Some(io),
                attend: None,
            };
            let slots = store.slots(0, 0);
            let target =
                AppendTarget { call: &call, io: &io, slots, entry: &entry, tokens: &(0..n), kernels: &kernels };
            // SAFETY: nobody else holds it.
            let mut scratch = unsafe { pool.part(&shape, 0) };
            append(&target, &(0..shape.n_kv_heads), &mut RopeCache::default(), &mut scratch);
            (at, row) = (at + n, row + n as usize);
        }
        store.contents().to_vec()
    }

    /// Any bit pattern as an element.
    fn from_bits<I: Element>(bits: u32) -> I {
        // SAFETY: any bits are a value of each of the three types, which are no larger.
        unsafe { std::ptr::from_ref(&bits).cast::<I>().read() }
    }

    fn hold<I: Element>(config: &CacheConfig, first: u64, n: u64, bits: &[u32]) {
        let one_by_one = vec![1; n as usize];
        let [together, separate] = [&[n][..], &one_by_one].map(|calls| slots_after::<I>(config, first, calls, bits));
        let differs = together.iter().zip(&separate).position(|(a, b)| a != b);
        assert!(differs.is_none(), "{config:?}: {n} tokens from {first} on, byte {differs:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Tokens that fill whole groups are stored as they would be one by one, to the bit, and no other slot changes:
        /// wherever a run begins, sinks end or the ring wraps.
        #[test]
        fn groups_are_tokens(dims in select(vec![(8, 8), (32, 32), (48, 80), (80, 24), (128, 128), (64, 40)]),
                             k_dtype in select(StorageType::ALL.to_vec()), v_dtype in select(StorageType::ALL.to_vec()),
                             in_dtype in select(vec![DType::F32, DType::F16, DType::Bf16]),
                             position_mode in select(vec![PositionMode::Rope, PositionMode::RopeApplied,
                                                          PositionMode::None]),
                             rope_style in select(vec![RopeStyle::Neox, RopeStyle::Interleaved]),
                             n_sink in 0u32..40, window in 1u32..60, first in 0u64..300, n in 1u64..90,
                             bits in prop::collection::vec(any::<u32>(), 1009)) {
            for isa in Isa::all() {
                let config = CacheConfig {
                    n_q_heads: 2,
                    n_kv_heads: 2,
                    head_dim: dims.0,
                    head_dim_v: dims.1,
                    k_dtype: Some(k_dtype),
                    v_dtype: Some(v_dtype),
                    in_dtype,
                    max_chunk: 90,
                    layers: vec![LayerConfig { n_sink, window, position_mode, rope_style, ..LayerConfig::default() }],
                    isa: Some(isa),
                    ..CacheConfig::default()
                };
                match in_dtype {
                    DType::F32 => hold::<f32>(&config, first, n, &bits),
                    DType::F16 => hold::<f16>(&config, first, n, &bits),
                    DType::Bf16 => hold::<bf16>(&config, first, n, &bits),
                }
            }
        }
    }
}
