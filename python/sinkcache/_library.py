"""Finds and loads the shared library."""
import ctypes
import ctypes.util
import os
import pathlib
import re
import sys
from typing import Any

from . import _abi
from ._errors import error

_PACKAGE = pathlib.Path(__file__).resolve().parent
# The name that programs look for at run time, which has the ABI's number. A wheel has no other.
FILE_NAME = {"win32": "sinkcache.dll", "darwin": "libsinkcache.dylib"}.get(sys.platform, "libsinkcache.so.0")


def _candidates() -> list[str]:
    named = os.environ.get("SINKCACHE_LIBRARY")
    if named:
        return [named]
    packed = _PACKAGE / "lib" / FILE_NAME
    if packed.exists():
        return [str(packed)]
    found = ctypes.util.find_library("sinkcache")
    return [found, FILE_NAME] if found else [FILE_NAME]


def _load() -> tuple[Any, str]:
    tried = []
    for path in _candidates():
        try:
            lib = ctypes.CDLL(path)
        except OSError as reason:
            tried.append(f"{path} ({reason})")
            continue
        # First of all: a library of another ABI may lack functions.
        lib.skc_abi_version.restype = ctypes.c_uint32
        version = lib.skc_abi_version()
        if version != _abi.SKC_ABI_VERSION:
            raise ImportError(f"{path} has ABI version {version}, this package is for {_abi.SKC_ABI_VERSION}")
        _abi.declare(lib)
        return lib, path
    raise ImportError("the sinkcache library cannot be loaded; SINKCACHE_LIBRARY may name its file. Tried: "
                      + ", ".join(tried))


lib, path = _load()


# The library's texts name fields of its structs; here they have other names.
_NAMES = {
    "n_tokens": "num_tokens", "n_layers": "num_layers", "n_seqs": "max_batch_size", "n_q_heads": "num_qo_heads",
    "n_kv_heads": "num_kv_heads", "head_dim_v": "head_dim_vo", "n_sink": "num_sink_tokens", "n_threads": "num_threads",
    "in_dtype": "dtype", "softcap": "logits_soft_cap", "rope_dim": "rope.dim", "rope_base": "rope.theta",
    "rope_scale": "rope.scale", "rope_mscale": "rope.mscale", "host_tag": "tag",
}
_NAMED = re.compile(rf"\b({'|'.join(_NAMES)})\b")


def check(status: int) -> None:
    """Raises the exception of a status other than SKC_STATUS_OK."""
    if status:
        name, text = lib.skc_status_name(status).decode(), lib.skc_last_error().decode()
        raise error(status, f"{name}: {_NAMED.sub(lambda match: _NAMES[match[0]], text)}")


def version() -> str:
    return str(lib.skc_version().decode())


def get_include() -> str:
    """The folder of sinkcache.h and sinkcache.hpp."""
    for folder in (_PACKAGE / "include", _PACKAGE.parent.parent / "include"):
        if (folder / "sinkcache.h").exists():
            return str(folder)
    raise FileNotFoundError(f"no sinkcache.h in {_PACKAGE / 'include'}: the package was not installed from a wheel")


def get_library() -> str:
    """The file of the shared library that is loaded."""
    return str(pathlib.Path(path).resolve()) if os.path.exists(path) else path


def get_cflags() -> str:
    """What a C compiler needs to find the headers."""
    return f"-I{get_include()}"


def get_libs() -> str:
    """What a C compiler needs to link with the library, and the program to find it when it runs."""
    file = get_library()
    if not os.path.isabs(file):
        return "-lsinkcache"
    folder, name = os.path.split(file)
    # `-l:NAME` needs no second file without the number, which a wheel cannot have as a link.
    link = f"-l:{name}" if sys.platform.startswith("linux") else file
    return f"-L{folder} {link} -Wl,-rpath,{folder}"
