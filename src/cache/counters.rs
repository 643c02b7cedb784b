//! The host's copy of the counters of every sequence in every layer.
//!
//! For a CPU cache they are the only counters. A CUDA cache keeps its own in device memory, and the host's copy can
//! become stale: the host does not see length changes made by graph replays or by counts in device memory. A stale
//! sequence becomes known again when it is reset, read back, or when the host reports the change (`note_replay`).

use crate::error::Result;
use crate::memory::filled;
use crate::ring::Seq;

#[derive(Debug)]
pub(super) struct HostCounters {
    /// `[layer][sequence]`.
    seqs: Vec<Seq>,
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
}

impl HostCounters {
    pub fn new(n_layers: usize, n_seqs: usize, on_device: bool) -> Result<Self> {
        let staleness = if on_device {
            let refreshed = filled(n_layers * n_seqs, 1, "sequence counters")?;
            Some(Staleness { epoch: 1, invalidated: filled(n_layers, 1, "layer counters")?, refreshed })
        } else {
            None
        };
        Ok(Self {
            seqs: filled(n_layers * n_seqs, Seq::default(), "sequence counters")?,
            starts: filled(n_seqs, 0, "start positions")?,
            staleness,
        })
    }

    /// Host bytes that [`Self::new`] allocates. At most 2^16 layers x 2^24 sequences: the product cannot overflow.
    pub fn bytes(n_layers: u64, n_seqs: u64, on_device: bool) -> u64 {
        let per_seq = size_of::<Seq>() as u64 + if on_device { 8 } else { 0 };
        n_layers * n_seqs * per_seq + 8 * n_seqs + if on_device { 8 * n_layers } else { 0 }
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

    /// The counters of one sequence in every layer, in order.
    pub fn layers(&self, seq: usize) -> impl Iterator<Item = (usize, &Seq)> {
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

    #[test]
    fn an_invalidated_layer_is_stale_until_refreshed() {
        let mut counters = HostCounters::new(2, 3, true).unwrap();
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
        let mut counters = HostCounters::new(1, 1, false).unwrap();
        counters.invalidate_all();
        assert!(counters.known(0, 0));
    }
}
