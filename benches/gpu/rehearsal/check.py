"""Whether a rehearsal left what it should: check.py OUT"""

import json
import pathlib
import sys


def main():
    out = pathlib.Path(sys.argv[1])
    check, results, llama = (json.loads((out / f).read_text()) for f in ("gpu_check.json", "results.json", "llama.json"))
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
    print(f"{len(check['rows'])} of {len(check['rows'])} passed; {len(others)} rows timed, {len(faults)} faults as rows, "
          f"{len(llama['rows'])} rows of the whole model")


if __name__ == "__main__":
    main()
