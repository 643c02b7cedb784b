#!/usr/bin/env python3
"""Do the tests catch any mistake? Mutants of cargo-mutants, drawn by a seed, in slots, batches, cache, settings, C ABI.

    python3 scripts/mutation.py                      100 mutants of the committed seed
    python3 scripts/mutation.py --seed 7 --count 300
    python3 scripts/mutation.py --names FILE         the mutants of the file, one name or key a line
    python3 scripts/mutation.py --list               the mutants of the seed; builds nothing

Each goes up a ladder of tests, the cheapest part first, until one fails. A part that does not end in time, or that
needs more than 6 GB, counts as failed. What does not build is replaced by the next one drawn. Results are kept as JSON
lines: what is there for the same sources is not run again, so that --limit-seconds may cut a run into pieces.

The C++ tests (`--cpp FOLDER`, build/cpp_tests unless given) are built before: they load the library of the mutant.
Those of the CUDA backend need the stand-in: `tools/cuda_shim/build.sh build/shim`. What is missing is said.

Exit status 1 where a mutant survives that `scripts/mutation_equivalent.py` does not explain, or one is found that it
says cannot be.
"""
import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time

import mutants
import mutation_sources
from mutants import ROOT, STAND_IN, Failure
from mutation_equivalent import EQUIVALENT
from mutation_sources import Copy, Switched, applied

PLACE = ROOT / "target" / "mutation"
SEED, COUNT = 20261130, 100
MEMORY = 6 << 30
LIBRARY_TYPES = 'crate-type = ["cdylib", "rlib"]'
# Nothing is random, no counterexample is made short or kept.
FEW = {"RUST_BACKTRACE": "0", "PROPTEST_RNG_SEED": "1", "PROPTEST_MAX_SHRINK_ITERS": "0",
       "PROPTEST_DISABLE_FAILURE_PERSISTENCE": "true", "SKC_HISTORIES": "300", "SKC_SNAPSHOT_HISTORIES": "150",
       "SKC_MENDED": "300", "SKC_SHRINK": "0", "SKC_SHARE": "36", "SKC_HAMMER": "300"}
# In the order in which they run: those of a second, then longer ones.
LADDER = [f"{kind}: {name}" for kind, names in (
    ("Rust", "lib edges header teams hammer"),
    ("C++", "config_errors call_errors structs handles memory log batches edits ranges step_part snapshots busy raii "
            "pointers allocation_failures discovery parallel_for nonfinite layouts threads"),
    ("Rust", "allocations snapshots vectors histories segments"),
    ("C++", "fork")) for name in names.split()]
CUDA = {"SKC_TEST_BACKEND": "cuda", "SINKCACHE_CUDA_CACHE_DIR": "", "SKC_SHAPE": "7", "SKC_STREAMS": "8",
        "SKC_REPLAYS": "12", "SKC_SOAK": "100", "SKC_SHIM_MULTIPROCESSORS": "8", "SKC_HISTORIES": "10",
        "SKC_SNAPSHOT_HISTORIES": "5", "SKC_MENDED": "5", "SKC_SHIM_CACHE": str(ROOT / "build" / "shim-kernels"),
        "LD_LIBRARY_PATH": f"{STAND_IN.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"}


@dataclasses.dataclass
class Part:
    """A program of the ladder. `last`: it takes minutes. `files`: whose mutants it is for. `limit`: seconds that it may
    take."""
    name: str
    command: list
    environment: dict
    last: bool = False
    files: tuple = ("src/",)
    limit: float = 600.0

    def failure(self, number):
        """What fails in mutant `number`, or None. 0: in none."""
        environment = {**os.environ, **FEW, **self.environment, "SKC_MUTANT": str(number)}

        def limits():
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        run = subprocess.Popen(self.command, cwd=PLACE / "source", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, errors="replace", env=environment, preexec_fn=limits, start_new_session=True)
        late = threading.Event()

        def kill():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)

        def stop():
            late.set()
            kill()

        timer = threading.Timer(self.limit, stop)
        timer.start()
        with run:
            for line in run.stdout:
                if failed := failed_test(line):
                    kill()
                    break
            else:
                failed = None
        timer.cancel()
        if late.is_set():
            return f"no end within {self.limit:.0f} s"
        return failed or (f"exit status {run.returncode}" if run.returncode else None)


def failed_test(line):
    """The test that a line of libtest or GoogleTest says has failed."""
    if line.startswith("test ") and line.endswith(" FAILED\n"):
        return line.split()[1]
    if line.startswith("[  FAILED  ] ") and "." in line:
        return line.split()[3].rstrip(",")
    return None


class Build:
    """Sources with mutants, and the programs that are made of them."""

    def __init__(self, cpp):
        self.cpp, self.copy = cpp, Copy(PLACE / "source", mutants.source_names("cpp_tests/exports.txt"))
        manifest = (ROOT / "Cargo.toml").read_text()
        assert manifest.count(mutants.CRATE_TYPES) == 1, mutants.CRATE_TYPES
        self.own = {"Cargo.toml": manifest.replace(mutants.CRATE_TYPES, LIBRARY_TYPES),
                    "src/lib.rs": (ROOT / "src" / "lib.rs").read_text() + mutation_sources.SWITCH}
        mutants.Suite({}, (), {}).copy_dependencies(PLACE)
        self.limits = {}

    def cargo(self, *arguments, **environment):
        command = ["cargo", *arguments, "-p", "sinkcache", "--message-format=json"]
        environment = {**os.environ, "CARGO_TARGET_DIR": str(PLACE / "target"), **environment}
        done = subprocess.run(command, cwd=PLACE / "source", capture_output=True, text=True, env=environment)
        messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return done, messages

    def check(self):
        """Errors of the compiler: file and lines that each names, those it is about first."""
        done, messages = self.cargo("check", "--lib")
        errors = []
        for message in messages:
            if message["reason"] == "compiler-message" and message["message"]["level"] == "error":
                spans = sorted(message["message"]["spans"], key=lambda span: not span["is_primary"])
                if spans:
                    errors.append([(span["file_name"], span["line_start"]) for span in spans])
        if done.returncode and not errors:
            raise Failure("cargo check:\n" + done.stderr)
        return errors

    def builds(self, mutant):
        """Whether a mutant by itself does."""
        text = (ROOT / mutant.file).read_text()
        self.copy.write({**self.own, mutant.file: applied(text, mutant)})
        return not self.check()

    def switched(self, numbered):
        """Writes sources with all those that can be in one build -> numbers of the others."""
        by_file, others = collections.defaultdict(dict), set()
        for number, mutant in numbered.items():
            by_file[mutant.file][number] = mutant
        while True:
            files = {}
            for file, some in by_file.items():
                left = {number: mutant for number, mutant in some.items() if number not in others}
                files[file] = Switched((ROOT / file).read_text(), left)
                others |= set(files[file].left_out)
            self.copy.write({**self.own, **{file: switched.text for file, switched in files.items()}})
            errors = self.check()
            if not errors:
                return others
            wrong = set()
            for spans in errors:
                found = [files[file].at(line) for file, line in spans if file in files]
                wrong |= set(min(filter(None, found), key=len, default=()))
            if not wrong:
                wrong = {number for switched in files.values() for number in switched.constant}
            if not wrong:
                raise Failure(f"errors outside of any mutant: {errors}")
            others |= wrong

    def programs(self, *arguments, **environment):
        """Builds tests -> their programs."""
        done, messages = self.cargo(*arguments, **environment)
        if done.returncode:
            texts = [m["message"]["rendered"] for m in messages if m["reason"] == "compiler-message"]
            raise Failure("does not compile:\n" + "\n".join([*texts, done.stderr]))
        return {"lib" if m["target"]["name"] == "sinkcache" else m["target"]["name"]: m["executable"]
                for m in messages if m.get("executable") and m["profile"]["test"]}

    def parts(self):
        """Builds everything -> the ladder."""
        rust = [name.removeprefix("Rust: ") for name in LADDER if name.startswith("Rust")]
        tests = [argument for name in rust if name != "lib" for argument in ("--test", name)]
        cuda = ["--test", "cuda"] if STAND_IN.exists() else []
        # The shared library by itself: tests alone leave it in another folder.
        self.programs("build", "--lib")
        built = self.programs("test", "--no-run", "--lib", *tests, *cuda)
        library = {"LD_LIBRARY_PATH": str(PLACE / "target" / "debug")}
        parts = []
        for title in LADDER:
            kind, name = title.split(": ")
            program = self.cpp / f"test_{name}"
            if kind == "Rust":
                parts.append(Part(title, [built[name]], {}))
            elif program.exists():
                loads = subprocess.run(["ldd", program], capture_output=True, text=True, env={**os.environ, **library})
                if library["LD_LIBRARY_PATH"] not in loads.stdout:
                    raise Failure(f"{program} does not load the library of the mutants:\n{loads.stdout}")
                parts.append(Part(title, [program, "--gtest_brief=1"], library))
            else:
                print(f"skipped: {program} is not built")
        parts.append(Part("loom", [], {"LOOM_MAX_PREEMPTIONS": "2"}, last=True, files=("src/ffi/",)))
        if cuda:
            names = ("cuda", "histories", "snapshots")
            files = ("src/cache/", "src/ffi/device.rs")
            parts += [Part(f"CUDA: {name}", [built[name]], CUDA, last=True, files=files) for name in names]
        else:
            print(f"skipped: tests of the CUDA backend, since {STAND_IN} is missing")
        return parts

    def prepare(self, part):
        """Builds what has not been built with the others, and asks once how long the part takes without a mutant."""
        if not part.command:
            folder = str(PLACE / "target" / "loom")
            built = self.programs("test", "--no-run", "--lib", CARGO_TARGET_DIR=folder,
                                  RUSTFLAGS="--cfg sinkcache_loom", CARGO_PROFILE_DEV_OPT_LEVEL="0",
                                  CARGO_PROFILE_DEV_DEBUG="0")
            part.command = [built["lib"], "models"]
        if part.name not in self.limits:
            began = time.monotonic()
            if failed := part.failure(0):
                raise Failure(f"{part.name} fails without any mutant: {failed}")
            took = time.monotonic() - began
            self.limits[part.name] = 20 + 8 * took
            print(f"without a mutant: {part.name}, {took:.1f} s", flush=True)
        part.limit = self.limits[part.name]


class Results:
    """What has become of mutants: a file of JSON lines, of which those of the same sources count."""

    def __init__(self, path):
        self.path, digest = path, hashlib.sha256()
        for name in mutants.source_names("cpp_tests/"):
            digest.update(name.encode() + b"\0" + hashlib.sha256((ROOT / name).read_bytes()).digest())
        self.sources = digest.hexdigest()[:16]
        command = ["git", "rev-parse", "--short=10", "HEAD"]
        self.commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
        self.by_name = {}
        if path.exists():
            lines = map(json.loads, path.read_text().splitlines())
            self.by_name = {line["mutant"]: line for line in lines if line["sources"] == self.sources}

    def add(self, mutant, outcome, **more):
        line = {"mutant": mutant.name, "key": mutant.key, "commit": self.commit, "sources": self.sources,
                "outcome": outcome, **more}
        self.by_name[mutant.name] = line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{describe(line)}  {mutant.name}", flush=True)


def describe(line):
    if line["outcome"] == "does not build":
        return "does not build"
    where = f"{line['part']}: {line['test']}" if line["outcome"] == "found" else "survived"
    return f"{line['seconds']:6.1f} s  {where}"


def climb(build, numbered, results, until):
    """Runs the ladder for each mutant until a part fails. The parts that take minutes come when all have been through
    the others; those that nothing can find come at the end, and not to these parts. -> whether there was time."""
    parts, spent = build.parts(), dict.fromkeys(numbered, 0.0)
    known = {number: mutant for number, mutant in numbered.items() if mutant.key in EQUIVALENT}
    left = {number: mutant for number, mutant in numbered.items() if number not in known}
    for last, mutants_left in ((False, left), (True, left), (False, known)):
        for number, mutant in list(mutants_left.items()):
            some = [part for part in parts if part.last == last and mutant.file.startswith(part.files)]
            for part in some:
                build.prepare(part)
            if time.monotonic() > until:
                return False
            began = time.monotonic()
            caught = next(((part, failed) for part in some if (failed := part.failure(number))), None)
            spent[number] += time.monotonic() - began
            if caught:
                results.add(mutant, "found", part=caught[0].name, test=caught[1], seconds=round(spent[number], 2))
                del mutants_left[number]
            elif last or mutants_left is known:
                results.add(mutant, "survived", seconds=round(spent[number], 2))
            else:
                print(f"{spent[number]:6.1f} s  not found so far  {mutant.name}", flush=True)
    return True


def report(lines, count):
    """The table of a run -> whether all is well."""
    found = collections.defaultdict(list)
    for line in lines:
        if line["outcome"] == "found":
            found[line["part"]].append(line)
    print("\n| found by | mutants | median seconds | most |\n|---|---|---|---|")
    for part, some in sorted(found.items(), key=lambda item: -len(item[1])):
        seconds = [line["seconds"] for line in some]
        print(f"| {part} | {len(some)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    survivors = [line for line in lines if line["outcome"] == "survived"]
    known = [line for line in survivors if line["key"] in EQUIVALENT]
    late = sum(line["test"].startswith("no end") for some in found.values() for line in some)
    stale = [line["key"] for some in found.values() for line in some if line["key"] in EQUIVALENT]
    print(f"\n{late} of those found did not end in time")
    for line in survivors:
        print(f"survived: {line['key']}" + (f": {EQUIVALENT[line['key']]}" if line in known else ""))
    for key in stale:
        print(f"found, but in scripts/mutation_equivalent.py: {key}")
    print(f"{sum(map(len, found.values()))} of {count} mutants caught, {len(known)} cannot be")
    return len(known) == len(survivors) and not stale


def run(build, wanted, count, results, until):
    """The first `count` of the wanted that build."""
    alone = set()
    while True:
        some = [m for m in wanted if results.by_name.get(m.name, {}).get("outcome") != "does not build"][:count]
        left = {number: m for number, m in enumerate(some, 1) if m.name not in results.by_name}
        if not left or time.monotonic() > until:
            return some
        together = {number: m for number, m in left.items() if m not in alone}
        others = build.switched(together)
        for number in sorted(others):
            if build.builds(left[number]):
                alone.add(left[number])
            else:
                results.add(left[number], "does not build")
        if others:
            continue
        if together and not climb(build, together, results, until):
            return some
        for number, mutant in left.items():
            if mutant in alone and not (build.builds(mutant) and climb(build, {number: mutant}, results, until)):
                return some


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--names", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--cpp", type=pathlib.Path, metavar="FOLDER", default=ROOT / "build" / "cpp_tests")
    parser.add_argument("--results", type=pathlib.Path, metavar="FILE", default=PLACE / "results.jsonl")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), metavar="N")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    everything = mutation_sources.population()
    if unknown := set(EQUIVALENT) - {mutant.key for mutant in everything}:
        sys.exit("no such mutant, in scripts/mutation_equivalent.py: " + ", ".join(sorted(unknown)))
    wanted = mutation_sources.drawn(everything, options.seed)
    if options.names:
        names = set(options.names.read_text().splitlines())
        wanted = [mutant for mutant in wanted if {mutant.name, mutant.key} & names]
    count = min(options.count, len(wanted))
    print(f"{len(everything)} mutants, {count} of seed {options.seed}", flush=True)
    if options.list:
        print("\n".join(mutant.key for mutant in wanted[:count]))
        return
    until = time.monotonic() + options.limit_seconds
    results = Results(options.results)
    try:
        some = run(Build(options.cpp.resolve()), wanted, count, results, until)
    except Failure as failure:
        sys.exit(str(failure))
    lines = [results.by_name[mutant.name] for mutant in some if mutant.name in results.by_name]
    well = report(lines, len(some))
    if len(lines) < len(some):
        print(f"skipped: {len(some) - len(lines)} mutants, since no time was left")
    sys.exit(not well)


if __name__ == "__main__":
    main()
