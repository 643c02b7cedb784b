#!/usr/bin/env python3
"""Does the test suite catch mistakes? Each named mutant is one wrong line in a copy of the sources; the tests must fail.

    python3 scripts/mutants.py            all mutants
    python3 scripts/mutants.py NAME ...   some of them

Exit status 1 when a mutant survives, does not compile, or no longer finds its line. Those of the CUDA kernels need the host
shim in build/shim (`tests/shim/build.sh build/shim`).
"""
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPY = ROOT / "target" / "mutants"
TESTS = ["--test", "vectors", "--test", "histories", "--test", "edges"]

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
    "stale_slot_visible": ("src/backend/cpu/attend.rs", "Part::Window => self.ring.n_sink + self.evicted(i)..end,",
                           "Part::Window => self.ring.n_sink + self.evicted(i).saturating_sub(u64::from(i > 0))..end,"),
    "future_token_visible": ("src/backend/cpu/attend.rs", "Part::Window => self.ring.n_sink + self.evicted(i)..end,",
                             "Part::Window => self.ring.n_sink + self.evicted(i)..end + 1,"),
    "sink_turn_dropped": ("src/backend/cpu/attend.rs", "position.wrapping_sub(evicted), layer.mscale", "position, layer.mscale"),
    "sink_turned_the_other_way": ("src/backend/cpu/attend.rs", "0_u64.wrapping_sub(evicted)", "evicted"),
    "mscale_twice": ("src/backend/cpu/attend.rs", "0_u64.wrapping_sub(evicted), 1.0", "0_u64.wrapping_sub(evicted), layer.mscale"),
    "sink_distance_in_the_stream": ("src/backend/cpu/attend.rs", "Part::Sinks => self.index(i) - self.evicted(i),", "Part::Sinks => self.index(i),"),
    "learned_sink_scaled": ("src/backend/cpu/attend.rs", "Some(&logit) => (logit, 1.0),", "Some(&logit) => (logit * layer.scale, 1.0),"),
    "bias_before_softcap": ("src/backend/cpu/attend.rs", "if layer.softcap > 0.0 {", "if layer.softcap > 0.0 && layer.alibi_slopes.is_empty() {"),
    "key_angle_of_the_first_row": ("src/backend/cpu/append.rs", "entry.start.wrapping_add(index)", "entry.start.wrapping_add(entry.first)"),
    "float_positions": ("src/phase.rs", "sin_cos(position.wrapping_mul(f))", "sin_cos((position as f32 as u64).wrapping_mul(f))"),
    "no_weight_is_nan": ("src/backend/cpu/attend.rs", "if max == f32::NEG_INFINITY && scores", "if max == f32::INFINITY && scores"),
    "masked_by_weight_zero": ("src/backend/cpu/attend.rs", "                sum += weight;\n", "                sum += weight;\n                part.iter_mut().zip(v_all).for_each(|(p, v)| *p += 0.0 * v);\n"),
}
# A mutant that needs a second line.
ALSO = {
    "masked_by_weight_zero": ("src/backend/cpu/attend.rs", "            let mut sum = 0.0;\n", "            let mut sum = 0.0;\n            let v_all = &v[v.len() - dim_v..];\n"),
}

# Wrong lines of the CUDA kernels, which the device tests must catch on the host shim.
KERNELS = "src/backend/cuda/kernels/"
KERNEL_MUTANTS = {
    "decode_wrong_fragment": (KERNELS + "decode.cuh", "const u8* v_row = v + (line + matrix / 2 * 8) * ROW + matrix % 2 * 16;", "const u8* v_row = v + (line + matrix % 2 * 8) * ROW + matrix / 2 * 16;"),
    "chunk_wrong_fragment": (KERNELS + "chunk.cuh", "u32 a[4] = {pack(x[0], x[1]), pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3])};", "u32 a[4] = {pack(x[0], x[1]), pack(y[0], y[1]), pack(x[2], x[3]), pack(y[2], y[3])};"),
    "decode_missing_barrier": (KERNELS + "decode.cuh", "    }\n    block_sync();\n\n    Decode d;", "    }\n\n    Decode d;"),
    "chunk_missing_barrier": (KERNELS + "chunk.cuh", "        copy_async_wait<0>();\n        block_sync();", "        copy_async_wait<0>();"),
    "copies_not_waited_for": (KERNELS + "decode.cuh", "copy_async_wait<STAGES - 2>();", "copy_async_wait<STAGES - 1>();"),
    "merge_before_all_arrived": (KERNELS + "decode.cuh", "if (*arrived != p.n_splits - 1) return;", "if (*arrived != p.n_splits / 2) return;"),
    "last_key_left_out": (KERNELS + "tile.cuh", "bool valid = key < s.n;", "bool valid = key + 1 < s.n;"),
    "lengths_before_all_blocks_read": (KERNELS + "append.cuh", "atomic_inc(&l.arrivals[e.seq], grid_y() - 1) == grid_y() - 1", "atomic_inc(&l.arrivals[e.seq], grid_y() - 1) == 0"),
    "hidden_infinity": (KERNELS + "chunk.cuh", "if (edge && tile_overflows(v, KEYS)) {", "if (false && tile_overflows(v, KEYS)) {"),
}

ALL = {**MUTANTS, **KERNEL_MUTANTS}


def sources():
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    keep = ("src/", "tests/", "benches/", "Cargo.toml", "Cargo.lock", "build.rs", "cbindgen.toml", "include/", "examples/stream")
    return [n for n in names.stdout.splitlines() if n.startswith(keep) and (ROOT / n).is_file()]


def cargo(*args):
    env = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target"), "SKC_HISTORIES": "300", "RUST_BACKTRACE": "0"}
    return subprocess.run(["cargo", "test", "-q", "--no-fail-fast", "-p", "sinkcache", *TESTS, *args], cwd=COPY, env=env, capture_output=True, text=True)


def on_shim(*args):
    """The device tests on the host shim, in one shape and with few replays. Fresh kernels each time."""
    shim = ROOT / "build" / "shim"
    env = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target"), "RUST_BACKTRACE": "0", "SKC_TEST_BACKEND": "cuda", "SINKCACHE_CUDA_CACHE_DIR": "",
           "LD_LIBRARY_PATH": f"{shim}:{os.environ.get('LD_LIBRARY_PATH', '')}", "SKC_SHAPE": "7", "SKC_STREAMS": "8", "SKC_REPLAYS": "12", "SKC_SOAK": "100"}
    return subprocess.run(["cargo", "test", "-q", "--no-fail-fast", "-p", "sinkcache", "--test", "cuda", *args], cwd=COPY, env=env, capture_output=True, text=True)


def mutate(name):
    """-> None when the mutant is caught, else what is wrong."""
    changes = [ALL[name]] + ([ALSO[name]] if name in ALSO else [])
    test = on_shim if name in KERNEL_MUTANTS else cargo
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
    shutil.rmtree(COPY, ignore_errors=True)
    for name in sources():
        (COPY / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, COPY / name)
    for table, test in ((MUTANTS, cargo), (KERNEL_MUTANTS, on_shim)):
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
