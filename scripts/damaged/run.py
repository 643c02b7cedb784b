#!/usr/bin/env python3
"""Gives damaged models and hostile requests to the programs: every one is an error of one line, or is served.

A damaged model ends a program with exit code 2 and one line on stderr, or with 0 if the damage does no harm. A hostile
line stands between two good ones: these are served, and nothing else ends the program.

    scripts/damaged/run.py --files 200 --lines 200 [--seed 1] [--stream PROGRAM] [--inflight PROGRAM] [--llama PROGRAM]
"""
import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import models
import requests

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "examples/data/tiny-llama-bytes.gguf"
# A header that asks for more than this must be rejected, not allocated.
MEMORY = 6 << 30
# A program that does not end in this time hangs.
SECONDS = 120
# The longest line of a result: a request must not make the output as long as itself.
LONGEST = 5000
TEXT = "Well, Prince, so Genoa and Lucca are now just family estates. " * 8
GOOD = [{"id": name, "prompt": "It was", "max_tokens": 2} for name in ("first", "last")]


def limit():
    """Runs in the program's process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(command):
    """Exit code, or "hangs"; stdout, stderr."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, preexec_fn=limit, check=False)
    except subprocess.TimeoutExpired:
        return "hangs", b"", b""
    return done.returncode, done.stdout, done.stderr


def commands(folder):
    """The command of each program for a model."""
    text, lines, plot = folder / "text.txt", folder / "requests.jsonl", folder / "plot.svg"
    text.write_text(TEXT)
    lines.write_text(json.dumps(GOOD[0]) + "\n")
    return {
        "stream": lambda program, model: [
            program, "--model", model, "--text", text, "--tokens", "60", "--mode", "sink", "--threads", "1", "--plot",
            plot, "--stride", "5", "--sink", "4", "--window", "20"],
        "inflight": lambda program, model: [program, "--model", model, "--requests", lines, "--quiet"],
        "llama": lambda program, model: [
            program, "-m", model, "-f", text, "--sink", "4", "--window", "60", "-n", "40", "-t", "1", "--no-repack"],
    }


def problem_with_model(code, err):
    """What is wrong with a program's answer to a damaged model, if anything is."""
    lines = err.decode(errors="replace").splitlines()
    if code == 0:
        return None
    if code != 2:
        return f"exit code {code}: {lines[:2]}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines instead of one: {lines[:2]}"
    return None


def problem_with_line(code, out, err):
    """The same of a hostile line among good ones."""
    if code != 0 or err:
        return f"exit code {code}: {err.decode(errors='replace')[:200]}"
    lines = out.decode(errors="replace").splitlines()
    if max(map(len, lines)) > LONGEST:
        return f"a line of {max(map(len, lines))} characters"
    results = [json.loads(line) for line in lines]
    for good in GOOD:
        # A hostile line may have its id.
        if not any(r.get("id") == good["id"] and r["outcome"] == "done" for r in results):
            return f"request {good['id']} is not served"
    if len(results) != 4 and not (len(results) == 3 and results[-1]["totals"]["done"] == 2):
        return f"{len(results) - 1} results of 3 lines"
    return None


def try_models(name, program, command, options):
    """Damaged models into one program. Returns how many there were and how many passed."""
    passed = total = harmless = 0
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        model = pathlib.Path(scratch) / "model.gguf"
        for what, data in models.damaged(MODEL.read_bytes(), options.files, options.seed):
            model.write_bytes(data)
            code, _, err = run(command(program, model))
            problem = problem_with_model(code, err)
            total += 1
            passed += problem is None
            harmless += code == 0
            if problem:
                print(f"{name}: {what}: {problem}")
    print(f"{name}: {total} damaged models, {harmless} of them harmless, {total - passed} problems")
    return total, passed


def try_lines(program, options):
    """Hostile lines into inflight-serve."""
    passed = total = 0
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        file = pathlib.Path(scratch) / "requests.jsonl"
        first, last = (json.dumps(good).encode() + b"\n" for good in GOOD)
        for what, line in requests.hostile(options.lines, options.seed):
            file.write_bytes(first + line + b"\n" + last)
            problem = problem_with_line(*run([program, "--model", MODEL, "--requests", file, "--quiet", "--json",
                                              "--window", "60", "--max-prompt", "1000"]))
            total += 1
            passed += problem is None
            if problem:
                print(f"inflight: {what}: {problem}")
    print(f"inflight: {total} hostile lines, {total - passed} problems")
    return total, passed


def main():
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200, help="damaged models for each program")
    parser.add_argument("--lines", type=int, default=200, help="mutated lines, beside those that are written down")
    parser.add_argument("--seed", type=int, default=1)
    for name in ("stream", "inflight", "llama"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    # In memory where that is possible: each copy has 9 MB.
    shared = pathlib.Path("/dev/shm")
    parser.add_argument("--scratch", type=pathlib.Path, default=shared if shared.is_dir() else None)
    options = parser.parse_args()
    began = time.monotonic()
    counts = []
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands(pathlib.Path(folder)).items():
            if program := getattr(options, name):
                counts.append(try_models(name, program, command, options))
    if options.inflight:
        counts.append(try_lines(options.inflight, options))
    total, passed = (sum(column) for column in zip(*counts)) if counts else (0, 0)
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s")
    print(f"{passed} of {total} passed")
    sys.exit(passed != total or total == 0)


if __name__ == "__main__":
    main()
