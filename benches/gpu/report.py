#!/usr/bin/env python3
"""Tables of what was measured.

    report.py FOLDER        the short table of a finished run: aims, then counts
"""
import json
import pathlib
import sys


def line(row, copy):
    """One row for reading."""
    head = f"{row['key']:44} {row['contender']:38} {row.get('mode', ''):6}"
    if row["status"] != "ok":
        return f"{head} {row['status']}: {row.get('note', '')}"[:230]
    of_copy = f"{row['gb_s'] * 1e9 / copy * 100:5.1f} % of copy" if copy else ""
    launches = f" {row['launches']} launches" if row.get("launches") is not None else ""
    return f"{head} {row['us']:10.2f} us {row['gb_s']:8.1f} GB/s {of_copy} {row['tflop_s']:7.1f} TFLOP/s{launches}"


def _times(rows, **wanted):
    """{(contender, mode): us} of rows that fit and are right."""
    return {
        (r["contender"], r["mode"]): r["us"]
        for r in rows
        if r["status"] == "ok" and all(r.get(k) == v for k, v in wanted.items())
    }


def _best(times):
    return min(times.items(), key=lambda item: item[1]) if times else None


MAIN = {"q_heads": 32, "kv_heads": 8, "dim": 128, "dtype": "bf16"}


def aims(results, llama):
    """Lines (aim, what was found, whether it holds): None where nothing was measured."""
    rows, copy = results["rows"], results["copy_bytes_per_s"]
    found = []

    def add(aim, value, holds):
        found.append((aim, value, holds))

    def ours(mode="graph", **where):
        return _best(_times(rows, family="sinkcache", mode=mode, **where))

    def ratio(aim, least, others, mine):
        if not others or not mine:
            return add(aim, "not measured", None)
        (name, _), us = _best(others)
        add(aim, f"{us / mine[1]:.2f} x ({name} {us:.1f} us, sinkcache {mine[1]:.1f} us)", us / mine[1] >= least)

    one = {"n_seqs": 1, "cached": 2048, "chunk": 1, "start": 0, **MAIN}
    mine = ours(**one)
    add(
        "step of 1 sequence, 2048 cached, <= 8 us",
        f"{mine[1]:.2f} us, {mine[0][0]}" if mine else "not measured",
        mine and mine[1] <= 8,
    )
    shares = []
    for key in {r["key"] for r in rows if r.get("chunk") == 1 and r["n_seqs"] >= 64 and r["cached"] >= 2048}:
        at = [
            r
            for r in rows
            if r["key"] == key and r["family"] == "sinkcache" and r["mode"] == "graph" and r["status"] == "ok"
        ]
        if at and copy:
            shares.append((max(r["gb_s"] for r in at) * 1e9 / copy, key))
    worst = min(shares, default=None)
    add(
        "copy bandwidth from 64 sequences, >= 2048 cached, >= 85 %",
        f"{worst[0] * 100:.1f} % at worst of {len(shares)} cases ({worst[1]})" if worst else "not measured",
        worst and worst[0] >= 0.85,
    )
    for n_seqs, factor in ((1, 1.2), (64, 1.0)):
        at = {**one, "n_seqs": n_seqs}
        mine = ours(**at)
        streaming = _times(rows, family="streaming", **at)
        ratio(f"{n_seqs} sequences: over StreamingLLM eager, >= 20 x", 20,
              {k: v for k, v in streaming.items() if k == ("StreamingLLM in PyTorch", "eager")}, mine)
        ratio(f"{n_seqs} sequences: over StreamingLLM captured, >= 3 x", 3,
              {k: v for k, v in streaming.items() if k[0].startswith("StreamingLLM") and k[1] == "graph"}, mine)
        ratio(f"{n_seqs} sequences: over the best attention on a ready window, >= {factor} x", factor,
              _times(rows, family="window", **at), mine)
    for cached in (2048, 16384):
        for chunk in (128, 512, 2048, 8192):
            at = {"n_seqs": 1, "cached": cached, "chunk": chunk, **MAIN}
            flash = {k: v for k, v in _times(rows, family="window", **at).items() if k[0] == "torch SDPA, flash"}
            ratio(f"chunk of {chunk} over {cached}: over torch flash SDPA, >= 1 x", 1.0, flash, ours(**at))
    near, far = (ours(**{**one, "start": start}) for start in (10_000, 10_000_000))
    add(
        "step at position 10,000,000 over 10,000, <= 1.02 x",
        f"{far[1] / near[1]:.3f} x" if near and far else "not measured",
        near and far and far[1] / near[1] <= 1.02,
    )
    counts = {
        r["contender"]: r["launches"]
        for r in rows
        if r["key"] == results.get("launch_case") and r.get("launches") is not None
    }
    add("launches of a decode step", ", ".join(f"{k}: {v}" for k, v in counts.items()) or "not counted", None)
    found += llama_aims(llama)
    return found


def llama_aims(llama):
    """Ratios per token of the whole model."""
    found, rows = [], (llama or {}).get("rows", [])
    for window in (256, 1024, 2048, 4096):
        ms = {(r["contender"], r["mode"]): r["ms"] for r in rows if r["cached"] == window and r["status"] == "ok"}
        mine = min((v for k, v in ms.items() if k[0] == "sinkcache"), default=None)
        for label, name, mode, least in (("StreamingLLM in PyTorch", "StreamingLLM in PyTorch", "eager", 5),
                                         ("recompute", "recompute", "eager", 22.2),
                                         ("ordinary cached decoding", "ordinary cache", "graph", None)):
            aim = f"Llama-2-7B shape, {window} cached: over {label}" + (f", >= {least} x" if least else "")
            other = ms.get((name, mode))
            if mine is None or other is None:
                found.append((aim, "not measured", None))
            else:
                found.append(
                    (
                        aim,
                        f"{other / mine:.2f} x ({other:.2f} ms, {mine:.2f} ms)",
                        other / mine >= least if least else None,
                    )
                )
    return found


def table(found):
    mark = {True: "yes", False: "NO", None: ""}
    return "\n".join(
        f"{mark[holds if holds is None else bool(holds)]:4} {aim:78} {value}" for aim, value, holds in found
    )


def _load(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def main():
    folder = pathlib.Path(sys.argv[1])
    results, llama, check = (_load(folder / name) for name in ("results.json", "llama.json", "gpu_check.json"))
    if check:
        failed = [r["check"] for r in check["rows"] if not r["ok"]]
        print(f"gpu_check: {len(check['rows']) - len(failed)} of {len(check['rows'])} passed")
        print("".join(f"    FAILED {f}\n" for f in failed[:20]), end="")
    else:
        print("gpu_check: no result")
    if not results:
        print("run.py: no result")
        return 1
    counts = {}
    for r in results["rows"]:
        counts[r["status"]] = counts.get(r["status"], 0) + 1
    device, copy = results["device"], results["copy_bytes_per_s"]
    print(
        f"{device['name']}, commit {results['commit'][:12]}, {results['date']}, copy {copy / 1e9:.0f} GB/s, "
        + ", ".join(f"{n} {status}" for status, n in counts.items())
        + f", {len(results['left_out'])} cases left out for time"
    )
    if results["place"] != "cuda":
        print("Not a GPU: no aim is judged.")
        return 0
    print(table(aims(results, llama)))
    for r in results["rows"]:
        if r["status"] in ("wrong", "error"):
            print(f"{r['status']}: {r['contender']} on {r['key']}: {r.get('note', '')}"[:200])
    return 0


if __name__ == "__main__":
    sys.exit(main())
