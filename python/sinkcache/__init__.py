"""An attention-sink KV cache: the first tokens of a stream and a rolling window of the most recent ones, and attention
over them, in constant memory and constant time per token.

    cache = sinkcache.KVCache(num_layers, num_qo_heads, num_kv_heads, head_dim, window_length=1024, num_sink_tokens=4)
    out = cache.step(layer, q, k, v)        # arrays of NumPy, tensors of PyTorch, or anything with DLPack
"""
from ._abi import SKC_PADDING as PADDING
from ._cache import DeviceError, KVCache, SequenceInfo, capabilities
from ._errors import (BackendUnavailableError, BusyError, ChunkTooLongError, DeviceLostError, Error,
                      InvalidArgumentError, InvalidConfigError, InvalidHandleError, InvalidSnapshotError,
                      LayersOutOfStepError, LengthUnknownError, NoRoomError, OutOfMemoryError, OutOfRangeError, Status,
                      TokensGoneError)
from ._library import get_cflags, get_include, get_library, get_libs, version
from ._settings import Layer, Rope

__version__ = version()

__all__ = [
    "BackendUnavailableError", "BusyError", "ChunkTooLongError", "DeviceError", "DeviceLostError", "Error",
    "InvalidArgumentError", "InvalidConfigError", "InvalidHandleError", "InvalidSnapshotError", "KVCache", "Layer",
    "LayersOutOfStepError", "LengthUnknownError", "NoRoomError", "OutOfMemoryError", "OutOfRangeError", "PADDING",
    "Rope", "SequenceInfo", "Status", "TokensGoneError", "capabilities", "get_cflags", "get_include", "get_library",
    "get_libs", "version",
]
