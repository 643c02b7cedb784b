#!/usr/bin/env python3
"""Does the test suite catch mistakes? Each named mutant is one wrong line in a copy of the sources; the tests must fail.

    python3 scripts/mutants.py            all mutants
    python3 scripts/mutants.py NAME ...   some of them

Exit status 1 when a mutant survives, does not compile, or no longer finds its line. Those of the CUDA kernels need the host
shim in build/shim (`tools/cuda_shim/build.sh build/shim`).
"""
import collections
import concurrent.futures
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLACES = ROOT / "target" / "mutants"
CRATE_TYPES = 'crate-type = ["cdylib", "staticlib", "rlib"]'
# Programs of the tests, by the names of their files.
OURS = [f"{path.stem if path.is_file() else path.name}-*" for path in (ROOT / "tests").iterdir()]

# name: (file, right line, wrong line)
MUTANTS = {
    "evicted_off_by_one": ("src/ring.rs", "len.saturating_sub(self.n_sink + self.window))", "len.saturating_sub(self.n_sink + self.window + 1))"),
    "ring_without_chunk_room": ("src/ring.rs", "let ring_slots = window + max_rewind.max(u64::from(max_chunk));",
                                "let ring_slots = window + max_rewind.max(u64::from(max_chunk) - 1);"),
    "evict_counts_from_zero": ("src/ring.rs", "self.floor = ring.evicted(self.len, self.floor) + n;", "self.floor += n;"),
    "rewind_keeps_what_was_pushed_out": ("src/cache/edit.rs", "        self.apply(|_, state, len| state.cut(len));\n        Ok(())\n    }\n\n    /// Empties",
                                         "        self.apply(|layer, state, len| {\n            state.floor = layer.ring.evicted(state.len, state.floor);\n            state.cut(len);\n        });\n        Ok(())\n    }\n\n    /// Empties"),
    "rewind_forgets_the_highest": ("src/ring.rs", "            self.len = len;\n", "            self.len = len;\n            self.highest = len;\n"),
    "reset_keeps_floor": ("src/cache/edit.rs", "|_, state, _| *state = Seq::default()", "|_, state, _| *state = Seq { floor: state.floor, ..Seq::default() }"),
    "fork_copies_too_little": ("src/cache/edit.rs", "state.highest.min(layer.ring.slots())", "state.len.saturating_sub(1).min(layer.ring.slots())"),
    "stale_slot_visible": ("src/backend/cpu/query_tile.rs", "ring.n_sink + self.evicted..end", "ring.n_sink + self.evicted.saturating_sub(1)..end"),
    "future_token_visible": ("src/backend/cpu/query_tile.rs", "let end = self.index + 1;", "let end = self.index + 2;"),
    "sink_turn_dropped": ("src/backend/cpu/query_tile.rs", "let turned = position.wrapping_sub(evicted);", "let turned = position;"),
    "sink_turned_the_other_way": ("src/backend/cpu/query_tile.rs", "0_u64.wrapping_sub(evicted)", "evicted"),
    "mscale_twice": ("src/backend/cpu/query_tile.rs", "0_u64.wrapping_sub(evicted), 1.0", "0_u64.wrapping_sub(evicted), layer.mscale"),
    "sink_distance_in_the_stream": ("src/backend/cpu/query_tile.rs", "self.index - self.evicted - key", "self.index - key"),
    "learned_sink_scaled": ("src/backend/cpu/query_tile.rs", "Some(&logit) => (logit, 1.0),", "Some(&logit) => (logit * layer.scale, 1.0),"),
    "bias_before_softcap": ("src/backend/cpu/simd/softmax.rs", "if a.softcap > 0.0 {", "if a.softcap > 0.0 && seen.slope == 0.0 {"),
    "key_angle_of_the_first_row": ("src/backend/cpu/query_tile.rs", "entry.start.wrapping_add(index), layer.mscale, cos, sin", "entry.start.wrapping_add(entry.first), layer.mscale, cos, sin"),
    "angles_of_another_slab": ("src/backend/cpu/query_tile.rs", "        (token - start) as usize\n", "        (token - tokens.start) as usize % half.max(1)\n"),
    "part_of_another_tile": ("src/backend/cpu/query_tile.rs", "let first_row = self.first_row + first as u64;", "let first_row = self.first_row;"),
    "block_begins_late": ("src/backend/cpu/query_tile.rs", "let lo = offset % PAD;", "let lo = offset % PAD + u64::from(offset % PAD == 7);"),
    "span_merged_without_keep": ("src/backend/cpu/decode.rs", "*a = *a * keep + p * take", "*a = *a + p * take"),
    "key_in_another_lane": ("src/backend/cpu/kv_store.rs", "group.add(d * GROUP + lane).write(x)", "group.add(d * GROUP + (lane ^ 1)).write(x)"),
    "part_of_a_group_written_whole": ("src/backend/cpu/append.rs", "filter(|_| n == GROUP as u64)", "filter(|_| n >= GROUP as u64 - 1)"),
    "values_of_another_half": ("src/backend/cpu/kv_store.rs", "values.add(2 * pair_at(row, in_tile, 0))", "values.add(2 * pair_at(row, 0, 0))"),
    "masked_score_counts": ("src/backend/cpu/simd/softmax.rs", "            edge::<V>(row, &seen, end - 1, lowest);", "            edge::<V>(row, &seen, first, lowest);"),
    "float_positions": ("src/rope.rs", "sin_cos(position.wrapping_mul(f))", "sin_cos((position as f32 as u64).wrapping_mul(f))"),
    "no_weight_is_nan": ("src/backend/cpu/simd/softmax.rs", "if new == f32::NEG_INFINITY && (seen", "if new == f32::INFINITY && (seen"),
    "masked_by_weight_zero": ("src/backend/cpu/decode.rs", "if seen.iter().all(|s| (s.from, s.to) == (from, to)) {", "if !seen.is_empty() {"),
    "columns_counted_from_the_block": ("src/backend/cpu/chunk/f32.rs", "(s.from - from, s.to - from)", "(s.from, s.to)"),
    "last_keys_counted_twice": ("src/backend/cpu/decode.rs", "                from: last,\n", "                from,\n"),
    "infinity_by_the_tile": ("src/backend/cpu/chunk/f32.rs", "let apart = !all_seen &&", "let apart = false && !all_seen &&"),
}
# Where the processor has AMX.
AMX_MUTANTS = {
    "tile_of_the_wrong_rows": ("src/backend/cpu/simd/amx/gemm.rs", "products!(a, 2 * dim, a.add(16 * dim),", "products!(a, 2 * dim, a.add(8 * dim),"),
    "lower_half_left_out": ("src/backend/cpu/simd/amx/gemm.rs", "if a.low.is_null() { 1 } else { 3 }", "if a.low.is_null() { 1 } else { 2 }"),
    "stale_infinity_by_amx": ("src/backend/cpu/chunk/amx.rs", "|| amx_pack::all_finite(v, n * dim_v) {", "|| true {"),
    "only_nan_is_no_weight": ("src/backend/cpu/simd/amx/softmax.rs", ".all(|c| *row.add(c) == f32::NEG_INFINITY)", ".all(|c| *row.add(c) < f32::INFINITY || (*row.add(c)).is_nan())"),
    "rough_power": ("src/backend/cpu/simd/x86_64/avx512.rs", "0.695_116_76, 1.0]", "0.695_116_76, 0.999_5]"),
    "infinity_by_amx": ("src/backend/cpu/chunk/amx.rs", "let apart = !all_seen && !finite;", "let apart = false && !all_seen && !finite;"),
    "tile_weights_of_what_is_not_seen": ("src/backend/cpu/simd/amx/softmax.rs", "                if !WHOLE {", "                if !WHOLE && a.n == 0 {"),
    "tile_sums_without_keep": ("src/backend/cpu/simd/amx/softmax.rs", "_mm512_fmadd_ps(sum, keep, total)", "_mm512_add_ps(sum, total)"),
    "at_once_however_large": ("src/backend/cpu/simd/amx/fused_softmax.rs", "> HEADROOM {", "> 1e30 * HEADROOM {"),
    "at_once_of_what_is_not_seen": ("src/backend/cpu/simd/amx/fused_softmax.rs", "pair.only(one, two);", "let _ = (one, two);"),
    "stale_values_in_tiles": ("src/backend/cpu/chunk/amx.rs", "} else if all_seen && (", "} else if !all_seen || ("),
}
# Where it has AVX-512 FP16.
FP16_MUTANTS = {
    "halves_overflow": ("src/backend/cpu/simd/fp16/pack.rs", "const TOP: i32 = 9;", "const TOP: i32 = 14;"),
    "light_weights_lost": ("src/backend/cpu/simd/fp16/softmax.rs", "let (top, scaled) = if top == f32::NEG_INFINITY { (max, max) } else { (top, top * scale) };", "let (top, scaled) = (max / scale, max);"),
    "halves_of_large_scores": ("src/backend/cpu/simd/fp16/softmax.rs", "_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row.add(i * GROUP)), top), factor)", "_mm512_fmsub_ps(_mm512_loadu_ps(row.add(i * GROUP)), factor, _mm512_mul_ps(top, factor))"),
    "halves_of_a_lesser_block": ("src/backend/cpu/simd/fp16/softmax.rs", "*sum = *sum * *keep + worth * ", "*sum = *sum * *keep + "),
    "small_queries_lost": ("src/backend/cpu/simd/fp16/pack.rs", "*scale = if top >= f32::MIN_POSITIVE && top.is_finite() { top } else { 1.0 };", "*scale = if top >= 1.0 && top.is_finite() { top } else { 1.0 };"),
    "queries_of_halves_unscaled": ("src/backend/cpu/simd/fp16/gemm.rs", "_mm512_fmadd_ps(high, scale, next)", "_mm512_add_ps(high, next)"),
}
PROCESSOR = pathlib.Path("/proc/cpuinfo").read_text()
for flag, mutants in (("amx_bf16", AMX_MUTANTS), ("avx512_fp16", FP16_MUTANTS)):
    if f" {flag}" in PROCESSOR:
        MUTANTS |= mutants
# Of the NEON rung, which the library's own tests must catch on AArch64, elsewhere under QEMU (`scripts/neon_test`).
NEON = "aarch64-unknown-linux-gnu"
NEON_MUTANTS = {
    "neon_maximum_hides_nan": ("src/backend/cpu/simd/aarch64/neon.rs", "vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0)", "vmaxnmq_f32(self.0, other.0)"),
    "neon_lane_beyond_the_range": ("src/backend/cpu/simd/aarch64/neon.rs", "vcltq_s32(lane, limit(to))", "vcleq_s32(lane, limit(to))"),
    "neon_upper_halves": ("src/backend/cpu/simd/aarch64/neon.rs", "fcvtl {x:v}.4s, {h:v}.4h", "fcvtl2 {x:v}.4s, {h:v}.8h"),
}
# Mistakes in the CUDA kernels, which the device tests must catch on the CUDA stand-in.
KERNELS = "src/backend/cuda/kernels/"
KERNEL_MUTANTS = {
    "decode_wrong_fragment": (KERNELS + "decode_tile.cuh", "const u8* v_row = tile.v + (line + matrix / 2 * 8) * ROW_BYTES + matrix % 2 * 16;", "const u8* v_row = tile.v + (line + matrix % 2 * 8) * ROW_BYTES + matrix / 2 * 16;"),
    "chunk_wrong_fragment": (KERNELS + "chunk.cuh", "            a[m][1] = pack(hi[0], hi[1]);\n            a[m][2] = pack(lo[2], lo[3]);\n", "            a[m][1] = pack(lo[2], lo[3]);\n            a[m][2] = pack(hi[0], hi[1]);\n"),
    "decode_missing_barrier": (KERNELS + "decode.cuh", "*step, q, kv_head);\n    block_sync();\n", "*step, q, kv_head);\n"),
    "chunk_missing_barrier": (KERNELS + "chunk.cuh", "        copy_async_wait<STAGES - 2>();\n        block_sync();", "        copy_async_wait<STAGES - 2>();"),
    "copies_not_waited_for": (KERNELS + "decode.cuh", "copy_async_wait<STAGES - 2>();", "copy_async_wait<STAGES - 1>();"),
    "merge_before_all_arrived": (KERNELS + "decode.cuh", "if (*arrived != p.n_splits - 1) return;", "if (*arrived != p.n_splits / 2) return;"),
    "last_key_left_out": (KERNELS + "attention_tile.cuh", "bool valid = key < keys.n;", "bool valid = key + 1 < keys.n;"),
    "lengths_before_all_blocks_read": (KERNELS + "commit.cuh", "if (atomic_inc(&l.append_arrivals[seq_id], blocks - 1) != blocks - 1) return;", "if (atomic_inc(&l.append_arrivals[seq_id], blocks - 1) != 0) return;"),
    "step_reads_old_slots": (KERNELS + "decode.cuh", "        b.window.n -= new_tokens.n - new_tokens.n_sinks;\n", ""),
    "step_without_its_own_key": (KERNELS + "decode.cuh", "keys.n != 0 && first + DECODE_KEYS > keys.stored", "keys.n != 0 && first + DECODE_KEYS > keys.stored + keys.n"),
    "new_token_in_another_tile": (KERNELS + "new_tokens.cuh", "    u32 skipped = first > keys.stored ? first - keys.stored : 0;", "    u32 skipped = 0;"),
    "new_token_not_stored": (KERNELS + "new_tokens.cuh", "bool is_key = i / ROW_VECTORS % 2 == 0;\n        u8* slot", "bool is_key = true;\n        u8* slot"),
    "launch_before_the_last_one_ended": (KERNELS + "append.cuh", "    begin_kernel();\n", ""),
    "hidden_infinity": (KERNELS + "chunk.cuh", "if (masked && has_non_finite(tile.v, KEYS)) {", "if (false && has_non_finite(tile.v, KEYS)) {"),
}

ALL = {**MUTANTS, **NEON_MUTANTS, **KERNEL_MUTANTS}
# The test that is run first, where the usual order comes to it late: it only saves time, the others follow where it passes.
FIRST = {
    "ring_without_chunk_room": ("edges", "an_aborted_step_can_be_done_again"),
    "fork_copies_too_little": ("histories", "random_histories_match_the_definition"),
    "angles_of_another_slab": ("instruction_sets", "long_windows"),
    "masked_by_weight_zero": ("instruction_sets", "edges_keep_infinities_out"),
    "infinity_by_the_tile": ("edges", "poison_reaches_only_those_who_see_it"),
    "stale_infinity_by_amx": ("instruction_sets", "edges_keep_infinities_out"),
    "stale_values_in_tiles": ("instruction_sets", "edges_keep_infinities_out"),
    "infinity_by_amx": ("instruction_sets", "edges_keep_infinities_out"),
    "only_nan_is_no_weight": ("lib", "backend::cpu::simd::weigh::tests::weights_are_those_of_the_plain_way"),
    "halves_of_large_scores": ("lib", "backend::cpu::simd::weigh_halves::tests::the_largest_weight_is_one"),
    "small_queries_lost": ("lib", "backend::cpu::simd::fp16_pack::tests::rows_are_scaled_by_their_largest"),
    "light_weights_lost": ("lib", "backend::cpu::simd::weigh::tests::weights_are_those_of_the_plain_way"),
    "halves_of_a_lesser_block": ("lib", "backend::cpu::simd::weigh::tests::weights_are_those_of_the_plain_way"),
    "rough_power": ("lib", "backend::cpu::simd::avx512::tests::powers_are_as_near_as_stated"),
    "launch_before_the_last_one_ended": ("cuda", "steps::programmatic_launches_change_no_bit"),
    "new_token_in_another_tile": ("cuda", "steps::a_step_stores_what_an_append_stores"),
    "step_without_its_own_key": ("cuda", "steps::a_step_stores_what_an_append_stores"),
    "hidden_infinity": ("cuda", "differential::what_a_query_must_not_see_cannot_reach_it"),
    "merge_before_all_arrived": ("cuda", "differential::streams_agree_with_the_cpu"),
    "decode_wrong_fragment": ("cuda", "differential::streams_agree_with_the_cpu"),
}


class Failure(Exception):
    """The tests cannot tell anything."""


class Suite:
    """Tests that must catch some mutants: programs of cargo's, built and run in this order."""

    def __init__(self, mutants, programs, environment, own_target=True, target=None, runner=()):
        self.mutants, self.programs, self.environment, self.own_target = mutants, programs, environment, own_target
        self.target, self.runner = target, list(runner)
        self.lock, self.passes = threading.Lock(), None

    def build(self, place, program):
        """-> the path of the built program; Failure with what the compiler said."""
        command = ["cargo", "test", "-q", "-p", "sinkcache", "--no-run", "--message-format=json-render-diagnostics"]
        command += ["--lib"] if program == "lib" else ["--test", program]
        command += ["--target", self.target] if self.target else []
        target = place / "target" if self.own_target else ROOT / "target"
        done = subprocess.run(command, cwd=place / "source", capture_output=True, text=True,
                              env={**os.environ, **self.environment, "CARGO_TARGET_DIR": str(target)})
        if done.returncode:
            raise Failure("does not compile:\n" + done.stderr)
        built = [m["executable"] for m in map(json.loads, done.stdout.splitlines()) if m.get("executable") and m["profile"]["test"]]
        assert len(built) == 1, built
        return built[0]

    def failed(self, place, program, path, *arguments):
        """The first test that fails, or None. What is left of the program is then not waited for."""
        run = subprocess.Popen([*self.runner, path, *arguments], cwd=place / "source", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               errors="replace", env={**os.environ, "RUST_BACKTRACE": "0", **self.environment})
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


def suites():
    neon_environment, runner = {}, []
    if platform.machine() != "aarch64":
        neon_environment = {"CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER": "aarch64-linux-gnu-gcc",
                            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER": "qemu-aarch64 -L /usr/aarch64-linux-gnu"}
        runner = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    # One shape and few replays. Fresh kernels each time.
    shim = {"SKC_TEST_BACKEND": "cuda", "SINKCACHE_CUDA_CACHE_DIR": "", "SKC_SHAPE": "7", "SKC_STREAMS": "8", "SKC_REPLAYS": "12", "SKC_SOAK": "100",
            "LD_LIBRARY_PATH": f"{ROOT / 'build' / 'shim'}:{os.environ.get('LD_LIBRARY_PATH', '')}", "SKC_SHIM_MULTIPROCESSORS": "8"}
    # The vectors catch most: the others are built and run for what they let through.
    return (Suite(MUTANTS, ("vectors", "edges", "instruction_sets", "histories", "lib"), {"SKC_HISTORIES": "300", "SKC_SHRINK": "0"}),
            # In the target folder of `scripts/neon_test`, which builds the same dependencies.
            Suite(NEON_MUTANTS, ("lib",), neon_environment, False, NEON, runner),
            Suite(KERNEL_MUTANTS, ("cuda",), shim))


def can_neon():
    """Whether Rust can build for AArch64 and this machine, or QEMU, can run it."""
    libs = subprocess.run(["rustc", "--print", "target-libdir", "--target", NEON], capture_output=True, text=True, check=True).stdout.strip()
    runs = platform.machine() == "aarch64" or (shutil.which("qemu-aarch64") and shutil.which("aarch64-linux-gnu-gcc"))
    return bool(runs) and any(pathlib.Path(libs).glob("libcore-*.rlib"))


def copy_sources(place):
    shutil.rmtree(place / "source", ignore_errors=True)
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    keep = ("src/", "tests/", "benches/", "Cargo.toml", "Cargo.lock", "build.rs", "cbindgen.toml", "include/", "examples/stream")
    for name in names.stdout.splitlines():
        if name.startswith(keep) and (ROOT / name).is_file():
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / "source" / name)
    # The tests link the Rust library: the two for C would be linked anew for every mutant.
    manifest = place / "source" / "Cargo.toml"
    text = manifest.read_text()
    assert text.count(CRATE_TYPES) == 1, CRATE_TYPES
    manifest.write_text(text.replace(CRATE_TYPES, 'crate-type = ["rlib"]'))


def copy_dependencies(place):
    """What `cargo test` has built beside the library itself, so that it is not built once more for every place."""
    built = ROOT / "target" / "debug"
    for folder in ("build", "deps", ".fingerprint"):
        if (built / folder).is_dir() and not (place / "target" / "debug" / folder).exists():
            shutil.copytree(built / folder, place / "target" / "debug" / folder, ignore=shutil.ignore_patterns("*sinkcache*", *OURS))


def mutate(place, suite, name):
    """-> what catches the mutant, or None; Failure where it is none."""
    file, right, wrong = suite.mutants[name]
    path = place / "source" / file
    before = path.read_text()
    if before.count(right) != 1:
        raise Failure(f"its line stands {before.count(right)} times in {file}")
    path.write_text(before.replace(right, wrong))
    try:
        return suite.catches(place, FIRST.get(name))
    finally:
        path.write_text(before)


def work(place, take, wrong):
    """Takes mutants until none is left, or the tests are found to fail by themselves."""
    copy_sources(place)
    copy_dependencies(place)
    while True:
        try:
            suite, name = take()
        except IndexError:
            return
        suite.check(place)
        began = time.monotonic()
        try:
            caught = mutate(place, suite, name)
            outcome = f"caught by {caught}" if caught else "survived"
        except Failure as failure:
            caught, outcome = None, str(failure)
        if not caught:
            wrong.append(name)
        print(f"{name:36s} {time.monotonic() - began:5.1f} s  {outcome}", flush=True)


def main():
    names = sys.argv[1:] or list(ALL)
    if unknown := [n for n in names if n not in ALL]:
        sys.exit(f"no such mutant here: {' '.join(unknown)}")
    if not sys.argv[1:] and not can_neon():
        names = [n for n in names if n not in NEON_MUTANTS]
        print(f"SKIPPED, since nothing here builds or runs AArch64: {' '.join(NEON_MUTANTS)}")
    todo, wrong = collections.deque((suite, name) for suite in suites() for name in suite.mutants if name in names), []
    # Cargo and the tests keep one core busy most of the time: two places, from both ends, so that each builds few programs.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(work, PLACES / "front", todo.popleft, wrong), pool.submit(work, PLACES / "back", todo.pop, wrong)]
        for end in concurrent.futures.as_completed(ends):
            if end.exception():
                todo.clear()
                error = end.exception()
                sys.exit(str(error)) if isinstance(error, Failure) else end.result()
    print(f"{len(names) - len(wrong)} of {len(names)} mutants caught")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
