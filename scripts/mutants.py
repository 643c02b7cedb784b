#!/usr/bin/env python3
"""Does the test suite catch mistakes? Each named mutant is one wrong line in a copy of the sources; the tests must fail.

    python3 scripts/mutants.py            all mutants
    python3 scripts/mutants.py NAME ...   some of them

Exit status 1 when a mutant survives, does not compile, or no longer finds its line. Those of the CUDA kernels need the host
shim in build/shim (`tests/shim/build.sh build/shim`).
"""
import os
import pathlib
import platform
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPY = ROOT / "target" / "mutants"
# The vectors catch most: the others are built and run for what they let through.
FIRST = ("vectors",)
THEN = ("histories", "edges", "rungs")

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
    "stale_slot_visible": ("src/backend/cpu/tile.rs", "ring.n_sink + self.evicted..end", "ring.n_sink + self.evicted.saturating_sub(1)..end"),
    "future_token_visible": ("src/backend/cpu/tile.rs", "let end = self.index + 1;", "let end = self.index + 2;"),
    "sink_turn_dropped": ("src/backend/cpu/tile.rs", "let turned = position.wrapping_sub(evicted);", "let turned = position;"),
    "sink_turned_the_other_way": ("src/backend/cpu/tile.rs", "0_u64.wrapping_sub(evicted)", "evicted"),
    "mscale_twice": ("src/backend/cpu/tile.rs", "0_u64.wrapping_sub(evicted), 1.0", "0_u64.wrapping_sub(evicted), layer.mscale"),
    "sink_distance_in_the_stream": ("src/backend/cpu/tile.rs", "self.index - self.evicted - key", "self.index - key"),
    "learned_sink_scaled": ("src/backend/cpu/tile.rs", "Some(&logit) => (logit, 1.0),", "Some(&logit) => (logit * layer.scale, 1.0),"),
    "bias_before_softcap": ("src/backend/cpu/simd/weigh.rs", "if a.softcap > 0.0 {", "if a.softcap > 0.0 && seen.slope == 0.0 {"),
    "key_angle_of_the_first_row": ("src/backend/cpu/tile.rs", "entry.start.wrapping_add(index), layer.mscale, cos, sin", "entry.start.wrapping_add(entry.first), layer.mscale, cos, sin"),
    "angles_of_another_slab": ("src/backend/cpu/tile.rs", "        (token - start) as usize\n", "        (token - tokens.start) as usize % half.max(1)\n"),
    "part_of_another_tile": ("src/backend/cpu/tile.rs", "let first_row = self.first_row + first as u64;", "let first_row = self.first_row;"),
    "block_begins_late": ("src/backend/cpu/tile.rs", "let lo = offset % PAD;", "let lo = offset % PAD + u64::from(offset % PAD == 7);"),
    "span_merged_without_keep": ("src/backend/cpu/decode.rs", "*a = *a * keep + p * take", "*a = *a + p * take"),
    "key_in_another_lane": ("src/backend/cpu/store.rs", "group.add(d * GROUP + lane).write(x)", "group.add(d * GROUP + (lane ^ 1)).write(x)"),
    "part_of_a_group_written_whole": ("src/backend/cpu/append.rs", "let whole = n == GROUP as u64 &&", "let whole = n >= GROUP as u64 - 1 &&"),
    "values_of_another_half": ("src/backend/cpu/store.rs", "values.add(2 * pair_at(row, in_tile, 0))", "values.add(2 * pair_at(row, 0, 0))"),
    "masked_score_counts": ("src/backend/cpu/simd/weigh.rs", "            edge::<V>(row, &seen, end - 1, lowest);", "            edge::<V>(row, &seen, first, lowest);"),
    "float_positions": ("src/phase.rs", "sin_cos(position.wrapping_mul(f))", "sin_cos((position as f32 as u64).wrapping_mul(f))"),
    "no_weight_is_nan": ("src/backend/cpu/simd/weigh.rs", "if new == f32::NEG_INFINITY && (seen", "if new == f32::INFINITY && (seen"),
    "masked_by_weight_zero": ("src/backend/cpu/decode.rs", "if seen.iter().all(|s| (s.from, s.to) == (from, to)) {", "if !seen.is_empty() {"),
    "infinity_by_the_tile": ("src/backend/cpu/chunk.rs", "let apart = !all_seen &&", "let apart = false && !all_seen &&"),
}
# Where the processor has AMX.
AMX_MUTANTS = {
    "tile_of_the_wrong_rows": ("src/backend/cpu/simd/amx.rs", "products!(a, 2 * dim, a.add(16 * dim),", "products!(a, 2 * dim, a.add(8 * dim),"),
    "lower_half_left_out": ("src/backend/cpu/simd/amx.rs", "if a.low.is_null() { 1 } else { 3 }", "if a.low.is_null() { 1 } else { 2 }"),
    "stale_infinity_by_amx": ("src/backend/cpu/tiles.rs", "|| amx::all_finite(v, n * dim_v) {", "|| true {"),
    "only_nan_is_no_weight": ("src/backend/cpu/simd/weigh_tiles.rs", ".all(|c| *row.add(c) == f32::NEG_INFINITY)", ".all(|c| *row.add(c) < f32::INFINITY || (*row.add(c)).is_nan())"),
    "rough_power": ("src/backend/cpu/simd/weigh_tiles.rs", "0.695_116_76, 1.0]", "0.695_116_76, 0.999_5]"),
    "infinity_by_amx": ("src/backend/cpu/tiles.rs", "let apart = !all_seen && !finite;", "let apart = false && !all_seen && !finite;"),
    "tile_weights_of_what_is_not_seen": ("src/backend/cpu/simd/weigh_tiles.rs", "                if !WHOLE {", "                if !WHOLE && a.n == 0 {"),
    "tile_sums_without_keep": ("src/backend/cpu/simd/weigh_tiles.rs", "_mm512_fmadd_ps(sum, keep, total)", "_mm512_add_ps(sum, total)"),
    "at_once_however_large": ("src/backend/cpu/simd/weigh_at_once.rs", "> HEADROOM {", "> 1e30 * HEADROOM {"),
    "at_once_of_what_is_not_seen": ("src/backend/cpu/simd/weigh_at_once.rs", "pair.only(one, two);", "let _ = (one, two);"),
    "columns_counted_from_the_block": ("src/backend/cpu/chunk.rs", "(s.from - from, s.to - from)", "(s.from, s.to)"),
    "stale_values_in_tiles": ("src/backend/cpu/tiles.rs", "} else if all_seen && (", "} else if !all_seen || ("),
}
with open("/proc/cpuinfo") as f:
    if " amx_bf16" in f.read():
        MUTANTS |= AMX_MUTANTS
FP16_MUTANTS = {
    "halves_overflow": ("src/backend/cpu/simd/fp16.rs", "const LARGEST: f32 = 2000.0;", "const LARGEST: f32 = 6e4;"),
    "halves_too_small": ("src/backend/cpu/simd/fp16.rs", "const SMALLEST: f32 = 0.015_625;", "const SMALLEST: f32 = 0.0;"),
    "queries_of_halves_unscaled": ("src/backend/cpu/simd/fp16.rs", "_mm512_fmadd_ps(high, scale, next)", "_mm512_add_ps(high, next)"),
}
with open("/proc/cpuinfo") as f:
    if " avx512_fp16" in f.read():
        MUTANTS |= FP16_MUTANTS
# Of the NEON rung, which the library's own tests must catch on AArch64, elsewhere under QEMU (`scripts/neon_test`).
NEON = "aarch64-unknown-linux-gnu"
NEON_MUTANTS = {
    "neon_maximum_hides_nan": ("src/backend/cpu/simd/neon.rs", "vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0)", "vmaxnmq_f32(self.0, other.0)"),
    "neon_lane_beyond_the_range": ("src/backend/cpu/simd/neon.rs", "vcltq_s32(lane, limit(to))", "vcleq_s32(lane, limit(to))"),
    "neon_upper_halves": ("src/backend/cpu/simd/neon.rs", "fcvtl {x:v}.4s, {h:v}.4h", "fcvtl2 {x:v}.4s, {h:v}.8h"),
}
# Wrong lines of the CUDA kernels, which the device tests must catch on the host shim.
KERNELS = "src/backend/cuda/kernels/"
KERNEL_MUTANTS = {
    "decode_wrong_fragment": (KERNELS + "columns.cuh", "const u8* v_row = v + (line + matrix / 2 * 8) * ROW + matrix % 2 * 16;", "const u8* v_row = v + (line + matrix % 2 * 8) * ROW + matrix / 2 * 16;"),
    "chunk_wrong_fragment": (KERNELS + "chunk.cuh", "u32 a[4] = {pack(x[0], x[1]), pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3])};", "u32 a[4] = {pack(x[0], x[1]), pack(y[0], y[1]), pack(x[2], x[3]), pack(y[2], y[3])};"),
    "decode_missing_barrier": (KERNELS + "decode.cuh", "oldest, kv_head);\n    block_sync();\n", "oldest, kv_head);\n"),
    "chunk_missing_barrier": (KERNELS + "chunk.cuh", "        copy_async_wait<STAGES - 2>();\n        block_sync();", "        copy_async_wait<STAGES - 2>();"),
    "copies_not_waited_for": (KERNELS + "decode.cuh", "copy_async_wait<STAGES - 2>();", "copy_async_wait<STAGES - 1>();"),
    "merge_before_all_arrived": (KERNELS + "decode.cuh", "if (*arrived != p.n_splits - 1) return;", "if (*arrived != p.n_splits / 2) return;"),
    "last_key_left_out": (KERNELS + "tile.cuh", "bool valid = key < s.n;", "bool valid = key + 1 < s.n;"),
    "lengths_before_all_blocks_read": (KERNELS + "advance.cuh", "if (atomic_inc(&l.arrivals[seq_id], blocks - 1) != blocks - 1) return;", "if (atomic_inc(&l.arrivals[seq_id], blocks - 1) != 0) return;"),
    "step_reads_old_slots": (KERNELS + "decode.cuh", "        window.n -= fresh.in_window;\n", ""),
    "step_without_its_own_key": (KERNELS + "decode.cuh", "n != 0 && first + DECODE_KEYS > stored", "n != 0 && first + DECODE_KEYS > stored + n"),
    "fresh_token_in_another_tile": (KERNELS + "fresh.cuh", "    u32 skipped = first > stored ? first - stored : 0;", "    u32 skipped = 0;"),
    "fresh_token_not_stored": (KERNELS + "fresh.cuh", "bool key = i / PIECES % 2 == 0;\n        u8* slot", "bool key = true;\n        u8* slot"),
    "launch_before_the_last_one_ended": (KERNELS + "append.cuh", "    begin_kernel();\n", ""),
    "hidden_infinity": (KERNELS + "chunk.cuh", "if (edge && tile_overflows(v, KEYS)) {", "if (false && tile_overflows(v, KEYS)) {"),
}

ALL = {**MUTANTS, **NEON_MUTANTS, **KERNEL_MUTANTS}


def sources():
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    keep = ("src/", "tests/", "benches/", "Cargo.toml", "Cargo.lock", "build.rs", "cbindgen.toml", "include/", "examples/stream")
    return [n for n in names.stdout.splitlines() if n.startswith(keep) and (ROOT / n).is_file()]


def cargo(*args):
    """The first tests, and where they pass the others."""
    for tests in (FIRST, THEN):
        done = some(tests, *args)
        if done.returncode or "--no-run" in args:
            break
    return done


def some(tests, *args):
    names = ["--lib"] if tests is THEN else []
    names += [word for test in tests for word in ("--test", test)]
    env = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target"), "SKC_HISTORIES": "300", "RUST_BACKTRACE": "0"}
    return subprocess.run(["cargo", "test", "-q", "-p", "sinkcache", *names, *args], cwd=COPY, env=env, capture_output=True, text=True)


def can_neon():
    """Whether Rust can build for AArch64 and this machine, or QEMU, can run it."""
    libs = subprocess.run(["rustc", "--print", "target-libdir", "--target", NEON], capture_output=True, text=True, check=True).stdout.strip()
    runs = platform.machine() == "aarch64" or (shutil.which("qemu-aarch64") and shutil.which("aarch64-linux-gnu-gcc"))
    return bool(runs) and any(pathlib.Path(libs).glob("libcore-*.rlib"))


def on_neon(*args):
    env = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target"), "RUST_BACKTRACE": "0"}
    if platform.machine() != "aarch64":
        env |= {"CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER": "aarch64-linux-gnu-gcc",
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER": "qemu-aarch64 -L /usr/aarch64-linux-gnu"}
    return subprocess.run(["cargo", "test", "-q", "-p", "sinkcache", "--target", NEON, "--lib", *args], cwd=COPY, env=env, capture_output=True, text=True)


def on_shim(*args):
    """The device tests on the host shim, in one shape and with few replays. Fresh kernels each time."""
    shim = ROOT / "build" / "shim"
    env = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target"), "RUST_BACKTRACE": "0", "SKC_TEST_BACKEND": "cuda", "SINKCACHE_CUDA_CACHE_DIR": "",
           "LD_LIBRARY_PATH": f"{shim}:{os.environ.get('LD_LIBRARY_PATH', '')}", "SKC_SHAPE": "7", "SKC_STREAMS": "8", "SKC_REPLAYS": "12", "SKC_SOAK": "100",
           "SKC_SHIM_MULTIPROCESSORS": "8"}
    return subprocess.run(["cargo", "test", "-q", "-p", "sinkcache", "--test", "cuda", *args], cwd=COPY, env=env, capture_output=True, text=True)


def mutate(name):
    """-> None when the mutant is caught, else what is wrong."""
    changes = [ALL[name]]
    test = on_shim if name in KERNEL_MUTANTS else on_neon if name in NEON_MUTANTS else cargo
    texts = {}
    for file, right, wrong in changes:
        text = texts.get(file) or (COPY / file).read_text()
        if text.count(right) != 1:
            return f"its line stands {text.count(right)} times in {file}"
        texts[file] = text.replace(right, wrong)
    before = {file: (COPY / file).read_text() for file in texts}
    for file, text in texts.items():
        (COPY / file).write_text(text)
    try:
        built = test("--no-run")
        if built.returncode:
            return "does not compile:\n" + built.stderr
        return None if test().returncode else "survived"
    finally:
        for file, text in before.items():
            (COPY / file).write_text(text)


def main():
    names = sys.argv[1:] or list(ALL)
    if not sys.argv[1:] and not can_neon():
        names = [n for n in names if n not in NEON_MUTANTS]
        print(f"SKIPPED, since nothing here builds or runs AArch64: {' '.join(NEON_MUTANTS)}")
    shutil.rmtree(COPY, ignore_errors=True)
    for name in sources():
        (COPY / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, COPY / name)
    for table, test in ((MUTANTS, cargo), (NEON_MUTANTS, on_neon), (KERNEL_MUTANTS, on_shim)):
        if any(name in table for name in names) and test().returncode:
            sys.exit("the tests fail without any mutant")
    wrong = 0
    for name in names:
        outcome = mutate(name)
        wrong += outcome is not None
        print(f"{name:36s} {outcome or 'caught'}", flush=True)
    print(f"{len(names) - wrong} of {len(names)} mutants caught")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
