"""This library with PyTorch's tensors: a cache of many layers, and its calls with arguments that are prepared once."""

import ctypes
from ctypes import byref
import dataclasses
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "examples" / "python"))

import torch

import sinkcache_ctypes as ffi

# Host arrays of more entries than this need launches of their own; then the arrays are put into device memory.
INLINE = 64
NAMES = {torch.bfloat16: "SKC_DTYPE_BF16", torch.float16: "SKC_DTYPE_F16", torch.float32: "SKC_DTYPE_F32"}


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """`dtype` is that of inputs, outputs and of K and V in the cache."""

    n_layers: int
    n_seqs: int
    q_heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype
    n_sink: int
    window: int
    max_chunk: int


class SinkCache:
    def __init__(self, platform, shape, flags=0):
        layer, config = ffi.LayerConfig(), ffi.CacheConfig()
        ffi.check(ffi.lib.skc_layer_config_init(byref(layer), ctypes.sizeof(layer)))
        ffi.check(ffi.lib.skc_cache_config_init(byref(config), ctypes.sizeof(config)))
        layer.n_sink, layer.window = shape.n_sink, shape.window
        config.backend, config.flags = ffi.constant(platform.backend), flags
        config.n_layers, config.n_seqs, config.max_chunk, config.max_rewind = (
            shape.n_layers,
            shape.n_seqs,
            shape.max_chunk,
            1,
        )
        config.n_q_heads, config.n_kv_heads, config.head_dim = shape.q_heads, shape.kv_heads, shape.dim
        config.in_dtype = config.kv_dtype = ffi.constant(NAMES[shape.dtype])
        config.n_layer_configs, config.layers = 1, ctypes.pointer(layer)
        self.platform, self.n_seqs, self.dtype = platform, shape.n_seqs, shape.dtype
        self.on_device = platform.backend == "SKC_BACKEND_CUDA" and shape.n_seqs > INLINE
        # Arguments of prepared calls, which must stay alive.
        self.kept = []
        self.handle = ctypes.c_void_p()
        ffi.check(ffi.lib.skc_create_cache(byref(config), byref(self.handle)))

    def _prepare(self, function, struct, layer, n_tokens, tensors):
        """A call of `function` for all sequences with `n_tokens` each. Tensors by name, rows packed; the caller keeps
        them alive."""
        args = struct(struct_size=ctypes.sizeof(struct), layer=layer, n_entries=self.n_seqs)
        for name, tensor in tensors.items():
            if not tensor.is_contiguous() or tensor.dtype != self.dtype:
                raise ValueError(f"{name}: contiguous {self.dtype} is needed, not {tensor.dtype} {tensor.stride()}")
            setattr(args, name, tensor.data_ptr())
        counts = [list(range(self.n_seqs)), [n_tokens] * self.n_seqs]
        if self.on_device:
            args.flags, args.n_rows, args.max_tokens = ffi.constant("SKC_ON_DEVICE"), self.n_seqs * n_tokens, n_tokens
            arrays = [torch.tensor(c, dtype=torch.int32, device=self.platform.torch_device) for c in counts]
            args.seq_ids, args.n_tokens = (ctypes.cast(a.data_ptr(), ctypes.POINTER(ctypes.c_int32)) for a in arrays)
        else:
            arrays = [(ctypes.c_int32 * self.n_seqs)(*c) for c in counts]
            args.seq_ids, args.n_tokens = arrays
        args.stream = self.platform.stream()
        self.kept.append((args, arrays))
        pointer, handle = byref(args), self.handle

        def call():
            status = function(handle, pointer)
            if status:
                raise ffi.Error(status)

        return call

    def append(self, layer, n_tokens, k, v):
        return self._prepare(ffi.lib.skc_append_kv, ffi.AppendKvArgs, layer, n_tokens, {"k": k, "v": v})

    def attend(self, layer, n_tokens, q, out):
        return self._prepare(ffi.lib.skc_attend, ffi.AttendArgs, layer, n_tokens, {"q": q, "out": out})

    def step(self, layer, n_tokens, q, k, v, out):
        return self._prepare(ffi.lib.skc_step, ffi.StepArgs, layer, n_tokens, {"q": q, "k": k, "v": v, "out": out})

    def start_at(self, position):
        """Empties all sequences and sets the stream position of their next token."""
        n = self.n_seqs
        ids, starts = (ctypes.c_int32 * n)(*range(n)), (ctypes.c_uint64 * n)(*[position] * n)
        args = ffi.ResetArgs(ctypes.sizeof(ffi.ResetArgs), 0, n, 0, ids, starts, self.platform.stream())
        ffi.check(ffi.lib.skc_reset(self.handle, byref(args)))

    def check_device(self):
        """Raises if the device has skipped an entry, in work that has finished."""
        error = ffi.DeviceError(ctypes.sizeof(ffi.DeviceError))
        ffi.check(ffi.lib.skc_poll_error(self.handle, byref(error)))
        if error.n_skipped:
            name = ffi.lib.skc_status_name(error.status).decode()
            raise RuntimeError(f"{error.n_skipped} entries were skipped on the device: {name}, call {error.call}")

    def close(self):
        handle, self.handle = self.handle, None
        if handle:
            self.platform.synchronize()
            ffi.check(ffi.lib.skc_destroy_cache(handle))
            self.kept.clear()


def flag(name):
    """A flag of the header; None if the library does not have it."""
    try:
        return ffi.constant(name)
    except ffi.Error:
        return None


def version():
    return ffi.lib.skc_version().decode()
