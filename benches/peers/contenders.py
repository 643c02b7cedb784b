"""The other libraries: ggml's and PyTorch's attention over K and V of the same shape."""

import ctypes

import numpy as np

from sinkcache_layer import HEAD_DIM


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int) for name in "q_heads kv_heads dim cached queries threads k_type v_type".split()
    ]


# Numbers of ggml's types.
GGML_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}


class Ggml:
    """ggml's flash attention with a thread pool of its own (ggml_peer.cpp): f32 queries, K and V in its types."""

    def __init__(self, lib, case, n_threads, kv_dtype="f16"):
        rng = np.random.default_rng(1)
        q = rng.standard_normal((case.queries, case.q_heads, HEAD_DIM), np.float32)
        k, v = (rng.standard_normal((case.kv_heads, case.cached, HEAD_DIM), np.float32) for _ in range(2))
        lib.ggml_peer_new.restype = ctypes.c_void_p
        for f in ("run", "resume", "pause", "free"):
            getattr(lib, "ggml_peer_" + f).argtypes = [ctypes.c_void_p]
        self.lib = lib
        k_type, v_type = (GGML_TYPES[name] for name in (kv_dtype + "/" + kv_dtype).split("/")[:2])
        shape = _Shape(case.q_heads, case.kv_heads, HEAD_DIM, case.cached, case.queries, n_threads, k_type, v_type)
        self.peer = lib.ggml_peer_new(ctypes.byref(shape), *(x.ctypes.data_as(ctypes.c_void_p) for x in (q, k, v)))
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
    """The ways to write it in PyTorch, bf16. -> {name: call}"""
    torch.set_num_threads(n_threads)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    k, v = (torch.randn(1, case.kv_heads, case.cached, HEAD_DIM).bfloat16() for _ in range(2))
    q = torch.randn(1, case.q_heads, case.queries, HEAD_DIM).bfloat16()
    if case.q_heads == case.kv_heads:
        return {"torch sdpa": lambda: sdpa(q, k, v)}
    # Without a mask the query heads of a KV head can be passed as rows of that head.
    rows = q.reshape(1, case.kv_heads, case.q_heads // case.kv_heads * case.queries, HEAD_DIM).contiguous()
    return {
        "torch sdpa, enable_gqa": lambda: sdpa(q, k, v, enable_gqa=True),
        "torch sdpa, heads as queries": lambda: sdpa(rows, k, v),
    }
