"""Whether a rehearsal left what it should.

check.py OUT             everything was done, once
check.py OUT --partly    time ended first, and what was done is there
"""

import json
import pathlib
import re
import sys


def partly(out):
    check = json.loads((out / "gpu_check.json").read_text())["rows"]
    passed = [r for r in check if r["ok"]]
    left = [r for r in check if r["said"].startswith("left out")]
    assert passed and left and len(passed) + len(left) == len(check), [r for r in check if not r["ok"]]
    print(f"{len(passed)} of {len(check)} passed, {len(left)} left out")


def main():
    out = pathlib.Path(sys.argv[1])
    if "--partly" in sys.argv:
        return partly(out)
    names = ("gpu_check.json", "results.json", "llama.json")
    check, results, llama = (json.loads((out / name).read_text()) for name in names)
    failed = [r for r in check["rows"] if not r["ok"]]
    assert check["rows"] and not failed, failed
    faults = {r["contender"]: r["note"] for r in results["rows"] if r["contender"] in ("crash", "hang")}
    assert faults == {"crash": "the process ended while this ran", "hang": "took longer than 12 s"}, faults
    others = [r for r in results["rows"] if r["contender"] not in faults]
    assert others and all(r["status"] == "ok" for r in others), [r for r in others if r["status"] != "ok"]
    # Nothing was measured twice.
    keys = [(r["key"], r["contender"], r["mode"]) for r in results["rows"]]
    assert len(keys) == len(set(keys)) and not results["left_out"], results["left_out"]
    assert llama["checks"] and all(r["holds"] for r in llama["checks"]), llama["checks"]
    assert llama["rows"] and all(r["status"] == "ok" for r in llama["rows"]), llama["rows"]
    assert len((out / "ncu.csv").read_text().splitlines()) == 3, "launches under Nsight Compute"
    # Packed wheels were installed without a network: FlashInfer went as far as its compiler, which is not there.
    lines = (out / "peer_kernels.log").read_text().splitlines()
    peers = [line for line in lines if re.match(r" *[\d.]+ s  (xqa|batch_prefill)", line)]
    assert len(peers) == 5 or lines == ["FlashInfer is not installed"], lines
    print(f"{len(check['rows'])} of {len(check['rows'])} passed; {len(others)} rows timed, {len(faults)} faults as "
          f"rows, {len(llama['rows'])} rows of the whole model; FlashInfer {'from wheels' if peers else 'not packed'}")


if __name__ == "__main__":
    main()
