#!/usr/bin/env python3
"""Attention on the CPU, beside ggml and PyTorch: the same shapes, in one process, in alternation.

    benches/peers/run.py [--quick] [--threads 1,2] [--rung avx512] [--json FILE]

Needs NumPy and, for its column, torch; builds the library and, with scripts/llama_cpp, ggml. Every contender of a case
is timed in bursts that alternate; a time is the median call of all bursts, a ratio the median over the rounds of the
bursts' medians. sinkcache does more than the others: `step` rotates and appends the new tokens too, its window has
wrapped, and queries come and results go as f32. `roofline` is what a case cannot do without over what it takes: for one
query, reading K and V once at the bandwidth measured here; for a chunk, the products of queries, keys, weights and
values at the peak measured here of the unit that does them: AMX in bfloat16 for bf16 (FMA of halves where AVX-512 is
forced and has them), a third of it for sinkcache's f16 (three products), FMA in f32 for the rest.
"""

import argparse
import ctypes
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAD_DIM, N_SINK, MAX_CHUNK = 128, 4, 512


def built(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()


def build():
    """-> (path of libsinkcache, path of the ggml peer)"""
    built("cargo", "build", "--release", "-q", "-p", "sinkcache")
    prefix = built("scripts/llama_cpp")[-1]
    out = ROOT / "build" / "peers"
    built("cmake", "-S", "benches/peers", "-B", str(out), "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_PREFIX_PATH={prefix}")
    built("cmake", "--build", str(out))
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / "libsinkcache.so", out / "libggml_peer.so"


class Sinkcache:
    """One layer, one sequence, its ring filled beyond the first wrap."""

    def __init__(self, sc, case, kv, n_threads, position=0, n_layers=1):
        n_q, n_kv, window, n = case
        self.sc, self.n = sc, n
        dtype = {"f16": "SKC_DTYPE_F16", "bf16": "SKC_DTYPE_BF16", "f32": "SKC_DTYPE_F32"}[kv]
        self.cache = sc.Cache(n_q, n_kv, HEAD_DIM, {"n_sink": N_SINK, "window": window - N_SINK}, n_threads=n_threads,
                              kv_dtype=sc.constant(dtype), max_chunk=MAX_CHUNK, n_layers=n_layers)
        rng = np.random.default_rng(1)
        total = window + 2 * MAX_CHUNK
        self.cache.reset(start_position=max(position - total, 0))
        draw = lambda n, heads: rng.standard_normal((n, heads, HEAD_DIM), np.float32)
        q, k, v = draw(MAX_CHUNK, n_q), draw(MAX_CHUNK, n_kv), draw(MAX_CHUNK, n_kv)
        for layer in range(n_layers):
            for at in range(0, total, MAX_CHUNK):
                m = min(MAX_CHUNK, total - at)
                self.cache.step(layer, q[:m], k[:m], v[:m])
        self.keep = [q[:n].copy(), k[:n].copy(), v[:n].copy(), np.zeros((n, n_q, HEAD_DIM), np.float32)]
        q, k, v, out = (x.ctypes.data for x in self.keep)
        step = sc.StepArgs
        self.args = [step(ctypes.sizeof(step), 0, layer, 1, sc._ints([0]), sc._ints([n]), k, v, q, out)
                     for layer in range(n_layers)]
        self.refs = [ctypes.byref(a) for a in self.args]

    def __call__(self):
        for ref in self.refs:
            self.sc.check(self.sc.lib.skc_step(self.cache.handle, ref))

    def attention(self):
        """`skc_attend` alone: what the others do."""
        sc, n = self.sc, self.n
        sc.lib.skc_attend.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

        class Args(ctypes.Structure):
            _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("layer", ctypes.c_uint32),
                        ("n_entries", ctypes.c_uint32), ("seq_ids", ctypes.c_void_p), ("n_tokens", ctypes.c_void_p),
                        ("q", ctypes.c_void_p), ("out", ctypes.c_void_p), ("lse", ctypes.c_void_p),
                        ("strides", ctypes.c_int64 * 6), ("stream", ctypes.c_void_p), ("n_rows", ctypes.c_uint64),
                        ("max_tokens", ctypes.c_uint32), ("reserved", ctypes.c_uint32)]

        self()
        ids, counts = sc._ints([0]), sc._ints([n])
        q, out = (self.keep[i].ctypes.data for i in (0, 3))
        args = Args(ctypes.sizeof(Args), 0, 0, 1, ctypes.addressof(ids), ctypes.addressof(counts), q, out)
        self.keep += [ids, counts, args]
        ref = ctypes.byref(args)
        return lambda: sc.check(sc.lib.skc_attend(self.cache.handle, ref))

    def close(self):
        self.cache.close()


class Ggml:
    def __init__(self, lib, case, n_threads):
        n_q, n_kv, window, n = case
        rng = np.random.default_rng(1)
        q = rng.standard_normal((n, n_q, HEAD_DIM), np.float32)
        k, v = (rng.standard_normal((n_kv, window, HEAD_DIM), np.float32).astype(np.float16) for _ in range(2))
        lib.ggml_peer_new.restype = ctypes.c_void_p
        for f in ("run", "resume", "pause", "free"):
            getattr(lib, "ggml_peer_" + f).argtypes = [ctypes.c_void_p]
        self.lib = lib
        self.peer = lib.ggml_peer_new(
            n_q, n_kv, HEAD_DIM, window, n, n_threads, *(x.ctypes.data_as(ctypes.c_void_p) for x in (q, k, v))
        )
        if not self.peer:
            raise MemoryError("ggml")

    def __call__(self):
        if self.lib.ggml_peer_run(self.peer):
            raise RuntimeError("ggml: the graph failed")

    def begin(self):
        self.lib.ggml_peer_resume(self.peer)

    def end(self):
        self.lib.ggml_peer_pause(self.peer)

    def close(self):
        self.lib.ggml_peer_free(self.peer)


def torch_calls(torch, case, n_threads):
    """The ways to say it in PyTorch; the fastest counts. -> {name: call}"""
    n_q, n_kv, window, n = case
    torch.set_num_threads(n_threads)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    k, v = (torch.randn(1, n_kv, window, HEAD_DIM).bfloat16() for _ in range(2))
    q = torch.randn(1, n_q, n, HEAD_DIM).bfloat16()
    calls = {}
    if n_q == n_kv:
        calls["sdpa"] = lambda: sdpa(q, k, v)
    else:
        calls["sdpa, enable_gqa"] = lambda: sdpa(q, k, v, enable_gqa=True)
        # Without a mask the heads of a group may as well be queries of their KV head.
        rows = q.reshape(1, n_kv, n_q // n_kv * n, HEAD_DIM).contiguous()
        calls["sdpa, heads as queries"] = lambda: sdpa(rows, k, v)
    return calls


def burst(call, seconds):
    """Median seconds of a call."""
    begin, end = getattr(call, "begin", None), getattr(call, "end", None)
    if begin:
        begin()
    times, until = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    if end:
        end()
    # Threads of the others spin for a while after their last call.
    time.sleep(0.02)
    return statistics.median(times)


def contest(calls, rounds, seconds):
    """-> {name: median seconds}, {name: median ratio to the first}"""
    for call in calls.values():
        burst(call, seconds / 2)
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(burst(call, seconds))
    first = next(iter(calls))
    ratios = {name: statistics.median(b / a for a, b in zip(taken[first], taken[name])) for name in calls}
    return {name: statistics.median(t) for name, t in taken.items()}, ratios


def bandwidth(lib, n_threads, size, seconds=0.2):
    """GB/s of reading `size` bytes once, median; with threads each reads its share."""
    import mmap
    import threading
    lib.peer_read.argtypes, lib.peer_read.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_uint64
    share = size // n_threads
    parts = []
    for _ in range(n_threads):
        block = mmap.mmap(-1, share)
        block.madvise(mmap.MADV_HUGEPAGE)
        x = np.frombuffer(block, np.int64)
        x[:] = 1
        parts.append(x)
    begin, end = threading.Barrier(n_threads + 1), threading.Barrier(n_threads + 1)
    repeat = max(1, int(5e7 // size))
    running = True

    def read(x):
        while True:
            begin.wait()
            if not running:
                return
            for _ in range(repeat):
                lib.peer_read(x.ctypes.data, len(x))
            end.wait()

    threads = [threading.Thread(target=read, args=(p,)) for p in parts]
    for t in threads:
        t.start()
    taken, until = [], time.perf_counter() + seconds
    while len(taken) < 5 or time.perf_counter() < until:
        begin.wait()
        start = time.perf_counter()
        end.wait()
        taken.append((time.perf_counter() - start) / repeat)
    running = False
    begin.wait()
    for t in threads:
        t.join()
    return size / statistics.median(taken) / 1e9


UNITS = {"avx2": 0, "avx512": 1, "amx": 2, "fp16": 3}


def peaks(lib, n_threads, seconds=0.05):
    """-> {unit: GFLOP/s of all threads}, for those this processor has; a unit's best of five"""
    import threading
    lib.peer_multiply.argtypes, lib.peer_multiply.restype = [ctypes.c_int, ctypes.c_int64], ctypes.c_int64
    found = {}
    for name, unit in UNITS.items():
        n, flops = 1000, lib.peer_multiply(unit, 1000)
        if not flops:
            continue
        start = time.perf_counter()
        lib.peer_multiply(unit, n)
        n = int(n * seconds / (time.perf_counter() - start)) + 1
        best = 0
        for _ in range(5):
            threads = [threading.Thread(target=lib.peer_multiply, args=(unit, n)) for _ in range(n_threads)]
            start = time.perf_counter()
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            best = max(best, n * flops / 1000 * n_threads / (time.perf_counter() - start) / 1e9)
        found[name] = best
    return found


def peak_of(name, rung, found):
    """GFLOP/s that the contender could reach; None where its unit was not measured"""
    if name.startswith("sinkcache"):
        best = rung or next((u for u in ("amx", "avx512", "avx2") if u in found), "")
        if best == "amx" and " f16 " in name:
            return found["amx"] / 3
        if best == "amx" and " f32 " in name:
            best = "avx512"
        if best == "avx512" and " bf16 " in name:
            best = "fp16" if "fp16" in found else best
        return found.get(best)
    if name.startswith("torch") and "amx" in found:
        return found["amx"]
    return found.get("avx512", found.get("avx2"))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="two cases, short bursts: does it run?")
    p.add_argument("--threads", default="1,2")
    p.add_argument("--rung", default="", help="SINKCACHE_CPU for sinkcache")
    p.add_argument("--kv", default="f16,bf16")
    p.add_argument("--json", type=pathlib.Path)
    p.add_argument("--no-torch", action="store_true")
    p.add_argument("--cases", default="decode,chunk,large,position")
    p.add_argument("--windows", default="512,2048,4096,16384")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--burst", type=float, default=0.25, help="seconds")
    a = p.parse_args()
    library, ggml = build()
    if a.rung:
        os.environ["SINKCACHE_CPU"] = a.rung
    os.environ["SINKCACHE_LIBRARY"] = str(library)
    sys.path.insert(0, str(ROOT / "examples" / "python"))
    import sinkcache_ctypes as sc
    ggml = ctypes.CDLL(str(ggml))
    torch = None
    if not a.no_torch:
        try:
            import torch
        except ImportError as e:
            print(f"no torch: {e}")
    seconds, rounds = (0.05, 3) if a.quick else (a.burst, a.rounds)
    commit = built("git", "rev-parse", "--short", "HEAD")[0]
    cpu = next(
        (l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor()
    )
    family = [l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith(("cpu family", "model\t"))][:2]

    def keep():
        # After every case: a run that is cut off has what it had.
        if a.json:
            a.json.write_text(json.dumps(record, indent=1) + "\n")

    record = {
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{cpu}, family {family[0]} model {family[1]}",
        "rung": a.rung or "best",
        "torch": torch.__version__ if torch else None,
        "cases": [],
    }
    print(f"{record['cpu']}, {record['date']}, commit {commit}, rung {record['rung']}, torch {record['torch']}")
    heads = [(32, 8), (32, 32)]
    decode = [(q, kv, w, 1) for q, kv in heads for w in map(int, a.windows.split(","))]
    chunk = [(q, kv, 2048, 512) for q, kv in heads]
    if a.quick:
        decode, chunk = [(32, 8, 512, 1)], [(32, 8, 512, 64)]
    chosen = set(a.cases.split(","))
    cases = (decode if "decode" in chosen else []) + (chunk if "chunk" in chosen else [])
    print(
        f"\n{'queries':>7} {'cached':>6} {'heads':>6} {'thr':>3}  {'contender':28} {'us':>10}  "
        f"{'x of sinkcache':>14}  roofline"
    )
    for n_threads in map(int, a.threads.split(",")):
        found = peaks(ggml, n_threads) if chunk and "chunk" in chosen else {}
        if found:
            print(f"{n_threads} threads: peak " + ", ".join(f"{unit} {x:.0f} GFLOP/s" for unit, x in found.items()))
            record["cases"].append(
                {"threads": n_threads, "peak_gflop_s": {unit: round(x) for unit, x in found.items()}}
            )
            keep()
        for case in cases:
            n_q, n_kv, window, n = case
            calls = {}
            for kv in a.kv.split(","):
                s = Sinkcache(sc, case, kv, n_threads)
                calls[f"sinkcache {kv} step"] = s
                other = Sinkcache(sc, case, kv, n_threads)
                calls[f"sinkcache {kv} attend"] = other.attention()
            calls["ggml f16"] = Ggml(ggml, case, n_threads)
            if torch:
                calls.update({f"torch {name}": call for name, call in torch_calls(torch, case, n_threads).items()})
            with_grad = torch.no_grad() if torch else None
            if with_grad:
                with_grad.__enter__()
            times, ratios = contest(calls, rounds, seconds)
            size = 2 * window * n_kv * HEAD_DIM * 2
            floor = size / bandwidth(ggml, n_threads, size) / 1e9
            flops, shares = 4 * n * window * n_q * HEAD_DIM, {}
            for name in calls:
                shares[name] = floor / times[name]
                rate = ""
                if n > 1:
                    peak = peak_of(name, a.rung, found)
                    shares[name] = flops / times[name] / 1e9 / peak if peak else 0
                    rate = f"  {flops / times[name] / 1e9:5.0f} GFLOP/s"
                print(
                    f"{n:7} {window:6} {n_q:3}/{n_kv:<2} {n_threads:3}  {name:28} {times[name] * 1e6:10.1f}  "
                    f"{ratios[name]:14.2f}"
                    f"  {shares[name] * 100:6.1f} %{rate}",
                    flush=True,
                )
            record["cases"].append(
                {
                    "queries": n,
                    "cached": window,
                    "q_heads": n_q,
                    "kv_heads": n_kv,
                    "threads": n_threads,
                    "us": {k: round(t * 1e6, 1) for k, t in times.items()},
                    "ratio": {k: round(r, 3) for k, r in ratios.items()},
                    "floor_us": round(floor * 1e6, 1),
                    "roofline": {k: round(s, 3) for k, s in shares.items()},
                }
            )
            keep()
    if "large" in chosen and not a.quick:
        print(
            "\nK and V larger than the last-level cache: 8 layers of 16,384 tokens x 32 KV heads, f16, 2.1 GB, one "
            "step of all"
        )
        for n_threads in map(int, a.threads.split(",")):
            s = Sinkcache(sc, (32, 32, 16384, 1), "f16", n_threads, n_layers=8)
            size = 8 * 2 * 16384 * 32 * HEAD_DIM * 2
            taken, speeds = [], []
            for _ in range(5):
                taken.append(burst(s, 0.1))
                speeds.append(bandwidth(ggml, n_threads, size))
            ours, theirs = size / statistics.median(taken) / 1e9, statistics.median(speeds)
            print(
                f"{n_threads} threads: {ours:.1f} GB/s, reading once {theirs:.1f} GB/s, {ours / theirs * 100:.0f} %",
                flush=True,
            )
            record["cases"].append(
                {"large": True, "threads": n_threads, "gb_s": round(ours, 2), "read_gb_s": round(theirs, 2)}
            )
            keep()
            s.close()
    if "position" in chosen and not a.quick:
        print("\nOne step at stream position 10,000,000 against 10,000 (2048 cached, 32/8, f16)")
        for n_threads in map(int, a.threads.split(",")):
            near, far = (Sinkcache(sc, (32, 8, 2048, 1), "f16", n_threads, position=p) for p in (10_000, 10_000_000))
            times, ratios = contest({"1e4": near, "1e7": far}, rounds, seconds)
            print(
                f"{n_threads} threads: {times['1e4'] * 1e6:.1f} us, {times['1e7'] * 1e6:.1f} us, ratio "
                f"{ratios['1e7']:.3f}",
                flush=True,
            )
            record["cases"].append({"position_ratio": round(ratios["1e7"], 4), "threads": n_threads})
            keep()


if __name__ == "__main__":
    main()
