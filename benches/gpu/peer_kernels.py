"""Compiles the kernels that FlashInfer would compile at the first use by a contender.

peer_kernels.py                  for the devices of this machine, with its nvcc; packed ones that load stay
peer_kernels.py --into FOLDER    for FLASHINFER_CUDA_ARCH_LIST; all of them are put into FOLDER, to be packed

`go` does the first beside gpu_check, whose work is the device's, so that no time of a contender's limit goes there.
What is compiled stays in FlashInfer's own cache. The exit code is 1 if something has not been compiled.
"""

import argparse
import importlib
import pathlib
import shutil
import sys
import time

import torch

from installed import is_installed

# What kernels in a folder were compiled for.
ARCHS = "archs.txt"
# Heads of 128 in groups of 4, bf16: the core cases.
DIM, GROUP, TYPE = 128, 4, torch.bfloat16
# FlashInfer's PosEncodingMode.
NO_ROTATION, ROPE_LLAMA = 0, 1


def prefill_arguments():
    """Of gen_batch_prefill_module, for contenders Decode, Streaming, Fa3 and SlidingWindow."""
    for backend, rotation, slides in (
        ("fa2", NO_ROTATION, False),
        ("fa2", ROPE_LLAMA, False),
        ("fa3", NO_ROTATION, False),
        ("fa2", NO_ROTATION, True),
    ):
        yield backend, TYPE, TYPE, TYPE, torch.int32, DIM, DIM, rotation, slides, False, False


def xqa_arguments():
    """Of gen_xqa_module: input, cache, page, head_dim, group, sliding window, output, queries of a sequence."""
    return TYPE, TYPE, 16, DIM, GROUP, False, TYPE, 1


def modules():
    """FlashInfer's descriptions of what is compiled, in order."""
    yield importlib.import_module("flashinfer.jit.xqa").gen_xqa_module(*xqa_arguments())
    generate = importlib.import_module("flashinfer.jit.attention.modules").gen_batch_prefill_module
    for arguments in prefill_arguments():
        yield generate(*arguments)


def archs():
    """Architectures that FlashInfer compiles for, as FLASHINFER_CUDA_ARCH_LIST names them."""
    found = importlib.import_module("flashinfer.compilation_context").CompilationContext().TARGET_CUDA_ARCHS
    return " ".join(sorted(f"{major}.{minor}" for major, minor in found))


def drop_if_foreign(folder):
    """FlashInfer takes what lies in this folder without asking for what it was compiled."""
    if folder.is_dir() and (folder / ARCHS).read_text() != archs():
        print(f"packed kernels are for {(folder / ARCHS).read_text()}, here they must be for {archs()}", flush=True)
        shutil.rmtree(folder)


def make(module):
    """Has a module compiled, unless it was packed and loads. -> what was done"""
    if module.is_aot:
        try:
            module.load(module.aot_path)
            return "was packed"
        except Exception as e:
            print(f"{module.name} was packed and does not load: {str(e)[-200:]}", flush=True)
            module.aot_path.unlink()
    module.build(verbose=False)
    return "compiled"


def put(module, folder):
    target = folder / module.name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(module.jit_library_path, target)


def make_all(into):
    """-> the exit code. `into`: a folder for all of them, or None."""
    env, failed = importlib.import_module("flashinfer.jit.env"), 0
    drop_if_foreign(env.FLASHINFER_AOT_DIR)
    for module in modules():
        began = time.monotonic()
        try:
            said = make(module)
            if into:
                put(module, into)
        except Exception as e:
            # What a compiler says stands last, before Ninja's own line.
            failed, said = 1, "; ".join(str(e).strip().splitlines()[-2:])[-300:]
        print(f"{time.monotonic() - began:6.1f} s  {module.name}: {said}", flush=True)
    return failed


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--into", type=pathlib.Path, help="a folder, which is replaced when all are there")
    o = p.parse_args()
    if not is_installed("flashinfer"):
        print("FlashInfer is not installed")
        return 1 if o.into else 0
    new = o.into and o.into.with_name(o.into.name + ".new")
    try:
        failed = make_all(new)
    except Exception as e:
        print(f"FlashInfer cannot compile here: {type(e).__name__}: {e}")
        return 1
    if new and not failed:
        (new / ARCHS).write_text(archs())
        shutil.rmtree(o.into, ignore_errors=True)
        new.rename(o.into)
    return failed


if __name__ == "__main__":
    sys.exit(main())
