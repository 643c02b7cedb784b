"""The cache."""
from __future__ import annotations

import ctypes
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from ctypes import byref, sizeof
from dataclasses import dataclass
from typing import Any

from . import _abi, _batch, _tensors
from ._batch import Ints
from ._library import check, lib
from ._settings import (IO_DTYPES, KV_DTYPES, Layer, Rope, boolean, device_index, dtype_name, fill_layer,
                        invalid_argument, invalid_config, unsigned)

_UNSET: Any = object()
_NOTHING = (ctypes.c_double * 8)()
_F32_POINTER = ctypes.POINTER(ctypes.c_float)


@dataclass(frozen=True)
class SequenceInfo:
    """State of a sequence: its lengths over all layers, and all other values as they are in one layer."""

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


@dataclass(frozen=True)
class DeviceError:
    """Entries of batches that a CUDA device has skipped because they were invalid: how many, and the first of them."""

    n_skipped: int
    status: int
    call: int
    layer: int
    entry: int
    seq_id: int
    value: int


class KVCache:
    """K and V of all layers and sequences of one model: the first tokens of each sequence (attention sinks), and a
    rolling window of the most recent ones. `step` appends tokens and attends with their queries.

    num_layers, num_qo_heads, num_kv_heads, head_dim   the model's attention; head_dim_vo: dims of V if they differ
    window_length ... max_segments   settings of all layers, as in `Layer`; or `layers`, one Layer for each
    max_batch_size   sequences that the cache holds
    dtype            of q, k and v: float32, float16 or bfloat16; out_dtype: of the output, if it differs
    kv_dtype         that K and V are stored in: also q8 and q4; None = dtype. k_dtype and v_dtype override it
    max_chunk        most tokens of one sequence in one `append`; `step` takes any number
    max_rewind       how far below its highest length `rewind` may cut a sequence
    num_threads      of a CPU cache; None = as many as PyTorch uses, or as there are processors
    device           "cpu", "cuda" or "cuda:INDEX"
    log              gets lines of text: log(level, text)
    in_step          whether `step` and `append` follow a forward pass, layer by layer: then a call is refused with
                     LAYERS_OUT_OF_STEP where the pass before was interrupted between layers. False where layers are
                     not of one model, or get their tokens in another order

    Sequences are numbers below max_batch_size. Where a cache has one sequence, `seq_ids` may be left out.

    CUDA: calls put their work into the current stream of PyTorch, or into `stream` if that is set.
    """

    def __init__(self, num_layers: int, num_qo_heads: int, num_kv_heads: int, head_dim: int, *,
                 window_length: int = _UNSET, num_sink_tokens: int = _UNSET, rope: Rope | None = _UNSET,
                 alibi_slopes: Any = _UNSET, sm_scale: float | None = _UNSET, logits_soft_cap: float | None = _UNSET,
                 sink_logits: Any = _UNSET, max_pinned: int = _UNSET, max_segments: int = _UNSET,
                 layers: Sequence[Layer] | None = None, max_batch_size: int = 1, head_dim_vo: int | None = None,
                 dtype: Any = "float32", out_dtype: Any = None, kv_dtype: Any = None, k_dtype: Any = None,
                 v_dtype: Any = None, max_chunk: int = 512, max_rewind: int = 64, num_threads: int | None = None,
                 device: Any = "cpu", log: Callable[[int, str], None] | None = None,
                 in_step: bool = True) -> None:
        self._settings = {name: value for name, value in locals().items() if name != "self" and value is not _UNSET}
        # Of no cache, until there is one.
        self._handle: int | None = None
        #: CUDA: the stream (a CUstream or cudaStream_t as a number) of the calls that follow; None = PyTorch's current
        #: stream, or without PyTorch the legacy default stream.
        self.stream: int | None = None
        self._in_step = _abi.SKC_IN_STEP if boolean("in_step", in_step) else 0
        own = {"window_length": window_length, "num_sink_tokens": num_sink_tokens, "rope": rope,
               "alibi_slopes": alibi_slopes, "sm_scale": sm_scale, "logits_soft_cap": logits_soft_cap,
               "sink_logits": sink_logits, "max_pinned": max_pinned, "max_segments": max_segments}
        own = {name: value for name, value in own.items() if value is not _UNSET}
        if layers is None:
            layers = [Layer(**own)]
        elif own:
            raise invalid_config(f"{', '.join(own)} and layers are given; either is allowed")
        elif len(layers) != num_layers:
            raise invalid_config(f"layers has {len(layers)} elements, and num_layers is {num_layers}")
        structs = (_abi.skc_layer_config * len(layers))()
        for struct, layer in zip(structs, layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers must be of type Layer, not {layer!r}")
            fill_layer(struct, layer)

        config = _abi.skc_cache_config()
        check(lib.skc_cache_config_init(byref(config), sizeof(config)))
        config.n_layers, config.n_layer_configs = unsigned("num_layers", num_layers), len(layers)
        config.layers = structs
        config.n_q_heads = unsigned("num_qo_heads", num_qo_heads)
        config.n_kv_heads = unsigned("num_kv_heads", num_kv_heads)
        config.head_dim = unsigned("head_dim", head_dim)
        config.head_dim_v = config.head_dim if head_dim_vo is None else unsigned("head_dim_vo", head_dim_vo)
        if config.n_kv_heads and config.n_q_heads % config.n_kv_heads:
            raise invalid_config(f"num_qo_heads is {num_qo_heads}; it has to be a multiple of num_kv_heads, which is "
                                 f"{num_kv_heads}")
        config.n_seqs = unsigned("max_batch_size", max_batch_size)
        self.dtype = dtype_name("dtype", dtype, IO_DTYPES)
        self.out_dtype = self.dtype if out_dtype is None else dtype_name("out_dtype", out_dtype, IO_DTYPES)
        kv = self.dtype if kv_dtype is None else dtype_name("kv_dtype", kv_dtype, KV_DTYPES)
        self.k_dtype = kv if k_dtype is None else dtype_name("k_dtype", k_dtype, KV_DTYPES)
        self.v_dtype = kv if v_dtype is None else dtype_name("v_dtype", v_dtype, KV_DTYPES)
        config.in_dtype, config.out_dtype = IO_DTYPES[self.dtype], IO_DTYPES[self.out_dtype]
        config.k_dtype, config.v_dtype = KV_DTYPES[self.k_dtype], KV_DTYPES[self.v_dtype]
        config.kv_dtype = config.k_dtype
        config.max_chunk = unsigned("max_chunk", max_chunk)
        config.max_rewind = unsigned("max_rewind", max_rewind)
        index = device_index(device)
        if index is not None:
            config.backend, config.cuda_device = _abi.SKC_BACKEND_CUDA, unsigned("device", index)
        else:
            config.n_threads = _threads() if num_threads is None else unsigned("num_threads", num_threads)
        callback = None
        if log is not None:
            if not callable(log):
                raise TypeError(f"log must be a function of a level and a text, not {log!r}")
            receive = log  # For type checkers: it is not None.
            callback = _abi.skc_log_fn(lambda _, level, text: receive(level, text.decode(errors="replace")))
            config.log = callback

        host, on_device = ctypes.c_uint64(), ctypes.c_uint64()
        check(lib.skc_cache_bytes(byref(config), byref(host), byref(on_device)))
        handle = ctypes.c_void_p()
        check(lib.skc_create_cache(byref(config), byref(handle)))
        self._handle = handle.value
        # Lives until the cache is destroyed, and so does the callback.
        self._finalizer = weakref.finalize(self, _destroy, handle.value, callback)
        self._device = index
        self.num_layers, self.max_batch_size = config.n_layers, config.n_seqs
        self.num_qo_heads, self.num_kv_heads = config.n_q_heads, config.n_kv_heads
        self.head_dim, self.head_dim_vo = config.head_dim, config.head_dim_v
        self.layers: tuple[Layer, ...] = tuple(layers) * (self.num_layers if len(layers) == 1 else 1)
        #: Bytes that the cache has allocated, in host and in device memory.
        self.nbytes: int = host.value + on_device.value

    # Lifetime

    def close(self) -> None:
        """Frees the cache's memory. A second call does nothing; all other methods then raise InvalidHandleError."""
        if self._handle is not None and self._finalizer.alive:
            check(lib.skc_destroy_cache(self._handle))
            self._finalizer.detach()

    @property
    def closed(self) -> bool:
        return self._handle is None or not self._finalizer.alive

    def __enter__(self) -> KVCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> KVCache:
        raise TypeError("a KVCache has no shallow copy; copy.deepcopy copies its sequences")

    def __deepcopy__(self, memo: dict[int, Any]) -> KVCache:
        """A cache of its own with the same sequences."""
        other = KVCache(**self._settings)
        try:
            for seq_id in range(self.max_batch_size):
                other.copy_from(self, seq_id, seq_id)
        except BaseException:
            other.close()
            raise
        return other

    def __reduce__(self) -> Any:
        raise TypeError("a KVCache cannot be pickled; save() gives the bytes of a sequence")

    @property
    def device(self) -> str:
        return "cpu" if self._device is None else f"cuda:{self._device}"

    def __repr__(self) -> str:
        if self.closed:
            return "<sinkcache.KVCache, closed>"
        kinds = {(layer.num_sink_tokens, layer.window_length) for layer in self.layers}
        held = " or ".join(f"{sinks} + {length - sinks}" for sinks, length in sorted(kinds)[:3])
        stored = self.k_dtype if self.k_dtype == self.v_dtype else f"{self.k_dtype} and {self.v_dtype}"
        text = (f"<sinkcache.KVCache, {self.num_layers} layers, {self.num_qo_heads} / {self.num_kv_heads} heads x "
                f"{self.head_dim}, {held}{' ...' if len(kinds) > 3 else ''} tokens in {stored} on {self.device}, "
                f"{self.nbytes / 2**20:.1f} MiB")
        shown = min(self.max_batch_size, 4)
        for seq_id in range(shown):
            info = _abi.skc_sequence_info(struct_size=sizeof(_abi.skc_sequence_info))
            status = lib.skc_seq_info(self._handle, 0, seq_id, byref(info))
            held = f"{info.cached_tokens} of {info.length_max} tokens held"
            text += f"; {seq_id}: {lib.skc_status_name(status).decode() if status else held}"
        more = self.max_batch_size - shown
        return text + (f"; {more} more sequences>" if more else ">")

    # Attention

    def step(self, layer: int, q: Any, k: Any, v: Any, *, seq_ids: Ints | None = None, qo_indptr: Any = None,
             out: Any = None, lse: Any = None, return_lse: bool = False) -> Any:
        """Appends tokens and attends with their queries, in one layer; returns out, or (out, lse) with return_lse.

        q [rows, num_qo_heads, head_dim], k [rows, num_kv_heads, head_dim], v [rows, num_kv_heads, head_dim_vo], not
        rotated yet unless the layer's Rope says so; out [rows, num_qo_heads, head_dim_vo], lse [rows, num_qo_heads] in
        float32. Rows and heads may have any strides. Rows qo_indptr[i] to qo_indptr[i + 1] are tokens of sequence
        seq_ids[i]; without seq_ids of sequence i. Without qo_indptr all rows are of one sequence, or one of each.
        Rows of sequence PADDING are skipped.
        """
        stream = self._stream()
        queries = self._input("q", q, self.num_qo_heads, self.head_dim, stream)
        rows = queries[0].shape[0]
        keys = self._input("k", k, self.num_kv_heads, self.head_dim, stream, rows)
        values = self._input("v", v, self.num_kv_heads, self.head_dim_vo, stream, rows)
        args = _abi.skc_step_args(struct_size=sizeof(_abi.skc_step_args), flags=self._in_step,
                                  layer=unsigned_layer(layer), stream=stream)
        ids = self._set_batch(args, seq_ids, qo_indptr, rows)
        out, lse, kept = self._set_outputs(args, q, out, lse, return_lse, rows, ids, stream)
        _set_input(args, "q", queries)
        _set_input(args, "k", keys)
        _set_input(args, "v", values)
        check(lib.skc_step(self._handle, byref(args)))
        del kept
        return (out, lse) if return_lse else out

    def append(self, layer: int, k: Any, v: Any, *, seq_ids: Ints | None = None, qo_indptr: Any = None) -> None:
        """Stores K and V of the next tokens of sequences in one layer, at most max_chunk each; see `step`."""
        stream = self._stream()
        keys = self._input("k", k, self.num_kv_heads, self.head_dim, stream)
        rows = keys[0].shape[0]
        values = self._input("v", v, self.num_kv_heads, self.head_dim_vo, stream, rows)
        args = _abi.skc_append_kv_args(struct_size=sizeof(_abi.skc_append_kv_args), flags=self._in_step,
                                       layer=unsigned_layer(layer), stream=stream)
        self._set_batch(args, seq_ids, qo_indptr, rows)
        _set_input(args, "k", keys)
        _set_input(args, "v", values)
        check(lib.skc_append_kv(self._handle, byref(args)))

    def attend(self, layer: int, q: Any, *, seq_ids: Ints | None = None, qo_indptr: Any = None, out: Any = None,
               lse: Any = None, return_lse: bool = False) -> Any:
        """Attends with queries of the last tokens of sequences, at most as many as the latest append had."""
        stream = self._stream()
        queries = self._input("q", q, self.num_qo_heads, self.head_dim, stream)
        rows = queries[0].shape[0]
        args = _abi.skc_attend_args(struct_size=sizeof(_abi.skc_attend_args), layer=unsigned_layer(layer),
                                    stream=stream)
        ids = self._set_batch(args, seq_ids, qo_indptr, rows)
        out, lse, kept = self._set_outputs(args, q, out, lse, return_lse, rows, ids, stream)
        _set_input(args, "q", queries)
        check(lib.skc_attend(self._handle, byref(args)))
        del kept
        return (out, lse) if return_lse else out

    # Edits, of all layers

    def evict(self, num_tokens: Ints, seq_ids: Ints | None = None) -> None:
        """Drops the oldest window tokens of sequences permanently."""
        self._edit_counts(lib.skc_evict, _abi.skc_evict_args, num_tokens, seq_ids)

    def rewind(self, num_tokens: Ints, seq_ids: Ints | None = None) -> None:
        """Removes the newest tokens of sequences, such as rejected drafts, as if they had never been appended."""
        self._edit_counts(lib.skc_rewind, _abi.skc_rewind_args, num_tokens, seq_ids)

    def reset(self, seq_ids: Ints | None = None, start_positions: Ints = 0) -> None:
        """Empties sequences, without seq_ids all, and sets the stream positions of their next tokens."""
        ids = list(range(self.max_batch_size)) if seq_ids is None else self._ids(seq_ids)
        starts = _batch.repeated("start_positions", start_positions, len(ids))
        args = self._edit(_abi.skc_reset_args, ids)
        args.start_positions = _batch.c_array("start_positions", starts, "uint64")
        check(lib.skc_reset(self._handle, byref(args)))

    def fork(self, src_seq_ids: Ints, dst_seq_ids: Ints) -> None:
        """Makes sequences independent copies of others."""
        dst = _batch.one_or_more("dst_seq_ids", dst_seq_ids)
        src = _batch.repeated("src_seq_ids", src_seq_ids, len(dst))
        args = _abi.skc_fork_args(struct_size=sizeof(_abi.skc_fork_args), n_entries=len(dst), stream=self._stream())
        args.src_seq_ids = _batch.c_array("src_seq_ids", src)
        args.dst_seq_ids = _batch.c_array("dst_seq_ids", dst)
        check(lib.skc_fork(self._handle, byref(args)))

    def pin(self, first: Ints, num_tokens: Ints, seq_ids: Ints | None = None) -> None:
        """Holds num_tokens tokens from index `first` of each sequence on permanently, such as a system prompt."""
        self._edit_ranges(lib.skc_pin, _abi.skc_pin_args, first, num_tokens, seq_ids)

    def evict_range(self, first: Ints, num_tokens: Ints, seq_ids: Ints | None = None) -> None:
        """Drops what is held of num_tokens tokens from index `first` on, such as an old tool result."""
        self._edit_ranges(lib.skc_evict_range, _abi.skc_evict_range_args, first, num_tokens, seq_ids)

    def abort_step(self, seq_ids: Ints | None = None) -> None:
        """After a step that failed between layers: cuts all layers of sequences, without seq_ids of all, to the length
        of the shortest."""
        args = self._edit(_abi.skc_abort_step_args, [] if seq_ids is None else self._ids(seq_ids))
        if seq_ids is None:
            args.seq_ids = None
        elif not args.n_entries:
            return
        check(lib.skc_abort_step(self._handle, byref(args)))

    def copy_from(self, source: KVCache, src_seq_id: int = 0, seq_id: int = 0, *, read_back: bool = False) -> None:
        """Makes a sequence an independent copy of one of another cache, of the same model."""
        if not isinstance(source, KVCache):
            raise TypeError(f"source must be a KVCache, not {type(source).__name__}")
        args = _abi.skc_copy_sequence_args(
            struct_size=sizeof(_abi.skc_copy_sequence_args), flags=_flags(read_back), src_cache=source._handle,
            src_seq_id=_seq_id("src_seq_id", src_seq_id), dst_seq_id=_seq_id("seq_id", seq_id), stream=self._stream(),
            src_stream=source._stream())
        check(lib.skc_copy_sequence(self._handle, byref(args)))

    # Snapshots

    def save(self, seq_id: int = 0, *, tag: bytes | None = None, read_back: bool = False) -> bytes:
        """A snapshot of a sequence. tag: 32 bytes that `load` compares, such as a hash of the model."""
        args = _abi.skc_save_sequence_args(struct_size=sizeof(_abi.skc_save_sequence_args), flags=_flags(read_back),
                                           seq_id=_seq_id("seq_id", seq_id), stream=self._stream())
        n_bytes = ctypes.c_uint64()
        check(lib.skc_snapshot_bytes(self._handle, byref(args), byref(n_bytes)))
        buffer = ctypes.create_string_buffer(n_bytes.value)
        args.data, args.n_bytes, args.host_tag = ctypes.addressof(buffer), n_bytes.value, _tag(tag)
        check(lib.skc_save_sequence(self._handle, byref(args), byref(n_bytes)))
        return buffer.raw[: n_bytes.value]

    def load(self, snapshot: Any, seq_id: int = 0, *, tag: bytes | None = None) -> None:
        """Replaces what a sequence holds by a snapshot, which may be of another cache of the same model."""
        data = snapshot if isinstance(snapshot, bytes) else bytes(memoryview(snapshot))
        args = _abi.skc_load_sequence_args(struct_size=sizeof(_abi.skc_load_sequence_args),
                                           seq_id=_seq_id("seq_id", seq_id), stream=self._stream())
        args.data, args.n_bytes = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value, len(data)
        args.host_tag = _tag(tag)
        check(lib.skc_load_sequence(self._handle, byref(args)))

    # State

    def info(self, seq_id: int = 0, layer: int = 0, *, read_back: bool = False) -> SequenceInfo:
        """State of a sequence. read_back: waits for the stream and reads it from the CUDA device."""
        info = _abi.skc_sequence_info(struct_size=sizeof(_abi.skc_sequence_info), flags=_flags(read_back))
        check(lib.skc_seq_info(self._handle, unsigned_layer(layer), _seq_id("seq_id", seq_id), byref(info)))
        return SequenceInfo(*(getattr(info, name) for name in SequenceInfo.__dataclass_fields__))

    def kernel(self, layer: int = 0, num_tokens: int = 1, num_seqs: int = 1) -> str:
        """Name of the kernel that a step of num_tokens tokens of each of num_seqs sequences runs."""
        info = _abi.skc_kernel_info(struct_size=sizeof(_abi.skc_kernel_info))
        check(lib.skc_kernel_choice(self._handle, unsigned_layer(layer), _abi.SKC_CALL_STEP,
                                    unsigned("num_seqs", num_seqs), unsigned("num_tokens", num_tokens), byref(info)))
        return info.kernel.decode()

    def note_replay(self, num_tokens: Ints, seq_ids: Ints | None = None, layer: int | None = None) -> None:
        """CUDA: reports tokens that a replayed graph has appended, or removed if negative."""
        ids = self._ids(seq_ids)
        counts = _batch.repeated("num_tokens", num_tokens, len(ids))
        args = _abi.skc_note_replay_args(
            struct_size=sizeof(_abi.skc_note_replay_args), n_entries=len(ids),
            layer=_abi.SKC_ALL_LAYERS if layer is None else unsigned_layer(layer))
        args.seq_ids, args.n_tokens = _batch.c_array("seq_ids", ids), _batch.c_array("num_tokens", counts)
        check(lib.skc_note_replay(self._handle, byref(args)))

    def poll_error(self) -> DeviceError | None:
        """CUDA: returns and clears the record of entries that the device has skipped. Never waits."""
        error = _abi.skc_device_error(struct_size=sizeof(_abi.skc_device_error))
        check(lib.skc_poll_error(self._handle, byref(error)))
        if not error.n_skipped:
            return None
        return DeviceError(*(getattr(error, name) for name in DeviceError.__dataclass_fields__))

    # Arguments of calls

    def _stream(self) -> int | None:
        if self._device is None:
            return self.stream
        if self.stream is not None:
            return self.stream
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available():
            return None
        return int(torch.cuda.current_stream(self._device).cuda_stream) or None

    def _tensor(self, name: str, value: Any, shape: tuple[int, ...], dtype: str, stream: int | None) -> _tensors.Tensor:
        tensor = _tensors.describe(name, value, stream)
        # -1: any number of rows.
        if len(tensor.shape) != len(shape) or any(a not in (b, -1) for a, b in zip(shape, tensor.shape)):
            wanted = ", ".join("rows" if size == -1 else str(size) for size in shape)
            raise invalid_argument(f"{name} has the shape {list(tensor.shape)}; [{wanted}] is allowed")
        if tensor.dtype != dtype:
            raise invalid_argument(f"{name} is of type {tensor.dtype}; this cache's is {dtype}")
        if tensor.device != self._device:
            where = "cpu" if tensor.device is None else f"cuda:{tensor.device}"
            raise invalid_argument(f"{name} is on {where}, and the cache is on {self.device}")
        # Without rows an array may have no address, which the library would not take.
        return tensor if tensor.shape[0] else tensor._replace(address=ctypes.addressof(_NOTHING))

    def _input(self, name: str, value: Any, heads: int, dim: int, stream: int | None, rows: int = -1) -> Any:
        tensor = self._tensor(name, value, (rows, heads, dim), self.dtype, stream)
        return tensor, *_tensors.strides_of(name, tensor)

    def _output(self, name: str, value: Any, shape: tuple[int, ...], dtype: str, stream: int | None) -> Any:
        tensor = self._tensor(name, value, shape, dtype, stream)
        if tensor.read_only:
            raise invalid_argument(f"{name} is read-only")
        return tensor, *_tensors.strides_of(name, tensor)

    def _set_outputs(self, args: Any, q: Any, out: Any, lse: Any, return_lse: bool, rows: int, ids: list[int],
                     stream: int | None) -> tuple[Any, Any, Any]:
        """Sets out and lse, and makes what the caller has not given: zeros where rows are skipped."""
        zero = _batch.has_padding(ids)
        shape = (rows, self.num_qo_heads, self.head_dim_vo)
        if out is None:
            out = _tensors.new_like(q, shape, self.out_dtype, zero)
        tensor, args.out_token_stride, args.out_head_stride = self._output("out", out, shape, self.out_dtype, stream)
        args.out = tensor.address
        kept = [tensor]
        if lse is None and return_lse:
            lse = _tensors.new_like(q, shape[:2], "float32", zero)
        if lse is not None:
            tensor, token, head = self._output("lse", lse, shape[:2], "float32", stream)
            args.lse_token_stride, args.lse_head_stride = token, head
            args.lse = ctypes.cast(tensor.address, _F32_POINTER)
            kept.append(tensor)
        return out, lse, kept

    def _set_batch(self, args: Any, seq_ids: Ints | None, qo_indptr: Any, rows: int) -> list[int]:
        """Sets the entries of a batch, and returns their sequences."""
        if qo_indptr is not None:
            counts = _batch.counts_of(qo_indptr, rows)
            ids = list(range(len(counts))) if seq_ids is None else self._ids(seq_ids)
            if len(ids) != len(counts):
                raise invalid_argument(f"qo_indptr has {len(counts) + 1} values for {len(ids)} sequences; there is one "
                                       "value more than sequences")
        else:
            ids = self._ids(seq_ids)
            if len(ids) not in (1, rows):
                raise invalid_argument(f"qo_indptr is needed: there are {rows} rows of {len(ids)} sequences")
            counts = [rows] if len(ids) == 1 else [1] * rows
        args.n_entries = len(ids)
        args.seq_ids, args.n_tokens = _batch.c_array("seq_ids", ids), _batch.c_array("qo_indptr", counts)
        return ids

    def _ids(self, seq_ids: Ints | None) -> list[int]:
        if seq_ids is None:
            if self.max_batch_size > 1:
                raise invalid_argument(f"seq_ids is needed: the cache has {self.max_batch_size} sequences")
            return [0]
        return _batch.one_or_more("seq_ids", seq_ids)

    def _edit(self, kind: Any, ids: list[int]) -> Any:
        args = kind(struct_size=sizeof(kind), n_entries=len(ids), stream=self._stream())
        args.seq_ids = _batch.c_array("seq_ids", ids)
        return args

    def _edit_counts(self, call: Any, kind: Any, num_tokens: Ints, seq_ids: Ints | None) -> None:
        args = self._edit(kind, self._ids(seq_ids))
        args.n_tokens = _batch.c_array("num_tokens", _batch.repeated("num_tokens", num_tokens, args.n_entries))
        check(call(self._handle, byref(args)))

    def _edit_ranges(self, call: Any, kind: Any, first: Ints, num_tokens: Ints, seq_ids: Ints | None) -> None:
        args = self._edit(kind, self._ids(seq_ids))
        args.first = _batch.c_array("first", _batch.repeated("first", first, args.n_entries), "uint64")
        args.n_tokens = _batch.c_array("num_tokens", _batch.repeated("num_tokens", num_tokens, args.n_entries))
        check(call(self._handle, byref(args)))


def _set_input(args: Any, name: str, tensor: tuple[_tensors.Tensor, int, int]) -> None:
    setattr(args, name, tensor[0].address)
    setattr(args, f"{name}_token_stride", tensor[1])
    setattr(args, f"{name}_head_stride", tensor[2])


def unsigned_layer(layer: int) -> int:
    number = unsigned("layer", layer)
    if number == _abi.SKC_ALL_LAYERS:
        raise invalid_argument(f"layer is {number}; a layer of the cache is allowed")
    return number


def _seq_id(name: str, value: Any) -> int:
    return int(_batch.c_array(name, _batch.repeated(name, value, 1))[0])


def _flags(read_back: bool) -> int:
    return _abi.SKC_READ_BACK if read_back else 0


def _tag(tag: bytes | None) -> Any:
    if tag is None:
        return None
    if len(tag) != _abi.SKC_HOST_TAG_BYTES:
        raise invalid_argument(f"tag has {len(tag)} bytes; {_abi.SKC_HOST_TAG_BYTES} are allowed")
    return (ctypes.c_uint8 * len(tag))(*tag)


def _threads() -> int:
    torch = sys.modules.get("torch")
    if torch is not None:
        count = int(torch.get_num_threads())
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return min(count, int(capabilities().max_threads))


def _destroy(handle: int | None, callback: Any) -> None:
    """The callback is an argument so that it lives until here."""
    lib.skc_destroy_cache(handle)


def capabilities() -> Any:
    """What the library can do on this machine: a skc_capability_info."""
    info = _abi.skc_capability_info(struct_size=sizeof(_abi.skc_capability_info))
    check(lib.skc_capabilities(byref(info)))
    return info
