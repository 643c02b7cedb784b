"""Times predicted before any kernel of this library ran on a GPU. The constants below are assumptions.

A decode step: a launch, the dependent reads before a block's first tile, then waves of blocks at the smaller of the
memory bandwidth and what their bytes in flight allow, and the merge of KV splits. A chunk: waves of tiles at a share of
the peak that depends on how full a multiprocessor is, and the partial results of KV splits. PyTorch's contenders: their
launches, or the bytes that each of their operations moves.
"""

import dataclasses
import math
from typing import NamedTuple

from cases import Case
from gpu_specs import ARCHS, occupancy

# Seconds.
NODE = 1.6e-6  # from the end of a kernel to the start of the next node of a graph
READ = 0.65e-6  # a dependent read of device memory
MERGE = 1.3e-6  # the merge of KV splits by the last block: an atomic, then a round of reads
CLUSTER_BARRIER = 0.5e-6  # a barrier of a thread block cluster: assumed, no source; about a read of device memory
EAGER = 5.0e-6  # a kernel launched by an eager PyTorch operation, on the host
SMALL_KERNEL = 2.3e-6  # a small kernel of PyTorch in a graph, its node included

# Shares of the datasheet's bandwidth.
COPY = 0.90
STREAM = 0.86  # PyTorch's and FlashAttention's kernels; 88 % is published for FlashAttention-3
OWN = 0.80  # this library's decode: cp.async and mma.sync like XQA (published: 73 %), with more bytes in flight
GEMV = 0.80  # a matrix-vector product

# Shares of the peak of flops.
MATMUL = 0.70  # a product of large matrices
FLASH = 0.38  # PyTorch's flash attention by mma.sync
CHUNK = 0.30  # this library's chunks on full multiprocessors
SMALL_TILES = 0.75  # the rate of a chunk's small tiles relative to its large ones
ONE_BLOCK = 0.65  # the rate of a multiprocessor with one resident block of several, which hides less latency

# Thread block clusters. Bytes per second that a multiprocessor reads of others' shared memory: assumed, no source;
# 2 TB/s on an H100, below the rate of its L2.
CLUSTER_RATE = 15e9
# Clusters lie within groups of multiprocessors: assumed to be of 16, and those that are left over have none.
CLUSTER_GROUP = 16
CLUSTER_ARCHS = "sm_90a", "sm_100", "sm_120"
CLUSTERS = 2, 4, 8

# Dependent reads before a block's first tile: its batch entry and counters, then the tile.
DEPENDENT_READS = 2
LLAMA_WEIGHTS, LLAMA_LAYERS = 6.74e9, 32
# Kernels of a layer besides attention: two norms (three kernels each if not fused, counted as one), four products,
# silu, product, two sums.
LAYER_KERNELS = 10


@dataclasses.dataclass(frozen=True)
class Kernel:
    threads: int
    stages: int
    resident: int  # blocks on a multiprocessor
    limited_by: str
    in_flight: int  # bytes of a block


class Aim(NamedTuple):
    """An aim as report.py words it, the predicted value, and whether that reaches the aim."""

    aim: str
    value: str
    reached: bool


def kernel(name, dim, registers, shared, arch):
    """Launch configuration as in kernels/launch_config.cuh."""
    row = 2 * dim
    if name == "skc_attend_chunk":
        # Tiles of K and of V; for large tiles, three stages of 32 keys.
        threads, stages = 128, 2 if dim > 128 else 3
        in_flight = (stages - 1) * 2 * (16 if dim > 128 else 32) * row
    else:
        warps = 2 if dim > 128 else 4
        threads, stages = 32 * warps, 2 if dim > 80 else 3
        in_flight = (stages - 1) * warps * 2 * 16 * row
    resident, limited_by = occupancy(arch, threads, registers, shared)
    return Kernel(threads, stages, resident, limited_by, in_flight)


def _kernel_on(table, name, device, dim):
    registers, shared = table[name, device.arch, dim]
    return kernel(name, dim, registers, shared, ARCHS[device.arch])


# Times of merging KV splits in units of half a round: fixed, and how many splits cost one more.
DECODE_MERGE = 2, 8
CHUNK_MERGE = 6, 1
CLUSTER_MERGE = 6, 2


class Split(NamedTuple):
    """Blocks that share the keys of a KV head or query tile. `cluster`: they merge in shared memory."""

    splits: int
    cluster: bool


def best_splits(heads, rounds, most, resident, multiprocessors, merge_time, clustered=0):
    """choose_split of src/backend/cuda/heuristics.rs, in its units. `heads` of a chunk: query tiles of all KV heads.
    `clustered`: blocks in clusters that run at the same time."""
    slots = multiprocessors * resident

    def wave(blocks, rounds_each):
        return 0 if blocks == 0 else (3 if blocks == 1 else 2 * blocks) * rounds_each + 4

    def time(splits, at_once, merge_time):
        rounds_each = math.ceil(rounds / splits)
        full, left = divmod(heads * splits, at_once)
        merge = merge_time[0] + splits // merge_time[1] if splits > 1 else 0
        return full * wave(resident, rounds_each) + wave(math.ceil(left / multiprocessors), rounds_each) + merge

    candidates = [1]
    each = rounds
    while each > 1:
        splits = math.ceil(rounds / (each - 1))
        if splits > most:
            break
        each = math.ceil(rounds / splits)
        candidates.append(splits)
    clusters = [splits for splits in CLUSTERS if clustered and splits <= most]
    # As there, ties are won by fewer splits, then by clusters.
    times = [(time(splits, slots, merge_time), splits, True) for splits in {*candidates, *clusters}]
    times += [(time(splits, clustered, CLUSTER_MERGE), splits, False) for splits in clusters]
    _, splits, through_memory = min(times)
    return Split(splits, not through_memory)


def n_splits(heads, cached, k, multiprocessors):
    """KV splits of a decode's head."""
    warps = k.threads // 32
    rounds = max(1, math.ceil(math.ceil(cached / 16) / warps))
    most = max(1, min(rounds, 4 * multiprocessors // heads))
    return best_splits(heads, rounds, most, k.resident, multiprocessors, DECODE_MERGE).splits


def clustered_blocks(k, device):
    """Blocks of clusters that a device runs at the same time; 0 if it has none."""
    groups = device.multiprocessors // CLUSTER_GROUP
    return groups * CLUSTER_GROUP * k.resident if device.arch in CLUSTER_ARCHS else 0


def chunk_splits(tiles, keys, dim, k, multiprocessors, clustered=0):
    """The KV split of a chunk's query tile of 64 rows; `tiles` of all KV heads."""
    rounds = math.ceil(keys / (16 if dim > 128 else 64))
    most = max(1, min(rounds, 2 * multiprocessors // tiles))
    return best_splits(tiles, rounds, most, k.resident, multiprocessors, CHUNK_MERGE, clustered)


def decode(table, device, case):
    """Seconds of a step as one node, or two where append is a launch of its own."""
    one_launch = ("skc_step_decode", device.arch, case.dim) in table
    k = _kernel_on(table, "skc_step_decode" if one_launch else "skc_attend_decode", device, case.dim)
    heads, slots = case.n_seqs * case.kv_heads, device.multiprocessors * k.resident
    splits = n_splits(heads, case.cached, k, device.multiprocessors)
    blocks = heads * splits
    bytes_of_block = case.step_bytes / blocks
    seconds, left = 0.0, blocks
    while left > 0:
        wave = min(left, slots)
        bandwidth = min(OWN * device.bytes_per_s, wave * min(k.in_flight, bytes_of_block) / READ)
        seconds += wave * bytes_of_block / bandwidth
        left -= wave
    seconds += NODE + DEPENDENT_READS * READ + (MERGE if splits > 1 else 0)
    if not one_launch:
        seconds += NODE + DEPENDENT_READS * READ + READ
    return seconds


class Tiling(NamedTuple):
    """How the work of a chunk is divided."""

    rows: int  # of a query tile
    tiles: int  # of all KV heads
    splits: int  # blocks to a tile
    cluster: bool  # they are one, and merge in shared memory


def tiling(k, device, case, clusters=True):
    """Query tiles of 128 rows, or of 64 if there are too few for the multiprocessors, with a KV split then. `clusters`:
    where the device has them."""
    rows = case.chunk * case.q_heads // case.kv_heads
    heads = case.n_seqs * case.kv_heads
    if case.dim <= 128 and heads * math.ceil(rows / 128) >= device.multiprocessors:
        return Tiling(128, heads * math.ceil(rows / 128), 1, False)
    tiles = heads * math.ceil(rows / 64)
    clustered = clustered_blocks(k, device) if clusters else 0
    keys = case.cached + case.chunk - 1
    return Tiling(64, tiles, *chunk_splits(tiles, keys, case.dim, k, device.multiprocessors, clustered))


def partial_bytes(dim):
    """A partial result of 64 rows: CHUNK_PARTIAL of kernels/launch_config.cuh."""
    return 4 * 4 * 32 * (dim // 2 + 4)


def merge(t, device, dim):
    """Seconds of merging the KV splits of all query tiles of a chunk."""
    if t.splits == 1:
        return 0.0
    written = t.tiles * t.splits * partial_bytes(dim)
    if t.cluster:
        # Blocks read all but their own share of as many bytes from the others' shared memory, all at the same time.
        others = written * (t.splits - 1) / t.splits
        return 2 * CLUSTER_BARRIER + others / (CLUSTER_RATE * device.multiprocessors)
    # Partial results stay in the L2, but are counted at the device memory's rate, as if all blocks wrote them at the
    # same time. A warp that merges loads one split's after the other.
    return written / (STREAM * device.bytes_per_s) + MERGE + (t.splits - 1) * READ


def chunk(table, device, case, small_share=1.0, clusters=True):
    """Seconds of a chunk and its append. `small_share`: the rate of small tiles of heads up to 128 relative to large
    ones. It is 1 since their warps have 32 rows too; only those of 256 use what they load half as often. `clusters`:
    where the device has them."""
    k = _kernel_on(table, "skc_attend_chunk", device, case.dim)
    t = tiling(k, device, case, clusters)
    share = CHUNK * (1.0 if t.rows == 128 else SMALL_TILES if case.dim > 128 else small_share)
    blocks = t.tiles * t.splits
    slots = device.multiprocessors * k.resident
    at_once = clustered_blocks(k, device) if t.cluster else slots
    full, rest = divmod(blocks, at_once)
    alone = ONE_BLOCK if rest <= device.multiprocessors else 1.0
    seconds_of_wave = case.step_flops / blocks * slots / (share * device.flops)
    last = seconds_of_wave * (1 / k.resident / alone if rest <= device.multiprocessors else 1.0) if rest else 0.0
    return full * seconds_of_wave + last + 2 * NODE + 3 * READ + merge(t, device, case.dim)


def chunk_l2_rate(table, device, case):
    """Bytes per second that blocks read of K and V, most of them from the L2, at the predicted rate of flops. The model
    has no limit for them."""
    t = tiling(_kernel_on(table, "skc_attend_chunk", device, case.dim), device, case)
    return CHUNK * device.flops / (t.rows * 4 * case.dim) * 2 * 2 * case.dim


def flash(device, case):
    """PyTorch's flash SDPA on as many keys; each of its blocks is a tile of 128 rows."""
    blocks = case.n_seqs * case.q_heads * math.ceil(case.chunk / 128)
    waves = math.ceil(blocks / (2 * device.multiprocessors)) / (blocks / (2 * device.multiprocessors))
    return case.step_flops / (FLASH * device.flops) * min(waves, 2.0) + NODE + READ


def window_attention(device, case):
    """The best attention over a pre-rotated window: a kernel per KV split and a merge, or one kernel that fills the
    device."""
    split = case.n_seqs * case.kv_heads < 2 * device.multiprocessors
    return case.step_bytes / (STREAM * device.bytes_per_s) + (2 if split else 1) * NODE + (3 if split else 1) * READ


def streaming(device, case, graph):
    """StreamingLLM in PyTorch: the larger of the time to move its bytes and of its launches.

    Bytes are counted in units of K, which is as large as V. Eager: both are concatenated twice (8), five operations
    rotate K (10), attention reads both (2). On fixed buffers: K is rotated (10), attention (2).
    """
    k_bytes = case.layer_bytes / 2
    moved, launches = (12, 20) if graph else (20, 16)
    return max(moved * k_bytes / (STREAM * device.bytes_per_s), launches * (SMALL_KERNEL if graph else EAGER))


def llama(table, device, cached):
    """Seconds per token of the contenders of llama.py, one sequence."""
    case = Case(1, cached, 32, 32, 128, "f16")
    weights = 2 * LLAMA_WEIGHTS / (GEMV * device.bytes_per_s)
    small = LLAMA_LAYERS * (LAYER_KERNELS - 4) * SMALL_KERNEL
    attention = LLAMA_LAYERS * streaming(device, case, False)
    # Eager: bound by the host's launches, or by the device.
    host = LLAMA_LAYERS * (LAYER_KERNELS + 16) * EAGER
    eager = max(host, weights + small + LLAMA_LAYERS * 20 * case.layer_bytes / 2 / (STREAM * device.bytes_per_s))
    flops = 2 * LLAMA_WEIGHTS * cached + LLAMA_LAYERS * case.step_flops / 2 * cached
    return {
        "sinkcache": weights + small + LLAMA_LAYERS * decode(table, device, case),
        "StreamingLLM in PyTorch": max(eager, attention),
        "recompute": max(flops / (MATMUL * device.flops), LLAMA_LAYERS * LAYER_KERNELS * EAGER),
        "ordinary cache": weights + small + LLAMA_LAYERS * (window_attention(device, case) + 6 * SMALL_KERNEL),
    }


def aims(table, device):
    """Every aim with its prediction: a list of Aim."""
    found = []

    def main(n_seqs=1, cached=2048, **more):
        return Case(n_seqs, cached, 32, 8, 128, "bf16", **more)

    def ratio(aim, value, least):
        found.append(Aim(f"{aim}, >= {least} x", f"{value:.{1 if least >= 3 else 2}f} x", value >= least))

    step = decode(table, device, main())
    found.append(Aim("step of 1 sequence, 2048 cached, <= 8 us", f"{step * 1e6:.1f} us", step <= 8e-6))
    shares = {}
    for n_seqs in (64, 256):
        for cached in (2048, 4096, 16384):
            case = main(n_seqs, cached)
            shares[case.key] = case.step_bytes / decode(table, device, case) / (COPY * device.bytes_per_s)
    worst = min(shares, key=shares.get)
    found.append(
        Aim(
            "copy bandwidth from 64 sequences, >= 2048 cached, >= 85 %",
            f"{shares[worst] * 100:.0f} % at worst ({worst})",
            shares[worst] >= 0.85,
        )
    )
    for n_seqs, factor in ((1, 1.2), (64, 1.0)):
        case = main(n_seqs)
        mine = decode(table, device, case)
        for name, graph, least in (("eager", False, 20), ("captured", True, 3)):
            ratio(f"{n_seqs} sequences: over StreamingLLM {name}", streaming(device, case, graph) / mine, least)
        ratio(
            f"{n_seqs} sequences: over the best attention on a pre-rotated window",
            window_attention(device, case) / mine,
            factor,
        )
    for cached in (2048, 16384):
        for n in (128, 512, 2048, 8192):
            case = main(1, cached, chunk=n)
            ratio(
                f"chunk of {n} over {cached}: over torch flash SDPA",
                flash(device, case) / chunk(table, device, case),
                1,
            )
    found.append(Aim("step at position 10,000,000 over 10,000, <= 1.02 x", "1.00 x", True))
    for cached in (256, 1024, 2048, 4096):
        s = llama(table, device, cached)
        for name, least in (("StreamingLLM in PyTorch", 5), ("recompute", 22.2)):
            factor = s[name] / s["sinkcache"]
            found.append(
                Aim(
                    f"Llama-2-7B shape, {cached} cached: over {name}, >= {least} x",
                    f"{factor:.1f} x ({s[name] * 1e3:.1f} ms, {s['sinkcache'] * 1e3:.1f} ms)",
                    factor >= least,
                )
            )
    return found
