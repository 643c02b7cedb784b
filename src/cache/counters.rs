//! Counters of every sequence in every layer, as the host knows them.
//!
//! On the CPU they are the truth. On a device they are a mirror: what a captured graph will do, and what counts in
//! device memory say, the host cannot know. Such a sequence is in doubt until it is reset, read back, or the host tells.

use crate::error::Result;
use crate::memory::filled;
use crate::ring::Seq;

#[derive(Debug)]
pub(super) struct Mirror {
    /// `[layer][sequence]`.
    seqs: Vec<Seq>,
    /// Stream position of token 0, per sequence.
    pub starts: Vec<u64>,
    /// `None` where the host's counters are the truth.
    doubt: Option<Doubt>,
}

/// A counter is in doubt when its layer was lost after it was last known: losing a whole layer costs one number.
#[derive(Debug)]
struct Doubt {
    now: u64,
    /// Per layer.
    lost: Vec<u64>,
    /// `[layer][sequence]`.
    known: Vec<u64>,
}

impl Mirror {
    pub fn new(n_layers: usize, n_seqs: usize, doubtful: bool) -> Result<Self> {
        let doubt = if doubtful {
            let known = filled(n_layers * n_seqs, 1, "sequence counters")?;
            Some(Doubt { now: 1, lost: filled(n_layers, 1, "layer counters")?, known })
        } else {
            None
        };
        Ok(Self {
            seqs: filled(n_layers * n_seqs, Seq::default(), "sequence counters")?,
            starts: filled(n_seqs, 0, "start positions")?,
            doubt,
        })
    }

    /// Host bytes of [`Self::new`]. At most 2^16 layers x 2^24 sequences: no overflow.
    pub fn bytes(n_layers: u64, n_seqs: u64, doubtful: bool) -> u64 {
        let per_seq = size_of::<Seq>() as u64 + if doubtful { 8 } else { 0 };
        n_layers * n_seqs * per_seq + 8 * n_seqs + if doubtful { 8 * n_layers } else { 0 }
    }

    pub fn n_seqs(&self) -> usize {
        self.starts.len()
    }

    pub fn seq(&self, layer: usize, seq: usize) -> &Seq {
        &self.seqs[layer * self.starts.len() + seq]
    }

    pub fn seq_mut(&mut self, layer: usize, seq: usize) -> &mut Seq {
        &mut self.seqs[layer * self.starts.len() + seq]
    }

    /// Every layer's state of one sequence.
    pub fn layers(&self, seq: usize) -> impl Iterator<Item = (usize, &Seq)> {
        self.seqs.iter().skip(seq).step_by(self.starts.len()).enumerate()
    }

    /// Whether the counters of a sequence in a layer are the device's.
    pub fn sure(&self, layer: usize, seq: usize) -> bool {
        self.doubt.as_ref().is_none_or(|d| d.known[layer * self.starts.len() + seq] >= d.lost[layer])
    }

    /// Whether they are in every layer.
    pub fn sure_everywhere(&self, seq: usize) -> bool {
        self.layers(seq).all(|(layer, _)| self.sure(layer, seq))
    }

    /// The host no longer knows a sequence in a layer.
    pub fn lose(&mut self, layer: usize, seq: usize) {
        let n_seqs = self.starts.len();
        if let Some(d) = &mut self.doubt {
            d.known[layer * n_seqs + seq] = 0;
        }
    }

    /// The host no longer knows any sequence of a layer.
    pub fn lose_layer(&mut self, layer: usize) {
        if let Some(d) = &mut self.doubt {
            d.now += 1;
            d.lost[layer] = d.now;
        }
    }

    /// The host no longer knows anything.
    pub fn lose_all(&mut self) {
        if let Some(d) = &mut self.doubt {
            d.now += 1;
            d.lost.fill(d.now);
        }
    }

    /// The host knows a sequence in a layer.
    pub fn settle(&mut self, layer: usize, seq: usize) {
        let n_seqs = self.starts.len();
        if let Some(d) = &mut self.doubt {
            d.known[layer * n_seqs + seq] = d.now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_layer_is_in_doubt_until_settled() {
        let mut mirror = Mirror::new(2, 3, true).unwrap();
        assert!((0..3).all(|s| mirror.sure_everywhere(s)));
        mirror.lose_layer(1);
        assert!((0..3).all(|s| mirror.sure(0, s) && !mirror.sure(1, s)));
        mirror.settle(1, 2);
        assert!(mirror.sure_everywhere(2) && !mirror.sure_everywhere(1));
        mirror.lose(0, 1);
        assert!(mirror.sure(0, 0) && !mirror.sure(0, 1));
        mirror.lose_all();
        assert!((0..3).all(|s| !mirror.sure(0, s) && !mirror.sure(1, s)));
    }

    #[test]
    fn the_truth_is_never_in_doubt() {
        let mut mirror = Mirror::new(1, 1, false).unwrap();
        mirror.lose_all();
        assert!(mirror.sure(0, 0));
    }
}
