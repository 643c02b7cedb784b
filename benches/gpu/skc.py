"""This library with PyTorch's tensors: one cache of many layers, and its calls with their arguments made once."""
import ctypes
from ctypes import byref
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "examples" / "python"))

import torch

import sinkcache_ctypes as ffi

# Host arrays of more entries than this take launches of their own; then the arrays lie in device memory.
INLINE = 64
NAMES = {torch.bfloat16: "SKC_DTYPE_BF16", torch.float16: "SKC_DTYPE_F16", torch.float32: "SKC_DTYPE_F32"}


class SinkCache:
    """K and V of `n_layers` layers of `n_seqs` sequences at `place`, of one type in, out and stored."""

    def __init__(self, place, n_layers, n_seqs, q_heads, kv_heads, dim, dtype, n_sink, window, max_chunk, flags=0):
        layer, config = ffi.LayerConfig(), ffi.CacheConfig()
        ffi.check(ffi.lib.skc_layer_config_init(byref(layer), ctypes.sizeof(layer)))
        ffi.check(ffi.lib.skc_cache_config_init(byref(config), ctypes.sizeof(config)))
        layer.n_sink, layer.window = n_sink, window
        config.backend, config.flags = ffi.constant(place.backend), flags
        config.n_layers, config.n_seqs, config.max_chunk, config.max_rewind = n_layers, n_seqs, max_chunk, 1
        config.n_q_heads, config.n_kv_heads, config.head_dim = q_heads, kv_heads, dim
        config.in_dtype = config.kv_dtype = ffi.constant(NAMES[dtype])
        config.n_layer_configs, config.layers = 1, ctypes.pointer(layer)
        self.place, self.n_seqs, self.dtype = place, n_seqs, dtype
        self.on_device = place.backend == "SKC_BACKEND_CUDA" and n_seqs > INLINE
        self.kept = []
        self.handle = ctypes.c_void_p()
        ffi.check(ffi.lib.skc_create_cache(byref(config), byref(self.handle)))

    def _prepared(self, function, struct, layer, n_tokens, tensors):
        """A call of `function` for all sequences with `n_tokens` each; tensors by name, rows packed. They stay the
        caller's to keep."""
        args = struct(struct_size=ctypes.sizeof(struct), layer=layer, n_entries=self.n_seqs)
        for name, tensor in tensors.items():
            if not tensor.is_contiguous() or tensor.dtype != self.dtype:
                raise ValueError(f"{name}: contiguous {self.dtype} is needed, not {tensor.dtype} {tensor.stride()}")
            setattr(args, name, tensor.data_ptr())
        counts = [list(range(self.n_seqs)), [n_tokens] * self.n_seqs]
        if self.on_device:
            args.flags, args.n_rows, args.max_tokens = ffi.constant("SKC_ON_DEVICE"), self.n_seqs * n_tokens, n_tokens
            arrays = [torch.tensor(c, dtype=torch.int32, device=self.place.tensors) for c in counts]
            args.seq_ids, args.n_tokens = (ctypes.cast(a.data_ptr(), ctypes.POINTER(ctypes.c_int32)) for a in arrays)
        else:
            arrays = [(ctypes.c_int32 * self.n_seqs)(*c) for c in counts]
            args.seq_ids, args.n_tokens = arrays
        args.stream = self.place.stream()
        self.kept.append((args, arrays))
        pointer, handle = byref(args), self.handle

        def call():
            status = function(handle, pointer)
            if status:
                raise ffi.Error(status)

        return call

    def append(self, layer, n_tokens, k, v):
        return self._prepared(ffi.lib.skc_append_kv, ffi.AppendKvArgs, layer, n_tokens, {"k": k, "v": v})

    def attend(self, layer, n_tokens, q, out):
        return self._prepared(ffi.lib.skc_attend, ffi.AttendArgs, layer, n_tokens, {"q": q, "out": out})

    def step(self, layer, n_tokens, q, k, v, out):
        return self._prepared(ffi.lib.skc_step, ffi.StepArgs, layer, n_tokens, {"q": q, "k": k, "v": v, "out": out})

    def start_at(self, position):
        """Empties all sequences; their next tokens are at `position` of their streams."""
        n = self.n_seqs
        ids, starts = (ctypes.c_int32 * n)(*range(n)), (ctypes.c_uint64 * n)(*[position] * n)
        args = ffi.ResetArgs(ctypes.sizeof(ffi.ResetArgs), 0, n, 0, ids, starts, self.place.stream())
        ffi.check(ffi.lib.skc_reset(self.handle, byref(args)))

    def check_device(self):
        """Raises if the device has skipped an entry of finished work."""
        error = ffi.DeviceError(ctypes.sizeof(ffi.DeviceError))
        ffi.check(ffi.lib.skc_poll_error(self.handle, byref(error)))
        if error.n_skipped:
            name = ffi.lib.skc_status_name(error.status).decode()
            raise RuntimeError(f"{error.n_skipped} entries were skipped on the device: {name}, call {error.call}")

    def close(self):
        handle, self.handle = self.handle, None
        if handle:
            self.place.synchronize()
            ffi.check(ffi.lib.skc_destroy_cache(handle))
            self.kept.clear()


def flag(name):
    """A flag of the header, or None where the library does not know it."""
    try:
        return ffi.constant(name)
    except ffi.Error:
        return None


def version():
    return ffi.lib.skc_version().decode()
