"""What the attention layers of a model of vLLM do, measured, and the model's own rotation taken out.

Two equal tokens go through the model, with an attention that returns zeros. So their hidden states stay equal in every
layer, and a layer's keys of the two differ by its rotation alone.
"""
from __future__ import annotations

from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from ._rotation import explain
from ._settings import Layer, Rope
from ._vllm_backend import Impl, Measuring, Served
from .vllm import settings


class Unrotated(torch.nn.Module):
    """In place of a rotary embedding: the cache rotates, at any position, and by no table."""

    def forward(self, positions: Any, query: Any, key: Any = None, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return query, key


def prepare(model: torch.nn.Module, vllm_config: Any, device: torch.device) -> None:
    """Gives the layers of a model what a cache has to know of them. A model that cannot be served is a ValueError."""
    try:
        _prepare(model, vllm_config, device)
    except ValueError as reason:
        name = vllm_config.model_config.hf_config.model_type
        raise ValueError(f"sinkcache.vllm does not serve {name}: {reason}") from reason


def _prepare(model: torch.nn.Module, vllm_config: Any, device: torch.device) -> None:
    layers = {layer: module for layer, module in vllm_config.compilation_config.static_forward_context.items()
              if isinstance(module, AttentionLayerBase)}
    for layer, module in layers.items():
        if not isinstance(getattr(module, "impl", None), Impl):
            raise ValueError(f"{layer} is a {type(module).__name__} with attention of its own")
    if not _rotary(model):
        raise ValueError("it has no rotary embedding of vLLM, so its positions are learned, or of RoPE whose "
                         "frequencies change with the length, or its code is transformers'")
    shapes = {(module.num_heads, module.num_kv_heads, module.head_size, module.head_size_v)
              for module in layers.values()}
    if len(shapes) != 1:
        raise ValueError("its layers have different heads, (query heads, KV heads, dims of K, of V): "
                         f"{sorted(shapes)}")
    ropes = _ropes(model, layers, vllm_config, device)
    _take_out_rotation(model)
    for layer, rope in _ropes(model, layers, vllm_config, device).items():
        if rope is not None:
            raise ValueError(f"{layer} rotates its keys outside of a rotary embedding of vLLM")
    chosen = settings()
    assert chosen is not None
    served = Served(
        settings=chosen, vllm_config=vllm_config, names=list(ropes), shape=shapes.pop(),
        layers=[Layer(window_length=chosen.window_length, num_sink_tokens=chosen.num_sink_tokens, rope=rope,
                      sm_scale=layers[layer].impl.scale) for layer, rope in ropes.items()])
    for index, layer in enumerate(ropes):
        layers[layer].impl.served, layers[layer].impl.index = served, index


def _rotary(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, RotaryEmbeddingBase)]


@torch.no_grad()
def _ropes(model: torch.nn.Module, layers: dict[str, Any], vllm_config: Any,
           device: torch.device) -> dict[str, Rope | None]:
    """The rotation of each layer, in the order in which they run."""
    measuring = Measuring()
    token = min(5, vllm_config.model_config.get_vocab_size() - 1)
    with set_current_vllm_config(vllm_config), set_forward_context(
            dict.fromkeys(layers, measuring), vllm_config, num_tokens=2, skip_compiled=True):
        model(input_ids=torch.tensor([token, token], dtype=torch.int32, device=device),
              positions=torch.tensor([0, 1], device=device))
    if len(measuring.seen) != len(layers):
        raise ValueError(f"{len(measuring.seen)} of its {len(layers)} layers attend in a forward")
    frequencies = [found for module in _rotary(model) for found in _frequencies(module)]
    ropes = {}
    for layer, rows in measuring.seen.items():
        try:
            _, ropes[layer] = explain([(x[0], x[1]) for x in rows], frequencies)
        except ValueError as reason:
            raise ValueError(f"{layer} {reason}") from None
    return ropes


def _frequencies(module: Any) -> list[tuple[str, Any, float]]:
    """Kind, frequencies and factor of a rotary embedding, from its table: nothing where it has none, or one that is not
    of fixed frequencies (LongRoPE)."""
    try:
        # Its own is in the model's type.
        table = module._compute_cos_sin_cache().double().cpu()
    except (TypeError, AttributeError, NotImplementedError):
        return []
    if table.ndim != 2 or len(table) < 2:
        return []
    cos, sin = table.chunk(2, -1)
    values, factor = torch.atan2(sin[1], cos[1]), float(cos[0, 0])
    rows = torch.arange(len(table), dtype=torch.float64)[:, None]
    # The table's angles are f32: their rounding grows with the position.
    bound = factor * (1e-5 + 2e-7 * rows)
    if bool(((cos - factor * (rows * values).cos()).abs() > bound).any()):
        return []
    return [(type(module).__name__, values, factor)]


def _take_out_rotation(model: torch.nn.Module) -> None:
    """A module may be shared with other models, and stays as it is."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RotaryEmbeddingBase):
                setattr(parent, name, Unrotated())
