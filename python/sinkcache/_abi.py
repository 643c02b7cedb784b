"""The C ABI of sinkcache for ctypes. Generated from include/sinkcache.h; do not edit."""
# fmt: off
import ctypes
from ctypes import (CFUNCTYPE, POINTER, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t,
                    c_uint8, c_uint32, c_uint64, c_void_p)
from typing import Any

SKC_ABI_VERSION = 0
SKC_STATUS_OK = 0
SKC_STATUS_INVALID_HANDLE = -1
SKC_STATUS_NULL_POINTER = -2
SKC_STATUS_INVALID_ARGUMENT = -3
SKC_STATUS_INVALID_CONFIG = -4
SKC_STATUS_OUT_OF_RANGE = -5
SKC_STATUS_VERSION_MISMATCH = -6
SKC_STATUS_BACKEND_UNAVAILABLE = -7
SKC_STATUS_OUT_OF_MEMORY = -8
SKC_STATUS_BUSY = -9
SKC_STATUS_LAYERS_OUT_OF_STEP = -10
SKC_STATUS_CHUNK_TOO_LONG = -11
SKC_STATUS_TOKENS_GONE = -12
SKC_STATUS_DEVICE_LOST = -13
SKC_STATUS_INTERNAL = -14
SKC_STATUS_LENGTH_UNKNOWN = -15
SKC_STATUS_INVALID_SNAPSHOT = -16
SKC_STATUS_NO_ROOM = -17
SKC_BACKEND_CPU = 1
SKC_BACKEND_CUDA = 2
SKC_DTYPE_F32 = 1
SKC_DTYPE_F16 = 2
SKC_DTYPE_BF16 = 3
SKC_DTYPE_Q8 = 4
SKC_DTYPE_Q4 = 5
SKC_POSITION_ROPE = 1
SKC_POSITION_ROPE_APPLIED = 2
SKC_POSITION_ALIBI = 3
SKC_POSITION_NONE = 4
SKC_ROPE_NEOX = 1
SKC_ROPE_INTERLEAVED = 2
SKC_LOG_INFO = 1
SKC_LOG_WARN = 2
SKC_LOG_ERROR = 3
SKC_PADDING = -1
SKC_ALL_LAYERS = 4294967295
SKC_HOST_TAG_BYTES = 32
SKC_SNAPSHOT_VERSION = 1
SKC_ON_DEVICE = 1
SKC_IN_STEP = 2
SKC_NO_DISK_CACHE = 1
SKC_PROGRAMMATIC_LAUNCH = 2
SKC_READ_BACK = 1
SKC_CALL_APPEND = 1
SKC_CALL_ATTEND = 2
SKC_CALL_EVICT = 3
SKC_CALL_REWIND = 4
SKC_CALL_RESET = 5
SKC_CALL_FORK = 6
SKC_CALL_ABORT = 7
SKC_CALL_STEP = 8
SKC_CALL_PIN = 9
SKC_CALL_EVICT_RANGE = 10


class skc_layer_config(ctypes.Structure):
    struct_size: int
    flags: int
    n_sink: int
    window: int
    position_mode: int
    rope_style: int
    rope_dim: int
    n_inv_freq: int
    rope_base: float
    rope_scale: float
    rope_mscale: float
    scale: float
    softcap: float
    inv_freq: Any
    alibi_slopes: Any
    sink_logits: Any
    n_alibi_slopes: int
    n_sink_logits: int
    max_pinned: int
    max_segments: int
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("n_sink", c_uint32), ("window", c_uint32),
        ("position_mode", c_uint32), ("rope_style", c_uint32), ("rope_dim", c_uint32), ("n_inv_freq", c_uint32),
        ("rope_base", c_double), ("rope_scale", c_double), ("rope_mscale", c_double), ("scale", c_double),
        ("softcap", c_double), ("inv_freq", POINTER(c_float)), ("alibi_slopes", POINTER(c_float)),
        ("sink_logits", POINTER(c_float)), ("n_alibi_slopes", c_uint32), ("n_sink_logits", c_uint32),
        ("max_pinned", c_uint32), ("max_segments", c_uint32)]

skc_alloc_fn = CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_size_t)

skc_free_fn = CFUNCTYPE(None, c_void_p, c_void_p, c_size_t)

skc_task_fn = CFUNCTYPE(None, c_void_p, c_uint32)

skc_parallel_for_fn = CFUNCTYPE(None, c_void_p, c_uint32, skc_task_fn, c_void_p)

skc_log_fn = CFUNCTYPE(None, c_void_p, c_uint32, c_char_p)


class skc_cache_config(ctypes.Structure):
    struct_size: int
    flags: int
    backend: int
    n_layers: int
    n_seqs: int
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    head_dim_v: int
    in_dtype: int
    out_dtype: int
    kv_dtype: int
    max_chunk: int
    max_rewind: int
    n_threads: int
    n_layer_configs: int
    layers: Any
    layer_stride: int
    alloc: Any
    free: Any
    memory_user: int | None
    parallel_for: Any
    parallel_for_user: int | None
    log: Any
    log_user: int | None
    cuda_device: int
    reserved: int
    cuda_context: int | None
    device_alloc: Any
    device_free: Any
    device_memory_user: int | None
    k_dtype: int
    v_dtype: int
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("backend", c_uint32), ("n_layers", c_uint32),
        ("n_seqs", c_uint32), ("n_q_heads", c_uint32), ("n_kv_heads", c_uint32), ("head_dim", c_uint32),
        ("head_dim_v", c_uint32), ("in_dtype", c_uint32), ("out_dtype", c_uint32), ("kv_dtype", c_uint32),
        ("max_chunk", c_uint32), ("max_rewind", c_uint32), ("n_threads", c_uint32), ("n_layer_configs", c_uint32),
        ("layers", POINTER(skc_layer_config)), ("layer_stride", c_uint64), ("alloc", skc_alloc_fn),
        ("free", skc_free_fn), ("memory_user", c_void_p), ("parallel_for", skc_parallel_for_fn),
        ("parallel_for_user", c_void_p), ("log", skc_log_fn), ("log_user", c_void_p), ("cuda_device", c_uint32),
        ("reserved", c_uint32), ("cuda_context", c_void_p), ("device_alloc", skc_alloc_fn),
        ("device_free", skc_free_fn), ("device_memory_user", c_void_p), ("k_dtype", c_uint32), ("v_dtype", c_uint32)]


class skc_append_kv_args(ctypes.Structure):
    struct_size: int
    flags: int
    layer: int
    n_entries: int
    seq_ids: Any
    n_tokens: Any
    k: int | None
    v: int | None
    k_token_stride: int
    k_head_stride: int
    v_token_stride: int
    v_head_stride: int
    stream: int | None
    n_rows: int
    max_tokens: int
    reserved: int
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("layer", c_uint32), ("n_entries", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("n_tokens", POINTER(c_int32)), ("k", c_void_p), ("v", c_void_p),
        ("k_token_stride", c_int64), ("k_head_stride", c_int64), ("v_token_stride", c_int64),
        ("v_head_stride", c_int64), ("stream", c_void_p), ("n_rows", c_uint64), ("max_tokens", c_uint32),
        ("reserved", c_uint32)]


class skc_attend_args(ctypes.Structure):
    struct_size: int
    flags: int
    layer: int
    n_entries: int
    seq_ids: Any
    n_tokens: Any
    q: int | None
    out: int | None
    lse: Any
    q_token_stride: int
    q_head_stride: int
    out_token_stride: int
    out_head_stride: int
    lse_token_stride: int
    lse_head_stride: int
    stream: int | None
    n_rows: int
    max_tokens: int
    reserved: int
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("layer", c_uint32), ("n_entries", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("n_tokens", POINTER(c_int32)), ("q", c_void_p), ("out", c_void_p),
        ("lse", POINTER(c_float)), ("q_token_stride", c_int64), ("q_head_stride", c_int64),
        ("out_token_stride", c_int64), ("out_head_stride", c_int64), ("lse_token_stride", c_int64),
        ("lse_head_stride", c_int64), ("stream", c_void_p), ("n_rows", c_uint64), ("max_tokens", c_uint32),
        ("reserved", c_uint32)]


class skc_step_args(ctypes.Structure):
    struct_size: int
    flags: int
    layer: int
    n_entries: int
    seq_ids: Any
    n_tokens: Any
    k: int | None
    v: int | None
    q: int | None
    out: int | None
    lse: Any
    k_token_stride: int
    k_head_stride: int
    v_token_stride: int
    v_head_stride: int
    q_token_stride: int
    q_head_stride: int
    out_token_stride: int
    out_head_stride: int
    lse_token_stride: int
    lse_head_stride: int
    stream: int | None
    n_rows: int
    max_tokens: int
    reserved: int
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("layer", c_uint32), ("n_entries", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("n_tokens", POINTER(c_int32)), ("k", c_void_p), ("v", c_void_p),
        ("q", c_void_p), ("out", c_void_p), ("lse", POINTER(c_float)), ("k_token_stride", c_int64),
        ("k_head_stride", c_int64), ("v_token_stride", c_int64), ("v_head_stride", c_int64),
        ("q_token_stride", c_int64), ("q_head_stride", c_int64), ("out_token_stride", c_int64),
        ("out_head_stride", c_int64), ("lse_token_stride", c_int64), ("lse_head_stride", c_int64), ("stream", c_void_p),
        ("n_rows", c_uint64), ("max_tokens", c_uint32), ("reserved", c_uint32)]


class skc_evict_args(ctypes.Structure):
    struct_size: int
    flags: int
    n_entries: int
    reserved: int
    seq_ids: Any
    n_tokens: Any
    stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("n_entries", c_uint32), ("reserved", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("n_tokens", POINTER(c_int32)), ("stream", c_void_p)]


class skc_rewind_args(ctypes.Structure):
    struct_size: int
    flags: int
    n_entries: int
    reserved: int
    seq_ids: Any
    n_tokens: Any
    stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("n_entries", c_uint32), ("reserved", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("n_tokens", POINTER(c_int32)), ("stream", c_void_p)]


class skc_reset_args(ctypes.Structure):
    struct_size: int
    flags: int
    n_entries: int
    reserved: int
    seq_ids: Any
    start_positions: Any
    stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("n_entries", c_uint32), ("reserved", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("start_positions", POINTER(c_uint64)), ("stream", c_void_p)]


class skc_fork_args(ctypes.Structure):
    struct_size: int
    flags: int
    n_entries: int
    reserved: int
    src_seq_ids: Any
    dst_seq_ids: Any
    stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("n_entries", c_uint32), ("reserved", c_uint32),
        ("src_seq_ids", POINTER(c_int32)), ("dst_seq_ids", POINTER(c_int32)), ("stream", c_void_p)]


class skc_pin_args(ctypes.Structure):
    struct_size: int
    flags: int
    n_entries: int
    reserved: int
    seq_ids: Any
    first: Any
    n_tokens: Any
    stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("n_entries", c_uint32), ("reserved", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("first", POINTER(c_uint64)), ("n_tokens", POINTER(c_int32)),
        ("stream", c_void_p)]


class skc_evict_range_args(ctypes.Structure):
    struct_size: int
    flags: int
    n_entries: int
    reserved: int
    seq_ids: Any
    first: Any
    n_tokens: Any
    stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("n_entries", c_uint32), ("reserved", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("first", POINTER(c_uint64)), ("n_tokens", POINTER(c_int32)),
        ("stream", c_void_p)]


class skc_abort_step_args(ctypes.Structure):
    struct_size: int
    flags: int
    n_entries: int
    reserved: int
    seq_ids: Any
    stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("n_entries", c_uint32), ("reserved", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("stream", c_void_p)]


class skc_sequence_info(ctypes.Structure):
    struct_size: int
    flags: int
    length_min: int
    length_max: int
    start_position: int
    cached_tokens: int
    evicted_tokens: int
    room: int
    rewindable: int
    pinned_tokens: int
    segments: int
    counted_segments: int
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("length_min", c_uint64), ("length_max", c_uint64),
        ("start_position", c_uint64), ("cached_tokens", c_uint64), ("evicted_tokens", c_uint64), ("room", c_uint64),
        ("rewindable", c_uint64), ("pinned_tokens", c_uint64), ("segments", c_uint64), ("counted_segments", c_uint64)]


class skc_capability_info(ctypes.Structure):
    struct_size: int
    flags: int
    abi_version: int
    backends: int
    io_dtypes: int
    kv_dtypes: int
    position_modes: int
    rope_styles: int
    max_head_dim: int
    head_dim_multiple: int
    max_layers: int
    max_seqs: int
    max_threads: int
    max_chunk: int
    snapshot_version: int
    max_segments: int
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("abi_version", c_uint32), ("backends", c_uint32),
        ("io_dtypes", c_uint32), ("kv_dtypes", c_uint32), ("position_modes", c_uint32), ("rope_styles", c_uint32),
        ("max_head_dim", c_uint32), ("head_dim_multiple", c_uint32), ("max_layers", c_uint32), ("max_seqs", c_uint32),
        ("max_threads", c_uint32), ("max_chunk", c_uint32), ("snapshot_version", c_uint32), ("max_segments", c_uint32)]


class skc_kernel_info(ctypes.Structure):
    struct_size: int
    flags: int
    kernel: bytes
    n_launches: int
    grid_x: int
    grid_y: int
    grid_z: int
    block_threads: int
    shared_bytes: int
    n_splits: int
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("kernel", c_char * 40), ("n_launches", c_uint64),
        ("grid_x", c_uint32), ("grid_y", c_uint32), ("grid_z", c_uint32), ("block_threads", c_uint32),
        ("shared_bytes", c_uint32), ("n_splits", c_uint32)]


class skc_note_replay_args(ctypes.Structure):
    struct_size: int
    flags: int
    layer: int
    n_entries: int
    seq_ids: Any
    n_tokens: Any
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("layer", c_uint32), ("n_entries", c_uint32),
        ("seq_ids", POINTER(c_int32)), ("n_tokens", POINTER(c_int32))]


class skc_device_error(ctypes.Structure):
    struct_size: int
    flags: int
    n_skipped: int
    status: int
    call: int
    layer: int
    entry: int
    seq_id: int
    value: int
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("n_skipped", c_uint32), ("status", c_int32),
        ("call", c_uint32), ("layer", c_uint32), ("entry", c_uint32), ("seq_id", c_int32), ("value", c_uint64)]


class skc_save_sequence_args(ctypes.Structure):
    struct_size: int
    flags: int
    seq_id: int
    reserved: int
    data: int | None
    n_bytes: int
    host_tag: Any
    stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("seq_id", c_int32), ("reserved", c_uint32),
        ("data", c_void_p), ("n_bytes", c_uint64), ("host_tag", POINTER(c_uint8)), ("stream", c_void_p)]


class skc_load_sequence_args(ctypes.Structure):
    struct_size: int
    flags: int
    seq_id: int
    reserved: int
    data: int | None
    n_bytes: int
    host_tag: Any
    stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("seq_id", c_int32), ("reserved", c_uint32),
        ("data", c_void_p), ("n_bytes", c_uint64), ("host_tag", POINTER(c_uint8)), ("stream", c_void_p)]


class skc_copy_sequence_args(ctypes.Structure):
    struct_size: int
    flags: int
    src_cache: int | None
    src_seq_id: int
    dst_seq_id: int
    stream: int | None
    src_stream: int | None
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("src_cache", c_void_p), ("src_seq_id", c_int32),
        ("dst_seq_id", c_int32), ("stream", c_void_p), ("src_stream", c_void_p)]


def declare(lib: Any) -> None:
    """Sets the types of all functions of the library: ctypes would cut handles to 32 bits."""
    lib.skc_cache_config_init.restype = c_int32
    lib.skc_cache_config_init.argtypes = [POINTER(skc_cache_config), c_uint32]
    lib.skc_layer_config_init.restype = c_int32
    lib.skc_layer_config_init.argtypes = [POINTER(skc_layer_config), c_uint32]
    lib.skc_create_cache.restype = c_int32
    lib.skc_create_cache.argtypes = [POINTER(skc_cache_config), POINTER(c_void_p)]
    lib.skc_destroy_cache.restype = c_int32
    lib.skc_destroy_cache.argtypes = [c_void_p]
    lib.skc_cache_bytes.restype = c_int32
    lib.skc_cache_bytes.argtypes = [POINTER(skc_cache_config), POINTER(c_uint64), POINTER(c_uint64)]
    lib.skc_append_kv.restype = c_int32
    lib.skc_append_kv.argtypes = [c_void_p, POINTER(skc_append_kv_args)]
    lib.skc_attend.restype = c_int32
    lib.skc_attend.argtypes = [c_void_p, POINTER(skc_attend_args)]
    lib.skc_step.restype = c_int32
    lib.skc_step.argtypes = [c_void_p, POINTER(skc_step_args)]
    lib.skc_step_part.restype = c_int32
    lib.skc_step_part.argtypes = [c_void_p, POINTER(skc_step_args), c_uint32, c_uint32]
    lib.skc_evict.restype = c_int32
    lib.skc_evict.argtypes = [c_void_p, POINTER(skc_evict_args)]
    lib.skc_rewind.restype = c_int32
    lib.skc_rewind.argtypes = [c_void_p, POINTER(skc_rewind_args)]
    lib.skc_reset.restype = c_int32
    lib.skc_reset.argtypes = [c_void_p, POINTER(skc_reset_args)]
    lib.skc_fork.restype = c_int32
    lib.skc_fork.argtypes = [c_void_p, POINTER(skc_fork_args)]
    lib.skc_pin.restype = c_int32
    lib.skc_pin.argtypes = [c_void_p, POINTER(skc_pin_args)]
    lib.skc_evict_range.restype = c_int32
    lib.skc_evict_range.argtypes = [c_void_p, POINTER(skc_evict_range_args)]
    lib.skc_abort_step.restype = c_int32
    lib.skc_abort_step.argtypes = [c_void_p, POINTER(skc_abort_step_args)]
    lib.skc_seq_info.restype = c_int32
    lib.skc_seq_info.argtypes = [c_void_p, c_uint32, c_int32, POINTER(skc_sequence_info)]
    lib.skc_capabilities.restype = c_int32
    lib.skc_capabilities.argtypes = [POINTER(skc_capability_info)]
    lib.skc_version.restype = c_char_p
    lib.skc_version.argtypes = []
    lib.skc_abi_version.restype = c_uint32
    lib.skc_abi_version.argtypes = []
    lib.skc_status_name.restype = c_char_p
    lib.skc_status_name.argtypes = [c_int32]
    lib.skc_constant.restype = c_int32
    lib.skc_constant.argtypes = [c_char_p, POINTER(c_int64)]
    lib.skc_kernel_choice.restype = c_int32
    lib.skc_kernel_choice.argtypes = [c_void_p, c_uint32, c_uint32, c_uint32, c_uint32, POINTER(skc_kernel_info)]
    lib.skc_note_replay.restype = c_int32
    lib.skc_note_replay.argtypes = [c_void_p, POINTER(skc_note_replay_args)]
    lib.skc_poll_error.restype = c_int32
    lib.skc_poll_error.argtypes = [c_void_p, POINTER(skc_device_error)]
    lib.skc_snapshot_bytes.restype = c_int32
    lib.skc_snapshot_bytes.argtypes = [c_void_p, POINTER(skc_save_sequence_args), POINTER(c_uint64)]
    lib.skc_save_sequence.restype = c_int32
    lib.skc_save_sequence.argtypes = [c_void_p, POINTER(skc_save_sequence_args), POINTER(c_uint64)]
    lib.skc_load_sequence.restype = c_int32
    lib.skc_load_sequence.argtypes = [c_void_p, POINTER(skc_load_sequence_args)]
    lib.skc_copy_sequence.restype = c_int32
    lib.skc_copy_sequence.argtypes = [c_void_p, POINTER(skc_copy_sequence_args)]
    lib.skc_last_error.restype = c_char_p
    lib.skc_last_error.argtypes = []
