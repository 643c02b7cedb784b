"""What an attention layer of a model of transformers does, measured.

Two equal tokens go through the model, with a cache that only looks and an attention that returns zeros. So their hidden
states stay equal in every layer, and a layer's keys of the two differ by its rotation alone.
"""
from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from ._rotation import explain
from ._settings import Rope

# Of transformers' kinds of RoPE, those whose frequencies change with the length of the text.
CHANGING = ("dynamic", "longrope")
KINDS = ("full_attention", "sliding_attention")


class MaskLength(int):
    """A mask size that says that a cache of this package was asked for it, and not one of transformers."""


def cache_argument(model: Any) -> str:
    """"cache", or "past_key_values" as transformers called it before."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


@dataclass(frozen=True)
class Measured:
    """One layer. window: of a layer that slides."""

    heads: int
    rope: Rope | None
    window: int | None
    scaling: float
    softcap: float | None
    sink_logits: list[float] | None

    def rope_of(self, applied: bool) -> Rope | None:
        """The Rope for a cache. The model has applied mscale where it has rotated."""
        r = self.rope
        if r is None or not applied:
            return r
        return Rope(dim=r.dim, interleaved=r.interleaved, inv_freq=r.inv_freq, applied=True)


class _Seen(CacheLayerMixin):
    """A layer of the cache that looks."""

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.is_initialized = True
        self.k: Any = None
        self.q: Any = None
        self.kwargs: dict[str, Any] = {}

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        pass

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.k = key_states.view(key_states.shape)
        self.k._skc_layer = self
        return self.k, value_states

    def _skc_attend(self, module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: Any, kwargs: Any) -> Any:
        self.q, self.scaling, self.kwargs = q, scaling, kwargs
        self.shape = (q.shape[1], k.shape[1], q.shape[3], v.shape[3])
        return torch.zeros((q.shape[0], q.shape[2], q.shape[1], v.shape[3]), dtype=q.dtype, device=q.device)

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return MaskLength(query_length), 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


@torch.no_grad()
def measure(model: Any, unrotated: bool) -> list[Measured]:
    """All layers of a model. unrotated: as they are for a cache that rotates itself, with `transformers._hook`."""
    config = model.config.get_text_config(decoder=True)
    name = model.config.model_type
    layers = [_Seen() for _ in range(config.num_hidden_layers)]
    cache = Cache(layers=layers)
    cache._skc_unrotated = unrotated
    argument = cache_argument(model)
    device = model.get_input_embeddings().weight.device
    token = torch.full((1, 2), min(5, config.vocab_size - 1), device=device)
    training = model.training
    model.eval()
    try:
        model(input_ids=token, position_ids=torch.tensor([[0, 1]], device=device), use_cache=True, **{argument: cache})
    finally:
        model.train(training)
    kinds = getattr(config, "layer_types", None) or [None] * len(layers)
    frequencies = _frequencies(model)
    measured = []
    for i, (seen, kind) in enumerate(zip(layers, kinds)):
        try:
            measured.append(_layer(seen, kind, frequencies))
        except ValueError as reason:
            raise ValueError(f"{name}: layer {i} {reason}") from None
    shapes = {seen.shape for seen in layers}
    if len(shapes) > 1:
        raise ValueError(f"{name}: layers have different heads, (query heads, KV heads, dims of K, of V): "
                         f"{sorted(shapes)}")
    return measured


def _layer(seen: _Seen, kind: str | None, frequencies: list[tuple[str, Any, float]]) -> Measured:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"is of type {kind}; {' and '.join(KINDS)} can be served")
    if seen.k is None:
        raise ValueError("gives no keys to the cache")
    if seen.q is None:
        raise ValueError("changes its keys after it has given them to the cache, as latent attention (MLA) does, or "
                         "does not use transformers' attention interface")
    sliding = seen.kwargs.get("sliding_window") if kind in (None, "sliding_attention") else None
    sinks = seen.kwargs.get("s_aux")
    return Measured(
        heads=seen.q.shape[1], rope=_rope(seen, frequencies), window=None if sliding is None else int(sliding),
        scaling=float(seen.q.shape[-1] ** -0.5 if seen.scaling is None else seen.scaling),
        softcap=seen.kwargs.get("softcap") or None, sink_logits=None if sinks is None else sinks.float().tolist())


def _frequencies(model: Any) -> list[tuple[str, Any, float]]:
    """Kind, frequencies and factor of every rotary embedding of the model."""
    found = []
    for name, module in model.named_modules():
        if not name.endswith("rotary_emb"):
            continue
        for buffer, values in module.named_buffers():
            if not buffer.endswith("inv_freq") or "original" in buffer:
                continue
            layer_type = buffer.removesuffix("inv_freq").rstrip("_")
            kinds = getattr(module, "rope_type", "default")
            kind = kinds.get(layer_type, "default") if isinstance(kinds, dict) else kinds
            factor = getattr(module, f"{layer_type}_attention_scaling" if layer_type else "attention_scaling", 1.0)
            found.append((str(kind), values.double().cpu(), float(factor)))
    return found


def _rope(seen: _Seen, frequencies: list[tuple[str, Any, float]]) -> Rope | None:
    """The rotation that explains the keys and the queries."""
    kind, rope = explain([(x[0, :, 0], x[0, :, 1]) for x in (seen.k, seen.q)], frequencies)
    if kind in CHANGING:
        raise ValueError(f"has RoPE of type {kind!r}, whose frequencies change with the length of the text: a key is "
                         "rotated once")
    return rope
