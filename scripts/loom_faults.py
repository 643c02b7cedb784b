#!/usr/bin/env python3
"""Do the models of scripts/loom find faults of threads? Each is one wrong place in a copy of the sources.

    python3 scripts/loom_faults.py [NAME...]

Most of them show in few orders of threads out of many. Exit status 1 when one is not found.
"""
import os
import re
import subprocess
import sys
import time

import mutants
from mutation_sources import Copy

PLACE = mutants.ROOT / "target" / "loom-faults"
SOURCE = PLACE / "source"
POOL, SLOTS, GATE = "src/exec/thread_pool.rs", "src/ffi/slots.rs", "src/ffi/gate.rs"

#: Name: file, text, what it becomes.
FAULTS = {
    "results_not_acquired": (POOL, "spin_while(|| shared.active.load(Ordering::Acquire) > 0);\n        "
                                   "let mut state = lock(&shared.state);\n        "
                                   "while shared.active.load(Ordering::Acquire) > 0 {",
                             "spin_while(|| shared.active.load(Ordering::Relaxed) > 0);\n        "
                             "let mut state = lock(&shared.state);\n        drop(state);\n        "
                             "state = lock(&shared.state);\n        if false {"),
    "nobody_waits_for_workers": (POOL, "while shared.active.load(Ordering::Acquire) > 0 {", "if false {"),
    "the_last_worker_wakes_nobody": (POOL, "                self.done.notify_one();\n", ""),
    "a_task_is_joined_after_its_end": (POOL, "lock(&shared.state).task = None;", ""),
    "a_part_runs_twice": (POOL, "self.next.fetch_add(1, Ordering::Relaxed)",
                          "{ let i = self.next.load(Ordering::Relaxed); self.next.store(i + 1, Ordering::Relaxed); "
                          "i }"),
    "quit_wakes_nobody": (POOL, "        self.shared().wake.notify_all();\n", ""),
    "a_cache_is_closed_in_use": (SLOTS, "self.slot.state.compare_exchange(now, closing, Ordering::Acquire, "
                                        "Ordering::Relaxed).ok()?;",
                                 "let _ = now; self.slot.state.store(closing, Ordering::Relaxed);"),
    "uses_are_not_released": (SLOTS, "self.slot.state.fetch_sub(1, Ordering::Release);",
                              "self.slot.state.fetch_sub(1, Ordering::Relaxed);"),
    "an_old_handle_enters": (SLOTS, "(g, users) if g != generation || users == 0 =>", "(_, users) if users == 0 =>"),
    "a_free_slot_is_taken_twice": (SLOTS, "match FREE.compare_exchange_weak(top, below, Ordering::AcqRel, "
                                          "Ordering::Acquire) {\n            Ok(_) => return Ok(index),\n            "
                                          "Err(now) => top = now,\n        }",
                                   "FREE.store(below, Ordering::Release);\n        return Ok(index);"),
    "two_calls_at_a_time": (GATE, "match handle.gate.compare_exchange(IDLE, EXCLUSIVE, Ordering::Acquire, "
                                  "Ordering::Relaxed) {",
                            "match Ok(handle.gate.swap(EXCLUSIVE, Ordering::Acquire)) {"),
    "the_gate_is_not_released": (GATE, "        self.handle.gate.store(IDLE, Ordering::Release);",
                                 "        self.handle.gate.store(IDLE, Ordering::Relaxed);"),
    "the_team_does_not_release": (GATE, "        self.gate.store(IDLE, Ordering::Release);",
                                  "        self.gate.store(IDLE, Ordering::Relaxed);"),
}


def run():
    """Whether the models pass; their output."""
    environment = {**os.environ, "RUSTFLAGS": "--cfg sinkcache_loom", "LOOM_MAX_PREEMPTIONS": "2",
                   "CARGO_TARGET_DIR": str(PLACE / "target"), "CARGO_PROFILE_DEV_OPT_LEVEL": "0",
                   "CARGO_PROFILE_DEV_DEBUG": "0"}
    done = subprocess.run([os.environ.get("CARGO", "cargo"), "test", "-p", "sinkcache", "--lib", "models"],
                          cwd=SOURCE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=900)
    return done.returncode == 0, done.stdout


def main():
    names = sys.argv[1:] or list(FAULTS)
    copy = Copy(SOURCE, mutants.source_names())
    copy.write({})
    passed, output = run()
    if not passed:
        print(output[-3000:])
        sys.exit("the models do not pass without a fault")
    missed = []
    for name in names:
        file, old, new = FAULTS[name]
        whole = (mutants.ROOT / file).read_text(encoding="utf-8")
        assert whole.count(old) == 1, f"{name}: {whole.count(old)} places in {file}"
        copy.write({file: whole.replace(old, new)})
        began = time.monotonic()
        passed, output = run()
        failed = re.findall(r"^test (\S+) \.\.\. FAILED", output, re.M)
        if passed or "could not compile" in output:
            missed.append(name)
            print(f"{name}: {'not found' if passed else 'does not build: ' + output[-1500:]}", flush=True)
        else:
            found = ", ".join(test.rpartition("::")[2] for test in failed) or "the process died"
            print(f"{name}: found in {time.monotonic() - began:.0f} s by {found}", flush=True)
    print(f"{len(names) - len(missed)} of {len(names)} passed: planted faults of threads are found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
