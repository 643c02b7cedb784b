#!/usr/bin/env python3
"""Attention on the CPU, beside ggml and PyTorch: the same shapes, in one process, in alternation.

    benches/peers/run.py [--quick] [--threads 1,2] [--isa avx512] [--json FILE]

Needs NumPy and, for its rows, torch; builds the library and, with scripts/llama_cpp, ggml. Every contender of a case is
timed in bursts that alternate. A time is the median call of all bursts; a ratio is the median over the rounds of the
ratio of the bursts' medians. sinkcache does more than the others: `step` also rotates and appends the new tokens, its
window has wrapped, and queries and results are f32. `roofline` is the smallest possible time over the measured time.
For one query the smallest time is that of reading K and V once as the contender stores them, at the bandwidth
measured here. For a chunk it is that
of QK^T and PV at the peak measured here of the unit that computes them: AMX in bf16 for bf16 (FMA in fp16 where AVX-512
is forced and has it), a third of it for sinkcache's f16 (three products), FMA in f32 for the rest.
"""

import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import time

from contenders import Ggml, torch_calls
from machine import bandwidth, peak_of, peaks, processor
from sinkcache_layer import HEAD_DIM, ROOT, Case, Settings, SinkcacheLayer, load_bindings
from timing import contest, median_of_burst

HEADS = ((32, 8), (32, 32))


def output_of(*command):
    """Lines that a command prints."""
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()


def build():
    """-> (path of libsinkcache, path of the ggml peer)"""
    output_of("cargo", "build", "--release", "-q", "-p", "sinkcache")
    prefix = output_of("scripts/llama_cpp")[-1]
    out = ROOT / "build" / "peers"
    output_of(
        "cmake", "-S", "benches/peers", "-B", str(out), "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_PREFIX_PATH={prefix}"
    )
    output_of("cmake", "--build", str(out))
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / "libsinkcache.so", out / "libggml_peer.so"


# Bytes of a row of HEAD_DIM dims, its scales included.
ROW_BYTES = {"f32": 512, "f16": 256, "bf16": 256, "q8": 130, "q4": 72, "q8_0": 136, "q4_0": 72}


def bytes_of_token(contender):
    """K and V of one token and head, as the contender of this name stores them."""
    types = [word for word in contender.split() if word.split("/")[0] in ROW_BYTES] or ["bf16"]
    k, v = (types[0] + "/" + types[0]).split("/")[:2]
    return ROW_BYTES[k] + ROW_BYTES[v]


class Benchmark:
    """Runs the chosen cases, prints a row for each contender and keeps a record, which is saved after every case."""

    def __init__(self, options):
        self.o = options
        library, ggml = build()
        if options.isa:
            os.environ["SINKCACHE_CPU"] = options.isa
        self.sc, self.ggml, self.torch = load_bindings(library), ctypes.CDLL(str(ggml)), None
        if not options.no_torch:
            try:
                import torch

                torch.set_grad_enabled(False)
                self.torch = torch
            except ImportError as e:
                print(f"no torch: {e}")
        self.seconds, self.rounds = (0.05, 3) if options.quick else (options.burst, options.rounds)
        self.chosen, self.threads = set(options.cases.split(",")), [int(n) for n in options.threads.split(",")]
        self.record = {
            "commit": output_of("git", "rev-parse", "--short", "HEAD")[0],
            "date": time.strftime("%Y-%m-%d"),
            "cpu": processor(),
            "isa": options.isa or "best",
            "torch": self.torch.__version__ if self.torch else None,
            "cases": [],
        }

    def run(self):
        r = self.record
        print(f"{r['cpu']}, {r['date']}, commit {r['commit']}, instruction set {r['isa']}, torch {r['torch']}")
        self.attention()
        if "large" in self.chosen and not self.o.quick:
            self.larger_than_caches()
        if "position" in self.chosen and not self.o.quick:
            self.far_position()

    def save(self, row):
        self.record["cases"].append(row)
        if self.o.json:
            self.o.json.write_text(json.dumps(self.record, indent=1) + "\n")

    def cases(self):
        decode = [Case(q, kv, cached) for q, kv in HEADS for cached in map(int, self.o.windows.split(","))]
        chunk = [Case(q, kv, 2048, 512) for q, kv in HEADS]
        if self.o.quick:
            decode, chunk = [Case(32, 8, 512)], [Case(32, 8, 512, 64)]
        return (decode if "decode" in self.chosen else []) + (chunk if "chunk" in self.chosen else [])

    def attention(self):
        print(
            f"\n{'queries':>7} {'cached':>6} {'heads':>6} {'thr':>3}  {'contender':28} {'us':>10}"
            f"  {'x of sinkcache':>14}  roofline"
        )
        for n_threads in self.threads:
            found = peaks(self.ggml, n_threads) if "chunk" in self.chosen else {}
            if found:
                print(f"{n_threads} threads: peak " + ", ".join(f"{unit} {x:.0f} GFLOP/s" for unit, x in found.items()))
                self.save({"threads": n_threads, "peak_gflop_s": {unit: round(x) for unit, x in found.items()}})
            for case in self.cases():
                self.one_case(case, n_threads, found)

    def one_case(self, case, n_threads, found):
        calls, opened = self.calls_of(case, n_threads)
        sizes = {name: case.cached * case.kv_heads * bytes_of_token(name) for name in calls}

        def rates():
            return {size: bandwidth(self.ggml, n_threads, size) for size in set(sizes.values())}

        try:
            before = rates()
            times, ratios = contest(calls, self.rounds, self.seconds)
        finally:
            for contender in opened:
                contender.close()
        # Another program may slow down a measurement: the better of two.
        floors = {size: size / max(before[size], rate) / 1e9 for size, rate in rates().items()}
        flops, shares = 4 * case.queries * case.cached * case.q_heads * HEAD_DIM, {}
        for name, seconds in times.items():
            shares[name], rate = floors[sizes[name]] / seconds, ""
            if case.queries > 1:
                peak = peak_of(name, self.o.isa, found)
                shares[name] = flops / seconds / 1e9 / peak if peak else 0
                rate = f"  {flops / seconds / 1e9:5.0f} GFLOP/s"
            print(
                f"{case.queries:7} {case.cached:6} {case.q_heads:3}/{case.kv_heads:<2} {n_threads:3}  {name:28}"
                f" {seconds * 1e6:10.1f}"
                f"  {ratios[name]:14.2f}  {shares[name] * 100:6.1f} %{rate}",
                flush=True,
            )
        self.save(
            {
                "queries": case.queries,
                "cached": case.cached,
                "q_heads": case.q_heads,
                "kv_heads": case.kv_heads,
                "threads": n_threads,
                "us": {k: round(t * 1e6, 1) for k, t in times.items()},
                "ratio": {k: round(r, 3) for k, r in ratios.items()},
                "floor_us": {name: round(floors[size] * 1e6, 1) for name, size in sizes.items()},
                "roofline": {k: round(s, 3) for k, s in shares.items()},
            }
        )

    def calls_of(self, case, n_threads):
        """-> ({name: call}, what must be closed)"""
        calls, opened = {}, []
        for kv_dtype in self.o.kv.split(","):
            # A cache each: a step moves the ring on.
            for name in ("step", "attend"):
                layer = SinkcacheLayer(self.sc, case, Settings(kv_dtype, n_threads))
                opened.append(layer)
                calls[f"sinkcache {kv_dtype} {name}"] = getattr(layer, name)()
        for kv_dtype in self.o.ggml.split(","):
            ggml = Ggml(self.ggml, case, n_threads, kv_dtype)
            opened.append(ggml)
            calls[f"ggml {kv_dtype}"] = ggml
        if self.torch:
            calls.update(torch_calls(self.torch, case, n_threads))
        return calls, opened

    def larger_than_caches(self):
        print(
            "\nK and V larger than the last-level cache: "
            "8 layers of 16,384 tokens x 32 KV heads, f16, 2.1 GB, one step of all"
        )
        size = 8 * 2 * 16384 * 32 * HEAD_DIM * 2
        for n_threads in self.threads:
            layers = SinkcacheLayer(self.sc, Case(32, 32, 16384), Settings("f16", n_threads, n_layers=8))
            step, taken, speeds = layers.step(), [], []
            for _ in range(5):
                taken.append(median_of_burst(step, 0.1))
                speeds.append(bandwidth(self.ggml, n_threads, size))
            layers.close()
            ours, theirs = size / statistics.median(taken) / 1e9, statistics.median(speeds)
            print(
                f"{n_threads} threads: {ours:.1f} GB/s, reading once {theirs:.1f} GB/s, {ours / theirs * 100:.0f} %",
                flush=True,
            )
            self.save({"large": True, "threads": n_threads, "gb_s": round(ours, 2), "read_gb_s": round(theirs, 2)})

    def far_position(self):
        print("\nOne step at stream position 10,000,000 against 10,000 (2048 cached, 32/8, f16)")
        for n_threads in self.threads:
            near, far = (
                SinkcacheLayer(self.sc, Case(32, 8, 2048), Settings("f16", n_threads), position=p)
                for p in (10_000, 10_000_000)
            )
            times, ratios = contest({"1e4": near.step(), "1e7": far.step()}, self.rounds, self.seconds)
            near.close()
            far.close()
            print(
                f"{n_threads} threads: {times['1e4'] * 1e6:.1f} us, {times['1e7'] * 1e6:.1f} us, "
                f"ratio {ratios['1e7']:.3f}",
                flush=True,
            )
            self.save({"position_ratio": round(ratios["1e7"], 4), "threads": n_threads})


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="two cases, short bursts: does it run?")
    p.add_argument("--threads", default="1,2")
    p.add_argument("--isa", default="", help="SINKCACHE_CPU for sinkcache: an instruction set")
    p.add_argument("--kv", default="f16,bf16", help="storage types of sinkcache; a ratio is to the first")
    p.add_argument("--ggml", default="f16", help="types of ggml: f16, q8_0, q4_0")
    p.add_argument("--json", type=pathlib.Path)
    p.add_argument("--no-torch", action="store_true")
    p.add_argument("--cases", default="decode,chunk,large,position")
    p.add_argument("--windows", default="512,2048,4096,16384")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--burst", type=float, default=0.25, help="seconds")
    return p.parse_args()


if __name__ == "__main__":
    Benchmark(options()).run()
