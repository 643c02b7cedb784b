#!/usr/bin/env python3
"""Compiles the CUDA kernels for every architecture without a GPU, and keeps their table of resources.

    scripts/cuda_variants.py --share N --day D    every N-th: as D goes on, others, until all have had their turn
    scripts/cuda_variants.py             compile the committed list; fail on errors, on spills and on a stale table
    scripts/cuda_variants.py --write     the same, and write the table
    scripts/cuda_variants.py --list      choose the list anew: every pair of settings at least once

The compiler is NVRTC: libnvrtc of $SINKCACHE_NVRTC_DIR, or NVIDIA's wheel from PyPI, which is kept in
~/.cache/sinkcache.
"""
import argparse
import concurrent.futures
import ctypes
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

import share

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "src" / "backend" / "cuda" / "kernels"
LIST = KERNELS / "variants.txt"
TABLE = KERNELS / "RESOURCES.md"
WHEEL = "nvidia-cuda-nvrtc==13.0.88"

ARCHS = ("80", "86", "89", "90a", "100", "120")
# The settings of fast.cu, beside the architecture.
AXES = {
    "arch": ARCHS,
    "SKC_DIM": (64, 80, 96, 128, 256),
    "SKC_GROUP": (1, 2, 3, 4, 5, 6, 7, 8),
    # 16-bit types; q8, q8 with values in q4, q4.
    "SKC_TYPE": (2, 3, 44, 45, 55),
    "SKC_FEATURES": (0, 1, 2, 3, 4, 5, 6, 7),
}
# 16-bit types also by themselves: benches/gpu/floors.py reads their rows.
NUMBERS = {**AXES, "SKC_TYPE": (2, 3)}
# A kernel that spills reads its registers from memory in its innermost loop.
WITHOUT_SPILLS = ("skc_attend_decode", "skc_step_decode", "skc_attend_chunk")
MOST = 150


def pairs_of(axes):
    """Every two settings of any two axes."""
    return {((a, x), (b, y)) for a, b in itertools.combinations(axes, 2) for x in axes[a] for y in axes[b]}


def choose(axes):
    """A list in which every two settings of any two axes meet: greedy, the same every time."""
    names = list(axes)
    open_pairs = pairs_of(axes)

    def pairs(row):
        return set(itertools.combinations(row.items(), 2))

    rows = []
    while open_pairs:
        # From a pair that is still open, each further setting that closes the most.
        (a, x), (b, y) = min(open_pairs, key=str)
        row = {a: x, b: y}
        for name in names:
            if name not in row:
                def closed(v):
                    return len(pairs(ordered({**row, name: v})) & open_pairs), -axes[name].index(v)
                row[name] = max(axes[name], key=closed)
        row = ordered(row)
        open_pairs -= pairs(row)
        rows.append(row)
    return rows


def ordered(row):
    return {name: row[name] for name in AXES if name in row}


def read_list():
    """The committed list: program, architecture, macros."""
    rows = []
    for line in LIST.read_text().splitlines():
        if line and not line.startswith("#"):
            program, arch, *macros = line.split()
            rows.append((program, arch, tuple(macros)))
    return rows


def write_list():
    lines = ["# What is compiled without a GPU: program, architecture, macros. Written by "
             "scripts/cuda_variants.py --list."]
    lines += [f"common.cu {arch}" for arch in ARCHS]
    rows = choose(NUMBERS)
    rows += [row for row in choose(AXES) if row not in rows]
    for row in sorted(rows, key=lambda r: (r["SKC_DIM"], r["SKC_GROUP"], ARCHS.index(r["arch"]))):
        lines.append(f"fast.cu {row['arch']} " + " ".join(f"{k}={v}" for k, v in row.items() if k != "arch"))
    LIST.write_text("\n".join(lines) + "\n")


def covers():
    """Whether the committed list holds every pair."""
    rows = [
        {"arch": arch, **{k: int(v) for k, v in (m.split("=") for m in macros)}}
        for program, arch, macros in read_list()
        if program == "fast.cu"
    ]

    def seen(axes):
        allowed = [row for row in rows if all(row[name] in axes[name] for name in axes)]
        return {pair for row in allowed for pair in itertools.combinations(ordered(row).items(), 2)}

    return all(pairs_of(axes) <= seen(axes) for axes in (AXES, NUMBERS))


def library_folder():
    """Folder of libnvrtc: the user's, or that of the wheel."""
    given = os.environ.get("SINKCACHE_NVRTC_DIR")
    if given:
        return pathlib.Path(given)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "sinkcache"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / WHEEL
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
            subprocess.run(command, check=True)
            for wheel in pathlib.Path(folder).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(pathlib.Path(folder, "kit"))
            # In one step: two may do this at the same time, or be interrupted.
            if not target.is_dir():
                os.rename(pathlib.Path(folder, "kit"), target)
    return next(target.rglob("libnvrtc.so.*")).parent


class Nvrtc:
    """The few calls needed."""

    def __init__(self, folder):
        for name in sorted(folder.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(name), ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(next(p for p in sorted(folder.glob("libnvrtc.so.*")) if "alt" not in p.name)))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        self.headers = {p.name: p.read_bytes() for p in sorted(KERNELS.glob("*.cuh"))}

    def translate(self, name, source, headers, options, kind):
        """-> (error code, log, the program as "CUBIN" or "PTX")."""
        names = (ctypes.c_char_p * len(headers))(*[n.encode() for n in headers])
        texts = (ctypes.c_char_p * len(headers))(*headers.values())
        handle = ctypes.c_void_p()
        self.lib.nvrtcCreateProgram(ctypes.byref(handle), source, name.encode(), len(headers), texts, names)
        array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        code = self.lib.nvrtcCompileProgram(handle, len(options), array)

        def get(what):
            size = ctypes.c_size_t()
            getattr(self.lib, f"nvrtcGet{what}Size")(handle, ctypes.byref(size))
            text = ctypes.create_string_buffer(max(size.value, 1))
            getattr(self.lib, f"nvrtcGet{what}")(handle, text)
            return text.raw[:size.value]

        log = get("ProgramLog").rstrip(b"\0").decode()
        output = get(kind) if code == 0 else b""
        self.lib.nvrtcDestroyProgram(ctypes.byref(handle))
        return code, log, output

    def compile(self, job):
        """-> (job, log of ptxas), or raises with the compiler's text."""
        program, arch, macros = job
        options = [f"--gpu-architecture=sm_{arch}", "-std=c++17", "--ptxas-options=-v", *(f"-D{m}" for m in macros)]
        code, text, cubin = self.translate(program, (KERNELS / program).read_bytes(), self.headers, options, "CUBIN")
        if code != 0 or not cubin:
            what = f"{program} {arch} {' '.join(macros)}"
            raise RuntimeError(f"{what}: error {code}, cubin of {len(cubin)} bytes\n{text}")
        return job, text


def resources(log):
    """-> {kernel: (registers, bytes of stack, bytes spilled)} from the text of ptxas -v."""
    found, kernel, stack, spilled = {}, None, 0, 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            found[kernel] = (int(match[1]), stack, spilled)
    return found


def shared_bytes(kernel, macros):
    """Dynamic shared memory as launch_config.cuh has it."""
    settings = {k: int(v) for k, v in (m.split("=") for m in macros)}
    dim, group, dtype = settings["SKC_DIM"], settings["SKC_GROUP"], settings["SKC_TYPE"]
    quantised = dtype >= 10

    def tile_row(stored):
        codes, scales = {4: (dim, 4), 5: (dim // 2, (dim + 63) // 64 * 4)}.get(stored, (2 * dim, 0))
        return ((codes + 15) // 16 | 1) * 16 + scales

    rows = [tile_row(t) for t in (divmod(dtype, 10) if quantised else (dtype, dtype))]
    query, token = 2 * dim + 16, sum(rows)
    if kernel in ("skc_attend_decode", "skc_step_decode"):
        new_tokens = (8 // group if group > 1 else 4) if kernel == "skc_step_decode" else 0
        stages = 2 if dim > 80 and not quantised else 3
        decode = 2 * 8 * query + stages * (2 if dim > 128 else 4) * 16 * token + 64
        return decode + new_tokens * sum((row + 15) // 16 * 16 for row in rows)
    small = 64 * query + 2 * (16 if dim > 128 else 32 if quantised else 64) * token
    large = 128 * query + 3 * 32 * token
    return 80 + (max(small, large) if dim <= 128 else small)


def table(results, version):
    lines = [
        "# Resources of the kernels",
        "",
        f"Registers and bytes of stack and spills as ptxas of NVRTC {version} reports them, "
        "and dynamic shared memory of a block, for the",
        "variants of `variants.txt`. Written by `scripts/cuda_variants.py --write`; "
        "CI fails where it is stale. Not measured on a GPU.",
        "",
        "| program | arch | variant | kernel | registers | stack | spills | shared |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (program, arch, macros), found in results:
        short = " ".join(m.removeprefix("SKC_").lower() for m in macros)
        for kernel, (registers, stack, spilled) in sorted(found.items()):
            shared = shared_bytes(kernel, macros) if program == "fast.cu" else "by shape"
            cells = (program, f"sm_{arch}", short, kernel, registers, stack, spilled, shared)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def rows_of(text, jobs):
    """The rows of some variants, and the lines above the table."""
    head, _, rows = text.partition("|---|")
    wanted = {(program, f"sm_{arch}", " ".join(m.removeprefix("SKC_").lower() for m in macros))
              for program, arch, macros in jobs}
    return head, [row for row in rows.splitlines()[1:] if tuple(c.strip() for c in row.split("|")[1:4]) in wanted]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="write variants.txt")
    parser.add_argument("--write", action="store_true", help="write RESOURCES.md")
    share.add_options(parser, "variant")
    options = parser.parse_args()
    share.check_options(parser, options)
    if options.write and options.share > 1:
        parser.error(f"--share is {options.share}: the table that --write writes has all variants")
    if options.list:
        write_list()
    jobs = read_list()
    if len(jobs) > MOST or not covers():
        print(f"variants.txt: {len(jobs)} lines (at most {MOST}), every pair there: {covers()}")
        return 1
    jobs = share.of(jobs, options)
    nvrtc = Nvrtc(library_folder())
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = [(job, resources(log)) for job, log in pool.map(nvrtc.compile, jobs)]
    failed = 0
    for (program, arch, macros), found in results:
        for kernel, (_, stack, spilled) in found.items():
            if kernel in WITHOUT_SPILLS and (stack or spilled):
                print(f"{program} {arch} {' '.join(macros)}: {kernel} has {stack} bytes of stack, {spilled} of spills")
                failed += 1
    text = table(results, nvrtc.version)
    if options.write:
        TABLE.write_text(text)
    elif not TABLE.exists() or rows_of(TABLE.read_text(), jobs) != rows_of(text, jobs):
        print(f"{TABLE.relative_to(ROOT)} is stale: scripts/cuda_variants.py --write")
        failed += 1
    archs = ", ".join("sm_" + a for a in ARCHS)
    print(f"{len(results)} variants compiled by NVRTC {nvrtc.version} for {archs}: {failed} complaints")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
