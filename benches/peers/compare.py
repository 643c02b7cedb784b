#!/usr/bin/env python3
"""Two builds of sinkcache against each other, in one process: has a change made it slower?

    benches/peers/compare.py BEFORE AFTER [--limit 0.03] [--json FILE]

BEFORE and AFTER are paths of libsinkcache.so. Needs NumPy. For each case both builds get a cache of the same contents,
and are timed in alternated bursts. A time is the lower quartile of a burst's calls: other processes disturb it little.
A pair is a burst of each build, in random order; a round is a few pairs. Addresses of code and data alone can change a
time by 20 %. Therefore every round loads its own copies of both libraries, and allocates both caches anew. Rounds
alternate which build comes first.

Printed per case: the median of the pairs' ratios after / before, and a 95 % bootstrap interval of it, which resamples
rounds and then their pairs. The last line names the case whose interval has the highest lower end. With `--limit 0.03`
the exit code is 1 if that end is above 1.03: then the slowdown is not noise.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import mmap
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from machine import processor
from sinkcache_layer import BINDINGS, Case, Rows, Settings, SinkcacheLayer, load_bindings
from timing import burst

HEADS = ((32, 8), (32, 32))
RESAMPLES = 4000
# The library's threads spin for less than this after a call.
SETTLE = 0.002
# Appends per timed call: one takes a few microseconds, about what Python needs to read a clock.
APPENDS = 64


@dataclasses.dataclass(frozen=True)
class Measurement:
    what: str  # decode, chunk or append
    case: Case
    settings: Settings

    def __str__(self):
        c = self.case
        name = f"chunk of {c.queries}" if self.what == "chunk" else self.what
        s = self.settings
        threads = "1 thread" if s.n_threads == 1 else f"{s.n_threads} threads"
        return f"{name} over {c.cached}, {c.q_heads}/{c.kv_heads} heads, {s.kv_dtype}, {threads}"

    def call_of(self, layer):
        """-> (what is timed, calls of the library in it)"""
        if self.what != "append":
            return layer.step(), 1
        append = layer.append(1)

        def many():
            for _ in range(APPENDS):
                append()

        return many, APPENDS


def measurements(o):
    cases = {
        "decode": [Case(q, kv, cached) for q, kv in HEADS for cached in (512, 2048, 4096, 16384)],
        "chunk": [Case(q, kv, 2048, 512) for q, kv in HEADS],
        "append": [Case(q, kv, 2048) for q, kv in HEADS],
    }
    return [
        Measurement(what, case, Settings(kv_dtype, n_threads))
        for n_threads in map(int, o.threads.split(","))
        for kv_dtype in o.kv.split(",")
        for what in o.cases.split(",")
        for case in cases[what]
    ]


@dataclasses.dataclass
class Pair:
    round: int
    first: str  # the build that was timed first
    before: float  # seconds of a call
    after: float

    @property
    def ratio(self):
        return self.after / self.before


def order_of(number):
    return ("before", "after") if number % 2 == 0 else ("after", "before")


class Comparison:
    """Pairs of a measurement, round after round. `builds`: {name: bindings} of each round."""

    def __init__(self, builds, measurement, o, rng):
        self.builds, self.m, self.o, self.rng = builds, measurement, o, rng

    def pairs(self):
        rows = Rows(self.m.case)
        return [pair for number in range(self.o.rounds) for pair in self._round(number, rows)]

    def _round(self, number, rows):
        order = order_of(number)
        layers, spacers = {}, []
        for name in order:
            # Written, so that the caches' pages move too.
            spacers.append(mmap.mmap(-1, int(self.rng.integers(1, 1024)) * mmap.PAGESIZE))
            spacers[-1].write(bytes(len(spacers[-1])))
            layers[name] = SinkcacheLayer(self.builds[number][name], self.m.case, self.m.settings, rows=rows)
        try:
            calls = {name: self.m.call_of(layer) for name, layer in layers.items()}
            for name in order:
                self._time(calls[name], self.o.burst / 2)
            return [self._pair(number, calls) for _ in range(self.o.pairs)]
        finally:
            for layer in layers.values():
                layer.close()
            for spacer in spacers:
                spacer.close()

    def _pair(self, number, calls):
        order = order_of(self.rng.integers(2))
        taken = {name: self._time(calls[name], self.o.burst) for name in order}
        return Pair(number, order[0], taken["before"], taken["after"])

    def _time(self, timed, seconds):
        call, n = timed
        times = sorted(burst(call, seconds, least=1))
        time.sleep(SETTLE)
        return times[len(times) // 4] / n


def interval(pairs, rng):
    """95 % bootstrap interval of the median ratio: rounds are resampled, then the pairs of each."""
    rounds = [[p.ratio for p in pairs if p.round == number] for number in sorted({p.round for p in pairs})]
    ratios = np.array(rounds)
    n, of_round = ratios.shape
    which = rng.integers(n, size=(RESAMPLES, n, 1))
    medians = np.median(
        ratios[which, rng.integers(of_round, size=(RESAMPLES, n, of_round))].reshape(RESAMPLES, -1), axis=1
    )
    return tuple(float(x) for x in np.quantile(medians, (0.025, 0.975)))


def load_all(o):
    """{name: bindings} of each round. Loads copies: for the same file the loader returns the same instance."""
    builds = [{} for _ in range(o.rounds)]
    sources = {"before": (o.before, o.before_bindings), "after": (o.after, BINDINGS)}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(o.rounds):
            for name in order_of(number):
                path, bindings = sources[name]
                copy = pathlib.Path(folder) / f"libsinkcache_{name}_{number}.so"
                shutil.copyfile(path, copy)
                builds[number][name] = load_bindings(copy, bindings)
    return builds


def commit_of(path):
    """Of the checkout that the library was built in; None if it is in none."""
    command = ["git", "-C", str(path.resolve().parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def about(path, sc):
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"commit": commit_of(path), "version": sc.lib.skc_version().decode(), "sha256": sha256}


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("before", type=pathlib.Path)
    p.add_argument("after", type=pathlib.Path)
    p.add_argument("--limit", type=float, help="largest lower end of a slowdown (0.03: 3 %%) for exit code 0")
    p.add_argument("--json", type=pathlib.Path, help="raw times of all pairs, rewritten after every case")
    p.add_argument("--kv", default="f16,bf16", help="types of K and V in the cache: f16, bf16, f32")
    p.add_argument("--threads", default="1,2")
    p.add_argument("--cases", default="decode,chunk,append")
    p.add_argument("--isa", default="", help="SINKCACHE_CPU for both builds")
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--pairs", type=int, default=3, help="of a round")
    p.add_argument("--burst", type=float, default=0.05, help="seconds")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument(
        "--before-bindings",
        type=pathlib.Path,
        default=BINDINGS,
        help="sinkcache_ctypes.py of BEFORE, if its ABI differs",
    )
    return p.parse_args()


def main():
    o = options()
    if o.isa:
        os.environ["SINKCACHE_CPU"] = o.isa
    rng = np.random.default_rng(o.seed)
    builds = load_all(o)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": processor(),
        "isa": o.isa or "best",
        "before": about(o.before, builds[0]["before"]),
        "after": about(o.after, builds[0]["after"]),
        "rounds": o.rounds,
        "pairs_per_round": o.pairs,
        "burst_s": o.burst,
        "cases": [],
    }
    gc.disable()
    worst = None
    for m in measurements(o):
        pairs = Comparison(builds, m, o, rng).pairs()
        before, after = (statistics.median(getattr(p, name) for p in pairs) for name in ("before", "after"))
        ratio, (low, high) = statistics.median(p.ratio for p in pairs), interval(pairs, rng)
        print(
            f"{str(m):52} {before * 1e6:10.1f} us -> {after * 1e6:10.1f} us  x {ratio:.3f}  [{low:.3f}, {high:.3f}]",
            flush=True,
        )
        record["cases"].append(
            {
                **dataclasses.asdict(m),
                "ratio": ratio,
                "interval": [low, high],
                "pairs": [dataclasses.asdict(p) for p in pairs],
            }
        )
        if worst is None or low > worst[0]:
            worst = low, m
        if o.json:
            o.json.write_text(json.dumps(record, indent=1) + "\n")
    exceeded = o.limit is not None and worst[0] > 1 + o.limit
    verdict = "" if o.limit is None else f"; limit {o.limit * 100:+.1f} %: {'EXCEEDED' if exceeded else 'kept'}"
    print(f"worst lower end of a slowdown: {(worst[0] - 1) * 100:+.1f} % ({worst[1]}){verdict}")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
