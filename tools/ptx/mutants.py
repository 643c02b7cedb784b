#!/usr/bin/env python3
"""Does the interpreter catch mistakes? Each mutant is a wrong piece of a kernel, put in before it is compiled to PTX.

    tools/ptx/mutants.py DIR PTX                the mutants of this file, which few others than the interpreter catch
    tools/ptx/mutants.py DIR PTX NAME ...       some of them
    tools/ptx/mutants.py DIR PTX --stand-in     those of the stand-in, scripts/mutants_table.py
    tools/ptx/mutants.py --check                runs nothing: each has its place in the sources

DIR: packed test programs (scripts/gpu_check --pack). PTX: the folder that tools/ptx/build.sh has written. A test must
fail: its results differ, or a launch fails for a race, an access or a barrier. Exit status 1 when a mutant survives or
does not compile.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import mutants  # noqa: E402
import mutants_table  # noqa: E402

KERNELS = ROOT / "src" / "backend" / "cuda" / "kernels"
STREAMS, SEGMENTS, ROW_MOVES = mutants_table.STREAMS, mutants_table.SEGMENTS, mutants_table.ROW_MOVES
ERRORS = ("cuda", "errors::all_invalid_entries_are_counted_and_one_of_the_first_launch_is_shown")
WAIT_AND_SYNC = "copy_async_wait<STAGES - 2>(); // mutant: {}\n{}warp_sync();"

RANKS = ("    u32 from[SPLITS];\n{}    float stats[SPLITS][2];\n#pragma unroll\n"
         "    for (u32 i = 0; i < SPLITS; ++i) {{\n        from[i] = cluster_address(own, {});")

# File, what stands in it once, what becomes of it, and the test that must fail.
MUTANTS = {
    # Memory that nothing orders. On the stand-in most of these give the right results.
    "decode_copies_of_other_lanes": (
        "decode_window.cuh", WAIT_AND_SYNC.format("copies_not_waited_for", 8 * " "),
        "copy_async_wait<STAGES - 2>();", STREAMS),
    "decode_waits_for_too_few": (
        "decode_window.cuh", "copy_async_wait<STAGES - 2>(); // mutant: copies_not_waited_for",
        "copy_async_wait<STAGES - 1>();", STREAMS),
    "segment_copies_of_other_lanes": (
        "decode_segments.cuh", WAIT_AND_SYNC.format("segment_copies_not_waited_for", 12 * " "),
        "copy_async_wait<STAGES - 2>();", SEGMENTS),
    "segment_queries_of_one_buffer": (
        "decode_segments.cuh", "u8* other = b.queries + DECODE_COLUMNS * ROW_BYTES;", "u8* other = b.queries;",
        SEGMENTS),
    "chunk_copies_of_other_warps": (
        "chunk.cuh", "block_sync(); // mutant: chunk_missing_barrier", "warp_sync();", STREAMS),
    "chunk_split_released_before_it_is_written": (
        "chunk_split.cuh", "warp_sync();\n    u32 arrived = 0;", "u32 arrived = 0;", mutants_table.SPLIT_CHUNKS),
    "chunk_splits_read_by_lanes_that_acquired_nothing": (
        "chunk_split.cuh", "return false; // mutant: chunk_merged_before_all_arrived\n    warp_sync();",
        "return false;", mutants_table.SPLIT_CHUNKS),
    "cluster_splits_by_arrival": (
        "chunk_cluster.cuh", RANKS.format("", "i"),
        RANKS.format("    u32 arrived = atomic_inc(p.split_arrivals, 2);\n", "(i + arrived) % SPLITS"),
        mutants_table.SPLIT_CHUNKS),
    "cluster_barrier_of_one_block": (
        "chunk_cluster.cuh", "cluster_sync(); // mutant: cluster_read_too_early", "block_sync();",
        mutants_table.SPLIT_CHUNKS),
    "decode_partials_over_stages": (
        "decode.cuh", "copy_async_wait<0>();\n    block_sync();", "copy_async_wait<0>();", STREAMS),
    "splits_that_are_not_acquired": (
        "ptx.cuh", "atom.acq_rel.gpu.inc.u32", "atom.relaxed.gpu.inc.u32", STREAMS),
    "record_without_a_lock": (
        "ptx.cuh", "atom.acq_rel.gpu.exch.b32", "atom.relaxed.gpu.exch.b32", ERRORS),
    "append_arrives_before_its_block": (
        "append.cuh", "if (!e.owns_seq) return;\n    block_sync();\n", "if (!e.owns_seq) return;\n", STREAMS),
    "moved_rows_not_yet_read": (
        "move_rows.cuh", "block_sync(); // mutant: rows_moved_before_they_are_read", "warp_sync();", ROW_MOVES),
    # Layouts of fragments and packed numbers, which the stand-in has functions of its own for.
    "values_not_transposed": (
        "ptx.cuh", "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
        STREAMS),
    "probabilities_not_transposed": (
        "decode_numbers.cuh",
        "{transpose_matrix(pack(probs[0][0], probs[1][0])), transpose_matrix(pack(probs[0][1], probs[1][1]))}",
        "{pack(probs[0][0], probs[1][0]), pack(probs[0][1], probs[1][1])}", STREAMS),
    "halves_swapped": (
        "ptx.cuh", '"cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(hi), "f"(lo)',
        '"cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(lo), "f"(hi)', STREAMS),
    "codes_of_the_wrong_bytes": (
        "ptx.cuh", "return __byte_perm(x, y, digits);", "return __byte_perm(y, x, digits);", STREAMS),
    "scales_by_half": (
        "ptx.cuh", "fma.rn.bf16x2 %0, %1, %2, %3;", "fma.rn.bf16x2 %0, %1, %2, %1;", STREAMS),
    "copies_of_four_bytes_too_few": (
        "ptx.cuh", '"r"(valid ? BYTES : 0)', '"r"(valid ? BYTES - 1 : 0)', STREAMS),
}


def stand_in():
    """The stand-in's mutants in the same form."""
    lines, problems = mutants.find(ROOT, mutants_table.ALL)
    table = {}
    for name, line in lines.items():
        if name not in mutants_table.CUDA or not line.file.startswith(str(KERNELS.relative_to(ROOT))):
            continue
        mutant = mutants_table.CUDA[name]
        text = (ROOT / line.file).read_text().splitlines(keepends=True)
        # With the lines before it, until the text stands once.
        begin = line.number - 1
        while "".join(text).count("".join(text[begin:line.number])) != 1:
            begin -= 1
        old = "".join(text[begin:line.number])
        new = "".join(text[begin:line.number - 1]) + mutants.changed(line.code, mutant) + "\n"
        table[name] = (pathlib.Path(line.file).name, old, new, mutant.first or STREAMS)
    return table, problems


def check(table):
    """What does not fit the sources."""
    for name, (file, old, _, _) in table.items():
        n = (KERNELS / file).read_text().count(old)
        elsewhere = sum(p.read_text().count(old) for p in KERNELS.glob("*.cu*") if p.name != file)
        if (n, elsewhere) != (1, 0):
            yield f"{name}: {old!r} stands {n} times in {file}, {elsewhere} times in other files"


def run(name, mutant, directory, ptx):
    """-> what catches the mutant, or None, and the line to print."""
    _, old, new, (program, test) = mutant
    began = time.monotonic()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(f"{old}\n===>\n{new}\n====\n")
        file.flush()
        environment = {**os.environ, "SKC_TEST_BACKEND": "cuda", "SINKCACHE_CUDA_CACHE_DIR": "",
                       "LD_LIBRARY_PATH": str(ptx.resolve()), "SKC_SHIM_MULTIPROCESSORS": "8",
                       # As scripts/mutants.py: one shape, and few replays.
                       "SKC_SHAPE": "7", "SKC_STREAMS": "8", "SKC_REPLAYS": "12", "SKC_SOAK": "100",
                       "SKC_PTX_REPLACE": file.name, "RUST_BACKTRACE": "0"}
        done = subprocess.run([directory.resolve() / program, "--exact", test, "--nocapture"], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    said = done.stdout
    made = re.findall(r"^ptx: (\d+) replacements$", said, re.MULTILINE)
    if "does not compile" in said or not any(int(n) for n in made):
        caught, why = None, "does not compile" if made else "no kernel was compiled"
    elif done.returncode == 0:
        caught, why = None, "survived"
    else:
        race = re.search(r"^(?:.*: )?RACE .*?: (.*)$", said, re.MULTILINE)
        failed = re.search(r"^skc_shim: (.*)$", said, re.MULTILINE)
        caught = race[1] if race else failed[1][:80] if failed else "other results"
        why = f"caught: {caught}"
    return caught, f"{name:36s} {time.monotonic() - began:5.1f} s  {why}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=pathlib.Path)
    parser.add_argument("ptx", nargs="?", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--stand-in", action="store_true", help="the mutants of scripts/mutants_table.py")
    parser.add_argument("--check", action="store_true", help="each has its place in the sources")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    table, problems = stand_in() if options.stand_in else (MUTANTS, [])
    problems = [*problems, *check(table)]
    if problems:
        sys.exit("\n".join(problems))
    if options.check:
        print(f"mutants for PTX: {len(table)}, each with its place")
        return
    if not options.ptx:
        parser.error("DIR and PTX are missing")
    names = options.names or list(table)
    if unknown := [name for name in names if name not in table]:
        parser.error(f"no such mutant: {' '.join(unknown)}")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        caught = 0
        for found, line in pool.map(lambda n: run(n, table[n], options.directory, options.ptx), names):
            caught += found is not None
            print(line, flush=True)
    print(f"{caught} of {len(names)} mutants caught")
    sys.exit(caught != len(names))


if __name__ == "__main__":
    main()
