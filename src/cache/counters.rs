//! The host's copy of the counters of every sequence in every layer.
//!
//! For a CPU cache they are the only counters. A CUDA cache keeps its own in device memory, and the host's copy can
//! become stale: the host does not see length changes made by graph replays or by counts in device memory. A stale
//! sequence becomes known again when it is reset, read back, or when the host reports the change (`note_replay`).

use crate::config::Layers;
use crate::error::Result;
use crate::memory::{filled, with_room};
use crate::ranges::{self, EditedRange};
use crate::ring::Seq;

#[derive(Debug)]
pub(super) struct HostCounters {
    /// `[layer][sequence]`.
    seqs: Vec<Seq>,
    /// `[layer][sequence][max_segments of the layer]`.
    ranges: Vec<EditedRange>,
    /// Per layer: where its ranges begin. Empty where no layer has room for any.
    range_offsets: Vec<usize>,
    /// Stream position of token 0, per sequence.
    pub starts: Vec<u64>,
    /// `None` for a CPU cache, whose counters are never stale.
    staleness: Option<Staleness>,
}

/// Which counters are stale, by epochs: those of a sequence are stale if they were last refreshed before their layer
/// was last invalidated. Invalidating a whole layer is O(1).
#[derive(Debug)]
struct Staleness {
    /// Counts invalidations of whole layers.
    epoch: u64,
    /// Per layer: the epoch of its latest invalidation.
    invalidated: Vec<u64>,
    /// `[layer][sequence]`: the epoch of the latest refresh; 0 = invalidated since.
    refreshed: Vec<u64>,
    /// The epoch of the latest pin or evict_range of sequences that the host does not know.
    ranges_invalidated: u64,
    /// Per sequence: the epoch at which the host last knew its ranges; 0 = an edit that it has not seen may have
    /// changed them.
    ranges_refreshed: Vec<u64>,
}

impl HostCounters {
    pub fn new(layers: &Layers, n_seqs: usize, on_device: bool) -> Result<Self> {
        let n_layers = layers.len();
        let n_ranges = Self::n_ranges(layers, n_seqs as u64) as usize;
        let mut range_offsets = Vec::new();
        if n_ranges > 0 {
            range_offsets = with_room(n_layers, "layer counters")?;
            let mut at = 0;
            for layer in layers.iter() {
                range_offsets.push(at);
                at += layer.ring.max_segments as usize * n_seqs;
            }
        }
        let staleness = if on_device {
            let refreshed = filled(n_layers * n_seqs, 1, "sequence counters")?;
            Some(Staleness {
                epoch: 1,
                invalidated: filled(n_layers, 1, "layer counters")?,
                refreshed,
                ranges_invalidated: 1,
                ranges_refreshed: filled(n_seqs, 1, "sequence counters")?,
            })
        } else {
            None
        };
        Ok(Self {
            seqs: filled(n_layers * n_seqs, Seq::default(), "sequence counters")?,
            ranges: filled(n_ranges, EditedRange::default(), "pinned and evicted ranges")?,
            range_offsets,
            starts: filled(n_seqs, 0, "start positions")?,
            staleness,
        })
    }

    /// Host bytes that [`Self::new`] allocates. At most 2^16 layers x 2^24 sequences x 2^10 ranges of 32 bytes: the
    /// product cannot overflow.
    pub fn bytes(layers: &Layers, n_seqs: u64, on_device: bool) -> u64 {
        let n_layers = layers.len() as u64;
        let per_seq = size_of::<Seq>() as u64 + if on_device { 8 } else { 0 };
        let n_ranges = Self::n_ranges(layers, n_seqs);
        let ranges = n_ranges * size_of::<EditedRange>() as u64 + if n_ranges > 0 { 8 * n_layers } else { 0 };
        n_layers * n_seqs * per_seq + 8 * n_seqs + if on_device { 8 * (n_layers + n_seqs) } else { 0 } + ranges
    }

    /// Ranges that all sequences of all layers have room for.
    fn n_ranges(layers: &Layers, n_seqs: u64) -> u64 {
        layers.iter().map(|layer| layer.ring.max_segments * n_seqs).sum()
    }

    pub fn n_seqs(&self) -> usize {
        self.starts.len()
    }

    fn index(&self, layer: usize, seq: usize) -> usize {
        layer * self.starts.len() + seq
    }

    pub fn seq(&self, layer: usize, seq: usize) -> &Seq {
        &self.seqs[self.index(layer, seq)]
    }

    pub fn seq_mut(&mut self, layer: usize, seq: usize) -> &mut Seq {
        let index = self.index(layer, seq);
        &mut self.seqs[index]
    }

    /// Room for the ranges of all sequences in a layer: `[sequence][room]`.
    pub fn layer_ranges(&self, layer: usize) -> &[EditedRange] {
        let Some(&from) = self.range_offsets.get(layer) else { return &[] };
        let end = self.range_offsets.get(layer + 1).copied().unwrap_or(self.ranges.len());
        &self.ranges[from..end]
    }

    /// The ranges of a sequence in a layer.
    pub fn ranges(&self, layer: usize, seq: usize) -> &[EditedRange] {
        let all = self.layer_ranges(layer);
        let room = all.len() / self.starts.len();
        &all[seq * room..][..self.seq(layer, seq).n_ranges as usize]
    }

    /// The counters of a sequence in a layer, and its room for ranges.
    pub fn seq_and_ranges(&mut self, layer: usize, seq: usize) -> (&mut Seq, &mut [EditedRange]) {
        let index = self.index(layer, seq);
        let room = self.layer_ranges(layer).len() / self.starts.len();
        let from = self.range_offsets.get(layer).map_or(0, |from| from + seq * room);
        (&mut self.seqs[index], &mut self.ranges[from..from + room])
    }

    /// Sets the counters of a sequence in a layer, and its `state.n_ranges` ranges, for which there is room.
    pub fn replace(&mut self, layer: usize, seq: usize, state: &Seq, ranges: impl Iterator<Item = EditedRange>) {
        let (to, room) = self.seq_and_ranges(layer, seq);
        *to = *state;
        let list = &mut room[..state.n_ranges as usize];
        list.iter_mut().zip(ranges).for_each(|(to, range)| *to = range);
        ranges::sum_later(list);
    }

    /// Copies the counters and ranges of a sequence to another.
    pub fn copy(&mut self, layer: usize, src: usize, dst: usize) {
        let state = *self.seq(layer, src);
        *self.seq_mut(layer, dst) = state;
        let room = self.layer_ranges(layer).len() / self.starts.len();
        if let Some(from) = self.range_offsets.get(layer) {
            let src = from + src * room;
            self.ranges.copy_within(src..src + state.n_ranges as usize, from + dst * room);
        }
    }

    /// The counters of one sequence in every layer, in order.
    pub fn layers(&self, seq: usize) -> impl Iterator<Item = (usize, &Seq)> + Clone {
        self.seqs.iter().skip(seq).step_by(self.starts.len()).enumerate()
    }

    /// Whether the host's counters of a sequence in a layer are up to date.
    pub fn known(&self, layer: usize, seq: usize) -> bool {
        self.staleness.as_ref().is_none_or(|s| s.refreshed[self.index(layer, seq)] >= s.invalidated[layer])
    }

    pub fn known_in_all_layers(&self, seq: usize) -> bool {
        self.layers(seq).all(|(layer, _)| self.known(layer, seq))
    }

    /// Makes the counters of a sequence in a layer stale.
    pub fn invalidate(&mut self, layer: usize, seq: usize) {
        let index = self.index(layer, seq);
        if let Some(s) = &mut self.staleness {
            s.refreshed[index] = 0;
        }
    }

    /// Makes the counters of all sequences in a layer stale.
    pub fn invalidate_layer(&mut self, layer: usize) {
        if let Some(s) = &mut self.staleness {
            s.epoch += 1;
            s.invalidated[layer] = s.epoch;
        }
    }

    /// Makes all counters stale.
    pub fn invalidate_all(&mut self) {
        if let Some(s) = &mut self.staleness {
            s.epoch += 1;
            s.invalidated.fill(s.epoch);
        }
    }

    /// Whether pins and evict_ranges of a sequence have all been seen by the host: else only a reset, a
    /// read-back, a load or a copy makes it known again.
    pub fn knows_ranges(&self, seq: usize) -> bool {
        self.staleness.as_ref().is_none_or(|s| s.ranges_refreshed[seq] >= s.ranges_invalidated)
    }

    /// Whether sequences have lists of ranges.
    pub fn has_ranges(&self) -> bool {
        !self.range_offsets.is_empty()
    }

    /// A pin or an evict_range may change the ranges of a sequence unseen by the host.
    pub fn invalidate_ranges(&mut self, seq: usize) {
        if let Some(s) = &mut self.staleness {
            s.ranges_refreshed[seq] = 0;
        }
    }

    /// The same of all sequences.
    pub fn invalidate_all_ranges(&mut self) {
        if let Some(s) = &mut self.staleness {
            s.epoch += 1;
            s.ranges_invalidated = s.epoch;
        }
    }

    /// The caller has brought the ranges of a sequence up to date, in all layers.
    pub fn refresh_ranges(&mut self, seq: usize) {
        if let Some(s) = &mut self.staleness {
            s.ranges_refreshed[seq] = s.epoch;
        }
    }

    /// Makes the counters of a sequence in a layer known again: the caller has brought them up to date.
    pub fn refresh(&mut self, layer: usize, seq: usize) {
        let index = self.index(layer, seq);
        if let Some(s) = &mut self.staleness {
            s.refreshed[index] = s.epoch;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CacheConfig, LayerConfig};

    fn layers(n: u32) -> Layers {
        layers_with(n, 0)
    }

    fn layers_with(n: u32, max_segments: u32) -> Layers {
        let (n_q_heads, n_kv_heads, head_dim) = (1, 1, 8);
        let layers = vec![LayerConfig { max_segments, ..LayerConfig::default() }];
        let config = CacheConfig { n_layers: n, n_q_heads, n_kv_heads, head_dim, layers, ..CacheConfig::default() };
        config.validate().unwrap().1
    }

    #[test]
    fn bytes_are_those_that_are_allocated() {
        for (n_layers, n_seqs, max_segments) in [(1, 1, 0), (3, 5, 0), (3, 5, 4), (2, 1000, 2)] {
            for on_device in [false, true] {
                let layers = layers_with(n_layers, max_segments);
                let counters = HostCounters::new(&layers, n_seqs, on_device).unwrap();
                let words = |of: &[u64]| size_of_val(of);
                let stale = counters.staleness.as_ref();
                let taken = size_of_val(&counters.seqs[..])
                    + size_of_val(&counters.ranges[..])
                    + size_of_val(&counters.range_offsets[..])
                    + words(&counters.starts)
                    + stale.map_or(0, |s| words(&s.invalidated) + words(&s.refreshed) + words(&s.ranges_refreshed));
                assert_eq!(HostCounters::bytes(&layers, n_seqs as u64, on_device), taken as u64, "{n_layers} {n_seqs}");
            }
        }
    }

    #[test]
    fn invalidated_ranges_are_stale_until_refreshed() {
        let mut counters = HostCounters::new(&layers(1), 3, true).unwrap();
        let known = |counters: &HostCounters| [0, 1, 2].map(|seq| counters.knows_ranges(seq));
        assert_eq!(known(&counters), [true; 3]);
        counters.invalidate_all_ranges();
        assert_eq!(known(&counters), [false; 3]);
        counters.refresh_ranges(1);
        counters.refresh_ranges(2);
        counters.invalidate_ranges(2);
        assert_eq!(known(&counters), [false, true, false]);
        counters.invalidate_all_ranges();
        assert_eq!(known(&counters), [false; 3]);
    }

    #[test]
    fn an_invalidated_layer_is_stale_until_refreshed() {
        let mut counters = HostCounters::new(&layers(2), 3, true).unwrap();
        assert!((0..3).all(|s| counters.known_in_all_layers(s)));
        counters.invalidate_layer(1);
        assert!((0..3).all(|s| counters.known(0, s) && !counters.known(1, s)));
        counters.refresh(1, 2);
        assert!(counters.known_in_all_layers(2) && !counters.known_in_all_layers(1));
        counters.invalidate(0, 1);
        assert!(counters.known(0, 0) && !counters.known(0, 1));
        counters.invalidate_all();
        assert!((0..3).all(|s| !counters.known(0, s) && !counters.known(1, s)));
    }

    #[test]
    fn counters_of_a_cpu_cache_are_never_stale() {
        let mut counters = HostCounters::new(&layers(1), 1, false).unwrap();
        counters.invalidate_all();
        assert!(counters.known(0, 0));
    }
}
