"""Compiles the kernels that FlashInfer would compile at the first use by a contender.

peer_kernels.py          compile them for the devices of this machine, with its nvcc, the most valuable first

`go` does that beside gpu_check, whose work is the device's, so that no time of a contender's limit goes there. What is
compiled stays in FlashInfer's own cache. The exit code is 1 if something has not been compiled.
"""

import importlib
import sys
import time

import torch

from contenders.installed import is_installed

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


def main():
    if not is_installed("flashinfer"):
        print("FlashInfer is not installed")
        return 0
    failed = 0
    try:
        for module in modules():
            began = time.monotonic()
            try:
                module.build(verbose=False)
                said = "compiled"
            except Exception as e:
                # What a compiler says stands last, before Ninja's own line.
                failed, said = 1, "; ".join(str(e).strip().splitlines()[-2:])[-300:]
            print(f"{time.monotonic() - began:6.1f} s  {module.name}: {said}", flush=True)
    except Exception as e:
        print(f"FlashInfer cannot compile here: {type(e).__name__}: {e}")
        return 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
