"""Sequence ids, counts and positions as C arrays."""
from __future__ import annotations

import ctypes
import operator
from array import array
from collections.abc import Iterable
from typing import Any, Union

from . import _abi
from ._settings import invalid_argument

Ints = Union[int, Iterable[int]]

_KINDS: dict[str, tuple[str, Any, str]] = {
    "int32": ("i", ctypes.c_int32, f"{-2**31} to {2**31 - 1}"),
    "uint64": ("Q", ctypes.c_uint64, f"0 to {2**64 - 1}"),
}


def integers(name: str, values: Any) -> list[int]:
    """A list of integers. Arrays of NumPy and PyTorch have to be in host memory: reading a device would wait for it."""
    if getattr(values, "is_cuda", False):
        raise TypeError(f"{name} must be in host memory, not on a CUDA device")
    if hasattr(values, "tolist"):
        values = values.tolist()
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise TypeError(f"{name} must be integers, not {values!r}") from None


def is_one(values: Any) -> bool:
    """Whether it is one integer, also one of NumPy or PyTorch. Their arrays of one element are not."""
    return hasattr(values, "__index__") and not getattr(values, "ndim", 0)


def one_or_more(name: str, values: Any) -> list[int]:
    return repeated(name, values, 1) if is_one(values) else integers(name, values)


def repeated(name: str, values: Any, count: int) -> list[int]:
    """One integer for each sequence; a single one stands for all."""
    if is_one(values):
        return [operator.index(values)] * count
    numbers = integers(name, values)
    if len(numbers) != count:
        raise invalid_argument(f"{name} has {len(numbers)} values for {count} sequences")
    return numbers


def c_array(name: str, values: list[int], kind: str = "int32") -> Any:
    """ctypes by itself would take numbers modulo 2^32."""
    code, ctype, allowed = _KINDS[kind]
    try:
        numbers = array(code, values)
    except OverflowError:
        low, _, high = allowed.partition(" to ")
        wrong = next(value for value in values if not int(low) <= value <= int(high))
        raise invalid_argument(f"{name} has {wrong}; {allowed} are allowed") from None
    return (ctype * len(numbers))(*numbers)


def counts_of(qo_indptr: Any, rows: int) -> list[int]:
    """Rows of each sequence, of FlashInfer's array of where they begin and end."""
    bounds = integers("qo_indptr", qo_indptr)
    if not bounds or bounds[0] != 0:
        raise invalid_argument(f"qo_indptr begins with {bounds[0] if bounds else 'nothing'}; it has to begin with 0")
    counts = [end - begin for begin, end in zip(bounds, bounds[1:])]
    if any(count < 0 for count in counts):
        raise invalid_argument(f"qo_indptr decreases: {bounds}")
    if bounds[-1] != rows:
        raise invalid_argument(f"qo_indptr ends with {bounds[-1]}; it has to end with the number of rows, {rows}")
    return counts


def has_padding(seq_ids: list[int]) -> bool:
    return _abi.SKC_PADDING in seq_ids
