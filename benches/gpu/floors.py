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
import report

ROOT = HERE.parent.parent
RESOURCES = ROOT / "src" / "backend" / "cuda" / "kernels" / "RESOURCES.md"
PREDICTIONS = HERE / "PREDICTIONS.md"
NOT_MEASURED = "not measured on a GPU"
MISSES_ON = "H100 SXM"


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
    columns = [model.aims(table, DEVICES[name]) for name in ("H100 SXM", "H200 SXM")]
    for row in zip(*columns):
        cells = [f"{x.value}: **{'reached' if x.reached else 'missed'}**" for x in row]
        lines.append(f"| {row[0].aim} | {cells[0]} | {cells[1]} | {found.get(row[0].aim, NOT_MEASURED)} |")
    return lines


def misses_of(table):
    """What bounds the aims that are predicted to be missed. Every one of them has a line."""
    device = DEVICES[MISSES_ON]
    found = misses.all_misses(table, device)
    missed = [a.aim for a in model.aims(table, device) if not a.reached]
    without = [aim for aim in missed if not any(misses.of_aim(m, aim) for m in found)]
    if without:
        sys.exit(f"misses.py says nothing of {without}")
    lines = ["| aim | what bounds it | what would have to change |", "|---|---|---|"]
    for miss in found:
        if any(misses.of_aim(miss, aim) for aim in missed):
            lines.append(f"| {miss.aims} | {miss.bound} | {miss.change} |")
    return lines


def chunk_l2(table):
    """What the model does not limit: reads of the L2 by chunks."""
    device = DEVICES[MISSES_ON]
    lines = []
    for cached, chunk in ((2048, 128), (16384, 128), (2048, 512), (16384, 512)):
        case = Case(1, cached, 32, 8, 128, "bf16", chunk)
        t = model.tiling(model._kernel_on(table, "skc_attend_chunk", device, case.dim), device, case)
        rate = model.chunk_l2_rate(table, device, case)
        slow = model.flash(device, case) / model.chunk(table, device, case, model.SMALL_TILES)
        lines.append(
            f"- A chunk of {chunk} over {cached}: query tiles {t.tiles} of {t.rows} rows, KV splits {t.splits}. "
            "Blocks read "
            f"{rate / 1e12:.1f} TB/s of K and V, most of it from the L2, for which the model has no limit. At "
            f"{model.SMALL_TILES:.2f} of the assumed rate it would be {slow:.2f} x."
        )
    return lines


def text(measured, title):
    table = resources()
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
                f"### Aims that are predicted to be missed, on an {MISSES_ON}",
                "",
                "The model's numbers, not measurements.",
                "",
                *misses_of(table),
                "",
                "### What the model does not limit",
                "",
                *chunk_l2(table),
                "",
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
    measured, title = [], NOT_MEASURED
    if o.measured:
        results = json.loads((o.measured / "results.json").read_text())
        if results["platform"] != "cuda":
            sys.exit(f"{o.measured} holds no results of a GPU")
        llama = o.measured / "llama.json"
        measured = report.aims(results, json.loads(llama.read_text()) if llama.exists() else None)
        title = f"{results['device']['name']}, commit {results['commit'][:12]}, {results['date']}"
    new = text(measured, title)
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
    lines = [re.sub(r"Measured: .*", "", line) for line in text.splitlines()]
    begin = lines.index("## Predictions") if "## Predictions" in lines else 0
    end = lines.index("## Floors") if "## Floors" in lines else 0
    return [
        line.rsplit("|", 2)[0] if begin < i < end and line.startswith("|") else line for i, line in enumerate(lines)
    ]


if __name__ == "__main__":
    sys.exit(main())
