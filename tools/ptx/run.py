#!/usr/bin/env python3
"""Runs the tests of the CUDA backend as PTX, pass by pass: tools/ptx/run.py DIR PTX [--all] [--day D]

DIR: packed test programs (scripts/gpu_check --pack). PTX: the folder that tools/ptx/build.sh has written. Prints what
has run last. Exit status 1 where a test fails, which it also does for a race.
"""
import argparse
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPES = 11  # of tests/cuda/differential.rs
NEWEST = {"SKC_SHIM_ARCH": "90"}
# The oldest architecture that has all kernels. Lanes part at random, and results are as bad as the ISA allows.
HARSH = {"SKC_SHIM_ARCH": "80", "SKC_PTX_SCHEDULE": "2", "SKC_PTX_MMA": "1", "SKC_PTX_APPROX": "1",
         "SKC_SHIM_SEED": "2"}
# A compilation takes longer than most tests: one shape a day, in which all types of storage come.
SHARE = {"SKC_HISTORIES": "20", "SKC_SNAPSHOT_HISTORIES": "2", "SKC_STREAMS": "8", "SKC_REPLAYS": "6", "SKC_SOAK": "60",
         "SKC_SHARE": "200"}
EVERYTHING = {"SKC_HISTORIES": "300", "SKC_SNAPSHOT_HISTORIES": "60", "SKC_MENDED": "40", "SKC_STREAMS": "176",
              "SKC_REPLAYS": "100", "SKC_SOAK": "2000", "SKC_SHARE": "9"}
# Without tests of what the host alone does: that of damaged bytes takes half an hour here.
ALL_TESTS = ("cuda", "vectors", "histories", "snapshots: a_loaded", "snapshots: ranges", "snapshots: sizes",
             "snapshots: snapshots_of_all")
# NVRTC writes other PTX for them: a few tests that meet every kernel.
NEWER = ("cuda: chunk_splits::split", "cuda: differential::streams", "cuda: segments", "cuda: errors")


@dataclasses.dataclass(frozen=True)
class Pass:
    name: str
    settings: dict
    only: tuple = ()  # beginnings of what gpu_check runs; all if empty


def passes(options):
    if options.all:
        seeds = {"SKC_SHIM_SEED": str(1 + options.day)}
        return [Pass("compute_90a", {**NEWEST, **EVERYTHING, **seeds}, ALL_TESTS),
                Pass("compute_80", {**HARSH, **EVERYTHING, **seeds}, ALL_TESTS),
                Pass("compute_90a-harsh", {**HARSH, **NEWEST, **EVERYTHING, **seeds}, ALL_TESTS),
                *(Pass(f"compute_{arch}", {"SKC_SHIM_ARCH": arch, **SHARE, **seeds}, NEWER) for arch in ("100", "120"))]
    shapes = [{"SKC_SHAPE": str((options.day + n) % SHAPES)} for n in (0, 5)]
    newest = tuple(f"cuda: {module}" for module in ("chunk_splits", "codes", "create", "differential", "edits",
                                                    "errors", "graphs", "segments", "snapshots", "soak", "steps"))
    oldest = ("cuda: chunk_splits::split", "cuda: differential::streams", "cuda: segments", "cuda: edits",
              "cuda: graphs", "cuda: errors",
              "vectors: every", "histories: random_histories_match")
    return [Pass("compute_90a", {**NEWEST, **SHARE, **shapes[0]}, (*newest, "vectors: half", "vectors: one_cut")),
            Pass("compute_80", {**HARSH, **SHARE, **shapes[1]}, oldest)]


def run(one, options):
    out = ROOT / "build" / "ptx-out" / one.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    print(f"-- {one.name}: {' '.join(f'{k}={v}' for k, v in one.settings.items())}", flush=True)
    environment = {**os.environ, **one.settings, "SKC_PTX_OUT": str(out)}
    command = [sys.executable, "-B", ROOT / "scripts" / "gpu_check", options.directory, "--shim", options.ptx,
               "--jobs", str(options.jobs), "--limit", "7200" if options.all else "600"]
    for only in one.only:
        command += ["--only", only]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0, out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("ptx", type=pathlib.Path)
    parser.add_argument("--all", action="store_true", help="hours instead of minutes")
    parser.add_argument("--day", type=int, default=0, metavar="D",
                        help="which shapes, or orders of threads: others every day")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    done = [run(one, options) for one in passes(options)]
    summary = [sys.executable, "-B", ROOT / "tools" / "ptx" / "summary.py", "--kernels", *[out for _, out in done]]
    subprocess.run(summary, check=True)
    sys.exit(not all(ok for ok, _ in done))


if __name__ == "__main__":
    main()
