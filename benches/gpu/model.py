"""What times are predicted, before any kernel of this library has run on a GPU. The assumptions are the constants; the rest follows.

A decode step: a launch, a block's way to its first tile, tiles as fast as the smaller of memory bandwidth and what is in flight
allows, wave after wave, and the merge of splits. A chunk: waves of tiles at a share of the peak that depends on how full a multiprocessor is.
PyTorch's contenders: their launches, or the bytes that each of their operations moves.
"""
import dataclasses
import math

from cases import Case
from devices import ARCHS, blocks_at_once

# Assumed, in seconds: from the end of a kernel to the start of the next node of a graph; a dependent read of device memory; the merge
# of splits by the last block (an atomic, then a round of reads); a kernel that an eager PyTorch operation launches, on the host.
NODE, READ, MERGE, EAGER = 1.6e-6, 0.65e-6, 1.3e-6, 5.0e-6
# A small kernel of PyTorch in a graph, its node included.
SMALL = 2.3e-6
# Of the datasheet's bandwidth: a copy; PyTorch's and FlashAttention's kernels (FA3 is published with 88 %); this library's decode, built
# of cp.async and mma.sync as XQA is (published with 73 %), with more in flight.
COPY, STREAM, OWN = 0.90, 0.86, 0.80
# Dependent reads before a block's first tile: its entry and counters, then the tile.
CHAIN = 2
# Of the peak: a product of large matrices; flash attention by mma.sync in PyTorch; this library's chunks, of full multiprocessors.
MATMUL, FLASH, CHUNK = 0.70, 0.38, 0.30
# A chunk's small tiles beside its large ones.
SMALL_TILES = 0.75
LLAMA_WEIGHTS, LLAMA_LAYERS = 6.74e9, 32
# Kernels of a layer of the model beside attention: two norms (three kernels each where not fused: counted as one), four products,
# silu, product, two sums; the share of bandwidth of a matrix-vector product.
LAYER_KERNELS, GEMV = 10, 0.80


@dataclasses.dataclass(frozen=True)
class Kernel:
    threads: int
    stages: int
    at_once: int
    why: str
    in_flight: int  # bytes of a block


def kernel(name, dim, registers, shared, arch):
    """Geometry as kernels/launch_config.cuh has it."""
    row = 2 * dim
    if name == "skc_attend_chunk":
        # Tiles of K and of V: of many rows, three stages of 32 keys.
        threads, stages = 128, 2 if dim > 128 else 3
        in_flight = (stages - 1) * 2 * (16 if dim > 128 else 32) * row
    else:
        warps = 2 if dim > 128 else 4
        threads, stages = 32 * warps, 2 if dim > 80 else 3
        in_flight = (stages - 1) * warps * 2 * 16 * row
    at_once, why = blocks_at_once(arch, threads, registers, shared)
    return Kernel(threads, stages, at_once, why, in_flight)


def _of(table, name, device, dim):
    registers, shared = table[name, device.arch, dim]
    return kernel(name, dim, registers, shared, ARCHS[device.arch])


def splits_of(heads, cached, k, multiprocessors):
    """Into how many blocks the keys of a KV head are split: n_splits of src/backend/cuda/heuristics.rs, in its units."""
    warps = k.threads // 32
    rounds = max(1, math.ceil(math.ceil(cached / 16) / warps))
    most = max(1, min(rounds, 4 * multiprocessors // heads))
    places = multiprocessors * k.at_once

    def wave(deep, each):
        return 0 if deep == 0 else (3 if deep == 1 else 2 * deep) * each + 4

    def time(splits, each):
        full, left = divmod(heads * splits, places)
        merge = 2 + splits // 8 if splits > 1 else 0
        return full * wave(k.at_once, each) + wave(math.ceil(left / multiprocessors), each) + merge

    each, best = rounds, (time(1, rounds), 1)
    while each > 1:
        splits = math.ceil(rounds / (each - 1))
        if splits > most:
            break
        each = math.ceil(rounds / splits)
        best = min(best, (time(splits, each), splits))
    return best[1]


def decode(table, device, case):
    """Seconds of a step as one node, or two where append is a launch of its own."""
    one_launch = ("skc_step_decode", device.arch, case.dim) in table
    k = _of(table, "skc_step_decode" if one_launch else "skc_attend_decode", device, case.dim)
    heads, slots = case.n_seqs * case.kv_heads, device.multiprocessors * k.at_once
    splits = splits_of(heads, case.cached, k, device.multiprocessors)
    blocks = heads * splits
    of_block = case.step_bytes / blocks
    seconds, left = 0.0, blocks
    while left > 0:
        wave = min(left, slots)
        bandwidth = min(OWN * device.bytes_per_s, wave * min(k.in_flight, of_block) / READ)
        seconds += wave * of_block / bandwidth
        left -= wave
    seconds += NODE + CHAIN * READ + (MERGE if splits > 1 else 0)
    if not one_launch:
        seconds += NODE + CHAIN * READ + READ
    return seconds


def chunk(table, device, case):
    """Seconds of a chunk: waves of tiles of 128 rows (64 where those would leave multiprocessors idle), and its append."""
    k = _of(table, "skc_attend_chunk", device, case.dim)
    rows = case.chunk * case.q_heads // case.kv_heads
    heads = case.n_seqs * case.kv_heads
    blocks = heads * math.ceil(rows / 128)
    small = case.dim > 128 or blocks < device.multiprocessors
    # A warp of a small tile has half the rows to a key it loads.
    share = CHUNK * (SMALL_TILES if small else 1.0)
    if small:
        blocks = heads * math.ceil(rows / 64)
    slots = device.multiprocessors * k.at_once
    # A multiprocessor with one block of several has less to hide latencies with: it is as fast as 0.65 of a full one.
    full, rest = divmod(blocks, slots)
    alone = 0.65 if rest <= device.multiprocessors else 1.0
    of_wave = case.step_flops / blocks * slots / (share * device.flops)
    last = of_wave * (1 / k.at_once / alone if rest <= device.multiprocessors else 1.0) if rest else 0.0
    return full * of_wave + last + 2 * NODE + 3 * READ


def flash(device, case):
    """torch's flash SDPA on as many keys, whose tiles of 128 rows are as many blocks."""
    blocks = case.n_seqs * case.q_heads * math.ceil(case.chunk / 128)
    waves = math.ceil(blocks / (2 * device.multiprocessors)) / (blocks / (2 * device.multiprocessors))
    return case.step_flops / (FLASH * device.flops) * min(waves, 2.0) + NODE + READ


def ready_window(device, case):
    """The best attention on a ready window: a split kernel and one that combines, or one that fills the device by itself."""
    split = case.n_seqs * case.kv_heads < 2 * device.multiprocessors
    return case.step_bytes / (STREAM * device.bytes_per_s) + (2 if split else 1) * NODE + (3 if split else 1) * READ


def streaming(device, case, graph):
    """StreamingLLM in PyTorch: bytes in units of K (as large as V), and launches. Eager: both concatenated twice (8), K rotated by
    five operations (10), attention (2). On fixed buffers: K rotated (10), attention (2)."""
    k_bytes = case.layer_bytes / 2
    moved, launches = (12, 20) if graph else (20, 16)
    return max(moved * k_bytes / (STREAM * device.bytes_per_s), launches * (SMALL if graph else EAGER))


def llama(table, device, cached):
    """Seconds per token of the contenders of llama.py, one sequence."""
    case = Case(1, cached, 32, 32, 128, "f16")
    weights = 2 * LLAMA_WEIGHTS / (GEMV * device.bytes_per_s)
    small = LLAMA_LAYERS * (LAYER_KERNELS - 4) * SMALL
    attention = LLAMA_LAYERS * streaming(device, case, False)
    # Eager: the host launches everything, or the device is the slower one.
    host = LLAMA_LAYERS * (LAYER_KERNELS + 16) * EAGER
    eager = max(host, weights + small + LLAMA_LAYERS * 20 * case.layer_bytes / 2 / (STREAM * device.bytes_per_s))
    flops = 2 * LLAMA_WEIGHTS * cached + LLAMA_LAYERS * case.step_flops / 2 * cached
    return {
        "sinkcache": weights + small + LLAMA_LAYERS * decode(table, device, case),
        "StreamingLLM in PyTorch": max(eager, attention),
        "recompute": max(flops / (MATMUL * device.flops), LLAMA_LAYERS * LAYER_KERNELS * EAGER),
        "ordinary cache": weights + small + LLAMA_LAYERS * (ready_window(device, case) + 6 * SMALL),
    }


def aims(table, device):
    """[(aim as report.py words it, what is predicted, whether that reaches it)]"""
    found = []

    def main(n_seqs=1, cached=2048, **more):
        return Case(n_seqs, cached, 32, 8, 128, "bf16", **more)

    step = decode(table, device, main())
    found.append(("step of 1 sequence, 2048 cached, <= 8 us", f"{step * 1e6:.1f} us", step <= 8e-6))
    shares = {}
    for n_seqs in (64, 256):
        for cached in (2048, 4096, 16384):
            case = main(n_seqs, cached)
            shares[case.key] = case.step_bytes / decode(table, device, case) / (COPY * device.bytes_per_s)
    worst = min(shares, key=shares.get)
    found.append(("copy bandwidth from 64 sequences, >= 2048 cached, >= 85 %",
                  f"{shares[worst] * 100:.0f} % at worst ({worst})", shares[worst] >= 0.85))
    for n_seqs, factor in ((1, 1.2), (64, 1.0)):
        case = main(n_seqs)
        mine = decode(table, device, case)
        for name, graph, least in (("eager", False, 20), ("captured", True, 3)):
            ratio = streaming(device, case, graph) / mine
            found.append((f"{n_seqs} sequences: over StreamingLLM {name}, >= {least} x", f"{ratio:.1f} x", ratio >= least))
        ratio = ready_window(device, case) / mine
        found.append((f"{n_seqs} sequences: over the best attention on a ready window, >= {factor} x", f"{ratio:.2f} x", ratio >= factor))
    for cached in (2048, 16384):
        for n in (128, 512, 2048, 8192):
            case = main(1, cached, chunk=n)
            ratio = flash(device, case) / chunk(table, device, case)
            found.append((f"chunk of {n} over {cached}: over torch flash SDPA, >= 1 x", f"{ratio:.2f} x", ratio >= 1))
    found.append(("step at position 10,000,000 over 10,000, <= 1.02 x", "1.00 x", True))
    for cached in (256, 1024, 2048, 4096):
        s = llama(table, device, cached)
        for label, name, least in (("StreamingLLM in PyTorch", "StreamingLLM in PyTorch", 5), ("recompute", "recompute", 22.2)):
            ratio = s[name] / s["sinkcache"]
            found.append((f"Llama-2-7B shape, {cached} cached: over {label}, >= {least} x",
                          f"{ratio:.1f} x ({s[name] * 1e3:.1f} ms, {s['sinkcache'] * 1e3:.1f} ms)", ratio >= least))
    return found
