#!/usr/bin/env python3
"""A few launches of the kernels that matter, for NVIDIA Nsight Compute: append and decode, the one-launch step, chunks.

    ncu --csv ... under_ncu.py [--device cuda|shim|cpu] [--smoke]

Times nothing. Caches have wrapped. Each case runs on two layers, eagerly, so that each launch is one of its own.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import torch

from cases import HEADS, Case
from contenders.sinkcache import Step, TwoCalls
from data import Data
from platforms import open_platform

LAYERS = 2


def launches(smoke):
    """Contenders and cases: one sequence and many, a window of 2048, chunks of a chat round and of a prompt."""
    heads, cached = ((4, 2, 64), 48) if smoke else (HEADS[0], 2048)
    chunks = (20,) if smoke else (128, 2048)
    decodes = [Case(n, cached, *heads, "bf16") for n in ((2,) if smoke else (1, 64))]
    return [
        *((kind, case) for case in decodes for kind in (TwoCalls, Step)),
        *((Step, Case(1, cached, *heads, "bf16", chunk=chunk)) for chunk in chunks),
    ]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=("cuda", "cpu", "shim"), default="cuda")
    p.add_argument("--smoke", action="store_true", help="tiny cases")
    o = p.parse_args()
    torch.set_grad_enabled(False)
    platform = open_platform(o.device)
    for kind, case in launches(o.smoke):
        contender = kind(case, platform, Data(case, platform, LAYERS))
        try:
            contender.step_all_layers()
            platform.synchronize()
            contender.verify()
        finally:
            contender.close()
        print(f"{kind.name}: {case.key}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
