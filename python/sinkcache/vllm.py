"""sinkcache in vLLM: `SINKCACHE_VLLM_WINDOW_LENGTH=1024 vllm serve MODEL`.

vLLM loads `register` in each of its processes, by the entry point group vllm.general_plugins. Without
SINKCACHE_VLLM_WINDOW_LENGTH it does nothing. With it, attention of all models is over attention sinks and a rolling
window, in memory that does not grow with the text.

    SINKCACHE_VLLM_WINDOW_LENGTH     tokens that are attended to, the sinks included
    SINKCACHE_VLLM_NUM_SINK_TOKENS   first tokens of a request that stay; 4
    SINKCACHE_VLLM_KV_DTYPE          that keys and values are stored in, also q8 and q4; the model's
    SINKCACHE_VLLM_NUM_THREADS       of attention on the CPU; as many as PyTorch has
"""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ._settings import KV_DTYPES

PREFIX = "SINKCACHE_VLLM_"
BACKEND = "sinkcache._vllm_backend.Backend"


@dataclass(frozen=True)
class Settings:
    """What the environment says. kv_dtype, num_threads: None = the model's and PyTorch's."""

    window_length: int
    num_sink_tokens: int
    kv_dtype: str | None
    num_threads: int | None


def settings(environment: Mapping[str, str] = os.environ) -> Settings | None:
    """The settings, or None where sinkcache is not asked for. A wrong one is a ValueError."""
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    allowed = [PREFIX + name.upper() for name in Settings.__dataclass_fields__]
    for name, value in given.items():
        if name not in allowed:
            raise ValueError(f"{name} is {value!r}; the settings are {', '.join(allowed)}")
    if not given:
        return None
    if allowed[0] not in given:
        raise ValueError(f"{allowed[0]} is not set; {', '.join(sorted(given))} needs it")
    sinks = _number(given, "NUM_SINK_TOKENS", 0, 4)
    window = _number(given, "WINDOW_LENGTH", 1, None)
    assert sinks is not None and window is not None
    if window <= sinks:
        raise ValueError(f"{allowed[0]} is {str(window)!r}; it has to exceed {allowed[1]}, which is {sinks}")
    kv_dtype = given.get(PREFIX + "KV_DTYPE")
    if kv_dtype is not None and kv_dtype not in KV_DTYPES:
        raise ValueError(f"{PREFIX}KV_DTYPE is {kv_dtype!r}; allowed are {', '.join(KV_DTYPES)}")
    return Settings(window, sinks, kv_dtype, _number(given, "NUM_THREADS", 1, None))


def _number(given: Mapping[str, str], name: str, least: int, default: int | None) -> int | None:
    text = given.get(PREFIX + name)
    if text is None:
        return default
    # Not int() alone, which takes " 1_0 ".
    number = int(text) if text.isascii() and text.isdecimal() else -1
    if not least <= number < 2**31:
        raise ValueError(f"{PREFIX}{name} is {text!r}; numbers from {least} to {2**31 - 1} are allowed")
    return number


def register() -> None:
    """vLLM's plugin. It may be called several times."""
    if settings() is None:
        return
    try:
        from . import _vllm_config
    except ImportError as reason:
        # vLLM goes on without a plugin that cannot be imported, and ends for one that fails here.
        raise ImportError(f"sinkcache.vllm is written for vLLM 0.32, and this one differs: {reason}") from reason
    _vllm_config.install()
