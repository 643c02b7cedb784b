//! Which kernel runs for which call and shape, and how many blocks of it. No other file decides either.

use super::device_layout::{max_chunk_partials, max_partials};
use super::driver::LaunchSize;
use super::launch_config::{
    CHUNK_LARGE_ROWS, CHUNK_SMALL_ROWS, CLUSTERS, DECODE_COLUMNS, DECODE_KEYS, append_shared, chunk_keys, chunk_shared,
    chunk_slices, decode_shared, generic_shared, step_shared, step_tokens,
};
use super::modules::{MAX_GRID_YZ, SplitKernel, VariantKernels};
use crate::backend::TokenCall;
use crate::config::{Layer, Shape};

/// A kernel of a call on tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKernel {
    /// Rotate and store, any shape.
    Append,
    /// Attention of any shape.
    Generic,
    /// Attention of few queries, with a KV split.
    Decode,
    /// The same, and their tokens are appended in the same launch.
    Step,
    /// Attention of many queries, in tiles of rows, with a KV split where few rows would leave multiprocessors idle.
    Chunk,
}

/// A launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchChoice {
    pub kernel: TokenKernel,
    pub size: LaunchSize,
    /// Blocks that share the keys of a KV head; 1 without a KV split.
    pub n_splits: u32,
    /// A chunk uses the smaller query tiles, whatever its rows.
    pub small_tiles: bool,
}

/// Up to how many tokens of how many sequences a call works on, and whether its rows begin at multiples of 16 bytes,
/// which the specialised kernels need.
#[derive(Clone, Copy, Debug)]
pub struct CallSize {
    pub n_entries: u32,
    /// At most a chunk.
    pub n_tokens: u32,
    pub aligned: bool,
}

/// Chooses launches from what is known before a call. Nothing here depends on the sequences' lengths, so that a
/// captured launch stays right.
#[derive(Clone, Copy, Debug)]
pub struct Heuristics<'a> {
    pub shape: &'a Shape,
    pub layer: &'a Layer,
    /// `None` where the layer has the kernels for every shape only.
    pub specialised: Option<&'a VariantKernels>,
    pub multiprocessors: u32,
}

impl Heuristics<'_> {
    /// Append and attention in one launch; `None` where that takes two.
    pub fn step(&self, call: CallSize) -> Option<LaunchChoice> {
        let kernels = self.specialised.filter(|_| call.aligned)?;
        let variant = kernels.variant;
        if call.n_tokens > step_tokens(variant.group) {
            return None;
        }
        let shared_bytes = step_shared(variant.dtype, variant.dim, variant.group);
        Some(self.split(TokenKernel::Step, kernels.step, shared_bytes, call))
    }

    /// Attention.
    pub fn attend(&self, call: CallSize) -> LaunchChoice {
        let heads = self.shape.n_kv_heads as u64;
        let Some(kernels) = self.specialised.filter(|_| call.aligned) else {
            let grid = grid(call.n_entries, u64::from(call.n_tokens).min(1024), self.shape.n_q_heads as u64);
            let size = LaunchSize::new(grid, generic_shared(self.shape));
            return LaunchChoice { kernel: TokenKernel::Generic, size, n_splits: 1, small_tiles: false };
        };
        let variant = kernels.variant;
        let rows = u64::from(call.n_tokens) * u64::from(variant.group);
        if rows <= u64::from(DECODE_COLUMNS) {
            return self.split(TokenKernel::Decode, kernels.decode, decode_shared(variant.dtype, variant.dim), call);
        }
        // Larger tiles read K and V half as often. They are not worth idle multiprocessors.
        let large_tiles = rows.div_ceil(CHUNK_LARGE_ROWS.into());
        let fills_device = u64::from(call.n_entries) * heads * large_tiles >= u64::from(self.multiprocessors);
        let small_tiles = variant.dim > 128 || !fills_device;
        let tiles = if small_tiles { rows.div_ceil(CHUNK_SMALL_ROWS.into()) } else { large_tiles };
        // Blocks that share a query tile lie side by side in z. Kernels loop over tiles only where they do not split.
        let Split { splits, cluster } =
            if small_tiles { self.chunk_splits(kernels, call, tiles) } else { Split { splits: 1, cluster: false } };
        let n_splits = splits as u32;
        let size = LaunchSize {
            cluster: if cluster { n_splits } else { 1 },
            ..LaunchSize::new(grid(call.n_entries, heads, tiles * splits), chunk_shared(variant.dtype, variant.dim))
        };
        LaunchChoice { kernel: TokenKernel::Chunk, size, n_splits, small_tiles }
    }

    /// KV splits of a chunk with so many query tiles of 64 rows to a KV head.
    fn chunk_splits(&self, kernels: &VariantKernels, call: CallSize, tiles: u64) -> Split {
        let (dtype, dim) = (kernels.variant.dtype, kernels.variant.dim);
        let rounds = self.key_tiles(call, chunk_keys(dim)).div_ceil(chunk_slices(dtype, dim).into()).max(1);
        let heads = (u64::from(call.n_entries) * self.shape.n_kv_heads as u64 * tiles).max(1);
        let most = (MAX_GRID_YZ / tiles).min(max_chunk_partials(self.multiprocessors) / heads);
        let work = SplitWork { heads, rounds, max_splits: most.min(rounds).max(1), merge: CHUNK_MERGE };
        choose_split(work, self.residency(kernels.chunk))
    }

    /// Append. Each block stores every head of its tokens, so that their angles are computed once.
    pub fn append(&self, call: CallSize) -> LaunchChoice {
        let grid = grid(call.n_entries, u64::from(call.n_tokens).min(256), 1);
        let size = LaunchSize::new(grid, append_shared(self.layer));
        LaunchChoice { kernel: TokenKernel::Append, size, n_splits: 1, small_tiles: false }
    }

    /// All launches of a call, in order.
    pub fn launches(&self, call: TokenCall, size: CallSize) -> Vec<LaunchChoice> {
        match call {
            TokenCall::Append => vec![self.append(size)],
            TokenCall::Attend => vec![self.attend(size)],
            TokenCall::Step => match self.step(size) {
                Some(step) => vec![step],
                None => vec![self.append(size), self.attend(size)],
            },
        }
    }

    /// Tiles of so many keys that a call sees at most.
    fn key_tiles(&self, call: CallSize, keys: u32) -> u64 {
        let ring = &self.layer.ring;
        // Sinks and pinned tokens; the first token's window, and the tokens after it.
        let window = ring.window + u64::from(call.n_tokens.saturating_sub(1));
        ring.fixed_slots().div_ceil(keys.into()) + window.div_ceil(keys.into())
    }

    fn residency(&self, loaded: SplitKernel) -> Residency {
        Residency {
            multiprocessors: self.multiprocessors.into(),
            blocks_per_multiprocessor: loaded.blocks_per_multiprocessor.into(),
            clustered_blocks: loaded.clustered_blocks,
        }
    }

    fn split(&self, kernel: TokenKernel, loaded: SplitKernel, shared_bytes: u32, call: CallSize) -> LaunchChoice {
        let heads = self.shape.n_kv_heads as u64;
        let warps = u64::from(loaded.kernel.threads / 32);
        let rounds = self.key_tiles(call, DECODE_KEYS).div_ceil(warps).max(1);
        let all_heads = (u64::from(call.n_entries) * heads).max(1);
        let max_splits = rounds.min(MAX_GRID_YZ).min(max_partials(self.multiprocessors) / all_heads).max(1);
        let work = SplitWork { heads: all_heads, rounds, max_splits, merge: DECODE_MERGE };
        let n_splits = choose_split(work, self.residency(loaded)).splits as u32;
        let size = LaunchSize::new(grid(call.n_entries, heads, n_splits.into()), shared_bytes);
        LaunchChoice { kernel, size, n_splits, small_tiles: false }
    }
}

/// Blocks of a launch: entries in x, up to `y` and `z` in the others. Kernels loop where the grid's limits are lower.
pub fn grid(n_entries: u32, y: u64, z: u64) -> [u32; 3] {
    [n_entries, y.clamp(1, MAX_GRID_YZ) as u32, z.clamp(1, MAX_GRID_YZ) as u32]
}

/// What a launch has to do: KV heads of all entries (of a chunk, each with so many query tiles), and rounds of each,
/// without a KV split. A round of a decode is a tile for each warp of a block: 35 KiB of K and V with heads of 128,
/// which take about a microsecond at a multiprocessor's share of an H100's bandwidth, and that is also about the
/// latency of its memory. A round of a chunk is a tile for each slice: 64 rows times 64 keys with heads of 128, which
/// take about a microsecond at 30 % of an H100's flops.
#[derive(Clone, Copy, Debug)]
struct SplitWork {
    heads: u64,
    rounds: u64,
    max_splits: u64,
    merge: MergeTime,
}

/// Time of merging splits, and how many of them cost a half round more.
#[derive(Clone, Copy, Debug)]
struct MergeTime {
    fixed: u64,
    unroll: u64,
}

/// Blocks that a device can run at the same time.
#[derive(Clone, Copy, Debug)]
struct Residency {
    multiprocessors: u64,
    blocks_per_multiprocessor: u64,
    /// As clusters of so many as [`CLUSTERS`] says; 0 where they are not wanted.
    clustered_blocks: [u32; CLUSTERS.len()],
}

impl Residency {
    /// Blocks in clusters of `splits`; `None` if there are no such.
    fn clustered(&self, splits: u64) -> Option<u64> {
        let index = CLUSTERS.iter().position(|&blocks| u64::from(blocks) == splits)?;
        Some(self.clustered_blocks[index].into()).filter(|&blocks| blocks > 0)
    }
}

/// A KV split. `cluster`: its blocks are one, and merge their partial results in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    splits: u64,
    cluster: bool,
}

// Times of the model, in units of half a round.

/// A round of a block that is alone on its multiprocessor: its own copies do not saturate the memory.
const ROUND_ALONE: u64 = 3;
/// A round of one of several blocks on a multiprocessor, which compete for bandwidth.
const ROUND_SHARED: u64 = 2;
/// What a block does beside its rounds: it reads counters, loads queries, waits for the first tiles, and merges its
/// warps.
const BLOCK_FIXED: u64 = 4;
/// A decode's partial results are small, and their loads' latencies overlap.
const DECODE_MERGE: MergeTime = MergeTime { fixed: 2, unroll: 8 };
/// A chunk's are 34 KiB with heads of 128: all blocks write theirs at about the same time, and a warp that merges loads
/// one after the other.
const CHUNK_MERGE: MergeTime = MergeTime { fixed: 6, unroll: 1 };
/// Of a cluster: two barriers, and all but a block's own share of as many bytes from the shared memory of the others,
/// to all blocks at the same time. Assumed: half a microsecond for a barrier, 2 TB/s between all multiprocessors.
const CLUSTER_MERGE: MergeTime = MergeTime { fixed: 6, unroll: 2 };

/// Into how many blocks the keys of each KV head, or query tile, are split, and how they merge: what takes the least
/// time by the model above, which has not been measured on a GPU.
fn choose_split(work: SplitWork, device: Residency) -> Split {
    let multiprocessors = device.multiprocessors.max(1);
    let per_multiprocessor = device.blocks_per_multiprocessor.max(1);
    let resident = multiprocessors * per_multiprocessor;
    // A wave of blocks with `rounds` rounds each, `deep` of them on a multiprocessor.
    let wave = |deep: u64, rounds: u64| match deep {
        0 => 0,
        1 => ROUND_ALONE * rounds + BLOCK_FIXED,
        _ => ROUND_SHARED * deep * rounds + BLOCK_FIXED,
    };
    let time = |splits: u64, resident: u64, merge: MergeTime| {
        let rounds = work.rounds.max(1).div_ceil(splits);
        let blocks = work.heads * splits;
        let (full_waves, left) = (blocks / resident, blocks % resident);
        let merge = if splits > 1 { merge.fixed + splits / merge.unroll } else { 0 };
        full_waves * wave(per_multiprocessor, rounds) + wave(left.div_ceil(multiprocessors), rounds) + merge
    };
    // Ties are won by fewer splits, then by clusters.
    let mut best = (time(1, resident, work.merge), 1, true);
    let mut consider = |splits: u64| {
        best = best.min((time(splits, resident, work.merge), splits, true));
        if let Some(clustered) = device.clustered(splits) {
            best = best.min((time(splits, clustered, CLUSTER_MERGE), splits, false));
        }
    };
    // For each number of rounds that a split can have, the fewest splits that give it. None of those is empty, and
    // there are few such numbers.
    let mut rounds = work.rounds.max(1);
    while rounds > 1 {
        let splits = work.rounds.div_ceil(rounds - 1);
        if splits > work.max_splits {
            break;
        }
        rounds = work.rounds.div_ceil(splits);
        consider(splits);
    }
    // Clusters may be worth splits that are empty.
    for splits in CLUSTERS.map(u64::from) {
        if splits <= work.max_splits && device.clustered(splits).is_some() {
            consider(splits);
        }
    }
    let (_, splits, through_memory) = best;
    Split { splits, cluster: !through_memory }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On `multiprocessors` with three resident blocks each.
    fn splits(heads: u64, rounds: u64, max_splits: u64, multiprocessors: u64) -> u64 {
        let device = Residency { multiprocessors, blocks_per_multiprocessor: 3, clustered_blocks: [0; 3] };
        choose_split(SplitWork { heads, rounds, max_splits, merge: DECODE_MERGE }, device).splits
    }

    /// Of a chunk, on 132 multiprocessors with two resident blocks each.
    fn chunk_split(tiles: u64, rounds: u64, clustered_blocks: [u32; 3]) -> Split {
        let device = Residency { multiprocessors: 132, blocks_per_multiprocessor: 2, clustered_blocks };
        let max_splits = rounds.min(max_chunk_partials(132) / tiles).max(1);
        choose_split(SplitWork { heads: tiles, rounds, max_splits, merge: CHUNK_MERGE }, device)
    }

    /// One sequence of 8 KV heads over 4 + 2,048 keys on 132 multiprocessors: every one has work, and no split is
    /// empty.
    #[test]
    fn few_heads_fill_the_device() {
        let splits = splits(8, 33, 33, 132);
        assert!(8 * splits >= 132, "{splits} splits");
        assert!((splits - 1) * 33_u64.div_ceil(splits) < 33, "{splits} splits of 33 rounds leave an empty one");
    }

    /// Heads that fill the device many times over are not split: partial results would be written and read for nothing.
    #[test]
    fn many_heads_are_not_split() {
        assert_eq!(splits(2048, 33, 1, 132), 1);
        assert_eq!(splits(132 * 3 * 8, 33, 8, 132), 1);
    }

    /// A last wave of few blocks is shortened by splitting.
    #[test]
    fn a_short_last_wave_is_split() {
        let resident = 132 * 3;
        assert!(splits(resident + 1, 1025, 4, 132) > 1);
    }

    /// benches/gpu/model.py predicts with the same numbers (`self_test.py` has the same list).
    #[test]
    fn splits_that_predictions_rest_on() {
        for [heads, rounds, want] in [[8, 32, 16], [64, 32, 4], [512, 32, 1], [8, 256, 32], [8, 4, 4]] {
            let max_splits = rounds.min(max_partials(132) / heads).max(1);
            assert_eq!(splits(heads, rounds, max_splits, 132), want, "{heads} heads of {rounds} rounds");
        }
    }

    /// As above. Query tiles of 128 tokens of one sequence with 32 query heads over 2,048 and 16,384 keys; of 16
    /// tokens; of more than fill the device.
    #[test]
    fn splits_of_chunks_that_predictions_rest_on() {
        for [tiles, rounds, want] in [[64, 35, 4], [64, 259, 4], [8, 33, 11], [128, 37, 2], [136, 37, 1], [64, 3, 1]] {
            let split = chunk_split(tiles, rounds, [0; 3]);
            assert_eq!(split, Split { splits: want, cluster: false }, "{tiles} query tiles of {rounds} rounds");
        }
    }

    /// The same where clusters are possible: 256 blocks of them, whatever their size.
    #[test]
    fn clusters_of_chunks_that_predictions_rest_on() {
        let clusters = [256; 3];
        for [tiles, rounds, want] in [[64, 35, 4], [64, 259, 4], [8, 33, 8], [128, 37, 2]] {
            let split = chunk_split(tiles, rounds, clusters);
            assert_eq!(split, Split { splits: want, cluster: true }, "{tiles} query tiles of {rounds} rounds");
        }
        for [tiles, rounds] in [[136, 37], [64, 3]] {
            let split = chunk_split(tiles, rounds, clusters);
            assert_eq!(split, Split { splits: 1, cluster: false }, "{tiles} query tiles of {rounds} rounds");
        }
    }

    /// Clusters of which fewer blocks run at the same time are not worth a second wave.
    #[test]
    fn clusters_that_do_not_fit_into_one_wave_are_not_chosen() {
        assert_eq!(chunk_split(64, 259, [0, 200, 0]), Split { splits: 4, cluster: false });
        assert_eq!(chunk_split(64, 259, [0, 256, 0]), Split { splits: 4, cluster: true });
    }

    #[test]
    fn degenerate_counts() {
        let none = Residency { multiprocessors: 0, blocks_per_multiprocessor: 0, clustered_blocks: [0; 3] };
        let one = Residency { multiprocessors: 1, blocks_per_multiprocessor: 1, clustered_blocks: [0; 3] };
        let work = SplitWork { heads: 1, rounds: 1, max_splits: 1, merge: DECODE_MERGE };
        assert_eq!(choose_split(work, none).splits, 1);
        assert_eq!(choose_split(SplitWork { max_splits: 65_535, ..work }, one).splits, 1);
    }
}
