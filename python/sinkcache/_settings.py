"""Settings of a cache, in the words of FlashInfer and transformers, and their C structs."""
from __future__ import annotations

import ctypes
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import _abi
from ._errors import InvalidArgumentError, InvalidConfigError, Status
from ._library import check, lib

IO_DTYPES = {"float32": _abi.SKC_DTYPE_F32, "float16": _abi.SKC_DTYPE_F16, "bfloat16": _abi.SKC_DTYPE_BF16}
KV_DTYPES = {**IO_DTYPES, "q8": _abi.SKC_DTYPE_Q8, "q4": _abi.SKC_DTYPE_Q4}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding, which the cache applies to q and k. With `applied` the caller has applied it already.

    theta        base of the frequencies (transformers' rope_theta)
    dim          leading dims of a head that are rotated; None = all
    interleaved  pairs are dims 2i and 2i + 1 (GPT-J, GLM) instead of i and i + dim / 2 (Llama)
    scale        linear position scaling: angle = position x scale x frequency
    inv_freq     the frequencies, dim / 2 of them (YaRN, Llama 3); None = those of theta
    mscale       factor on the rotated dims of q and k (YaRN's attention factor)
    applied      q and k are rotated, at stream positions that advance by one per token
    """

    theta: float = 10000.0
    dim: int | None = None
    interleaved: bool = False
    scale: float = 1.0
    inv_freq: Iterable[float] | None = field(default=None, repr=False)
    mscale: float = 1.0
    applied: bool = False


@dataclass(frozen=True)
class Layer:
    """Settings of one attention layer.

    window_length    tokens that are attended to, the sinks included (as transformers' SinkCache had it)
    num_sink_tokens  first tokens of each sequence, which are never dropped
    rope             None = no rotation
    alibi_slopes     of the query heads; only without rope
    sm_scale         factor on QK^T; None = 1 / sqrt(head_dim)
    logits_soft_cap  above 0: score = cap x tanh(score / cap)
    sink_logits      learned sink logits of the query heads (gpt-oss)
    max_pinned       most tokens of a sequence that pin() may hold at a time
    max_segments     most runs of pinned tokens, and ranges dropped by evict_range(), of a sequence at a time
    """

    window_length: int = 2048
    num_sink_tokens: int = 4
    rope: Rope | None = Rope()
    alibi_slopes: Iterable[float] | None = field(default=None, repr=False)
    sm_scale: float | None = None
    logits_soft_cap: float | None = None
    sink_logits: Iterable[float] | None = field(default=None, repr=False)
    max_pinned: int = 0
    max_segments: int = 0


def invalid_config(text: str) -> InvalidConfigError:
    return InvalidConfigError(Status.INVALID_CONFIG, text)


def invalid_argument(text: str) -> InvalidArgumentError:
    return InvalidArgumentError(Status.INVALID_ARGUMENT, text)


def unsigned(name: str, value: Any) -> int:
    """A 32-bit number: ctypes would take any other modulo 2^32."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if not 0 <= number < 2**32:
        raise invalid_config(f"{name} is {number}; 0 to {2**32 - 1} are allowed")
    return number


def dtype_name(name: str, dtype: Any, allowed: dict[str, int]) -> str:
    """"float32" of "float32", numpy.float32, torch.float32, numpy.dtype("float32")."""
    text = dtype.__name__ if isinstance(dtype, type) else str(dtype)
    text = text.rpartition(".")[2]
    if text not in allowed:
        raise invalid_config(f"{name} is {dtype!r}; allowed are {', '.join(allowed)}")
    return text


def device_index(device: Any) -> int | None:
    """None for "cpu", 0 for "cuda" and "cuda:0"."""
    kind, colon, index = str(device).partition(":")
    if kind == "cpu" and index in ("", "0"):
        return None
    if kind == "cuda" and (not colon or index.isdecimal()):
        return int(index or 0)
    raise invalid_config(f"device is {str(device)!r}; allowed are 'cpu', 'cuda' and 'cuda:INDEX'")


def _floats(name: str, values: Iterable[float]) -> Any:
    if getattr(values, "ndim", 1) != 1:
        raise invalid_config(f"{name} has {values.ndim} dimensions; one is allowed")  # type: ignore[attr-defined]
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a sequence of numbers, not {values!r}") from None
    return (ctypes.c_float * len(numbers))(*numbers)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None


def boolean(name: str, value: Any) -> bool:
    """True or False, also those of NumPy."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {value!r}")


def fill_layer(config: Any, layer: Layer) -> None:
    """Fills a skc_layer_config. The struct keeps its arrays alive."""
    check(lib.skc_layer_config_init(ctypes.byref(config), ctypes.sizeof(config)))
    sinks, length = unsigned("num_sink_tokens", layer.num_sink_tokens), unsigned("window_length", layer.window_length)
    if length <= sinks:
        raise invalid_config(f"window_length is {length}: it has to exceed num_sink_tokens, which is {sinks}")
    config.n_sink, config.window = sinks, length - sinks
    config.max_pinned = unsigned("max_pinned", layer.max_pinned)
    config.max_segments = unsigned("max_segments", layer.max_segments)
    config.scale = 0.0 if layer.sm_scale is None else _number("sm_scale", layer.sm_scale)
    if layer.sm_scale is not None and config.scale == 0:
        raise invalid_config("sm_scale is 0; None stands for 1 / sqrt(head_dim)")
    config.softcap = 0.0 if layer.logits_soft_cap is None else _number("logits_soft_cap", layer.logits_soft_cap)
    if layer.alibi_slopes is not None:
        slopes = _floats("alibi_slopes", layer.alibi_slopes)
        config.alibi_slopes, config.n_alibi_slopes = slopes, len(slopes)
    if layer.sink_logits is not None:
        logits = _floats("sink_logits", layer.sink_logits)
        config.sink_logits, config.n_sink_logits = logits, len(logits)
    rope = layer.rope
    if rope is None:
        config.position_mode = _abi.SKC_POSITION_NONE if layer.alibi_slopes is None else _abi.SKC_POSITION_ALIBI
        return
    if layer.alibi_slopes is not None:
        raise invalid_config("alibi_slopes are allowed only with rope=None")
    if not isinstance(rope, Rope):
        raise TypeError(f"rope must be a Rope or None, not {rope!r}")
    applied, interleaved = boolean("rope.applied", rope.applied), boolean("rope.interleaved", rope.interleaved)
    config.position_mode = _abi.SKC_POSITION_ROPE_APPLIED if applied else _abi.SKC_POSITION_ROPE
    config.rope_style = _abi.SKC_ROPE_INTERLEAVED if interleaved else _abi.SKC_ROPE_NEOX
    config.rope_dim = 0 if rope.dim is None else unsigned("rope.dim", rope.dim)
    if rope.dim == 0:
        raise invalid_config("rope.dim is 0; rope=None stands for no rotation")
    config.rope_base = _number("rope.theta", rope.theta)
    config.rope_scale = _number("rope.scale", rope.scale)
    config.rope_mscale = _number("rope.mscale", rope.mscale)
    if rope.inv_freq is not None:
        frequencies = _floats("rope.inv_freq", rope.inv_freq)
        if not len(frequencies):
            raise invalid_config("rope.inv_freq is empty; None stands for the frequencies of theta")
        config.inv_freq, config.n_inv_freq = frequencies, len(frequencies)
