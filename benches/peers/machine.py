"""What this machine is, and what it can do at most: the bandwidth of reading memory, the peak of its multipliers."""

import ctypes
import mmap
import pathlib
import statistics
import threading
import time

import numpy as np

# Numbers of ggml_peer's peer_multiply.
UNITS = {"avx2": 0, "avx512": 1, "amx": 2, "fp16": 3}


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    return f"{fields.get('model name', '?')}, family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"


def bandwidth(lib, n_threads, size, seconds=0.2):
    """GB/s of reading `size` bytes once, median; each thread reads its share."""
    lib.peer_read.argtypes, lib.peer_read.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_uint64
    share = size // n_threads
    arrays = []
    for _ in range(n_threads):
        block = mmap.mmap(-1, share)
        block.madvise(mmap.MADV_HUGEPAGE)
        x = np.frombuffer(block, np.int64)
        x[:] = 1
        arrays.append(x)
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

    threads = [threading.Thread(target=read, args=(x,)) for x in arrays]
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


def peaks(lib, n_threads, seconds=0.05):
    """{unit: GFLOP/s of all threads} for the units that this processor has; the best of five runs each."""
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


def peak_of(name, isa, found):
    """GFLOP/s that a contender could reach at most; None where its unit was not measured."""
    if name.startswith("sinkcache"):
        best = isa or next((u for u in ("amx", "avx512", "avx2") if u in found), "")
        if best == "amx" and " f16 " in name:
            # Three bf16 products for each product of f16.
            return found["amx"] / 3
        if best == "amx" and " f32 " in name:
            best = "avx512"
        if best == "avx512" and " bf16 " in name:
            best = "fp16" if "fp16" in found else best
        return found.get(best)
    if name.startswith("torch") and "amx" in found:
        return found["amx"]
    return found.get("avx512", found.get("avx2"))
