"""Streams random tokens past a window on a GPU, with PyTorch's tensors, stream and CUDA graphs.

    SINKCACHE_LIBRARY=.../libsinkcache.so python3 stream_torch.py

Nothing is copied: the library gets the addresses of the tensors (data_ptr) and the current stream. Checks the last row
against attention in PyTorch, and eager calls against a replayed graph. Skipped without a CUDA device.
"""
import ctypes
from ctypes import byref
import sys

try:
    import torch
except ImportError:
    sys.exit("skipped: no PyTorch")

from sinkcache_ctypes import (CacheConfig, DeviceError, LayerConfig, NoteReplayArgs, StepArgs, check, constant,
                              int_array, lib)

Q_HEADS, KV_HEADS, DIM, SINKS, WINDOW, PROMPT, TOKENS = 32, 8, 128, 4, 1020, 1500, 3000
BF16 = torch.bfloat16


class Cache:
    """One sequence in one layer, bf16, on the current device."""

    def __init__(self):
        layer, config = LayerConfig(), CacheConfig()
        check(lib.skc_layer_config_init(byref(layer), ctypes.sizeof(layer)))
        check(lib.skc_cache_config_init(byref(config), ctypes.sizeof(config)))
        layer.n_sink, layer.window = SINKS, WINDOW
        config.backend, config.cuda_device = constant("SKC_BACKEND_CUDA"), torch.cuda.current_device()
        config.n_q_heads, config.n_kv_heads, config.head_dim = Q_HEADS, KV_HEADS, DIM
        config.in_dtype = config.kv_dtype = constant("SKC_DTYPE_BF16")
        config.n_layer_configs, config.layers = 1, ctypes.pointer(layer)
        self.handle = ctypes.c_void_p()
        check(lib.skc_create_cache(byref(config), byref(self.handle)))

    def step(self, q, k, v, out):
        """Enqueues append and attention of rows [n, heads, DIM], contiguous tensors."""
        for tensor in (q, k, v, out):
            assert tensor.is_cuda and tensor.is_contiguous() and tensor.dtype == BF16
        args = StepArgs(ctypes.sizeof(StepArgs), 0, 0, 1, int_array([0]), int_array([len(q)]),
                        *(t.data_ptr() for t in (k, v, q, out)), None)
        args.stream = torch.cuda.current_stream().cuda_stream
        check(lib.skc_step(self.handle, byref(args)))

    def note_replay(self, n):
        """Reports n tokens of a replayed graph."""
        args = NoteReplayArgs(ctypes.sizeof(NoteReplayArgs), 0, 0, 1, int_array([0]), int_array([n]))
        check(lib.skc_note_replay(self.handle, byref(args)))

    def close(self):
        error = DeviceError(ctypes.sizeof(DeviceError))
        check(lib.skc_poll_error(self.handle, byref(error)))
        assert error.n_skipped == 0, error.status
        check(lib.skc_destroy_cache(self.handle))


def rotate(x, positions, base=10000.0):
    """RoPE in NeoX style: x [n, heads, DIM] at positions [n], in float64."""
    angle = positions[:, None] * base ** (-torch.arange(0, DIM, 2, device=x.device, dtype=torch.float64) / DIM)
    cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
    lo, hi = x.double()[..., : DIM // 2], x.double()[..., DIM // 2 :]
    return torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], -1)


def reference(q, k, v):
    """Attention of the last query over sinks and window, rotated at their cache positions."""
    held = torch.cat([torch.arange(SINKS), torch.arange(len(k) - WINDOW, len(k))]).to(q.device)
    positions = torch.arange(len(held), dtype=torch.float64, device=q.device)
    keys, query = rotate(k[held], positions), rotate(q[-1:], positions[-1:])[0]
    group = Q_HEADS // KV_HEADS
    keys, values = keys.repeat_interleave(group, 1), v[held].double().repeat_interleave(group, 1)
    probs = torch.softmax(torch.einsum("hd,khd->hk", query, keys) / DIM**0.5, -1)
    return torch.einsum("hk,khd->hd", probs, values)


def main():
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return
    torch.manual_seed(0)
    q, k, v = (torch.randn(TOKENS, heads, DIM, device="cuda", dtype=BF16) for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
    eager, replayed = Cache(), Cache()
    out = torch.empty_like(q)
    for cache in (eager, replayed):
        cache.step(q[:PROMPT], k[:PROMPT], v[:PROMPT], out[:PROMPT])
    row_tensors = [x[:1].clone() for x in (q, k, v, out)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed.step(*row_tensors)
    for i in range(PROMPT, TOKENS):
        row = slice(i, i + 1)
        eager.step(q[row], k[row], v[row], out[row])
        for target, source in zip(row_tensors, (q, k, v)):
            target.copy_(source[row])
        graph.replay()
        replayed.note_replay(1)
        assert torch.equal(row_tensors[3], out[row]), f"token {i}: the replayed graph gave a different row"
    want = reference(q, k, v)
    difference = ((out[-1].double() - want).abs().max() / want.abs().max()).item()
    version, device = lib.skc_version().decode(), torch.cuda.get_device_name()
    print(f"sinkcache {version} on {device}: {TOKENS} tokens, eager and replayed")
    print(f"largest difference from PyTorch in float64: {difference:.1e} of the largest value")
    assert difference <= 3e-2
    eager.close()
    replayed.close()


if __name__ == "__main__":
    main()
