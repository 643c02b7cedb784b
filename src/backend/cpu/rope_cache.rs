//! Angles of the tokens at work, computed once for all heads.

use std::ops::Range;

use super::scratch::{ROPE_SLAB, Scratch};
use super::simd::Kernels;
use crate::backend::LayerCall;
use crate::batch::Entry;
use crate::config::PositionMode;

/// Tokens of an entry that are appended, or attended, together.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryTokens<'a> {
    pub call: &'a LayerCall<'a>,
    pub entry: &'a Entry,
    /// Relative to the entry.
    pub tokens: &'a Range<u64>,
}

/// Which tokens the angles in scratch belong to: they are the tokens', not the heads'.
#[derive(Clone, Debug, Default)]
pub(super) struct RopeCache {
    /// Sequence and entry-relative tokens; for keys alone, or for queries too.
    held: Option<(usize, Range<u64>, bool)>,
}

impl RopeCache {
    /// Row of the angles of a token for its queries; computes those of its slab, as far as the tokens go.
    pub fn of_query(
        &mut self,
        at: &EntryTokens<'_>,
        token: u64,
        kernels: &Kernels,
        scratch: &mut Scratch<'_>,
    ) -> usize {
        let (entry, layer) = (at.entry, at.call.layer);
        self.row(at, token, true, |index, at| {
            let (cos, sin) = (&mut scratch.cos[at.clone()], &mut scratch.sin[at.clone()]);
            let (cos_sink, sin_sink) = (&mut scratch.cos_sink[at.clone()], &mut scratch.sin_sink[at]);
            let evicted = layer.ring.evicted(index + 1, entry.floor);
            let position = entry.start.wrapping_add(index);
            // SAFETY: the kernels' instruction set is available.
            unsafe {
                if layer.position_mode == PositionMode::Rope {
                    (kernels.angles)(&layer.frequencies, position, layer.mscale, cos, sin);
                    let rotated = position.wrapping_sub(evicted);
                    (kernels.angles)(&layer.frequencies, rotated, layer.mscale, cos_sink, sin_sink);
                } else {
                    // The host has rotated and scaled: turn back by E, purely.
                    (kernels.angles)(&layer.frequencies, 0_u64.wrapping_sub(evicted), 1.0, cos_sink, sin_sink);
                }
            }
        })
    }

    /// Row of the angles of a token for its key.
    pub fn of_key(&mut self, at: &EntryTokens<'_>, token: u64, kernels: &Kernels, scratch: &mut Scratch<'_>) -> usize {
        let (entry, layer) = (at.entry, at.call.layer);
        self.row(at, token, false, |index, at| {
            let (cos, sin) = (&mut scratch.cos[at.clone()], &mut scratch.sin[at]);
            // SAFETY: the kernels' instruction set is available.
            unsafe {
                (kernels.angles)(&layer.frequencies, entry.start.wrapping_add(index), layer.mscale, cos, sin);
            }
        })
    }

    fn row(
        &mut self,
        at: &EntryTokens<'_>,
        token: u64,
        queries: bool,
        mut fill: impl FnMut(u64, Range<usize>),
    ) -> usize {
        let EntryTokens { call, entry, tokens } = *at;
        let half = call.layer.frequencies.len();
        if half == 0 {
            return 0;
        }
        if let Some((seq, held, _)) =
            self.held.as_ref().filter(|h| h.0 == entry.seq && h.1.contains(&token) && (h.2 || !queries))
        {
            debug_assert_eq!(*seq, entry.seq);
            return (token - held.start) as usize;
        }
        // No more tokens than scratch has room for, which is no less than a chunk or a slab.
        let slab = ROPE_SLAB.min(call.shape.max_chunk);
        let start = tokens.start + (token - tokens.start) / slab * slab;
        let held = start..tokens.end.min(start + slab);
        for (i, t) in held.clone().enumerate() {
            fill(entry.first + t, i * half..(i + 1) * half);
        }
        self.held = Some((entry.seq, held, queries));
        (token - start) as usize
    }
}
