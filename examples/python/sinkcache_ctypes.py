"""sinkcache through ctypes and NumPy: the structs of sinkcache.h and a thin class over its calls, in one file.

The package in python/ has all of the API, for PyTorch and DLPack too; this file shows how little a binding needs.

Loads the library from $SINKCACHE_LIBRARY, or from the system's search path if that is not set.
"""
import ctypes
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
import ctypes.util
import os

import numpy as np


# SKC_ABI_VERSION of the header that the structs below follow.
ABI_VERSION = 0


def _struct(name, *fields):
    """A struct that starts with struct_size and flags, as all structs of the library do."""
    return type(name, (ctypes.Structure,), {"_fields_": [("struct_size", c_uint32), ("flags", c_uint32), *fields]})


def _of(kind, names):
    """Fields of one type."""
    return [(name, kind) for name in names.split()]


LayerConfig = _struct(
    "LayerConfig",
    *_of(c_uint32, "n_sink window position_mode rope_style rope_dim n_inv_freq"),
    *_of(c_double, "rope_base rope_scale rope_mscale scale softcap"),
    *_of(POINTER(c_float), "inv_freq alibi_slopes sink_logits"),
    *_of(c_uint32, "n_alibi_slopes n_sink_logits max_pinned max_segments"))
CacheConfig = _struct(
    "CacheConfig",
    *_of(c_uint32, "backend n_layers n_seqs n_q_heads n_kv_heads head_dim head_dim_v in_dtype out_dtype kv_dtype "
                   "max_chunk max_rewind n_threads n_layer_configs"),
    ("layers", POINTER(LayerConfig)), ("layer_stride", c_uint64),
    *_of(c_void_p, "alloc free memory_user parallel_for parallel_for_user log log_user"),
    *_of(c_uint32, "cuda_device reserved"), *_of(c_void_p, "cuda_context device_alloc device_free device_memory_user"),
    *_of(c_uint32, "k_dtype v_dtype"))
_BATCH = (*_of(c_uint32, "layer n_entries"), *_of(POINTER(c_int32), "seq_ids n_tokens"))
_STRIDES = "{0}_token_stride {0}_head_stride"


def _call(name, *tensors):
    """Arguments of a call over a ragged batch: pointers of the tensors, then their strides."""
    return _struct(name, *_BATCH, *_of(c_void_p, " ".join(tensors)),
                   *_of(c_int64, " ".join(map(_STRIDES.format, tensors))),
                   ("stream", c_void_p), ("n_rows", c_uint64), *_of(c_uint32, "max_tokens reserved"))


AppendKvArgs = _call("AppendKvArgs", "k", "v")
AttendArgs = _call("AttendArgs", "q", "out", "lse")
StepArgs = _call("StepArgs", "k", "v", "q", "out", "lse")
_EDIT = (*_of(c_uint32, "n_entries reserved"), *_of(POINTER(c_int32), "seq_ids n_tokens"), ("stream", c_void_p))
EvictArgs = _struct("EvictArgs", *_EDIT)
RewindArgs = _struct("RewindArgs", *_EDIT)
ResetArgs = _struct("ResetArgs", *_of(c_uint32, "n_entries reserved"), ("seq_ids", POINTER(c_int32)),
                    ("start_positions", POINTER(c_uint64)), ("stream", c_void_p))
# Arguments of skc_pin and of skc_evict_range.
_RANGES = (*_of(c_uint32, "n_entries reserved"), ("seq_ids", POINTER(c_int32)), ("first", POINTER(c_uint64)),
           ("n_tokens", POINTER(c_int32)), ("stream", c_void_p))
PinArgs = _struct("PinArgs", *_RANGES)
EvictRangeArgs = _struct("EvictRangeArgs", *_RANGES)
SequenceInfo = _struct("SequenceInfo", *_of(c_uint64, "length_min length_max start_position cached_tokens "
                                                      "evicted_tokens room rewindable pinned_tokens segments "
                                                      "counted_segments"))
# Arguments of skc_save_sequence and of skc_load_sequence.
_SNAPSHOT = (("seq_id", c_int32), ("reserved", c_uint32), ("data", c_void_p), ("n_bytes", c_uint64),
             *_of(c_void_p, "host_tag stream"))
SaveSequenceArgs = _struct("SaveSequenceArgs", *_SNAPSHOT)
LoadSequenceArgs = _struct("LoadSequenceArgs", *_SNAPSHOT)
CopySequenceArgs = _struct("CopySequenceArgs", ("src_cache", c_void_p), *_of(c_int32, "src_seq_id dst_seq_id"),
                           *_of(c_void_p, "stream src_stream"))
NoteReplayArgs = _struct("NoteReplayArgs", *_BATCH)
DeviceError = _struct("DeviceError", ("n_skipped", c_uint32), ("status", c_int32), *_of(c_uint32, "call layer entry"),
                      ("seq_id", c_int32), ("value", c_uint64))


def _load():
    path = os.environ.get("SINKCACHE_LIBRARY") or ctypes.util.find_library("sinkcache") or "libsinkcache.so.0"
    lib = ctypes.CDLL(path)
    lib.skc_status_name.restype = lib.skc_last_error.restype = lib.skc_version.restype = c_char_p
    lib.skc_abi_version.restype = c_uint32
    # All other calls return a status. Without argtypes, ctypes would truncate handles to 32 bits.
    signatures = {
        "skc_constant": [c_char_p, POINTER(c_int64)],
        "skc_cache_config_init": [POINTER(CacheConfig), c_uint32],
        "skc_layer_config_init": [POINTER(LayerConfig), c_uint32],
        "skc_create_cache": [POINTER(CacheConfig), POINTER(c_void_p)],
        "skc_destroy_cache": [c_void_p],
        "skc_append_kv": [c_void_p, POINTER(AppendKvArgs)],
        "skc_attend": [c_void_p, POINTER(AttendArgs)],
        "skc_step": [c_void_p, POINTER(StepArgs)],
        "skc_evict": [c_void_p, POINTER(EvictArgs)],
        "skc_rewind": [c_void_p, POINTER(RewindArgs)],
        "skc_reset": [c_void_p, POINTER(ResetArgs)],
        "skc_pin": [c_void_p, POINTER(PinArgs)],
        "skc_evict_range": [c_void_p, POINTER(EvictRangeArgs)],
        "skc_snapshot_bytes": [c_void_p, POINTER(SaveSequenceArgs), POINTER(c_uint64)],
        "skc_save_sequence": [c_void_p, POINTER(SaveSequenceArgs), POINTER(c_uint64)],
        "skc_load_sequence": [c_void_p, POINTER(LoadSequenceArgs)],
        "skc_copy_sequence": [c_void_p, POINTER(CopySequenceArgs)],
        "skc_seq_info": [c_void_p, c_uint32, c_int32, POINTER(SequenceInfo)],
        "skc_note_replay": [c_void_p, POINTER(NoteReplayArgs)],
        "skc_poll_error": [c_void_p, POINTER(DeviceError)],
    }
    for name, arguments in signatures.items():
        getattr(lib, name).argtypes = arguments
    if lib.skc_abi_version() != ABI_VERSION:
        raise ImportError(f"the library has ABI version {lib.skc_abi_version()}, this module is for {ABI_VERSION}")
    return lib


lib = _load()


class Error(RuntimeError):
    """A call that failed. `status` is one of the SKC_STATUS_ numbers."""

    def __init__(self, status):
        super().__init__(f"{lib.skc_status_name(status).decode()}: {lib.skc_last_error().decode()}")
        self.status = status


def check(status):
    """Raises Error unless the status is SKC_STATUS_OK."""
    if status:
        raise Error(status)


def constant(name):
    """Value of a constant of the header, by its name."""
    value = c_int64()
    check(lib.skc_constant(name.encode(), byref(value)))
    return value.value


def int_array(values, kind=c_int32):
    """A C array of integers."""
    return (kind * len(values))(*values)


def _tag(host_tag):
    """A host tag for the library, which reads 32 bytes."""
    if len(host_tag) != 32:
        raise ValueError(f"host_tag has {len(host_tag)} bytes, not 32")
    return (ctypes.c_uint8 * 32)(*host_tag)


def _rows(array, dtype, shape):
    """The array, C-contiguous and of the cache's type, so that its address can be passed to the library."""
    array = np.ascontiguousarray(array, dtype)
    if array.shape != shape:
        raise ValueError(f"shape {array.shape}, not {shape}")
    return array


class Cache:
    """A CPU cache with the same settings for all layers.

    `layer` holds fields of LayerConfig, `settings` fields of CacheConfig. One call at a time; close() frees the cache.
    """

    def __init__(self, n_q_heads, n_kv_heads, head_dim, layer=None, dtype=np.float32, **settings):
        one, config = LayerConfig(), CacheConfig()
        check(lib.skc_layer_config_init(byref(one), ctypes.sizeof(one)))
        check(lib.skc_cache_config_init(byref(config), ctypes.sizeof(config)))
        for target, values in ((one, layer or {}), (config, settings)):
            for name, value in values.items():
                if not hasattr(target, name):
                    raise TypeError(f"there is no setting {name}")
                setattr(target, name, value)
        config.n_q_heads, config.n_kv_heads, config.head_dim = n_q_heads, n_kv_heads, head_dim
        config.in_dtype = constant({"float32": "SKC_DTYPE_F32", "float16": "SKC_DTYPE_F16"}[np.dtype(dtype).name])
        config.n_layer_configs, config.layers = 1, ctypes.pointer(one)
        self.dtype, self.q_shape, self.k_shape = np.dtype(dtype), (n_q_heads, head_dim), (n_kv_heads, head_dim)
        self.v_shape = (n_kv_heads, config.head_dim_v or head_dim)
        self.handle = c_void_p()
        check(lib.skc_create_cache(byref(config), byref(self.handle)))

    def close(self):
        handle, self.handle = self.handle, None
        if handle:
            check(lib.skc_destroy_cache(handle))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def step(self, layer, q, k, v, seq_ids=(0,), n_tokens=None):
        """Appends tokens and attends with their queries; returns out and lse.

        q [n, n_q_heads, head_dim], k [n, n_kv_heads, head_dim], v [n, n_kv_heads, head_dim_v]
        """
        n = len(q)
        q, k, v = (_rows(x, self.dtype, (n, *s)) for x, s in ((q, self.q_shape), (k, self.k_shape), (v, self.v_shape)))
        n_tokens = [n] if n_tokens is None else n_tokens
        if sum(n_tokens) != n or len(seq_ids) != len(n_tokens):
            raise ValueError("n_tokens needs a count for each sequence, and their sum must be the number of rows")
        out = np.zeros((n, self.q_shape[0], self.v_shape[1]), self.dtype)
        lse = np.zeros((n, self.q_shape[0]), np.float32)
        args = StepArgs(ctypes.sizeof(StepArgs), 0, layer, len(n_tokens), int_array(seq_ids), int_array(n_tokens),
                        *(x.ctypes.data for x in (k, v, q, out, lse)))
        check(lib.skc_step(self.handle, byref(args)))
        return out, lse

    def _edit(self, call, kind, seq_id, *values):
        args = kind(ctypes.sizeof(kind), 0, 1, 0, int_array([seq_id]), *values)
        check(call(self.handle, byref(args)))

    def evict(self, n, seq_id=0):
        """Drops the oldest n window tokens permanently."""
        self._edit(lib.skc_evict, EvictArgs, seq_id, int_array([n]))

    def rewind(self, n, seq_id=0):
        """Removes the newest n tokens as if they had never been appended."""
        self._edit(lib.skc_rewind, RewindArgs, seq_id, int_array([n]))

    def reset(self, seq_id=0, start_position=0):
        """Empties a sequence; its next token has the given stream position."""
        self._edit(lib.skc_reset, ResetArgs, seq_id, int_array([start_position], c_uint64))

    def pin(self, first, n, seq_id=0):
        """Holds n tokens from index `first` on permanently. The layers need max_pinned and max_segments."""
        self._edit(lib.skc_pin, PinArgs, seq_id, int_array([first], c_uint64), int_array([n]))

    def evict_range(self, first, n, seq_id=0):
        """Drops what is held of n tokens from index `first` on permanently; newer tokens close the gap."""
        self._edit(lib.skc_evict_range, EvictRangeArgs, seq_id, int_array([first], c_uint64), int_array([n]))

    def save(self, seq_id=0, host_tag=bytes(32)):
        """A snapshot of a sequence, as bytes. host_tag: 32 bytes, such as a hash of the model."""
        args, size = SaveSequenceArgs(ctypes.sizeof(SaveSequenceArgs), 0, seq_id), c_uint64()
        check(lib.skc_snapshot_bytes(self.handle, byref(args), byref(size)))
        data = ctypes.create_string_buffer(size.value)
        tag = _tag(host_tag)
        args.data, args.n_bytes, args.host_tag = ctypes.addressof(data), size.value, ctypes.addressof(tag)
        check(lib.skc_save_sequence(self.handle, byref(args), byref(size)))
        return data.raw

    def load(self, snapshot, seq_id=0, host_tag=bytes(32)):
        """Replaces what a sequence holds by a snapshot, which may be of another cache of the same model."""
        data, tag = ctypes.create_string_buffer(snapshot, len(snapshot)), _tag(host_tag)
        check(lib.skc_load_sequence(self.handle, byref(LoadSequenceArgs(
            ctypes.sizeof(LoadSequenceArgs), 0, seq_id, 0, ctypes.addressof(data), len(snapshot),
            ctypes.addressof(tag)))))

    def copy(self, source, src_seq_id=0, seq_id=0):
        """Makes a sequence an independent copy of one of another cache of the same model."""
        args = CopySequenceArgs(ctypes.sizeof(CopySequenceArgs), 0, source.handle, src_seq_id, seq_id)
        check(lib.skc_copy_sequence(self.handle, byref(args)))

    def info(self, seq_id=0, layer=0):
        """The SequenceInfo of a sequence in one layer."""
        info = SequenceInfo(ctypes.sizeof(SequenceInfo))
        check(lib.skc_seq_info(self.handle, layer, seq_id, byref(info)))
        return info
