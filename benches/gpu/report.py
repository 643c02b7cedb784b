#!/usr/bin/env python3
"""Tables of measurements.

report.py FOLDER        the short table of a run: aims, then counts

The exit code is 1 where a check has failed, a row of this library is wrong or an error, or something was left out.
"""

import json
import pathlib
import sys
from typing import NamedTuple

import published


class Verdict(NamedTuple):
    """An aim, the measured value, and whether that reaches the aim; None if it was not measured or the aim has no
    bound."""

    aim: str
    value: str
    holds: bool


NOT_MEASURED = "not measured"
MAIN = {"q_heads": 32, "kv_heads": 8, "dim": 128, "dtype": "bf16"}


def line(row, copy):
    """A row as text. `copy`: bytes per second of a copy."""
    head = f"{row['key']:44} {row['contender']:38} {row.get('mode', ''):6}"
    if row["status"] != "ok":
        return f"{head} {row['status']}: {row.get('note', '')}"[:230]
    of_copy = f"{row['gb_s'] * 1e9 / copy * 100:5.1f} % of copy" if copy else ""
    launches = f" {row['launches']} launches" if row.get("launches") is not None else ""
    return f"{head} {row['us']:10.2f} us {row['gb_s']:8.1f} GB/s {of_copy} {row['tflop_s']:7.1f} TFLOP/s{launches}"


def aims(results, llama):
    """A Verdict for every aim, of results.json and llama.json as loaded."""
    return _Verdicts(results).all() + llama_aims(llama)


class _Verdicts:
    """Verdicts on the rows of results.json."""

    def __init__(self, results):
        self.results, self.rows, self.copy = results, results["rows"], results["copy_bytes_per_s"]
        self.found = []

    def all(self):
        one = {"n_seqs": 1, "cached": 2048, "chunk": 1, "start": 0, **MAIN}
        self._step_of_one(one)
        self._bandwidth()
        for n_seqs, factor in ((1, 1.2), (64, 1.0)):
            self._decode({**one, "n_seqs": n_seqs}, factor)
        for cached in (2048, 16384):
            for chunk in (128, 512, 2048, 8192):
                self._chunk({"n_seqs": 1, "cached": cached, "chunk": chunk, **MAIN})
        self._far_position(one)
        self._launches()
        return self.found

    def _add(self, aim, value, holds):
        self.found.append(Verdict(aim, value, holds))

    def _times(self, **where):
        """{(contender, mode): us} of correct rows that match."""
        return {
            (r["contender"], r["mode"]): r["us"]
            for r in self.rows
            if r["status"] == "ok" and all(r.get(k) == v for k, v in where.items())
        }

    def _ours(self, **where):
        """The fastest of this library: ((contender, mode), us); None if there is none."""
        return _fastest(self._times(family="sinkcache", mode="graph", **where))

    def _ratio(self, aim, least, others, mine):
        if not others or not mine:
            return self._add(aim, NOT_MEASURED, None)
        (name, _), us = _fastest(others)
        self._add(aim, f"{us / mine[1]:.2f} x ({name} {us:.1f} us, sinkcache {mine[1]:.1f} us)", us / mine[1] >= least)

    def _step_of_one(self, one):
        mine = self._ours(**one)
        self._add(
            "step of 1 sequence, 2048 cached, <= 8 us",
            f"{mine[1]:.2f} us, {mine[0][0]}" if mine else NOT_MEASURED,
            mine and mine[1] <= 8,
        )

    def _bandwidth(self):
        shares = []
        for key in {r["key"] for r in self.rows if r.get("chunk") == 1 and r["n_seqs"] >= 64 and r["cached"] >= 2048}:
            rows = [
                r
                for r in self.rows
                if r["key"] == key and r["family"] == "sinkcache" and r["mode"] == "graph" and r["status"] == "ok"
            ]
            if rows and self.copy:
                shares.append((max(r["gb_s"] for r in rows) * 1e9 / self.copy, key))
        worst = min(shares, default=None)
        self._add(
            "copy bandwidth from 64 sequences, >= 2048 cached, >= 85 %",
            f"{worst[0] * 100:.1f} % at worst of {len(shares)} cases ({worst[1]})" if worst else NOT_MEASURED,
            worst and worst[0] >= 0.85,
        )

    def _decode(self, where, factor):
        mine, n_seqs = self._ours(**where), where["n_seqs"]
        streaming = self._times(family="streaming", **where)
        eager = {k: v for k, v in streaming.items() if k == ("StreamingLLM in PyTorch", "eager")}
        captured = {k: v for k, v in streaming.items() if k[0].startswith("StreamingLLM") and k[1] == "graph"}
        self._ratio(f"{n_seqs} sequences: over StreamingLLM eager, >= 20 x", 20, eager, mine)
        self._ratio(f"{n_seqs} sequences: over StreamingLLM captured, >= 3 x", 3, captured, mine)
        self._ratio(
            f"{n_seqs} sequences: over the best attention on a pre-rotated window, >= {factor} x",
            factor,
            self._times(family="window", **where),
            mine,
        )

    def _chunk(self, where):
        flash = {k: v for k, v in self._times(family="window", **where).items() if k[0] == "torch SDPA, flash"}
        self._ratio(
            f"chunk of {where['chunk']} over {where['cached']}: over torch flash SDPA, >= 1 x",
            1.0,
            flash,
            self._ours(**where),
        )

    def _far_position(self, one):
        near, far = (self._ours(**{**one, "start": start}) for start in (10_000, 10_000_000))
        self._add(
            "step at position 10,000,000 over 10,000, <= 1.02 x",
            f"{far[1] / near[1]:.3f} x" if near and far else NOT_MEASURED,
            near and far and far[1] / near[1] <= 1.02,
        )

    def _launches(self):
        counts = {
            r["contender"]: r["launches"]
            for r in self.rows
            if r["key"] == self.results.get("launch_case") and r.get("launches") is not None
        }
        self._add("launches of a decode step", ", ".join(f"{k}: {v}" for k, v in counts.items()) or "not counted", None)


class Published(NamedTuple):
    """Published times of one sequence over `cached` tokens beside those of a run, in microseconds or None."""

    cached: int
    xqa: float
    fa3: float
    xqa_here: float
    sinkcache: float


def published_lines(results):
    """A Published for every length that vLLM's table has."""
    rows, found = _Verdicts(results), []
    for cached, xqa in published.VLLM_43232["XQA"].items():
        where = {"n_seqs": 1, "cached": cached, "chunk": 1, "start": 0, **MAIN}
        here = rows._times(contender="FlashInfer, XQA", mode="graph", **where)
        ours = rows._ours(**where)
        found.append(
            Published(
                cached,
                xqa,
                published.VLLM_43232["FA3"][cached],
                min(here.values(), default=None),
                ours and ours[1],
            )
        )
    return found


def published_table(results):
    """Lines of text; none where nothing was measured at these lengths."""
    lines = [p for p in published_lines(results) if p.xqa_here or p.sinkcache]
    if not lines:
        return ""

    def us(x):
        return f"{x:8.1f} us" if x else "not measured"

    head = "1 sequence: published by vLLM #43232 (XQA, FA3; Hopper; no rotation, no append), XQA here, a step here"
    return "\n".join(
        [head]
        + [f"     {p.cached:6} {p.xqa:6.1f} us {p.fa3:6.1f} us {us(p.xqa_here)} {us(p.sinkcache)}" for p in lines]
    )


def _fastest(times):
    return min(times.items(), key=lambda item: item[1]) if times else None


def llama_aims(llama):
    """Verdicts on the time per token of the whole model."""
    found, rows = [], (llama or {}).get("rows", [])
    for window in (256, 1024, 2048, 4096):
        ms = {(r["contender"], r["mode"]): r["ms"] for r in rows if r["cached"] == window and r["status"] == "ok"}
        mine = min((v for k, v in ms.items() if k[0] == "sinkcache"), default=None)
        for label, contender, least in (
            ("StreamingLLM in PyTorch", ("StreamingLLM in PyTorch", "eager"), 5),
            ("recompute", ("recompute", "eager"), 22.2),
            ("ordinary cached decoding", ("ordinary cache", "graph"), None),
        ):
            aim = f"Llama-2-7B shape, {window} cached: over {label}" + (f", >= {least} x" if least else "")
            other = ms.get(contender)
            if mine is None or other is None:
                found.append(Verdict(aim, NOT_MEASURED, None))
            else:
                holds = other / mine >= least if least else None
                found.append(Verdict(aim, f"{other / mine:.2f} x ({other:.2f} ms, {mine:.2f} ms)", holds))
    return found


def table(verdicts):
    mark = {True: "yes", False: "NO", None: ""}
    return "\n".join(f"{mark[v.holds if v.holds is None else bool(v.holds)]:4} {v.aim:78} {v.value}" for v in verdicts)


def _load(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def checks(check):
    """Lines about gpu_check.json as loaded, and whether all of it has passed."""
    if not check:
        return ["gpu_check: no result"], True
    left_out = [r["check"] for r in check["rows"] if r["said"].startswith("left out")]
    failed = [r["check"] for r in check["rows"] if not r["ok"] and r["check"] not in left_out]
    passed = len(check["rows"]) - len(failed) - len(left_out)
    head = f"gpu_check: {passed} of {len(check['rows'])} passed"
    if left_out:
        head += f", {len(left_out)} left out for time"
    return [head, *(f"    FAILED {f}" for f in failed[:20])], not failed and not left_out


def main():
    folder = pathlib.Path(sys.argv[1])
    results, llama, check = (_load(folder / name) for name in ("results.json", "llama.json", "gpu_check.json"))
    lines, complete = checks(check)
    print("\n".join(lines))
    if not results:
        print("run.py: no result")
        return 1
    ours = [r for r in results["rows"] if r["family"] == "sinkcache" and r["status"] in ("wrong", "error")]
    code = 0 if complete and not ours and not results["left_out"] else 1
    counts = {}
    for r in results["rows"]:
        counts[r["status"]] = counts.get(r["status"], 0) + 1
    device, copy = results["device"], results["copy_bytes_per_s"]
    parts = [
        device["name"],
        f"commit {results['commit'][:12]}",
        results["date"],
        f"copy {copy / 1e9:.0f} GB/s",
        *(f"{n} {status}" for status, n in counts.items()),
        f"{len(results['left_out'])} cases left out for time",
    ]
    print(", ".join(parts))
    if results["platform"] != "cuda":
        print("Not a GPU: aims are not evaluated.")
        return code
    print(table(aims(results, llama)))
    print(published_table(results))
    for r in results["rows"]:
        if r["status"] in ("wrong", "error"):
            print(f"{r['status']}: {r['contender']} on {r['key']}: {r.get('note', '')}"[:200])
    return code


if __name__ == "__main__":
    sys.exit(main())
