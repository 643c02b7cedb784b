"""llama-cpp-python with sinkcache as its KV cache: a conversation of any length in a window of constant size.

    import sinkcache_llama
    sinkcache_llama.install(n_sink=4, window=2044)

    import llama_cpp
    llm = llama_cpp.Llama("model.gguf", n_ctx=1_000_000)

llama-cpp-python asks libllama.so itself for each function, so that preloading a library does not reach it. install()
replaces these functions by those of libsinkcache_llama.so. n_ctx is then the length of the longest conversation, for
which llama-cpp-python sets 4 bytes a token aside; the window is what the cache holds.
"""
import ctypes
import os
import pathlib
import sys
import types
import warnings

__all__ = ["install", "is_installed"]

FILE = "libsinkcache_llama.so"
TYPES = ("f32", "f16", "bf16", "q8", "q4")
# The library, once its functions are in place; and the settings of the last install().
_library = None
_length = None
_kept = 0


class _DlInfo(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("symbol", ctypes.c_char_p),
                ("address", ctypes.c_void_p)]


def _file_of(function):
    """The file that defines a function of a ctypes library."""
    info = _DlInfo()
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_DlInfo)]
    if not dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info)) or not info.file:
        return None
    return pathlib.Path(os.fsdecode(info.file)).resolve()


def _find_library(library):
    here = pathlib.Path(__file__).resolve().parent
    named = library or os.environ.get("SINKCACHE_LLAMA_LIBRARY")
    if named:
        places = [pathlib.Path(named)]
    else:
        # Beside this file; or where `cmake --install` puts it, with this file in PREFIX/share/sinkcache.
        prefix = here.parent.parent
        places = [here / FILE, *(prefix / folder / FILE for folder in ("lib", "lib64"))]
        places += sorted(prefix.glob(f"lib/*-linux-gnu*/{FILE}"))
    for place in places:
        if place.is_file():
            return place.resolve()
    raise FileNotFoundError(f"no {FILE} at {', '.join(map(str, places))}: the argument library, or the environment "
                            "variable SINKCACHE_LLAMA_LIBRARY, names it")


def _number(name, value, least):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}: allowed are whole numbers from {least} on")
    return str(value)


def _storage(value):
    parts = value.split("/") if isinstance(value, str) else []
    if len(parts) not in (1, 2) or any(part not in TYPES for part in parts):
        raise ValueError(f"kv_dtype is {value!r}: allowed are {', '.join(TYPES)}, or two of them as K/V")
    return value


def _settings(n_sink, window, kv_dtype, max_rewind, length, unsupported):
    """The environment variables that the library reads when a context is created."""
    values = {"SINK": _number("n_sink", n_sink, 0), "WINDOW": _number("window", window, 1)}
    if kv_dtype is not None:
        values["KV"] = _storage(kv_dtype)
    if max_rewind is not None:
        values["MAX_REWIND"] = _number("max_rewind", max_rewind, 0)
    if length is not None:
        values["LENGTH"] = _number("length", length, 1)
    if unsupported is not None:
        if unsupported not in ("fail", "stock"):
            raise ValueError(f"unsupported is {unsupported!r}: allowed are 'fail' and 'stock'")
        values["UNSUPPORTED"] = unsupported
    return {"SINKCACHE_LLAMA_" + name: value for name, value in values.items()}


def _is_function(value):
    # ctypes makes a class of functions for each library; all derive from this one.
    return isinstance(value, ctypes._CFuncPtr) and getattr(value, "__name__", "").startswith("llama_")


def _replacements(low, library):
    """Functions of llama_cpp.llama_cpp, by identity, and what comes in their place."""
    found = {}
    for name, function in vars(low).items():
        if not _is_function(function) or function.__name__ != name:
            continue
        try:
            ours = getattr(library, name)
        except AttributeError:
            continue
        if _file_of(ours) == _file_of(function):
            continue
        ours.argtypes, ours.restype = function.argtypes, function.restype
        ours.__name__ = name
        ours.__doc__ = function.__doc__
        found[id(function)] = ours
    for name in ("llama_init_from_model", "llama_new_context_with_model"):
        function = getattr(low, name, None)
        if id(function) in found:
            found[id(function)] = _creating(found[id(function)])
    return found


def _creating(create):
    """A function that creates a context, which is told how long a conversation llama-cpp-python has room for."""
    def create_context(model, params):
        if _length is None and params.n_ctx:
            os.environ["SINKCACHE_LLAMA_LENGTH"] = str(params.n_ctx)
            if params.n_ctx <= _kept:
                warnings.warn(f"n_ctx={params.n_ctx} is the length of the longest conversation, and not above the "
                              f"{_kept} tokens that the cache holds: llama_cpp.Llama(..., n_ctx=1_000_000)")
        return create(model, params)

    create_context.__name__ = create.__name__
    create_context.__doc__ = create.__doc__
    return create_context


def is_installed():
    """Whether install() has replaced the functions of llama-cpp-python in this process."""
    return _library is not None


def install(*, window, n_sink=4, kv_dtype=None, max_rewind=None, length=None, unsupported=None, library=None):
    """Gives the contexts that are created from now on sinks and a window instead of llama.cpp's KV cache.

    window: how many of the most recent tokens are kept; n_sink: how many of the first.
    kv_dtype: storage of K and V ("f16", "q8/q4", ...); None: what the context asks for.
    max_rewind: how many tokens can be taken back without reading the conversation anew.
    length: the longest conversation; None: the n_ctx of a context.
    unsupported: what becomes of a model that cannot be served: "fail" or "stock", llama.cpp's own cache.
    library: the file libsinkcache_llama.so; None: beside this file, or $SINKCACHE_LLAMA_LIBRARY.

    Called again, it changes the settings. Raises ValueError for settings that are not valid, FileNotFoundError where
    the library is not, and OSError if it cannot be loaded.
    """
    global _library, _length, _kept
    settings = _settings(n_sink, window, kv_dtype, max_rewind, length, unsupported)
    if _library is None:
        # Loads libllama.so, which the library then finds in this process.
        from llama_cpp import llama_cpp as low

        if FILE in os.environ.get("LD_PRELOAD", ""):
            warnings.warn(f"{FILE} is in LD_PRELOAD, which does not reach llama-cpp-python and is not needed: "
                          "install() is enough", stacklevel=2)
        path = _find_library(library)
        loaded = ctypes.CDLL(str(path))
        entry = getattr(loaded, "llama_init_from_model", None)
        # llama.cpp itself, or a file that finds its functions there, has all of them.
        if entry is None or _file_of(entry) != path or hasattr(loaded, "llama_backend_init"):
            raise ValueError(f"{path} is not {FILE}")
        if _file_of(low.llama_init_from_model) != path:
            found = _replacements(low, loaded)
            modules = [m for name, m in list(sys.modules.items()) if isinstance(m, types.ModuleType)]
            for module in modules:
                for name, value in list(vars(module).items()):
                    if _is_function(value) and id(value) in found:
                        setattr(module, name, found[id(value)])
        _library = loaded
    _length, _kept = length, n_sink + window
    for name in ("KV", "MAX_REWIND", "LENGTH", "UNSUPPORTED"):
        os.environ.pop("SINKCACHE_LLAMA_" + name, None)
    os.environ.update(settings)
