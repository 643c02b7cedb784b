#!/usr/bin/env python3
"""Compiles a CUDA program to PTX: nvrtc_ptx.py PROGRAM OUT OPTION...

The headers are the files beside PROGRAM. The compiler is that of scripts/cuda_variants.py.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import cuda_variants  # noqa: E402


def main():
    program, out, *options = sys.argv[1:]
    program = pathlib.Path(program)
    headers = {p.name: p.read_bytes() for p in program.parent.iterdir() if p != program and p.name[0] != "."}
    nvrtc = cuda_variants.Nvrtc(cuda_variants.library_folder())
    code, log, ptx = nvrtc.translate(program.name, program.read_bytes(), headers, options, "PTX")
    print(log)
    if code == 0:
        pathlib.Path(out).write_bytes(ptx.rstrip(b"\0"))
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
