"""Addresses, shapes and strides of NumPy arrays, PyTorch tensors, and whatever has DLPack. Nothing is copied."""
from __future__ import annotations

import ctypes
import sys
from typing import Any, NamedTuple

from ._settings import invalid_argument


class Tensor(NamedTuple):
    """Rows of heads. Strides count elements."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    # None = host memory, otherwise the CUDA device.
    device: int | None
    read_only: bool
    # Whatever has to live as long as the address is used.
    owner: Any


def numpy_of(value: Any) -> Any:
    """The module NumPy if it has made `value`. This package imports no library of arrays."""
    numpy = sys.modules.get("numpy")
    return numpy if numpy is not None and isinstance(value, numpy.ndarray) else None


def torch_of(value: Any) -> Any:
    """The module torch if it has made `value`."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(value, torch.Tensor) else None


def _of_numpy(name: str, array: Any) -> Tensor:
    size = array.itemsize
    # uint16 stands for the bits of bfloat16, which NumPy does not have.
    dtype = "bfloat16" if array.dtype.name == "uint16" else array.dtype.name
    if not array.dtype.isnative:
        raise invalid_argument(f"{name} has bytes in another order: {array.dtype!r}")
    if any(stride % size for stride in array.strides):
        raise invalid_argument(f"{name} has strides of {array.strides} bytes, which are no multiples of {size}")
    strides = tuple(stride // size for stride in array.strides)
    return Tensor(array.ctypes.data, array.shape, strides, dtype, None, not array.flags.writeable, array)


def _of_torch(name: str, tensor: Any, torch: Any) -> Tensor:
    device = tensor.device
    if device.type not in ("cpu", "cuda"):
        raise invalid_argument(f"{name} is on {device}; a cache can be on cpu and cuda")
    if tensor.layout != torch.strided:
        raise invalid_argument(f"{name} has the layout {tensor.layout}; only torch.strided is allowed")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise invalid_argument(f"{name} requires gradients, and there are none: call under torch.no_grad()")
    index = None if device.type == "cpu" else device.index or 0
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Tensor(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), dtype, index, False, tensor)


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


_DL_CPU, _DL_CUDA, _DL_CUDA_HOST, _DL_CUDA_MANAGED = 1, 2, 3, 13
_DL_DTYPES = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16", (1, 16): "bfloat16"}
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _of_dlpack(name: str, value: Any, stream: int | None) -> Tensor:
    kind, index = value.__dlpack_device__()
    if kind not in (_DL_CPU, _DL_CUDA, _DL_CUDA_HOST, _DL_CUDA_MANAGED):
        raise invalid_argument(f"{name} is on a device of DLPack's type {int(kind)}; a cache can be on cpu and cuda")
    on_device = kind in (_DL_CUDA, _DL_CUDA_MANAGED)
    # 1 is DLPack's name of the legacy default stream.
    capsule = value.__dlpack__(stream=stream or 1) if on_device else value.__dlpack__()
    # The capsule keeps its name: nobody else takes the tensor, and the capsule frees it.
    tensor = _DLTensor.from_address(_pointer_of(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        strides = tuple(tensor.strides[: tensor.ndim])
    else:
        strides = tuple(_packed(shape))
    dtype = _DL_DTYPES.get((tensor.code, tensor.bits), f"DLPack's type {tensor.code} of {tensor.bits} bits")
    if tensor.lanes != 1:
        dtype += f" x {tensor.lanes}"
    address = (tensor.data or 0) + tensor.byte_offset
    return Tensor(address, shape, strides, dtype, int(index) if on_device else None, False, (capsule, value))


def _packed(shape: tuple[int, ...]) -> list[int]:
    strides, width = [], 1
    for count in reversed(shape):
        strides.append(width)
        width *= count
    return strides[::-1]


def describe(name: str, value: Any, stream: int | None) -> Tensor:
    """Where the elements of an array are."""
    if numpy_of(value) is not None:
        return _of_numpy(name, value)
    torch = torch_of(value)
    if torch is not None:
        return _of_torch(name, value, torch)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _of_dlpack(name, value, stream)
    raise TypeError(f"{name} must be an array of NumPy, PyTorch, or a library with DLPack, not {type(value).__name__}")


def strides_of(name: str, tensor: Tensor) -> tuple[int, int]:
    """Elements between rows and between heads, as the library takes them: there 0 stands for packed rows."""
    strides = [0, 0]
    if not tensor.shape[0]:
        return 0, 0
    for axis, what in enumerate(("rows", "heads")):
        if tensor.shape[axis] > 1:
            strides[axis] = tensor.strides[axis]
            if not strides[axis]:
                raise invalid_argument(f"{name} has {what} that are one and the same in memory (stride 0): copy it")
    if len(tensor.shape) == 3 and tensor.strides[2] != 1 and tensor.shape[2] > 1:
        raise invalid_argument(f"{name} has a stride of {tensor.strides[2]} between dims of a head; 1 is allowed")
    return strides[0], strides[1]


def new_like(value: Any, shape: tuple[int, ...], dtype: str, zero: bool) -> Any:
    """A new array of the library that has made `value`, on its device."""
    torch = torch_of(value)
    if torch is not None:
        make = torch.zeros if zero else torch.empty
        return make(shape, dtype=getattr(torch, dtype), device=value.device)
    numpy = numpy_of(value)
    if numpy is not None:
        if dtype == "bfloat16":
            # That of the input, which may be of a package such as ml_dtypes.
            kind = value.dtype if value.dtype.name == "bfloat16" else numpy.uint16
        else:
            kind = dtype
        return (numpy.zeros if zero else numpy.empty)(shape, kind)
    raise invalid_argument(f"out is needed, and lse if return_lse: {type(value).__name__} is neither an array of NumPy "
                           "nor a tensor of PyTorch")
