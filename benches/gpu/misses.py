"""What bounds the aims that are predicted to be missed, and what would have to change. Every number is the model's."""

from typing import NamedTuple

from cases import Case
import model

# Sequences of the whole model at most.
MOST_SEQUENCES = 1024


class Miss(NamedTuple):
    """Aims that one thing bounds: how their names begin, what bounds them, and what would have to change."""

    aims: str
    bound: str
    change: str


def us(seconds):
    return f"{seconds * 1e6:.1f} us"


def main_case(n_seqs=1, **more):
    return Case(n_seqs, more.pop("cached", 2048), 32, 8, 128, "bf16", **more)


def one_sequence(table, device):
    """Aims of a step of one sequence, which is bound by latency."""
    case = main_case()
    step, ready = model.decode(table, device, case), model.window_attention(device, case)
    fixed = model.NODE + model.DEPENDENT_READS * model.READ
    memory = case.step_bytes / (model.OWN * device.bytes_per_s)
    parts = (
        f"Launch and dependent reads {us(fixed)}, bytes {us(memory)} at {model.OWN:.2f} of the datasheet's bandwidth, "
        f"merge of KV splits {us(model.MERGE)}: {us(step)} together"
    )
    eager = model.streaming(device, case, False)
    yield Miss(
        "1 sequences: over StreamingLLM eager",
        f"20 x of {us(eager)} is {us(eager / 20)}. {parts}.",
        f"Without any merge, and with its bytes at the datasheet's full rate, a step takes "
        f"{us(fixed + case.step_bytes / device.bytes_per_s)}: "
        f"{eager / (fixed + case.step_bytes / device.bytes_per_s):.1f} "
        "x. More only by fewer launches: several layers' steps in one kernel.",
    )
    yield Miss(
        "1 sequences: over the best attention on a pre-rotated window",
        f"1.2 x of {us(ready)} is {us(ready / 1.2)}. {parts}.",
        "A merge that does not go through device memory (the splits of a KV head as one cluster, which exchange "
        "partial "
        f"results in shared memory) without its {us(model.MERGE)}: at best {ready / (step - model.MERGE):.2f} x.",
    )


def many_sequences(table, device):
    """Aims of a step of 64 sequences, which is bound by bandwidth."""
    case = main_case(64)
    step, ready = model.decode(table, device, case), model.window_attention(device, case)
    eager = model.streaming(device, case, False)
    yield Miss(
        "64 sequences: over StreamingLLM eager",
        f"Both are bound by bandwidth, and StreamingLLM moves 20 units of K where a step moves 2: "
        f"{eager / step:.1f} x, and {eager * device.bytes_per_s / case.step_bytes:.1f} x at the datasheet's full "
        "rate.",
        "Nothing in a kernel: only fewer bytes per token, as K and V in q8 or q4, which is another comparison.",
    )
    fixed = step - case.step_bytes / (model.OWN * device.bytes_per_s)
    share = case.step_bytes / (ready - fixed) / device.bytes_per_s
    yield Miss(
        "64 sequences: over the best attention on a pre-rotated window",
        f"Both read the same bytes: {model.OWN:.2f} of the datasheet's bandwidth is assumed here, {model.STREAM:.2f} "
        "there.",
        f"A loop that sustains {share:.2f}: bulk copies (cp.async.bulk with mbarrier) by one warp for the others, "
        "more "
        "bytes in flight.",
    )


def chunks(table, device):
    """Aims of chunks: of few tokens bound by what is beside the flops, of many by the share of the flops."""
    few = main_case(chunk=128)
    t = model.tiling(model._kernel_on(table, "skc_attend_chunk", device, few.dim), device, few)
    seconds, flash = model.chunk(table, device, few), model.flash(device, few)
    partials = t.tiles * t.splits * model.partial_bytes(few.dim)
    merge = model.merge(t, device, few.dim)
    append = model.NODE + 2 * model.READ
    yield Miss(
        "chunk of 128 over 2048",
        f"{us(seconds)} against {us(flash)}: {t.splits} splits write {partials / 1e6:.1f} MB of partial results and "
        f"merge them {'in clusters' if t.cluster else 'through device memory'} ({us(merge)}), and the append is a "
        f"launch of its own ({us(append)}), which flash SDPA does not need.",
        f"An append in the same launch: {flash / (seconds - append):.2f} x.",
    )
    many = main_case(chunk=2048)
    seconds, flash = model.chunk(table, device, many), model.flash(device, many)
    share = model.CHUNK * seconds / flash
    yield Miss(
        "chunk of 2048, chunk of 8192",
        f"Flops: {model.CHUNK:.2f} of the peak is assumed here, {model.FLASH:.2f} for flash SDPA. Both use mma.sync; "
        "a block "
        "here has four warps, and two blocks fit on a multiprocessor.",
        f"{share:.2f} of the peak: wgmma with K and V read from shared memory, tiles of 128 rows to a warpgroup, "
        "bulk copies "
        "by a warp of their own (sm_90a); elsewhere fewer instructions beside mma.sync for each tile.",
    )


def batch_step(table, device, cached, n_seqs):
    """Seconds of one token of each of so many sequences of the Llama-2-7B shape: weights are read once for all."""
    case = Case(n_seqs, cached, 32, 32, 128, "f16")
    read = 2 * model.LLAMA_WEIGHTS / (model.GEMV * device.bytes_per_s)
    multiply = 2 * model.LLAMA_WEIGHTS * n_seqs / (model.MATMUL * device.flops)
    small = model.LLAMA_LAYERS * (model.LAYER_KERNELS - 4) * model.SMALL_KERNEL
    return max(read, multiply) + small + model.LLAMA_LAYERS * model.decode(table, device, case)


def least_batch(table, device, cached, factor):
    """The fewest sequences at which a step is `factor` times as fast as recompute of their windows, or None."""
    recompute = model.llama(table, device, cached)["recompute"]
    for n in range(1, MOST_SEQUENCES + 1):
        if n * recompute >= factor * batch_step(table, device, cached, n):
            return n
    return None


def whole_model(table, device):
    """Aims of the Llama-2-7B shape, which the bytes of the weights bound at one sequence."""
    gigabytes = 2 * model.LLAMA_WEIGHTS / 1e9
    weights = 2 * model.LLAMA_WEIGHTS / (model.GEMV * device.bytes_per_s)
    small = model.LLAMA_LAYERS * (model.LAYER_KERNELS - 4) * model.SMALL_KERNEL
    read = (
        f"{gigabytes:.1f} GB of weights at {model.GEMV:.2f} of {device.bytes_per_s / 1e12:.2f} TB/s take "
        f"{weights * 1e3:.1f} ms of every step"
    )
    times = {cached: model.llama(table, device, cached) for cached in (256, 1024, 2048, 4096)}
    most = max(t["StreamingLLM in PyTorch"] for t in times.values())
    yield Miss(
        "Llama-2-7B shape: over StreamingLLM in PyTorch",
        f"{read}, with any contender; it takes {most * 1e3:.1f} ms over 4,096. With attention in no time the ratio "
        "would be "
        f"{most / (weights + small):.1f} x there.",
        "Fewer bytes of weights, or several sequences for which they are read once: not attention. 5 x over 4,096 "
        "needs "
        f"all but attention in {(most / 5 - (times[4096]['sinkcache'] - weights - small)) * 1e3:.1f} ms.",
    )
    rates = ", ".join(f"{t['recompute'] * 1e3:.1f} ms over {cached:,}" for cached, t in times.items())
    batches = []
    for cached in times:
        n = least_batch(table, device, cached, 22.2)
        batches.append(f"{cached:,}: " + (f"{n} sequences" if n else f"none up to {MOST_SEQUENCES:,}"))
    yield Miss(
        "Llama-2-7B shape: over recompute",
        f"{read}; recompute prefills at {model.MATMUL:.2f} of {device.flops / 1e12:.0f} TFLOP/s, "
        f"{model.MATMUL * device.flops / (2 * model.LLAMA_WEIGHTS) / 1e3:.1f} thousand tokens/s without attention: "
        f"{rates}.",
        f"A batch: weights are read once for all of it, while recompute grows with it. 22.2 x from, by cached tokens, "
        f"{'; '.join(batches)}.",
    )


def all_misses(table, device):
    return [
        *one_sequence(table, device),
        *many_sequences(table, device),
        *chunks(table, device),
        *whole_model(table, device),
    ]


def of_aim(miss, aim):
    """Whether a miss is about an aim as model.aims() words it."""
    return any(all(part in aim for part in name.split(": ")) for name in miss.aims.split(", "))
