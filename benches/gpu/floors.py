#!/usr/bin/env python3
"""Writes PREDICTIONS.md: occupancy, floors and predicted times of the CUDA kernels.

floors.py                              fail if PREDICTIONS.md is not current
floors.py --write                      write it, after a change of RESOURCES.md
floors.py --write --measured FOLDER    with the results of a run (results.json, llama.json)
"""

import argparse
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from cases import Case
from gpu_specs import ARCHS, DEVICES
import misses
import model
import published
import report

ROOT = HERE.parent.parent
RESOURCES = ROOT / "src" / "backend" / "cuda" / "kernels" / "RESOURCES.md"
PREDICTIONS = HERE / "PREDICTIONS.md"
NOT_MEASURED = "not measured on a GPU"
PREDICTED = "H100 SXM", "H200 SXM"


def resources():
    """{(kernel, arch, dim): (most registers, most shared memory)} of the tensor-core kernels, over their variants of
    16-bit types."""
    found = {}
    for line in RESOURCES.read_text().splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        # Numbers of quantised types have two digits.
        if len(cells) == 8 and cells[0] == "fast.cu" and re.search(r"type=\d\b", cells[2]):
            dim = int(re.search(r"dim=(\d+)", cells[2])[1])
            key = cells[3], cells[1], dim
            registers, shared = found.get(key, (0, 0))
            found[key] = max(registers, int(cells[4])), max(shared, int(cells[7]))
    return found


def occupancy(table):
    lines = [
        "| kernel | head_dim | arch | registers | shared | stages | resident blocks | limited by | warps "
        "| KiB in flight |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = list(ARCHS)
    for (kernel, arch, dim), (registers, shared) in sorted(
        table.items(), key=lambda i: (i[0][0], i[0][2], order.index(i[0][1]))
    ):
        k = model.kernel(kernel, dim, registers, shared, ARCHS[arch])
        lines.append(
            f"| {kernel} | {dim} | {arch} | {registers} | {shared} | {k.stages} | {k.resident} | {k.limited_by} "
            f"| {k.resident * k.threads // 32} | {k.in_flight * k.resident / 1024:.0f} |"
        )
    return lines


def floors():
    cases = [Case(n, cached, 32, 8, 128, "bf16") for n in (1, 64) for cached in (256, 2048, 16384)]
    cases += [
        Case(1, cached, 32, 8, 128, "bf16", chunk) for cached in (2048, 16384) for chunk in (128, 512, 2048, 8192)
    ]
    lines = ["| step | MB | GFLOP | " + " | ".join(DEVICES) + " |", "|---" * (3 + len(DEVICES)) + "|"]
    for c in cases:
        cells = []
        for d in DEVICES.values():
            by_bytes, by_flops = c.step_bytes / d.bytes_per_s, c.step_flops / d.flops
            cells.append(f"{max(by_bytes, by_flops) * 1e6:.2f} us, {'bytes' if by_bytes >= by_flops else 'flops'}")
        lines.append(f"| {c.key} | {c.step_bytes / 1e6:.2f} | {c.step_flops / 1e9:.3f} | " + " | ".join(cells) + " |")
    return lines


def predictions(table, measured):
    """Every aim with its predictions for an H100 and an H200, and the measured value."""
    found = {verdict.aim: verdict.value for verdict in measured}
    lines = ["| aim | H100 SXM, predicted | H200 SXM, predicted | measured |", "|---|---|---|---|"]
    columns = [model.aims(table, DEVICES[name]) for name in PREDICTED]
    for row in zip(*columns):
        cells = [f"{x.value}: **{'reached' if x.reached else 'missed'}**" for x in row]
        lines.append(f"| {row[0].aim} | {cells[0]} | {cells[1]} | {found.get(row[0].aim, NOT_MEASURED)} |")
    return lines


def beside_published(table, results):
    """Published times of one sequence, what the model predicts for a step, and what was measured."""
    lines = [
        "| cached | XQA, published | FA3, published | step, H100 SXM, predicted | step, H200 SXM, predicted "
        "| measured |",
        "|---|---|---|---|---|---|",
    ]
    for p in report.published_lines(results or {"rows": [], "copy_bytes_per_s": 0}):
        case = Case(1, p.cached, 32, 8, 128, "bf16")
        steps = (model.decode(table, DEVICES[name], case) * 1e6 for name in PREDICTED)
        measured = [f"{name} {us:.1f} us" for name, us in (("step", p.sinkcache), ("XQA", p.xqa_here)) if us]
        lines.append(
            f"| {p.cached} | {p.xqa:.1f} us | {p.fa3:.1f} us | "
            + " | ".join(f"{us:.1f} us" for us in steps)
            + f" | {', '.join(measured) or NOT_MEASURED} |"
        )
    return [*lines, "", published_bound(table)]


def published_bound(table):
    """What the published times say about the device, and where they are predicted not to be reached."""
    device, xqa = DEVICES["H200 SXM"], published.VLLM_43232["XQA"]
    steps = {n: Case(1, n, 32, 8, 128, "bf16") for n in xqa}
    longest = max(xqa)
    rate = steps[longest].layer_bytes / xqa[longest] * 1e6
    slower = [n for n, case in steps.items() if model.decode(table, device, case) * 1e6 > xqa[n]]
    fixed = model.decode(table, device, steps[longest]) - steps[longest].step_bytes / (model.OWN * device.bytes_per_s)
    text = (
        f"XQA's time over {longest} is {rate / 1e12:.2f} TB/s of K and V, above the {PREDICTED[0]}'s datasheet, so "
        f"the columns to compare are those of the H200: {rate / device.bytes_per_s:.2f} of its datasheet, launch and "
        "merge included."
    )
    if slower:
        text += (
            f" A step is predicted to be slower over {', '.join(map(str, slower))}: {model.OWN:.2f} of the bandwidth "
            f"is assumed for its bytes alone, and {fixed * 1e6:.1f} us are added. A loop that sustains "
            f"{steps[longest].step_bytes / (xqa[longest] / 1e6 - fixed) / device.bytes_per_s:.2f} would be as fast."
        )
    return text


def misses_of(table, name):
    """What bounds the aims that are predicted to be missed on a device. Every one of them has a line."""
    device = DEVICES[name]
    found = misses.all_misses(table, device)
    missed = [a.aim for a in model.aims(table, device) if not a.reached]
    without = [aim for aim in missed if not any(misses.of_aim(m, aim) for m in found)]
    if without:
        sys.exit(f"misses.py says nothing of {without}")
    lines = [f"### Aims that are predicted to be missed, on an {name}", ""]
    lines += ["The model's numbers, not measurements.", ""]
    lines += ["| aim | what bounds it | what would have to change |", "|---|---|---|"]
    for miss in found:
        if any(misses.of_aim(miss, aim) for aim in missed):
            lines.append(f"| {miss.aims} | {miss.bound} | {miss.change} |")
    return [*lines, ""]


def chunk_l2(table, name):
    """What the model does not limit: reads of the L2 by chunks. And what merging in clusters rests on."""
    device = DEVICES[name]
    lines = [
        f"A barrier of a cluster takes {model.CLUSTER_BARRIER * 1e6:.1f} us, and a multiprocessor reads "
        f"{model.CLUSTER_RATE / 1e9:.0f} GB/s of others' shared memory: both are assumed, without a source.",
        "",
    ]
    for cached, chunk in ((2048, 128), (16384, 128), (2048, 512), (16384, 512)):
        case = Case(1, cached, 32, 8, 128, "bf16", chunk)
        k = model._kernel_on(table, "skc_attend_chunk", device, case.dim)
        t = model.tiling(k, device, case)
        rate = model.chunk_l2_rate(table, device, case)
        flash = model.flash(device, case)
        slow = flash / model.chunk(table, device, case, model.SMALL_TILES)
        line = (
            f"- A chunk of {chunk} over {cached}: query tiles {t.tiles} of {t.rows} rows, KV splits {t.splits}. "
            "Blocks read "
            f"{rate / 1e12:.1f} TB/s of K and V, most of it from the L2, for which the model has no limit. At "
            f"{model.SMALL_TILES:.2f} of the assumed rate it would be {slow:.2f} x"
        )
        if t.cluster:
            memory = model.tiling(k, device, case, clusters=False)
            slow = flash / model.chunk(table, device, case, model.SMALL_TILES, clusters=False)
            line += (
                f", instead of {flash / model.chunk(table, device, case):.2f} x. Partial results merge in clusters in "
                f"{misses.us(model.merge(t, device, case.dim))}. Through device memory, {memory.splits} splits of a "
                f"tile take {misses.us(model.merge(memory, device, case.dim))}: "
                f"{flash / model.chunk(table, device, case, clusters=False):.2f} x, or {slow:.2f} x"
            )
        lines.append(line + ".")
    return lines


def text(results, llama):
    """PREDICTIONS.md. `results`, `llama`: results.json and llama.json as loaded, or None."""
    table = resources()
    measured = report.aims(results, llama) if results else []
    title = NOT_MEASURED
    if results:
        title = f"{results['device']['name']}, commit {results['commit'][:12]}, {results['date']}"
    return (
        "\n".join(
            [
                "# Occupancy, floors and predictions",
                "",
                "Written by `benches/gpu/floors.py --write` from `src/backend/cuda/kernels/RESOURCES.md`, "
                "published limits",
                "(`gpu_specs.py`) and the model of `model.py`. The columns of predictions are not measurements.",
                f"Measured: {title}.",
                "",
                "## Predictions",
                "",
                *predictions(table, measured),
                "",
                "README.md explains them.",
                "",
                "### Beside published times",
                "",
                "One sequence, 32/8 heads of 128 in bf16. Published: attention of a layer in vLLM "
                "(vllm-project/vllm#43232) on Hopper,",
                "8 KV heads of 128; other kernels rotate and store. A step rotates, stores and attends in one launch.",
                "",
                *beside_published(table, results),
                "",
                *(line for name in PREDICTED for line in misses_of(table, name)),
                *(
                    line
                    for name in PREDICTED
                    for line in (f"### What the model does not limit, on an {name}", "", *chunk_l2(table, name), "")
                ),
                "## Floors",
                "",
                "The larger of two times: bytes (K, V, rows in and out, each moved once) over the datasheet's "
                "bandwidth,",
                "and flops over its dense f16 rate.",
                "",
                *floors(),
                "",
                "## Occupancy",
                "",
                "Registers and shared memory: the most of all variants of 16-bit types compiled for an architecture.",
                "Bytes in flight: copies that a multiprocessor has issued while its warps compute.",
                "",
                *occupancy(table),
            ]
        )
        + "\n"
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--write", action="store_true")
    p.add_argument("--measured", type=pathlib.Path)
    o = p.parse_args()
    results = llama = None
    if o.measured:
        results = json.loads((o.measured / "results.json").read_text())
        if results["platform"] != "cuda":
            sys.exit(f"{o.measured} holds no results of a GPU")
        file = o.measured / "llama.json"
        llama = json.loads(file.read_text()) if file.exists() else None
    new = text(results, llama)
    if o.write:
        PREDICTIONS.write_text(new)
        return 0
    # The measured column is not compared.
    old = PREDICTIONS.read_text() if PREDICTIONS.exists() else ""
    if strip(old) != strip(new):
        print("benches/gpu/PREDICTIONS.md is not current: run benches/gpu/floors.py --write")
        return 1
    print("benches/gpu/PREDICTIONS.md is current")
    return 0


def strip(text):
    """The lines without measured values."""
    lines, in_table, found = text.splitlines(), False, []
    for line in lines:
        # The last column of a table whose heading says so.
        in_table = line.startswith("|") and (in_table or line.endswith("| measured |"))
        line = re.sub(r"^Measured: .*", "", line)
        found.append(line.rsplit("|", 2)[0] if in_table else line)
    return found


if __name__ == "__main__":
    sys.exit(main())
