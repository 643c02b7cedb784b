#!/usr/bin/env python3
"""Coverage of src/ by lines and branches: builds the library and its tests instrumented, runs them, prints a table.

    scripts/coverage.py                 everything; fails where fewer than 95 % of the lines are covered
    scripts/coverage.py PART...         these parts alone, added to what earlier ones have covered
    scripts/coverage.py --report        runs nothing: the table of what has been covered so far

Parts are rust (the Rust tests), cpp (the C and C++ tests), emulated (AMX and AVX-512 FP16 where the processor does not
have them), cuda (the CUDA backend on the stand-in) and cubins (kernels built in). What is not covered is listed in
build/coverage/lines.txt and build/coverage/branches.txt. The compiler's own llvm-cov is needed, or one of the same
major version.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "target" / "coverage"
PROFILES = TARGET / "profiles"
# Programs that have run, for llvm-cov: older ones may lie beside them.
PROGRAMS = PROFILES / "programs"
OUT = ROOT / "build" / "coverage"
SHIM = ROOT / "build" / "shim"
EMULATOR = ROOT / "build" / "isa_emulator"
LEAST = 95.0
JOBS = os.cpu_count() or 1
# Not what looks at how the library is linked and installed, where instrumentation is in the way, nor what counts its
# stack, nor the vectors, which the Rust tests replay too.
NOT_COVERING = "^(exports|library.*|cross_target|consumer_.*|install|pkg_config|example_.*|small_stack|vectors)$"
# Fewer than test-rust has: random ones find rare mistakes, not new lines. A test's own values go before these.
AMOUNTS = {"SKC_HISTORIES": "1500", "SKC_SNAPSHOT_HISTORIES": "300", "SKC_MENDED": "2000", "SKC_SHARE": "9",
           "SKC_WINDOW": "1030", "SKC_HAMMER": "5000", "SKC_SOAK_TOKENS": "100000"}
# These take minutes each where kernels count: long windows and many rows on every instruction set.
SLOW = ("long_windows", "long_windows_of_padded_rows", "long_windows_of_codes", "long_windows_of_two_types",
        "many_segments_of_long_windows", "many_segments_of_keys_that_the_host_rotates", "results_stay_among_the_values",
        "the_largest_key_wins")
EMULATED = {"SKC_HISTORIES": "200", "SKC_SNAPSHOT_HISTORIES": "40", "SKC_SHARE": "36"}
ON_STAND_IN = {"SKC_HISTORIES": "60", "SKC_SNAPSHOT_HISTORIES": "20", "SKC_MENDED": "20", "SKC_STREAMS": "22",
               "SKC_REPLAYS": "50", "SKC_SOAK": "500", "SKC_SHARE": "36", "SKC_SHIM_MULTIPROCESSORS": "8",
               "SINKCACHE_CUDA_CACHE_DIR": "", "SKC_SHIM_CACHE": str(ROOT / "build" / "shim-kernels")}
# Features of the processor that some files are for, and without which nothing can run them.
FEATURES = {
    "avx512_bf16": ("backend/cpu/simd/amx/", "backend/cpu/chunk/amx.rs"),
    "avx512vl": ("backend/cpu/simd/fp16/", "backend/cpu/chunk/fp16.rs", "backend/cpu/simd/x86_64/avx512.rs"),
    "avx512_vnni": ("backend/cpu/simd/x86_64/vnni.rs",),
    "avx_vnni": ("backend/cpu/simd/x86_64/avx_vnni.rs",),
}
# Compiled for the build script and its tests, not for the library.
NOT_LIBRARY = {"backend/cuda/jit/variant_list.rs": "the build script's"}


def output(*command):
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


class Compiler:
    """The host's triple, and LLVM's tools that read what this rustc writes."""

    def __init__(self):
        said = output("rustc", "-vV")
        self.host = re.search(r"^host: (.*)", said, re.M)[1]
        self.llvm = re.search(r"^LLVM version: (\d+)", said, re.M)[1]

    def tools(self):
        """-> folder with llvm-profdata and llvm-cov, or None"""
        own = pathlib.Path(output("rustc", "--print", "sysroot").strip(), "lib", "rustlib", self.host, "bin")
        places = [own, pathlib.Path("/usr/lib", f"llvm-{self.llvm}", "bin")]
        return next((p for p in places if (p / "llvm-cov").exists() and (p / "llvm-profdata").exists()), None)

    def install_tools(self):
        """Debian's, else rustup's."""
        for command in ([ROOT / "scripts" / "setup", "llvm"], [ROOT / "scripts" / "toolchain", "active", "llvm-tools"]):
            if self.tools() is None:
                subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        return self.tools()


class Runs:
    """The parts: each builds what it needs and runs it."""

    def __init__(self, host):
        self.host = host
        flags = ["-Cinstrument-coverage", "-Zcoverage-options=branch"]
        if self.emulates():
            # One build for all: without the emulator this asks for a symbol that is not there.
            flags.append("--cfg sinkcache_emulated_isa")
        self.environment = {
            **os.environ, **{k: v for k, v in AMOUNTS.items() if k not in os.environ},
            # Counting branches is a switch of nightly Rust, which the variable opens in every toolchain.
            "RUSTC_BOOTSTRAP": "1", "RUSTFLAGS": " ".join(flags), "CARGO_TARGET_DIR": str(TARGET),
            # With a target, build scripts and macros are not instrumented.
            "CARGO_BUILD_TARGET": host,
            # Processes of one program add to few files.
            "LLVM_PROFILE_FILE": str(PROFILES / "%4m.profraw"),
        }
        self.environment.pop("SINKCACHE_CPU", None)

    @staticmethod
    def emulates():
        """Whether the emulator can run here, and is of use."""
        flags = processor_flags()
        here = platform.system() == "Linux" and platform.machine() == "x86_64"
        return here and {"avx512bw", "avx512vl"} <= flags and not {"amx_bf16", "avx512_fp16"} <= flags

    def call(self, *command, **more):
        print("+", " ".join(map(str, command)), flush=True)
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT, env={**self.environment, **more})

    def tests(self, *arguments, before=(), **more):
        """Builds and runs programs of `cargo test`. Each has one thread for its tests, since threads that count in the
        same lines slow each other down. Other programs run beside it instead."""
        command = [os.environ.get("CARGO", "cargo"), "test", "-p", "sinkcache", *arguments, "--no-run",
                   "--message-format=json-render-diagnostics"]
        print("+", " ".join(command), flush=True)
        messages = subprocess.run(command, check=True, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE,
                                  text=True).stdout
        built = [m for m in map(json.loads, messages.splitlines()) if m.get("executable")]
        self.note(m["executable"] for m in built)
        environment = {**self.environment, "RUST_TEST_THREADS": "1", **more}
        without = ["--exact", *(word for name in SLOW for word in ("--skip", name))]

        def run(message):
            began = time.monotonic()
            done = subprocess.run([*before, message["executable"], *without], cwd=ROOT, env=environment, check=False,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
            result = re.findall("^test result: .*", done.stdout, re.M)
            print(f"{message['target']['name']}, {time.monotonic() - began:.0f} s: {' '.join(result)}", flush=True)
            if done.returncode:
                raise SystemExit(done.stdout[-8000:])

        with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(run, built))

    @staticmethod
    def note(programs):
        PROFILES.mkdir(parents=True, exist_ok=True)
        with open(PROGRAMS, "a", encoding="utf-8") as file:
            file.writelines(f"{program}\n" for program in programs)

    def rust(self):
        self.tests("--tests")

    def cpp(self):
        self.cmake()
        self.call("ctest", "--no-tests=error", "--output-on-failure", "--test-dir", "build-coverage", "-E",
                  NOT_COVERING, f"-j{JOBS}")

    def cmake(self):
        cargo = ";".join(f"{k}={self.environment[k]}" for k in ("RUSTC_BOOTSTRAP", "RUSTFLAGS"))
        self.call("cmake", "-S", ".", "-B", "build-coverage", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug",
                  "-DCMAKE_CXX_FLAGS=-O1", "-DSINKCACHE_BUILD_TESTS=ON", "-DSINKCACHE_PRELINK=OFF",
                  f"-DSINKCACHE_CARGO_TARGET={self.host}", f"-DSINKCACHE_CARGO_TARGET_DIR={TARGET}",
                  f"-DSINKCACHE_CARGO_ENV={cargo}")
        self.call("cmake", "--build", "build-coverage")

    def emulated(self):
        if not self.emulates():
            print("skipped: AMX and AVX-512 FP16 in the emulator: not needed, or no processor for it")
            return
        self.call("tools/isa_emulator/build.sh", EMULATOR)
        self.tests("--lib", "--test", "instruction_sets", "--test", "vectors", "--test", "histories", **EMULATED,
                   before=("env", f"LD_PRELOAD={EMULATOR}/libisa_emulator.so"))

    def stand_in(self):
        self.call("tools/cuda_shim/build.sh", SHIM)
        path = f"{SHIM}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        return {**ON_STAND_IN, "LD_LIBRARY_PATH": path, "SKC_SHIM_LIBS": str(SHIM)}

    def cuda(self):
        device = self.stand_in()
        self.tests("--lib", "--test", "ring_on_device", "--test", "lookups", **device)
        self.tests("--test", "cuda", "--test", "vectors", "--test", "histories", "--test", "snapshots",
                   SKC_TEST_BACKEND="cuda", **device)
        self.cmake()
        self.call("ctest", "--no-tests=error", "--output-on-failure", "--test-dir", "build-coverage", "-R", "^cuda_",
                  **device)

    def cubins(self):
        """In a process whose environment is this one's: the script builds and runs by itself."""
        self.stand_in()
        kernels = {k: ON_STAND_IN[k] for k in ("SKC_SHIM_CACHE", "SKC_SHIM_MULTIPROCESSORS")}
        code = ("import pathlib, sys; sys.path.insert(0, 'scripts'); import cuda_cubins; "
                "programs = cuda_cubins.with_the_stand_in(*map(pathlib.Path, sys.argv[1:3])); "
                "pathlib.Path(sys.argv[3]).write_text(chr(10).join(programs.values()))")
        with tempfile.TemporaryDirectory() as folder:
            noted = pathlib.Path(folder, "programs")
            self.call(sys.executable, "-B", "-c", code, SHIM, folder, noted, **kernels)
            self.note(noted.read_text().splitlines())


PARTS = ("rust", "cpp", "emulated", "cuda", "cubins")


def processor_flags():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set((re.search(r"^flags\s*:(.*)", text, re.M) or ["", ""])[1].split())


def programs(host):
    """What was instrumented and has run: test programs, and the shared library under the C++ tests."""
    noted = sorted(set(PROGRAMS.read_text().splitlines())) if PROGRAMS.exists() else []
    return [*noted, *(TARGET / host / "debug").glob("libsinkcache.so")]


def export(tools, host):
    """llvm-cov's account of src/, in lcov's format."""
    profile = TARGET / "merged.profdata"
    raw = sorted(map(str, PROFILES.glob("*.profraw")))
    if not raw:
        raise SystemExit(f"no profiles in {PROFILES}: nothing has run")
    subprocess.run([tools / "llvm-profdata", "merge", "-sparse", "-o", profile, *raw], check=True)
    objects = [argument for program in programs(host) for argument in ("-object", str(program))][1:]
    command = [tools / "llvm-cov", "export", "--format=lcov", "--unify-instantiations", f"--instr-profile={profile}",
               *objects, "--sources", ROOT / "src"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    # Calls of the C ABI have one name in the library and in its unit tests, which do not use all of them.
    said = [line for line in done.stderr.splitlines() if "functions have mismatched data" not in line]
    if said or done.returncode:
        print("\n".join(said))
    done.check_returncode()
    return done.stdout


class File:
    """Counts of one file: by line, and by line and number of the branch."""

    def __init__(self):
        self.lines, self.branches = {}, {}

    def without(self, numbers):
        rest = File()
        rest.lines = {n: count for n, count in self.lines.items() if n not in numbers}
        rest.branches = {key: count for key, count in self.branches.items() if key[0] not in numbers}
        return rest

    def counts(self):
        """-> lines, covered ones, branches, covered ones"""
        numbers = []
        for counted in (self.lines, self.branches):
            numbers += [len(counted), sum(count > 0 for count in counted.values())]
        return numbers


def parse(lcov, root):
    """-> {path below root: File}. A record that comes again adds to the first."""
    files, file = {}, None
    for line in lcov.splitlines():
        kind, _, rest = line.partition(":")
        if kind == "SF":
            path = pathlib.Path(rest)
            inside = path.is_relative_to(root)
            file = files.setdefault(path.relative_to(root).as_posix(), File()) if inside else File()
        elif kind == "DA":
            number, count = map(int, rest.split(",")[:2])
            file.lines[number] = file.lines.get(number, 0) + count
        elif kind == "BRDA":
            number, block, branch, count = rest.split(",")
            key = int(number), int(block), int(branch)
            file.branches[key] = file.branches.get(key, 0) + (0 if count == "-" else int(count))
    return files


def test_lines(source):
    """Numbers of the lines of items that only tests have: `#[cfg(test)]` and `#[cfg(all(test, ...))]`, formatted by
    rustfmt."""
    lines, found, n = source.splitlines(), set(), 0
    while n < len(lines):
        attribute = re.match(r"( *)#\[cfg\((all\()?test\b", lines[n])
        if attribute:
            first, indent = n, attribute[1]
            while n < len(lines) and (lines[n].startswith((indent + "#[", indent + "//"))):
                n += 1
            # One line, or all to the bracket that closes it at the same indentation.
            if n < len(lines) and not re.search(r"[;}]$", lines[n]):
                n += 1
                while n < len(lines) and not lines[n].startswith(indent + "}"):
                    n += 1
            found.update(range(first + 1, n + 2))
        n += 1
    return found


def ranges(numbers):
    """3, 4, 5, 9 -> "3-5, 9" """
    text, numbers = [], sorted(numbers)
    while numbers:
        last = 0
        while last + 1 < len(numbers) and numbers[last + 1] == numbers[last] + 1:
            last += 1
        text.append(f"{numbers[0]}-{numbers[last]}" if last else str(numbers[0]))
        numbers = numbers[last + 1:]
    return ", ".join(text)


def percent(covered, of):
    return 100.0 * covered / of if of else 100.0


def row(name, counts):
    lines, covered, branches, taken = counts
    return (f"{name:<44} {lines:>6} {covered:>6} {percent(covered, lines):6.1f} % "
            f"{branches:>6} {taken:>6} {percent(taken, branches):6.1f} %")


def left_out(name, flags):
    """Why a file does not count here, or None."""
    if name in NOT_LIBRARY:
        return NOT_LIBRARY[name]
    missing = [f for f, files in FEATURES.items() if f not in flags and name.startswith(files)]
    return f"the processor has no {', '.join(missing)}" if missing else None


def not_compiled(files):
    """Files with functions of which the compiler has seen none: another processor's, models of loom, the build
    script's."""
    for path in sorted((ROOT / "src").rglob("*.rs")):
        name, source = path.relative_to(ROOT / "src").as_posix(), path.read_text()
        tests = test_lines(source)
        code = [line for n, line in enumerate(source.splitlines(), 1) if n not in tests]
        if name not in files and any(re.match(r"\s*(pub(\(.*\))? )?(unsafe )?fn ", line) for line in code):
            yield name


def report(files, flags):
    """Prints the table, writes what is not covered. -> percent of the lines"""
    OUT.mkdir(parents=True, exist_ok=True)
    total, uncovered, untaken, excluded = [0] * 4, [], [], []
    print(f"{'':<44} {'lines':>6} {'':>6} {'covered':>8} {'branches':>6} {'':>6} {'taken':>6}")
    for name, file in sorted(files.items()):
        if why := left_out(name, flags):
            excluded.append(f"{name}: {why}")
            continue
        source = (ROOT / "src" / name).read_text()
        file = file.without(test_lines(source))
        counts = file.counts()
        print(row(name, counts))
        total = [a + b for a, b in zip(total, counts)]
        text = source.splitlines()
        missing = [n for n, count in sorted(file.lines.items()) if not count]
        if missing:
            uncovered += [f"src/{name}: {ranges(missing)}", *(f"  {n:>5}  {text[n - 1]}" for n in missing)]
        for number, _, branch in sorted(k for k, count in file.branches.items() if not count):
            never = "false" if branch % 2 else "true"
            untaken.append(f"src/{name}:{number}: never {never}: {text[number - 1].strip()}")
    print(row("total", total))
    for why in excluded:
        print(f"left out: {why}")
    for name in not_compiled(files):
        print(f"left out: {name}: not compiled here")
    (OUT / "lines.txt").write_text("\n".join(uncovered) + "\n")
    (OUT / "branches.txt").write_text("\n".join(untaken) + "\n")
    print(f"not covered: {total[0] - total[1]} lines, {total[2] - total[3]} branches: {OUT.relative_to(ROOT)}")
    return percent(total[1], total[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--report", action="store_true", help="print the table of what has been covered so far")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: {', '.join(PARTS)} are allowed")
    compiler = Compiler()
    tools = compiler.install_tools()
    if tools is None:
        print(f"SKIPPED: no llvm-cov of LLVM {compiler.llvm}, which this rustc has")
        return 0
    if not options.report:
        runs = Runs(compiler.host)
        if not options.parts:
            shutil.rmtree(PROFILES, ignore_errors=True)
        for part in options.parts or PARTS:
            getattr(runs, part)()
    lcov = export(tools, compiler.host)
    covered = report(parse(lcov, ROOT / "src"), processor_flags())
    if covered < LEAST:
        print(f"{covered:.2f} % of the lines are covered: at least {LEAST} % are expected")
        return 1
    print(f"{covered:.2f} % of the lines are covered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
