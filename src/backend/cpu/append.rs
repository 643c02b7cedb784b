//! Append: rotate keys once, at their stream positions, and store K and V in their slots.

use std::mem::take;
use std::ops::Range;

use super::element::{Stored, view};
use super::kv_layout::{GROUP, physical};
use super::kv_store::Slots;
use super::rope_cache::{Angles, EntryTokens};
use super::scratch::Scratch;
use super::simd::Kernels;
use super::simd::prefetch::prefetch;
use super::simd::transpose::GroupRows;
use crate::backend::{AppendRows, LayerCall};
use crate::batch::Entry;
use crate::config::{DType, PositionMode};

/// Tokens from one that is stored to the one whose rows are fetched.
const AHEAD: u64 = 4;

/// Asks for the rows of a token.
fn expect(at: &Place<'_>, t: u64, head: usize) {
    let (shape, size) = (at.job.shape, at.job.shape.in_dtype.size());
    prefetch::<false>(at.io.k.at(at.entry.row + t, head), shape.head_dim * size);
    prefetch::<false>(at.io.v.at(at.entry.row + t, head), shape.head_dim_v * size);
}

/// Stores tokens `tokens` of an entry for some KV heads.
pub(super) fn append<T: Stored>(
    at: &Place<'_>,
    tokens: &Range<u64>,
    heads: &Range<usize>,
    kernels: &Kernels,
    angles: &mut Angles,
    scratch: &mut Scratch<'_>,
) {
    // The tokens of one group for one head, then for the next: rows are read where the last ones were, and groups are filled
    // while they are in the cache.
    let first = at.entry.first;
    for run in at.job.layer.ring.runs(first + tokens.start, first + tokens.end) {
        let (mut begin, end) = (run.first - first, run.first - first + run.n);
        while begin < end {
            let (slot, _) = physical(&at.job.layer.ring, at.job.layer.ring.slot(first + begin));
            let stop = end.min(begin + GROUP as u64 - slot % GROUP as u64);
            for head in heads.clone() {
                append_run::<T>(at, tokens, (begin..stop, slot), (head, heads), kernels, angles, scratch);
            }
            begin = stop;
        }
    }
}

/// Stores some of the tokens, which lie in one group from `slot` on, for one of the KV heads.
fn append_run<T: Stored>(
    at: &Place<'_>,
    tokens: &Range<u64>,
    (run, slot): (Range<u64>, u64),
    (head, heads): (usize, &Range<usize>),
    kernels: &Kernels,
    angles: &mut Angles,
    scratch: &mut Scratch<'_>,
) {
    let shape = at.job.shape;
    let n = run.end - run.start;
    // Only a whole group may be written as one: other slots of it keep what they hold.
    let whole = kernels.group_keys.filter(|_| n == GROUP as u64);
    let (mut k, mut v): (GroupRows, GroupRows) = ([std::ptr::null(); GROUP], [std::ptr::null(); GROUP]);
    // Attention has filled these with what it alone needs, and fills them again.
    let (rows_k, rows_v) = (take(&mut scratch.k), take(&mut scratch.v));
    let rows = rows_k.chunks_mut(shape.head_dim).zip(rows_v.chunks_mut(shape.head_dim_v));
    for ((i, t), (to_k, to_v)) in run.clone().enumerate().zip(rows) {
        // Rows of one head lie far apart: nothing but a hint brings them in time.
        let (next, ahead) = if t + AHEAD < run.end { (head, t + AHEAD) } else { (head + 1, t + AHEAD - n) };
        if next < heads.end && run.contains(&ahead) {
            expect(at, ahead, next);
        }
        let angle = angles_of(at, tokens, t, kernels, angles, scratch);
        // SAFETY: this worker alone has this head, and the token is new, so no query of it is running; the slot is of a ring
        // of this store.
        unsafe {
            let (key, value) = as_stored::<T>(at, t, head, angle, kernels, scratch, (to_k, to_v));
            if whole.is_some() {
                (k[i], v[i]) = (key.as_ptr().cast(), value.as_ptr().cast());
            } else {
                at.slots.write::<T>(head, slot + i as u64, key, value);
            }
        }
    }
    if let Some(group_keys) = whole {
        // SAFETY: as above; the rows are the caller's or scratch, and those of scratch lie apart.
        unsafe { at.slots.write_group::<T>(head, slot, &k, (&v, shape.head_dim_v), group_keys, kernels.pair_values) };
    }
    (scratch.k, scratch.v) = (rows_k, rows_v);
}

/// What is appended, and where to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub job: &'a LayerCall<'a>,
    pub io: &'a AppendRows,
    pub slots: Slots<'a>,
    pub entry: &'a Entry,
}

/// Where the angles of a token begin, if keys are rotated.
fn angles_of(
    at: &Place<'_>,
    tokens: &Range<u64>,
    t: u64,
    kernels: &Kernels,
    angles: &mut Angles,
    scratch: &mut Scratch<'_>,
) -> Option<usize> {
    let layer = at.job.layer;
    (layer.position_mode == PositionMode::Rope).then(|| {
        angles.of_key(&EntryTokens { job: at.job, entry: at.entry, tokens }, t, kernels, scratch)
            * layer.frequencies.len()
    })
}

/// Key and value of a token, the key rotated, in the storage type: the caller's own, or in scratch, halves in `to`.
///
/// # Safety
/// The kernels' instruction set must be available, the caller's rows resolved for this batch and these dims.
unsafe fn as_stored<'a, T: Stored>(
    at: &Place<'_>,
    t: u64,
    head: usize,
    angle: Option<usize>,
    kernels: &Kernels,
    scratch: &'a mut Scratch<'_>,
    to: (&'a mut [f32], &'a mut [f32]),
) -> (&'a [T], &'a [T]) {
    let (io, layer, shape) = (at.io, at.job.layer, at.job.shape);
    let (src_k, src_v) = (io.k.at(at.entry.row + t, head), io.v.at(at.entry.row + t, head));
    // SAFETY: the caller's contract.
    unsafe {
        let k = if let Some(angle) = angle {
            let x = view(shape.in_dtype, src_k, shape.head_dim, scratch.row);
            let angles = angle..angle + layer.frequencies.len();
            let (cos, sin) = (&scratch.cos[angles.clone()], &scratch.sin[angles]);
            (kernels.rotate)(layer.rope_style, cos, sin, x, &mut scratch.rotated[..shape.head_dim]);
            T::narrowed(&scratch.rotated[..shape.head_dim], to.0, kernels)
        } else {
            stored(shape.in_dtype, src_k, shape.head_dim, scratch.row, to.0, kernels)
        };
        (k, stored(shape.in_dtype, src_v, shape.head_dim_v, scratch.row_v, to.1, kernels))
    }
}

/// A head as it came, in the storage type: itself, or converted by way of f32.
///
/// # Safety
/// `src` must be readable for `n` elements of `dtype` while the result lives, and aligned to them.
unsafe fn stored<'a, T: Stored>(
    dtype: DType,
    src: *const u8,
    n: usize,
    wide: &'a mut [f32],
    narrow: &'a mut [f32],
    kernels: &Kernels,
) -> &'a [T] {
    // SAFETY: the caller's contract.
    unsafe {
        if T::DTYPE == dtype {
            std::slice::from_raw_parts(src.cast(), n)
        } else {
            T::narrowed(view(dtype, src, n, wide), narrow, kernels)
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::backend::cpu::kv_store::Store;
    use crate::backend::cpu::scratch::ScratchPool;
    use crate::config::{CacheConfig, LayerConfig, RopeStyle};
    use crate::cpu_features::Isa;
    use crate::memory::Memory;
    use crate::tensor::{Element, RowsIn};

    /// What the slots hold, which held something else before, after tokens `first..` have come in calls of so many.
    fn slots_after<T: Stored, I: Element>(config: &CacheConfig, first: u64, calls: &[u64], bits: &[u32]) -> Vec<u8> {
        let (shape, layer) = (config.shape().unwrap(), config.layer(&config.layers[0]).unwrap());
        let store = Store::new(&shape, std::iter::once(&layer), 1, Memory::default()).unwrap();
        store.contents().iter_mut().enumerate().for_each(|(i, x)| *x = (i * 37 % 251) as u8);
        let pool = ScratchPool::new(&shape, 1, Memory::default()).unwrap();
        let kernels = Kernels::new(config.isa.unwrap(), shape.kv_dtype);
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
            let entry = Entry { seq: 0, row: 0, n, first: at, start: 1 << 40, floor: 0 };
            let job = LayerCall {
                layer_index: 0,
                layer: &layer,
                shape: &shape,
                entries: &[entry],
                append: Some(io),
                attend: None,
            };
            let place = Place { job: &job, io: &io, slots: store.slots(0, 0), entry: &entry };
            // SAFETY: nobody else holds it.
            let mut scratch = unsafe { pool.part(&shape, 0) };
            append::<T>(&place, &(0..n), &(0..shape.n_kv_heads), &kernels, &mut Angles::default(), &mut scratch);
            (at, row) = (at + n, row + n as usize);
        }
        store.contents().to_vec()
    }

    /// Any number, or none, in the type.
    fn from_bits<I: Element>(bits: u32) -> I {
        // SAFETY: any bits are a value of each of the three types, which are no larger.
        unsafe { std::ptr::from_ref(&bits).cast::<I>().read() }
    }

    fn hold<I: Element>(config: &CacheConfig, first: u64, n: u64, bits: &[u32]) {
        let one_by_one = vec![1; n as usize];
        let [together, apart] = [&[n][..], &one_by_one].map(|calls| match config.kv_dtype {
            DType::F32 => slots_after::<f32, I>(config, first, calls, bits),
            DType::F16 => slots_after::<f16, I>(config, first, calls, bits),
            DType::Bf16 => slots_after::<bf16, I>(config, first, calls, bits),
        });
        let differs = together.iter().zip(&apart).position(|(a, b)| a != b);
        assert!(differs.is_none(), "{config:?}: {n} tokens from {first} on, byte {differs:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Tokens that fill groups lie where they would one by one, to the bit, and no other slot changes: wherever a run
        /// begins, where sinks end, where the ring wraps.
        #[test]
        fn groups_are_tokens(dims in select(vec![(8, 8), (32, 32), (48, 80), (80, 24), (128, 128), (64, 40)]),
                             kv_dtype in select(vec![DType::F32, DType::F16, DType::Bf16]),
                             in_dtype in select(vec![DType::F32, DType::F16, DType::Bf16]),
                             position_mode in select(vec![PositionMode::Rope, PositionMode::RopeApplied, PositionMode::None]),
                             rope_style in select(vec![RopeStyle::Neox, RopeStyle::Interleaved]),
                             n_sink in 0u32..40, window in 1u32..60, first in 0u64..300, n in 1u64..90,
                             bits in prop::collection::vec(any::<u32>(), 1009)) {
            for isa in Isa::all() {
                let config = CacheConfig {
                    n_q_heads: 2,
                    n_kv_heads: 2,
                    head_dim: dims.0,
                    head_dim_v: dims.1,
                    kv_dtype,
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
