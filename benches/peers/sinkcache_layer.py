"""A sinkcache cache with a full window, for benchmarks; and the bindings, loaded for any build of the library."""

import ctypes
import dataclasses
import importlib.util
import os
import pathlib

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINDINGS = ROOT / "examples" / "python" / "sinkcache_ctypes.py"
HEAD_DIM, N_SINK, MAX_CHUNK = 128, 4, 512


@dataclasses.dataclass(frozen=True)
class Case:
    """Attention of `queries` new tokens over `cached` tokens, the sinks included."""

    q_heads: int
    kv_heads: int
    cached: int
    queries: int = 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a cache."""

    kv_dtype: str  # f32, f16, bf16, q8 or q4, or K/V
    n_threads: int
    n_layers: int = 1


def load_bindings(library, bindings=BINDINGS):
    """A new instance of the Python bindings for the library at this path: several builds can be loaded together."""
    before = os.environ.get("SINKCACHE_LIBRARY")
    os.environ["SINKCACHE_LIBRARY"] = str(library)
    try:
        spec = importlib.util.spec_from_file_location("sinkcache_ctypes", bindings)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del os.environ["SINKCACHE_LIBRARY"]
        else:
            os.environ["SINKCACHE_LIBRARY"] = before
    return module


class Rows:
    """Inputs and output of a case's calls. Caches that are compared can share them."""

    def __init__(self, case):
        rng = np.random.default_rng(1)

        def draw(heads):
            return rng.standard_normal((MAX_CHUNK, heads, HEAD_DIM), np.float32)

        self.q, self.k, self.v = draw(case.q_heads), draw(case.kv_heads), draw(case.kv_heads)
        self.out = np.zeros((case.queries, case.q_heads, HEAD_DIM), np.float32)


class SinkcacheLayer:
    """A cache of one sequence whose ring has wrapped, and the calls to be timed: `step()`, `attend()` and `append()`.

    `sc` is an instance of the bindings. A call runs all layers, one after the other.
    """

    def __init__(self, sc, case, settings, *, rows=None, position=0):
        self.sc, self.case, self.n_layers = sc, case, settings.n_layers
        self.rows = rows or Rows(case)
        k_dtype, v_dtype = ((settings.kv_dtype + "/" + settings.kv_dtype).split("/"))[:2]
        self.cache = sc.Cache(
            case.q_heads,
            case.kv_heads,
            HEAD_DIM,
            {"n_sink": N_SINK, "window": case.cached - N_SINK},
            n_threads=settings.n_threads,
            k_dtype=sc.constant(f"SKC_DTYPE_{k_dtype.upper()}"),
            v_dtype=sc.constant(f"SKC_DTYPE_{v_dtype.upper()}"),
            max_chunk=MAX_CHUNK,
            n_layers=settings.n_layers,
        )
        total = case.cached + 2 * MAX_CHUNK
        self.cache.reset(start_position=max(position - total, 0))
        for begin in range(0, total, MAX_CHUNK):
            self.append(min(MAX_CHUNK, total - begin))()

    def append(self, n):
        """A call of skc_append_kv with `n` tokens."""
        return self._call("skc_append_kv", self.sc.AppendKvArgs, n, self.rows.k, self.rows.v)

    def attend(self):
        """A call of skc_attend with the queries of the last tokens."""
        return self._call("skc_attend", self.sc.AttendArgs, self.case.queries, self.rows.q, self.rows.out)

    def step(self):
        """A call of skc_step: append and attend."""
        r = self.rows
        return self._call("skc_step", self.sc.StepArgs, self.case.queries, r.k, r.v, r.q, r.out)

    def _call(self, name, args_type, n, *tensors):
        function, check, handle = getattr(self.sc.lib, name), self.sc.check, self.cache.handle
        pointers = [x.ctypes.data for x in tensors]
        args = [
            args_type(ctypes.sizeof(args_type), 0, layer, 1, self.sc.int_array([0]), self.sc.int_array([n]), *pointers)
            for layer in range(self.n_layers)
        ]
        refs = [ctypes.byref(a) for a in args]

        def call():
            for ref in refs:
                check(function(handle, ref))

        return call

    def close(self):
        self.cache.close()
