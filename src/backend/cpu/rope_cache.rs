//! Cosines and sines of some tokens, computed once for all heads.

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

/// Which tokens the angles in scratch belong to. All heads of a token share them.
#[derive(Clone, Debug, Default)]
pub(super) struct RopeCache {
    /// Sequence, entry-relative tokens, and whether the angles of queries to sinks are there too.
    held: Option<(usize, Range<u64>, bool)>,
}

impl RopeCache {
    /// Index in scratch of the angles for a token's queries; on a miss, computes the angles of its slab.
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
            let dropped = layer.ring.evicted(index + 1, entry.floor) - u64::from(entry.n_pinned);
            let position = entry.start.wrapping_add(index);
            // SAFETY: the kernels' instruction set is available.
            unsafe {
                if layer.position_mode == PositionMode::Rope {
                    (kernels.angles)(&layer.frequencies, position, layer.mscale, cos, sin);
                    let rotated = position.wrapping_sub(dropped); // mutant: sink_rotation_dropped
                    (kernels.angles)(&layer.frequencies, rotated, layer.mscale, cos_sink, sin_sink);
                } else {
                    // The host has applied RoPE and mscale: rotate back, without mscale.
                    // mutant: sink_rotated_other_way, mscale_twice
                    (kernels.angles)(&layer.frequencies, 0_u64.wrapping_sub(dropped), 1.0, cos_sink, sin_sink);
                }
            }
        })
    }

    /// Index in scratch of the angles for a token's key.
    pub fn of_key(&mut self, at: &EntryTokens<'_>, token: u64, kernels: &Kernels, scratch: &mut Scratch<'_>) -> usize {
        let (entry, layer) = (at.entry, at.call.layer);
        self.row(at, token, false, |index, at| {
            let (cos, sin) = (&mut scratch.cos[at.clone()], &mut scratch.sin[at]);
            // SAFETY: the kernels' instruction set is available.
            unsafe {
                // mutant: key_angle_of_first_token
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
        // As many tokens as scratch has room for.
        let slab = ROPE_SLAB.min(call.shape.max_chunk);
        let start = tokens.start + (token - tokens.start) / slab * slab;
        let held = start..tokens.end.min(start + slab);
        for (i, t) in held.clone().enumerate() {
            fill(entry.first + t, i * half..(i + 1) * half);
        }
        self.held = Some((entry.seq, held, queries));
        (token - start) as usize // mutant: angles_of_another_slab
    }
}
