//! Which kernel runs for which call and shape, and how many blocks of it: the one place that knows.

use super::device_layout::max_partials;
use super::driver::Size;
use super::launch_config::{
    CHUNK_MANY_ROWS, CHUNK_ROWS, COLUMNS, KEYS, append_shared, chunk_shared, decode_shared, generic_shared,
    step_shared, step_tokens,
};
use super::modules::{Fast, MOST, Split};
use crate::backend::TokenCall;
use crate::config::{Layer, Shape};

/// A kernel of a call on tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Rotate and store, any shape.
    Append,
    /// Attention of any shape.
    Generic,
    /// Few queries: the keys are split among blocks.
    Decode,
    /// The same, and their tokens stored, in one launch.
    Step,
    /// Many queries: tiles of rows.
    Chunk,
}

/// A launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub which: Which,
    pub size: Size,
    /// Blocks that share the keys of a KV head; 1 but for few queries.
    pub n_splits: u32,
    /// A chunk's tiles are the smaller ones, whatever the rows.
    pub small_tiles: bool,
}

/// What is known before a call.
#[derive(Clone, Copy, Debug)]
pub struct Chooser<'a> {
    pub shape: &'a Shape,
    pub layer: &'a Layer,
    pub fast: Option<&'a Fast>,
    pub multiprocessors: u32,
}

impl Chooser<'_> {
    /// Append and attention of up to `n_tokens` new tokens of each of `n_entries` sequences in one launch, if that can be.
    /// `aligned`: rows of q, k, v and out at multiples of 16 bytes.
    pub fn step(&self, n_entries: u32, n_tokens: u32, aligned: bool) -> Option<Choice> {
        let fast = self.fast.filter(|_| aligned)?;
        let variant = fast.variant;
        if n_tokens > step_tokens(variant.group) {
            return None;
        }
        let shared = step_shared(variant.dim, variant.group);
        Some(self.split(Which::Step, fast.step, shared, n_entries, n_tokens))
    }

    /// Attention. `aligned`: rows of q and out at multiples of 16 bytes.
    pub fn attend(&self, n_entries: u32, n_tokens: u32, aligned: bool) -> Choice {
        let heads = self.shape.n_kv_heads as u64;
        let Some(fast) = self.fast.filter(|_| aligned) else {
            let grid = grid(n_entries, u64::from(n_tokens).min(1024), self.shape.n_q_heads as u64);
            let size = Size { grid, shared: generic_shared(self.shape) };
            return Choice { which: Which::Generic, size, n_splits: 1, small_tiles: false };
        };
        let variant = fast.variant;
        let rows = u64::from(n_tokens) * u64::from(variant.group);
        if rows <= u64::from(COLUMNS) {
            let shared = decode_shared(variant.dim);
            return self.split(Which::Decode, fast.decode, shared, n_entries, n_tokens);
        }
        // Larger tiles read K and V half as often, but not for the price of idle multiprocessors.
        let large = rows.div_ceil(CHUNK_MANY_ROWS.into());
        let busy = u64::from(n_entries) * heads * large >= u64::from(self.multiprocessors);
        let small_tiles = variant.dim > 128 || !busy;
        let tiles = if small_tiles { rows.div_ceil(CHUNK_ROWS.into()) } else { large };
        let size = Size { grid: grid(n_entries, heads, tiles), shared: chunk_shared(variant.dim) };
        Choice { which: Which::Chunk, size, n_splits: 1, small_tiles }
    }

    /// Append: each block does every head of its tokens, so that angles are computed once.
    pub fn append(&self, n_entries: u32, n_tokens: u32) -> Choice {
        let size = Size { grid: grid(n_entries, u64::from(n_tokens).min(256), 1), shared: append_shared(self.layer) };
        Choice { which: Which::Append, size, n_splits: 1, small_tiles: false }
    }

    /// All launches of a call on up to `n_tokens` tokens, no more than a chunk, of each of `n_entries` sequences. `aligned`: all
    /// rows at multiples of 16 bytes.
    pub fn launches(&self, call: TokenCall, n_entries: u32, n_tokens: u32, aligned: bool) -> Vec<Choice> {
        let append = || self.append(n_entries, n_tokens);
        let attend = || self.attend(n_entries, n_tokens, aligned);
        match call {
            TokenCall::Append => vec![append()],
            TokenCall::Attend => vec![attend()],
            TokenCall::Step => match self.step(n_entries, n_tokens, aligned) {
                Some(step) => vec![step],
                None => vec![append(), attend()],
            },
        }
    }

    fn split(&self, which: Which, kernel: Split, shared: u32, n_entries: u32, n_tokens: u32) -> Choice {
        let heads = self.shape.n_kv_heads as u64;
        let ring = &self.layer.ring;
        // The first token's window, and the tokens after it.
        let keys = ring.window + u64::from(n_tokens.saturating_sub(1));
        let tiles = ring.n_sink.div_ceil(KEYS.into()) + keys.div_ceil(KEYS.into());
        let rounds = tiles.div_ceil(u64::from(kernel.kernel.threads / 32)).max(1);
        let blocks = (u64::from(n_entries) * heads).max(1);
        let most = rounds.min(MOST).min(max_partials(self.multiprocessors) / blocks).max(1);
        let n_splits = n_splits(blocks, rounds, most, self.multiprocessors.into(), kernel.at_once.into()) as u32;
        let size = Size { grid: grid(n_entries, heads, n_splits.into()), shared };
        Choice { which, size, n_splits, small_tiles: false }
    }
}

/// Blocks of a launch: entries in x, up to `y` and `z` in the others, whose kernels loop where that is not enough.
pub fn grid(n_entries: u32, y: u64, z: u64) -> [u32; 3] {
    [n_entries, y.clamp(1, MOST) as u32, z.clamp(1, MOST) as u32]
}

// Times in halves of a round. A round is a tile for each warp of a block: 35 KiB of K and V with heads of 128, about what a
// multiprocessor's share of an H100's bandwidth brings in a microsecond, and about the latency of its memory.

/// A round of a block that has its multiprocessor to itself: its own copies alone do not keep the memory busy.
const ALONE: u64 = 3;
/// A round of each of several blocks on a multiprocessor, which wait for each other's.
const SHARED: u64 = 2;
/// What a block does beside its rounds: counters, queries and the first tiles' way before them, merging its warps after them.
const FIXED: u64 = 4;
/// Merging splits, and how many of them cost a half more: eight loads are on their way at once.
const MERGE: u64 = 2;
const MERGED_AT_ONCE: u64 = 8;

/// Into how many blocks the keys of each of `blocks` KV heads are split: as takes the least time by the model above, which
/// has not been measured on a GPU.
fn n_splits(blocks: u64, rounds: u64, most: u64, multiprocessors: u64, at_once: u64) -> u64 {
    let (multiprocessors, at_once) = (multiprocessors.max(1), at_once.max(1));
    let places = multiprocessors * at_once;
    let wave = |deep: u64, each: u64| match deep {
        0 => 0,
        1 => ALONE * each + FIXED,
        _ => SHARED * deep * each + FIXED,
    };
    let time = |splits: u64, each: u64| {
        let (full, left) = (blocks * splits / places, blocks * splits % places);
        let merge = if splits > 1 { MERGE + splits / MERGED_AT_ONCE } else { 0 };
        full * wave(at_once, each) + wave(left.div_ceil(multiprocessors), each) + merge
    };
    let mut each = rounds.max(1);
    let mut best = (time(1, each), 1);
    // The least number of splits for every number of rounds that a split can have: none is empty, and there are few.
    while each > 1 {
        let splits = rounds.div_ceil(each - 1);
        if splits > most {
            break;
        }
        each = rounds.div_ceil(splits);
        best = best.min((time(splits, each), splits));
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sequence of 8 KV heads over 4 + 2,048 keys on 132 multiprocessors: every one has work, and no split is empty.
    #[test]
    fn few_heads_fill_the_device() {
        let splits = n_splits(8, 33, 33, 132, 3);
        assert!(8 * splits >= 132, "{splits} splits");
        assert!((splits - 1) * 33_u64.div_ceil(splits) < 33, "{splits} splits of 33 rounds leave an empty one");
    }

    /// As many heads as fill the device many times over are not split: partial results would be read again for nothing.
    #[test]
    fn many_heads_are_left_whole() {
        assert_eq!(n_splits(2048, 33, 1, 132, 3), 1);
        assert_eq!(n_splits(132 * 3 * 8, 33, 8, 132, 3), 1);
    }

    /// A last wave of few blocks is what splitting is for.
    #[test]
    fn a_short_last_wave_is_split() {
        let places = 132 * 3;
        assert!(n_splits(places + 1, 1025, 4, 132, 3) > 1);
    }

    /// benches/gpu/model.py predicts with the same numbers (`self_test.py` has the same list).
    #[test]
    fn splits_that_predictions_rest_on() {
        for (blocks, rounds, want) in [(8, 32, 16), (64, 32, 4), (512, 32, 1), (8, 256, 32), (8, 4, 4)] {
            let most = rounds.min(max_partials(132) / blocks).max(1);
            assert_eq!(n_splits(blocks, rounds, most, 132, 3), want, "{blocks} blocks of {rounds} rounds");
        }
    }

    #[test]
    fn degenerate_counts() {
        assert_eq!(n_splits(1, 1, 1, 0, 0), 1);
        assert_eq!(n_splits(1, 1, 65_535, 1, 1), 1);
    }
}
