"""`sinkcache bench`: one layer's decode, a token of one sequence with a full window, beside PyTorch's attention."""
from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import sinkcache


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _arrays(torch: Any, dtype: str, rows: int, heads: int, dim: int) -> Any:
    if torch is not None:
        return torch.randn(rows, heads, dim).to(getattr(torch, dtype))
    numpy = _module("numpy")
    values = numpy.random.default_rng(0).standard_normal((rows, heads, dim), numpy.float32)
    if dtype == "bfloat16":
        return (values.view(numpy.uint32) >> 16).astype(numpy.uint16)
    return values.astype(dtype)


def _alternate(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
    """Milliseconds of each call, the median; the calls take turns, so that whatever else runs here disturbs all."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for call, taken in zip(calls, times):
            begin = time.perf_counter()
            call()
            taken.append((time.perf_counter() - begin) * 1e3)
    return [median(taken) for taken in times]


def _line(torch: Any, window: int, dtype: str, threads: int, chosen: argparse.Namespace) -> list[float]:
    heads_q, heads_kv, dim = chosen.heads
    if torch is not None:
        torch.set_num_threads(threads)
    with sinkcache.KVCache(1, heads_q, heads_kv, dim, window_length=window, dtype=dtype, kv_dtype=chosen.kv_dtype,
                           num_threads=threads) as cache:
        for begin in range(0, window, 512):
            rows = min(512, window - begin)
            q, k, v = (_arrays(torch, dtype, rows, heads, dim) for heads in (heads_q, heads_kv, heads_kv))
            cache.step(0, q, k, v)
        q, k, v = (_arrays(torch, dtype, 1, heads, dim) for heads in (heads_q, heads_kv, heads_kv))
        calls: list[Callable[[], Any]] = [lambda: cache.step(0, q, k, v)]
        if torch is not None:
            keys, values = (torch.randn(1, heads_kv, window, dim).to(getattr(torch, dtype)) for _ in range(2))
            # The query heads of a KV head as its rows: with enable_gqa PyTorch takes several times as long.
            query = q.view(1, heads_kv, heads_q // heads_kv, dim)
            new_k, new_v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
            attend = torch.nn.functional.scaled_dot_product_attention

            def dense() -> Any:
                """A full cache of that length: PyTorch writes the token and attends. No rotation, no sinks."""
                keys[:, :, -1:], values[:, :, -1:] = new_k, new_v
                return attend(query, keys, values)

            calls.append(dense)
        return _alternate(calls, chosen.seconds)


def run(chosen: argparse.Namespace) -> int:
    torch: Any = _module("torch")
    if torch is None and _module("numpy") is None:
        print("bench needs NumPy or PyTorch")
        return 1
    heads_q, heads_kv, dim = chosen.heads
    print(f"Decode of one layer, one token: {heads_q} / {heads_kv} heads x {dim}; milliseconds, the median. PyTorch "
          + ("writes the token into a full cache of that length and attends, without RoPE." if torch is not None
             else "is not installed."))
    print(f"{'window':>8} {'dtype':>9} {'threads':>7} {'sinkcache':>10} {'PyTorch':>9}")
    with torch.no_grad() if torch is not None else contextlib.nullcontext():
        for window, dtype, threads in itertools.product(chosen.window, chosen.dtype, chosen.threads):
            times = _line(torch, window, dtype, threads, chosen)
            shown = [f"{value:.3f}" for value in times] + ["-"]
            print(f"{window:>8} {dtype:>9} {threads:>7} {shown[0]:>10} {shown[1]:>9}", flush=True)
    return 0
