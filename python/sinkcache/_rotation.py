"""Which rotation a layer of a model does, told from its keys and queries of two equal tokens."""
from __future__ import annotations

from typing import Any

import torch

from ._settings import Rope

# Largest difference, relative to the largest value, that rounding explains.
BOUNDS = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def turned(x: Any, frequencies: Any, interleaved: bool) -> Any:
    """A row of position 0 as it is at position 1."""
    dim = 2 * len(frequencies)
    x, rest = x[..., :dim], x[..., dim:]
    low, high = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., : dim // 2], x[..., dim // 2:])
    cos, sin = frequencies.cos(), frequencies.sin()
    low, high = low * cos - high * sin, high * cos + low * sin
    rows = torch.stack((low, high), -1).flatten(-2) if interleaved else torch.cat((low, high), -1)
    return torch.cat((rows, rest), -1)


def explain(pairs: list[tuple[Any, Any]], frequencies: list[tuple[str, Any, float]]) -> tuple[str, Rope | None]:
    """The kind of the rotation that takes the first row of each pair to the second, and the rotation: None where they
    are equal. frequencies: kind, frequencies in f64 and factor of every rotary embedding of the model."""
    bound = BOUNDS.get(pairs[0][0].dtype, 1e-3)
    rows = [(first.double().cpu(), second.double().cpu()) for first, second in pairs]

    def error(turn: Any) -> float:
        return max(float((turn(first) - second).abs().max() / first.abs().max().clamp(min=1e-30))
                   for first, second in rows)

    candidates: list[tuple[float, str, Rope | None]] = [(error(lambda x: x), "none", None)]
    for kind, values, factor in frequencies:
        if 2 * len(values) > rows[0][0].shape[-1]:
            continue
        for interleaved in (False, True):
            found = Rope(dim=2 * len(values), interleaved=interleaved, inv_freq=values.float().tolist(), mscale=factor)
            candidates.append((error(lambda x: turned(x, values, interleaved)), kind, found))
    best, kind, rope = min(candidates, key=lambda candidate: candidate[0])
    if best > bound:
        raise ValueError("turns its keys or queries in a way that is not known; the nearest is "
                         f"{kind}, off by {best:.2g}")
    return kind, rope
