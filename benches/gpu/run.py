#!/usr/bin/env python3
"""Times a step of attention: this library, StreamingLLM in PyTorch, attention over a pre-rotated window, a copy. See
README.md.

    SINKCACHE_LIBRARY=.../libsinkcache.so benches/gpu/run.py --out FOLDER [--budget SECONDS]
    ... --device cpu --smoke        tiny shapes on this CPU: does everything run, and is it right?
    ... --device shim --smoke       the library's CUDA backend on the stand-in of tools/cuda_shim

Writes to FOLDER: rows.jsonl (the rows of a contender are a line), results.json and table.txt. The exit code is 0
when the run has finished, whatever the results; with --strict it is 1 if a row is wrong or an error, or nothing was
measured. It is 3 when FOLDER has no more room.
"""

import argparse
import datetime
import errno
import json
import os
import pathlib
import runpy
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cases as case_list
import report
from journal import Journal, restart


def commit():
    """The commit of the checkout, or the one recorded when the library was packed."""
    done = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.strip()
    for file in (HERE.parent.parent / "commit", HERE.parent.parent / "build" / "gpu_check" / "commit"):
        if file.exists():
            return file.read_text().strip()
    return "unknown"


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=("cuda", "cpu", "shim"), default="cuda")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--budget", type=float, default=300, help="seconds after which no case is started")
    p.add_argument("--seconds", type=float, default=0.15, help="spent on timing a contender")
    p.add_argument("--limit", type=float, default=60, help="seconds after which a contender is aborted; 0: never")
    p.add_argument(
        "--cases", default="", help="only cases whose key contains one of these words, separated by semicolons"
    )
    p.add_argument("--contenders", default="", help="only contenders whose name contains one of these words")
    p.add_argument("--extra", type=pathlib.Path, help="a Python file whose CONTENDERS are measured after the others")
    p.add_argument("--smoke", action="store_true", help="tiny cases")
    p.add_argument("--strict", action="store_true", help="exit code 1 if any row is wrong or an error")
    p.add_argument("--resume", action="store_true", help="continue a run that was interrupted")
    p.add_argument("--list", action="store_true", help="print the cases in their order and exit")
    return p.parse_args()


def write(o, journal, header, left_out):
    """Replaces results.json and table.txt atomically."""
    results = {**header, "left_out": left_out, "rows": journal.rows}
    text = "\n".join(report.line(r, header["copy_bytes_per_s"]) for r in journal.rows) + "\n"
    for name, content in (("results.json", json.dumps(results, indent=1) + "\n"), ("table.txt", text)):
        temporary = o.out / (name + ".new")
        temporary.write_text(content)
        os.replace(temporary, o.out / name)
    return results


def main():
    o = options()
    cases = case_list.smoke_cases() if o.smoke else case_list.all_cases()
    cases = case_list.select(cases, o.cases)
    if o.list:
        print("\n".join(f"{c.key}{'  core' if c.core else ''}" for c in cases))
        return 0
    journal = Journal(o.out, o.resume, o.budget)
    import torch

    torch.set_grad_enabled(False)
    from contenders import contenders_for
    from data import Data
    from measure import ceiling, failure, layers_for, measure
    from platforms import open_platform
    import skc

    platform = open_platform(o.device)
    extra = runpy.run_path(str(o.extra))["CONTENDERS"] if o.extra else ()
    copies = ceiling(platform, o.smoke)
    decode_key = next((c.key for c in cases if c.decode), None)
    header = {
        "platform": platform.name,
        "device": platform.describe(),
        "library": skc.version(),
        "commit": commit(),
        "launch_case": decode_key,
        "date": datetime.date.today().isoformat(),
        "copy_bytes_per_s": max(copies.values(), default=0),
        "copies_by_mebibytes": copies,
    }
    print(
        f"{header['device']['name']}, sinkcache {header['library']}, commit {header['commit'][:12]}, {header['date']}, "
        f"copy {header['copy_bytes_per_s'] / 1e9:.1f} GB/s",
        flush=True,
    )
    left_out = []
    for case in cases:
        kinds = [
            k
            for k in (*contenders_for(case, platform), *(k for k in extra if k.supports(case, platform)))
            if case_list.matches(k.name, o.contenders) and not journal.has(case.key, k.name)
        ]
        if not kinds:
            continue
        if journal.seconds_left() < 0:
            left_out.append(case.key)
            continue
        fields = {"key": case.key, **{k: v for k, v in vars(case).items() if k != "core"}}
        data = None
        try:
            layers = layers_for(case, platform, o.smoke)
            if layers:
                data = Data(case, platform, layers)
        except Exception as e:
            print(f"{case.key}: creating its tokens failed: {failure(e)['note']}", flush=True)
        for kind in kinds:
            about = {**fields, "contender": kind.name, "family": kind.family}
            if data is None:
                journal.add(
                    {**about, "mode": "", "status": "unavailable", "note": "does not fit into the device's memory"}
                )
                continue
            with journal.running({**about, "mode": ""}, o.limit * kind.limit_factor):
                found = measure(kind, case, platform, data, o.seconds)
            clocks = platform.clocks()
            journal.add(*({**about, **row, "clocks": clocks} for row in found))
            for row in journal.rows[-len(found) :]:
                print(report.line(row, header["copy_bytes_per_s"]), flush=True)
            if any(r["status"] == "error" for r in found) and not alive(platform):
                print("the device has failed: restarting", flush=True)
                restart()
        del data
        write(o, journal, header, left_out)
    results = write(o, journal, header, left_out)
    bad = [r for r in results["rows"] if r["status"] in ("wrong", "error")]
    timed = [r for r in results["rows"] if r["status"] == "ok"]
    print(f"{len(timed)} rows timed, {len(bad)} wrong or errors, {len(left_out)} cases left out for time")
    return 1 if o.strict and (bad or not timed) else 0


def alive(platform):
    """Whether the device still accepts work: after a fault every call of this process fails."""
    try:
        import torch

        torch.zeros(1, device=platform.torch_device).add_(1)
        platform.synchronize()
        return True
    except Exception:
        return False


def main_or_full_disk():
    """As main(); says in one line that results cannot be written."""
    try:
        return main()
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"--out: {e.strerror}: what was written stays; with room, --resume continues", flush=True)
        return 3


if __name__ == "__main__":
    sys.exit(main_or_full_disk())
