#!/usr/bin/env python3
"""Do the tests catch mistakes? Each named mutant is one wrong line in a copy of the sources, and the tests must fail.

    python3 scripts/mutants.py            all mutants
    python3 scripts/mutants.py NAME ...   some of them
    python3 scripts/mutants.py --share N --day D    every N-th: as D goes on, others, until all have had their turn
    python3 scripts/mutants.py --check    builds nothing: marks in the sources and table belong together

A comment `// mutant: NAME` marks the line in src/; `scripts/mutants_table.py` says what becomes of it.

Exit status 1 when a mutant survives or does not compile, or when marks and table do not fit. Mutants of the CUDA
kernels need the stand-in: `tools/cuda_shim/build.sh build/shim`. Where the processor does not have AMX or AVX-512 FP16,
their mutants run in an emulator: `tools/isa_emulator/build.sh build/isa_emulator`.
"""
import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import threading
import time

import mutants_table
import share
from mutants_table import Delete, Line, Replace

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLACES = ROOT / "target" / "mutants"
CRATE_TYPES = 'crate-type = ["cdylib", "staticlib", "rlib"]'
# Programs of the tests, by the names of their files.
OURS = [f"{path.stem if path.is_file() else path.name}-*" for path in (ROOT / "tests").iterdir()]
MARK = re.compile(r"// mutant: (.*)$")
NEON = "aarch64-unknown-linux-gnu"
EMULATED = "x86_64-unknown-linux-gnu"
EMULATOR = ROOT / "build" / "isa_emulator" / "libisa_emulator.so"
STAND_IN = ROOT / "build" / "shim" / "libcuda.so.1"


@dataclasses.dataclass(frozen=True)
class Marked:
    """A marked line of code, without the mark."""
    file: str
    number: int
    code: str


def marked_lines(file, text):
    """Name and line of every mutant that the text marks. A mark that stands alone means the next line of code."""
    pending = []
    for number, line in enumerate(text.splitlines(), 1):
        mark = MARK.search(line)
        code = line[:mark.start()].rstrip() if mark else line
        names = [name.strip() for name in mark[1].split(",")] if mark else []
        if not code.strip() or code.lstrip().startswith("//"):
            pending += names
            continue
        for name in pending + names:
            yield name, Marked(file, number, code)
        pending = []
    for name in pending:
        yield name, Marked(file, number, "")


def changed(code, mutant):
    """The wrong line. None where the text to be replaced does not stand exactly once in the right one."""
    indent = code[:len(code) - len(code.lstrip())]
    match mutant:
        case Replace(old, new):
            return code.replace(old, new) if code.count(old) == 1 else None
        case Line(new):
            return indent + new
        case Delete():
            return ""


def find(root, table):
    """-> the line of each mutant, and what is wrong with marks and table."""
    found, problems = collections.defaultdict(list), []
    for path in sorted(p for p in (root / "src").rglob("*") if p.suffix in (".rs", ".cu", ".cuh")):
        for name, line in marked_lines(str(path.relative_to(root)), path.read_text()):
            found[name].append(line)
    for name, lines in found.items():
        at = ", ".join(f"{line.file}:{line.number}" for line in lines)
        if name not in table:
            problems.append(f"{at}: the mutant {name!r} is not in the table")
        elif len(lines) > 1:
            problems.append(f"{at}: {name} is marked {len(lines)} times")
        elif not lines[0].code:
            problems.append(f"{at}: no line of code follows the mark of {name}")
        elif changed(lines[0].code, table[name]) is None:
            count = lines[0].code.count(table[name].old)
            problems.append(f"{at}: {name} replaces {table[name].old!r}, which stands {count} times in the line")
        elif changed(lines[0].code, table[name]) == lines[0].code:
            problems.append(f"{at}: {name} changes nothing")
    problems += [f"{name} is in the table, but no line in src/ is marked" for name in table if name not in found]
    return {name: lines[0] for name, lines in found.items()}, problems


class Failure(Exception):
    """The tests cannot tell anything."""


class Suite:
    """Tests that must catch some mutants: programs of cargo's, built and run in this order."""

    def __init__(self, mutants, programs, environment, target=None, runner=(), folder="target", shared=False):
        """`folder` is cargo's. Every place has one of its own, or with `shared` all places use the same."""
        self.mutants, self.programs, self.environment = mutants, programs, environment
        self.target, self.runner, self.folder, self.shared = target, list(runner), folder, shared
        self.lock, self.passes = threading.Lock(), None

    def cargo_folder(self, place):
        return (ROOT if self.shared else place) / self.folder

    def copy_dependencies(self, place):
        """What cargo has built beside the library itself, so that it is not built once more for every place."""
        if self.shared:
            return
        for profile in ["debug"] + [f"{self.target}/debug"] * bool(self.target):
            for folder in ("build", "deps", ".fingerprint"):
                built, copy = ROOT / self.folder / profile / folder, self.cargo_folder(place) / profile / folder
                if built.is_dir() and not copy.exists():
                    shutil.copytree(built, copy, ignore=shutil.ignore_patterns("*sinkcache*", *OURS))

    def build(self, place, program):
        """-> the path of the built program; Failure with what the compiler said."""
        command = ["cargo", "test", "-q", "-p", "sinkcache", "--no-run", "--message-format=json-render-diagnostics"]
        command += ["--lib"] if program == "lib" else ["--test", program]
        command += ["--target", self.target] if self.target else []
        environment = {**os.environ, **self.environment, "CARGO_TARGET_DIR": str(self.cargo_folder(place))}
        done = subprocess.run(command, cwd=place / "source", capture_output=True, text=True, env=environment)
        if done.returncode:
            raise Failure("does not compile:\n" + done.stderr)
        messages = map(json.loads, done.stdout.splitlines())
        built = [m["executable"] for m in messages if m.get("executable") and m["profile"]["test"]]
        assert len(built) == 1, built
        return built[0]

    def failed(self, place, program, path, *arguments):
        """The first test that fails, or None. What is left of the program is then not waited for."""
        run = subprocess.Popen([*self.runner, path, *arguments], cwd=place / "source", stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, errors="replace",
                               env={**os.environ, "RUST_BACKTRACE": "0", **self.environment})
        with run:
            for line in run.stdout:
                if line.startswith("test ") and line.endswith(" FAILED\n"):
                    run.kill()
                    return f"{program}: {line.split()[1]}"
        return program if run.returncode else None

    def catches(self, place, first=None):
        """What fails in that place, or None. `first`: a program and its test that are tried before all."""
        if first:
            program, test = first
            path = self.build(place, program)
            if caught := self.failed(place, program, path, "--exact", test):
                return caught
        for program in self.programs:
            path = self.build(place, program)
            if caught := self.failed(place, program, path):
                return caught
        return None

    def check(self, place):
        """Without any mutant everything passes: asked once."""
        with self.lock:
            if self.passes is None:
                self.passes = self.catches(place) is None
        if not self.passes:
            raise Failure("the tests fail without any mutant")


def cpu_suites():
    """The suites of the CPU backend, and why mutants of some instruction sets cannot run here."""
    flags = re.search(r"^flags\s*:(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(flags[1].split()) if flags else set()
    native, emulated, skipped = dict(mutants_table.COMMON), {}, {}
    for what, mutants, own, for_emulator in (
            ("AMX", mutants_table.AMX, {"amx_bf16"}, {"avx512bw", "avx512vl", "avx512_bf16"}),
            ("AVX-512 FP16", mutants_table.FP16, {"avx512_fp16"}, {"avx512bw", "avx512vl"}),
            ("AVX512_VNNI", mutants_table.VNNI, {"avx512_vnni"}, None)):
        if own <= flags:
            native |= mutants
        elif for_emulator is None:
            skipped |= dict.fromkeys(mutants, f"the processor has no {what}")
        elif platform.system() == "Linux" and for_emulator <= flags:
            emulated |= mutants
        else:
            why = f"the processor has no {what}, and the emulator needs {' and '.join(sorted(for_emulator))}"
            skipped |= dict.fromkeys(mutants, why)
    # The vectors catch most: the others are built and run for what they let through.
    programs = ("vectors", "edges", "instruction_sets", "histories", "lib")
    few = {"SKC_HISTORIES": "300", "SKC_SNAPSHOT_HISTORIES": "150", "SKC_SHRINK": "0", "SKC_SHARE": "4"}
    suites = [Suite(native, programs, few)]
    if emulated:
        # As scripts/emulated_isa, which builds the same dependencies: shorter windows, the library preloaded in tests
        # only.
        environment = {**few, "RUSTFLAGS": "--cfg sinkcache_emulated_isa", "SKC_WINDOW": "1030"}
        runner = ["env", f"LD_PRELOAD={EMULATOR}"]
        suites.append(Suite(emulated, programs, environment, EMULATED, runner, "target/emulated"))
    return suites, skipped


def neon_suite():
    """With cargo's folder of `scripts/neon_test`, which builds the same dependencies."""
    environment, runner = {}, []
    if platform.machine() != "aarch64":
        environment = {"CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER": "aarch64-linux-gnu-gcc",
                       "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER": "qemu-aarch64 -L /usr/aarch64-linux-gnu"}
        runner = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    return Suite(mutants_table.NEON, ("lib",), environment, NEON, runner, shared=True)


def cuda_suite():
    """On the stand-in: one shape and few replays. Fresh kernels each time."""
    libraries = f"{STAND_IN.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    environment = {"SKC_TEST_BACKEND": "cuda", "SINKCACHE_CUDA_CACHE_DIR": "", "SKC_SHAPE": "7", "SKC_STREAMS": "8",
                   "SKC_REPLAYS": "12", "SKC_SOAK": "100", "SKC_SHIM_MULTIPROCESSORS": "8",
                   "LD_LIBRARY_PATH": libraries}
    return Suite(mutants_table.CUDA, ("cuda",), environment)


def can_neon():
    """Whether Rust can build for AArch64 and this machine, or QEMU, can run it."""
    command = ["rustc", "--print", "target-libdir", "--target", NEON]
    libs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    qemu = shutil.which("qemu-aarch64") and shutil.which("aarch64-linux-gnu-gcc")
    return bool(platform.machine() == "aarch64" or qemu) and any(pathlib.Path(libs).glob("libcore-*.rlib"))


def source_names(*more):
    """What a copy of the sources needs to build and run the tests: these files, and `more`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    keep = ("src/", "tests/", "benches/", "Cargo.toml", "Cargo.lock", "build.rs", "cbindgen.toml", "include/",
            "examples/rust", "examples/stream", *more)
    return [name for name in names.stdout.splitlines() if name.startswith(keep) and (ROOT / name).is_file()]


def copy_sources(place):
    shutil.rmtree(place / "source", ignore_errors=True)
    for name in source_names():
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / "source" / name)
    # The tests link the Rust library: the two for C would be linked anew for every mutant.
    manifest = place / "source" / "Cargo.toml"
    text = manifest.read_text()
    assert text.count(CRATE_TYPES) == 1, CRATE_TYPES
    manifest.write_text(text.replace(CRATE_TYPES, 'crate-type = ["rlib"]'))


def mutate(place, suite, name, line):
    """-> what catches the mutant, or None; Failure where it does not compile."""
    mutant = suite.mutants[name]
    path = place / "source" / line.file
    before = path.read_text()
    lines = before.splitlines(keepends=True)
    lines[line.number - 1] = changed(line.code, mutant) + "\n"
    path.write_text("".join(lines))
    try:
        return suite.catches(place, mutant.first)
    finally:
        path.write_text(before)


def work(place, take, lines, wrong):
    """Takes mutants until none is left, or the tests are found to fail by themselves."""
    copy_sources(place)
    while True:
        try:
            suite, name = take()
        except IndexError:
            return
        suite.copy_dependencies(place)
        suite.check(place)
        began = time.monotonic()
        try:
            caught = mutate(place, suite, name, lines[name])
            outcome = f"caught by {caught}" if caught else "survived"
        except Failure as failure:
            caught, outcome = None, str(failure)
        if not caught:
            wrong.append(name)
        print(f"{name:36s} {time.monotonic() - began:5.1f} s  {outcome}", flush=True)


def main():
    table = mutants_table.ALL
    lines, problems = find(ROOT, table)
    if problems:
        sys.exit("\n".join(problems))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    share.add_options(parser, "mutant")
    parser.add_argument("--check", action="store_true", help="marks in the sources and table belong together")
    options = parser.parse_args()
    share.check_options(parser, options)
    if options.check:
        print(f"mutants: {len(table)}, each with its line")
        return
    names = options.names or share.of(list(table), options)
    if unknown := [name for name in names if name not in table]:
        sys.exit(f"no such mutant: {' '.join(unknown)}")
    suites, skipped = cpu_suites()
    suites += [neon_suite(), cuda_suite()]
    if not can_neon():
        skipped |= dict.fromkeys(mutants_table.NEON, "nothing here builds or runs AArch64")
    for why in dict.fromkeys(skipped.values()):
        if left_out := [name for name in names if skipped.get(name) == why]:
            print(f"skipped: {len(left_out)} mutants, since {why}: {', '.join(left_out)}")
    names = [name for name in names if name not in skipped]
    todo, wrong = collections.deque((suite, name) for suite in suites for name in suite.mutants if name in names), []
    for suite in {suite for suite, _ in todo}:
        if suite.folder == "target/emulated" and not EMULATOR.exists():
            sys.exit(f"{EMULATOR} is missing: tools/isa_emulator/build.sh build/isa_emulator")
        if suite.mutants is mutants_table.CUDA and not STAND_IN.exists():
            sys.exit(f"{STAND_IN} is missing: tools/cuda_shim/build.sh build/shim")
    # Cargo and the tests keep one core busy most of the time: two places, from both ends, so that each builds few
    # programs.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(work, PLACES / "front", todo.popleft, lines, wrong),
                pool.submit(work, PLACES / "back", todo.pop, lines, wrong)]
        for end in concurrent.futures.as_completed(ends):
            if end.exception():
                todo.clear()
                error = end.exception()
                sys.exit(str(error)) if isinstance(error, Failure) else end.result()
    print(f"{len(names) - len(wrong)} of {len(names)} mutants caught")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
