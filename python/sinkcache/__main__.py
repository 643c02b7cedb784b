"""The program `sinkcache`, also `python -m sinkcache`: what the library can do on this machine, and how fast it is."""
from __future__ import annotations

import argparse
import sys

import sinkcache

from . import _abi
from ._settings import IO_DTYPES, KV_DTYPES


def _devices() -> list[str]:
    """Names of the CUDA devices, as the driver has them."""
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1" if sys.platform != "win32" else "nvcuda.dll")
        count = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return []
        names = []
        for i in range(count.value):
            name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
            driver.cuDeviceGetName(name, 256, i)
            # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
            driver.cuDeviceGetAttribute(ctypes.byref(major), 75, i)
            driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, i)
            names.append(f"{i}: {name.value.decode(errors='replace')}, compute capability {major.value}.{minor.value}")
        return names
    except (OSError, AttributeError):
        return []


def info() -> int:
    """What the library can do here; each line is "name: value"."""
    can = sinkcache.capabilities()
    print(f"version: {sinkcache.version()}, ABI {can.abi_version}, snapshots of version {can.snapshot_version}")
    print(f"library: {sinkcache.get_library()}")
    try:
        print(f"headers: {sinkcache.get_include()}")
    except FileNotFoundError as reason:
        print(f"headers: {reason}")
    masks = (("q, k, v and out", can.io_dtypes, "SKC_DTYPE_"), ("K and V", can.kv_dtypes, "SKC_DTYPE_"),
             ("positions", can.position_modes, "SKC_POSITION_"))
    for name, mask, prefix in masks:
        names = [key.removeprefix(prefix).lower() for key, value in vars(_abi).items()
                 if key.startswith(prefix) and mask & 1 << value]
        print(f"{name}: {', '.join(names)}")
    with sinkcache.KVCache(1, 1, 1, 128, num_threads=1) as cache:
        print(f"cpu: {cache.kernel().rpartition('_')[2]}, kernel {cache.kernel()} for decode")
    devices = _devices()
    try:
        # Creation looks for a driver, a device, and a compiler or built-in kernels: the text says what is missing.
        with sinkcache.KVCache(1, 1, 1, 128, dtype="float16", device="cuda") as cache:
            print(f"cuda: kernel {cache.kernel()} for decode")
    except sinkcache.Error as reason:
        print(f"cuda: no. {reason}")
    for device in devices:
        print(f"cuda device {device}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sinkcache", description=__doc__)
    parser.add_argument("--version", action="version", version=sinkcache.version())
    parser.add_argument("--cflags", action="store_true", help="what a C compiler needs to find the headers")
    parser.add_argument("--libs", action="store_true", help="what a C compiler needs to link with the library")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("info", help="what the library can do on this machine")
    bench = commands.add_parser("bench", help="time of decode on this machine, beside PyTorch where it is installed")
    bench.add_argument("--window", type=int, nargs="+", default=[2048, 4096], help="tokens that are attended to")
    bench.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=sorted(IO_DTYPES))
    bench.add_argument("--kv-dtype", choices=sorted(KV_DTYPES), help="what K and V are stored in; else --dtype")
    bench.add_argument("--heads", type=int, nargs=3, default=[32, 8, 128], metavar=("QO", "KV", "DIM"))
    bench.add_argument("--threads", type=int, nargs="+", default=[1])
    bench.add_argument("--seconds", type=float, default=1.0, help="for each line of the table")
    chosen = parser.parse_args(arguments)
    if chosen.cflags or chosen.libs:
        flags = [sinkcache.get_cflags()] if chosen.cflags else []
        print(*flags, *([sinkcache.get_libs()] if chosen.libs else []))
        return 0
    if chosen.command == "info":
        return info()
    if chosen.command == "bench":
        from ._bench import run

        return run(chosen)
    parser.print_help()
    return 2


if __name__ == "__main__":
    sys.exit(main())
