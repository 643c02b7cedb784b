//! Attention of few rows: all rows at once over one KV split at a time, with K and V read once, as they are stored.

use std::ops::Range;

use super::decode_integers::{StoredSplit, byte_distance};
use super::kv_layout::{CodeLayout, KEY_GROUP, SLOT_ALIGN, padded_dim};
use super::kv_store::Slots;
use super::query_tile::QueryTile;
use super::scratch::{KEY_BLOCK, SPLIT_KEYS, ScoreColumns, Scratch};
use super::segments::Piece;
use super::simd::gemm::{PvArgs, QkArgs};
use super::simd::softmax::{SoftmaxArgs, visible_union};
use super::simd::{Kernels, pv_rows};
use super::turned_queries::{PieceQueries, TurnedQueries};
use super::visibility::Block;
use crate::config::StorageType;

/// Distance in keys of the software prefetch, a multiple of the four key groups that kernels load together. Hardware
/// prefetchers stop at the end of a page. With 64 dims this distance is two pages, and memory is read up to twice as
/// fast.
const PREFETCH_KEYS: usize = 64;
/// Prefetch up to this many rows. With more rows, computation per key hides the latency of memory.
const PREFETCH_MAX_ROWS: usize = 6;

/// One KV split of one head's decode.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvSplit<'a> {
    /// The loaded queries.
    pub tile: &'a QueryTile<'a>,
    pub slots: &'a Slots<'a>,
    pub kernels: &'a Kernels,
    pub block: &'a Block,
    /// The split that this thread computes next, if known: its first keys are prefetched.
    pub next: Option<&'a Block>,
}

/// K and V of a split as they are stored.
#[derive(Clone, Copy, Debug)]
struct Stored {
    k: *const u8,
    v: *const u8,
    /// Columns: slots up to the last visible one, in whole key groups.
    n: usize,
    /// Distances of the prefetch of keys and of values, in slots; 0 = none.
    ahead_k: usize,
    ahead_v: usize,
}

impl KvSplit<'_> {
    /// Computes the partial result of the split into scratch's `partial` fields.
    pub fn attend(&self, turned: &mut TurnedQueries<'_>, scratch: &mut Scratch<'_>) {
        let n = self.block.hi.next_multiple_of(KEY_GROUP);
        let (k, v) = self.slots.read(self.tile.head, self.block.slot, n as u64);
        let shape = self.tile.call.shape;
        let half = |storage: StorageType| matches!(storage, StorageType::F16 | StorageType::Bf16);
        let prefetches = cfg!(target_arch = "x86_64") && self.tile.rows <= PREFETCH_MAX_ROWS;
        let distance = |storage| if prefetches && half(storage) { PREFETCH_KEYS } else { 0 };
        let stored = Stored { k, v, n, ahead_k: distance(shape.k_type), ahead_v: distance(shape.v_type) };
        if let Some(query) = self.tile.only_query(self.block) {
            self.qk_piece(&stored, Piece { from: 0, to: n, query }, &turned.unturned(query), scratch);
        } else {
            self.tile.for_each_piece(self.block, |piece| {
                let queries = turned.of_piece(self.block, &piece, scratch);
                // From the first slot on, and up to the last: what lies outside is masked.
                let from = if piece.from == self.block.lo { 0 } else { piece.from };
                let piece = Piece { from, to: piece.to.next_multiple_of(KEY_GROUP), ..piece };
                self.qk_piece(&stored, piece, &queries, scratch);
            });
        }
        self.softmax(n, scratch);
        self.pv(&stored, scratch);
    }

    fn split(&self, stored: &Stored) -> StoredSplit<'_> {
        let Stored { k, v, n, .. } = *stored;
        StoredSplit { tile: self.tile, k, v, n, next: self.next_keys() }
    }

    /// QK^T of the columns of a piece, which ends at a whole key group.
    fn qk_piece(&self, stored: &Stored, piece: Piece, queries: &PieceQueries, scratch: &mut Scratch<'_>) {
        let (rows, shape) = (self.tile.rows, self.tile.call.shape);
        let group = piece.from / KEY_GROUP * KEY_GROUP;
        // The columns before the piece are those of another.
        let before = ScoreColumns { stride: SPLIT_KEYS, rows, first: group, n: piece.from - group };
        scratch.keep_scores(&before);
        let columns = group..piece.to;
        let codes = self.kernels.key_products.zip(CodeLayout::new(shape.k_type, shape.head_dim));
        match codes.zip(queries.left_f32) {
            Some(((keys, layout), left)) => {
                // SAFETY: the kernels' instruction set is available. `Slots::read` has checked that `n` slots of this
                // head follow; nobody writes them while queries run.
                unsafe { self.split(stored).qk(&keys, layout, &columns, queries, scratch) };
                left.rows().for_each(|row| self.qk(stored, row..row + 1, &columns, queries, scratch));
            }
            None => self.qk(stored, 0..rows, &columns, queries, scratch),
        }
        scratch.restore_scores(&before);
    }

    /// The keys of the next split.
    fn next_keys(&self) -> Option<*const u8> {
        self.next.map(|next| self.slots.read(self.tile.head, next.slot, KEY_GROUP as u64).0)
    }

    /// QK^T of whole key groups into scratch's `scores`. Keys are prefetched; the split's last ones prefetch its first
    /// values.
    fn qk(
        &self,
        stored: &Stored,
        rows: Range<usize>,
        piece: &Range<usize>,
        queries: &PieceQueries,
        scratch: &mut Scratch<'_>,
    ) {
        let shape = self.tile.call.shape;
        let (dim, slot_bytes) = (shape.head_dim, shape.k_type.row_bytes(shape.head_dim));
        let n = stored.n;
        let q = &queries.rows(dim, scratch)[rows.start * dim..];
        debug_assert!(q.len() >= rows.len() * dim, "{} of {} rows", q.len() / dim, rows.len());
        let q = q.as_ptr();
        let scores = scratch.scores[rows.start * SPLIT_KEYS..].as_mut_ptr();
        let columns = |from: usize, to: usize, prefetch_offset: isize| QkArgs {
            q,
            q_stride: dim,
            rows: rows.len(),
            k: stored.k,
            dim,
            first: from / KEY_GROUP,
            groups: (to - from) / KEY_GROUP,
            scores,
            stride: SPLIT_KEYS,
            prefetch_offset,
        };
        debug_assert!(scratch.scores.len() >= rows.end * SPLIT_KEYS && piece.end <= n, "{n} columns");
        // SAFETY: the kernels' instruction set is available. `Slots::read` has checked that `n` slots of this head
        // follow; nobody writes them while queries run. Scratch has room for the rows and columns by the assertion.
        unsafe {
            match self.kernels.qk {
                Some(qk) => {
                    let last = n.saturating_sub(stored.ahead_k);
                    let tail = stored.k.add(last * slot_bytes);
                    let at = last.clamp(piece.start, piece.end);
                    qk(&columns(piece.start, at, (stored.ahead_k * slot_bytes) as isize));
                    qk(&columns(at, piece.end, byte_distance(tail, stored.v)));
                }
                None => {
                    for at in piece.clone().step_by(KEY_BLOCK) {
                        let end = piece.end.min(at + KEY_BLOCK);
                        let keys = stored.k.add(at * slot_bytes);
                        (self.kernels.pack_keys)(keys, dim, (end - at) / KEY_GROUP, scratch.k.as_mut_ptr());
                        let packed = QkArgs {
                            k: scratch.k.as_ptr().cast(),
                            first: 0,
                            scores: scores.wrapping_add(at),
                            ..columns(at, end, 0)
                        };
                        (self.kernels.qk_packed)(&packed);
                    }
                }
            }
        }
    }

    /// Turns the scores into probabilities relative to this split's row maximum.
    fn softmax(&self, n: usize, scratch: &mut Scratch<'_>) {
        let (layer, rows) = (self.tile.call.layer, self.tile.rows);
        self.tile.visible_columns(self.block, &scratch.ranges[..rows], scratch.visible);
        scratch.partial_max[..rows].fill(f32::NEG_INFINITY);
        scratch.partial_sum[..rows].fill(0.0);
        // SAFETY: the kernels' instruction set is available; scratch holds these rows and columns.
        unsafe {
            (self.kernels.softmax)(&SoftmaxArgs {
                scores: scratch.scores.as_mut_ptr(),
                stride: SPLIT_KEYS,
                n,
                rows,
                visible: scratch.visible.as_ptr(),
                scale: layer.scale,
                softcap: layer.softcap,
                max: scratch.partial_max.as_mut_ptr(),
                sum: scratch.partial_sum.as_mut_ptr(),
                alpha: scratch.alpha.as_mut_ptr(),
            });
        }
    }

    /// PV into scratch's `partial_acc`, over the columns that any row sees.
    fn pv(&self, stored: &Stored, scratch: &mut Scratch<'_>) {
        let (rows, dim) = (self.tile.rows, padded_dim(self.tile.call.shape.head_dim_v));
        scratch.partial_acc[..rows * dim].fill(0.0);
        let Some((from, to)) = visible_union(&scratch.visible[..rows]) else { return };
        scratch.alpha[..rows].fill(0.0);
        let all = PvArgs {
            probs: scratch.scores.as_ptr(),
            stride: SPLIT_KEYS,
            rows,
            v: stored.v,
            dim,
            from,
            to,
            acc: scratch.partial_acc.as_mut_ptr(),
            alpha: scratch.alpha.as_ptr(),
            prefetch_offset: 0,
        };
        if let Some(values) = self.kernels.value_products {
            // SAFETY: as below. A column that a row does not see has weight 0, whatever its value.
            return unsafe { self.split(stored).pv(&values, self.kernels.pv, &all, scratch) };
        }
        let visible = &scratch.visible[..rows];
        let same = visible.iter().all(|v| (v.from, v.to) == (from, to)); // mutant: masked_by_zero_probability
        // SAFETY: the kernels' instruction set is available; `from..to` lies within the slots that `Slots::read` has
        // checked, and rows and dims within scratch.
        unsafe {
            match (same, stored.ahead_v) {
                // A probability of 0 times an infinite value is NaN: each row reads only what it sees.
                (false, _) => pv_rows(&all, visible, self.kernels),
                (true, 0) => (self.kernels.pv)(&all),
                (true, _) => self.pv_prefetching(stored, &all, scratch),
            }
        }
    }

    /// PV in two parts: the first prefetches later values of this split, the second the first keys of the next split.
    ///
    /// # Safety
    /// As [`Kernels::pv`] with `all`, whose `alpha` is scratch's.
    unsafe fn pv_prefetching(&self, stored: &Stored, all: &PvArgs, scratch: &mut Scratch<'_>) {
        let slot_bytes = self.tile.call.shape.v_type.row_bytes(all.dim);
        // A multiple of SLOT_ALIGN: bf16 values of 32 slots are stored interleaved, and addresses count from their
        // first.
        let last = (all.to.saturating_sub(stored.ahead_v) / SLOT_ALIGN as usize * SLOT_ALIGN as usize).max(all.from);
        // SAFETY: both ranges are parts of `all`'s, which the caller guarantees.
        unsafe {
            let prefetch_offset = (stored.ahead_v * slot_bytes) as isize;
            (self.kernels.pv)(&PvArgs { to: last, prefetch_offset, ..*all });
            scratch.alpha[..all.rows].fill(1.0);
            let next = self.next_keys();
            let tail = stored.v.add(last * slot_bytes);
            (self.kernels.pv)(&PvArgs {
                from: last, // mutant: last_keys_counted_twice
                alpha: scratch.alpha.as_ptr(),
                prefetch_offset: next.map_or(0, |next| byte_distance(tail, next)),
                ..*all
            });
        }
    }
}
