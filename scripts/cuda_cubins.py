#!/usr/bin/env python3
"""Builds the library with CUDA kernels built in (feature `cubins`), and runs it where there is no compiler.

    scripts/cuda_cubins.py SHIM      SHIM: folder of the stand-in driver and compiler (tools/cuda_shim/build.sh)

With NVIDIA's compiler (as scripts/cuda_variants.py finds it): the library builds, and carries ELF files for the right
architectures; bad lists fail the build with a text. With the stand-in's: what is built in runs, tests of the backend
included, where no compiler can be found, and what is not built in does what it should.
"""
import ctypes
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

import cuda_variants

ROOT = cuda_variants.ROOT
BUILD = ["cargo", "test", "-p", "sinkcache", "--features", "cubins", "--no-run", "--message-format=json"]
BUILD += ["--test", "cubins"]
TESTS = [*BUILD, "--lib", "--test", "vectors", "--test", "cuda"]
# What decides where a compiler is looked for.
PLACES = ("SINKCACHE_NVRTC_DIR", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX")
EM_CUDA = 190
# Tests of tests/cubins.rs: device, whether there is a compiler. First where the code is NVIDIA's, whose like no
# stand-in loads.
REFUSED = {
    "a_driver_that_refuses_what_is_built_in": (90, True),
    "a_driver_that_refuses_all_there_is": (90, False),
}
CASES = {
    "what_is_built_in_needs_no_compiler": (90, False),
    "what_is_not_built_in_runs_and_says_so": (90, False),
    "the_log_says_so": (90, False),
    "a_later_device_of_the_same_major_version": (86, False),
    "a_device_that_nothing_runs_on_is_refused": (100, False),
    "the_compiler_does_the_rest": (90, True),
    "the_compiler_before_code_for_another_device": (86, True),
}


def cargo(command, nvrtc, archs, shapes):
    """-> (exit code, cargo's messages, its errors)"""
    environment = {**os.environ, "SINKCACHE_NVRTC_DIR": str(nvrtc), "SINKCACHE_CUBIN_ARCHS": archs,
                   "SINKCACHE_CUBIN_SHAPES": shapes}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def built(command, nvrtc, archs, shapes):
    code, messages, errors = cargo(command, nvrtc, archs, shapes)
    if code != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    return messages


def executables(messages):
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def architecture(cubin):
    """Compute capability times ten of an ELF file of device code, as CUDA 13 writes it (ABI version 8: bits 8 to 15 of
    the flags) or CUDA 12 (version 7: bits 0 to 7)."""
    if cubin[:4] != b"\x7fELF" or struct.unpack_from("<H", cubin, 18)[0] != EM_CUDA:
        return None
    flags = struct.unpack_from("<I", cubin, 48)[0]
    return flags >> 8 & 255 if cubin[8] >= 8 else flags & 255


def with_nvidias_compiler(nvrtc, shim, folder):
    """Two architectures, two shapes: six cubins, each whole in the shared library."""
    messages = built(BUILD, nvrtc, "80,90", "64x2:bf16,128x4:f16")
    scripts = [m for m in messages if m["reason"] == "build-script-executed"]
    out = next(m["out_dir"] for m in scripts if m["package_id"].startswith(f"path+file://{ROOT}#"))
    artifacts = [m for m in messages if m["reason"] == "compiler-artifact" and m["target"]["name"] == "sinkcache"]
    library = next(f for m in artifacts for f in m.get("filenames") or () if f.endswith(".so"))
    table = re.findall(r'arch: (\d+), recipe: "([^"]*)".*&CUBIN_(\d+)\.0', pathlib.Path(out, "cubins.rs").read_text())
    code = pathlib.Path(library).read_bytes()
    programs = ("common.cu ", "64 -DSKC_GROUP=2 -DSKC_TYPE=3", "128 -DSKC_GROUP=4 -DSKC_TYPE=2")
    wanted = {(arch, program) for arch in ("80", "90") for program in programs}
    found = {(arch, program) for arch, program in wanted for a, recipe, _ in table if a == arch and program in recipe}
    assert found == wanted and len(table) == len(wanted), table
    for arch, recipe, number in table:
        cubin = pathlib.Path(out, f"{number}.cubin").read_bytes()
        assert architecture(cubin) == int(arch), (recipe, architecture(cubin))
        assert cubin in code, f"{recipe}: not in {library}"
    sizes = sum(pathlib.Path(out, f"{number}.cubin").stat().st_size for *_, number in table)
    print(f"ok: {len(table)} cubins of NVIDIA's compiler, {sizes} bytes, in {pathlib.Path(library).name}", flush=True)
    run_cases(REFUSED, executables(messages)["cubins"], shim, folder)


def bad_lists(nvrtc):
    for archs, shapes, said in [
        ("80,9x", "64x8", 'SINKCACHE_CUBIN_ARCHS has "9x"'),
        ("80,81", "64x8", "SINKCACHE_CUBIN_ARCHS has 81: NVRTC"),
        ("80", "64x9", 'SINKCACHE_CUBIN_SHAPES has "64x9"'),
    ]:
        code, _, errors = cargo(BUILD, nvrtc, archs, shapes)
        assert code != 0 and said in errors, (archs, shapes, code, errors)
    print("ok: bad lists fail the build")


def without_compiler(shim, folder):
    """An environment with the stand-in driver and no compiler."""
    environment = {name: value for name, value in os.environ.items() if name not in PLACES}
    driver = folder / "driver"
    if not driver.exists():
        driver.mkdir()
        for name in ("libcuda.so", "libcuda.so.1"):
            (driver / name).symlink_to(shim / "libcuda.so.1")
    environment["LD_LIBRARY_PATH"] = str(driver)
    names = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so")
    toolkit = pathlib.Path("/usr/local/cuda/lib64")
    if any((toolkit / name).exists() or loads(name) for name in names):
        # A compiler that cannot be hidden: one without functions comes before it.
        empty = folder / "empty"
        empty.mkdir(exist_ok=True)
        subprocess.run(["g++", "-shared", "-x", "c++", os.devnull, "-o", str(empty / names[0])], check=True)
        environment["SINKCACHE_NVRTC_DIR"] = str(empty)
        print("this machine has a compiler: an empty libnvrtc.so.13 stands before it")
    return environment


def loads(name):
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def run(program, environment, *arguments):
    done = subprocess.run([program, *arguments, "--show-output"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    # A test that was skipped has not passed.
    passed = done.returncode == 0 and "skipped:" not in done.stdout and re.search(r"[1-9]\d* passed", done.stdout)
    assert passed, done.stdout[-4000:]
    print(f"ok: {pathlib.Path(program).name.rsplit('-', 1)[0]} {' '.join(arguments)}", flush=True)


def run_cases(cases, program, shim, folder):
    bare = without_compiler(shim, folder)
    for case, (device, compiler) in cases.items():
        compilers = {"LD_LIBRARY_PATH": str(shim), "SINKCACHE_NVRTC_DIR": str(shim)} if compiler else {}
        own = {"SKC_CUBINS": case, "SKC_SHIM_ARCH": str(device), "SINKCACHE_CUDA_CACHE_DIR": str(folder / case)}
        run(program, {**bare, **compilers, **own}, "--exact", case)


def with_the_stand_in(shim, folder):
    programs = executables(built(TESTS, shim, "80,90", "128x1:bf16,64x2:bf16"))
    bare = {**without_compiler(shim, folder), "SKC_TEST_BACKEND": "cuda", "SINKCACHE_CUDA_CACHE_DIR": ""}
    run(programs["sinkcache"], bare, "embedded")
    run_cases(CASES, programs["cubins"], shim, folder)
    # Shapes that are built in, and shapes that fall back.
    run(programs["vectors"], bare, "half_inputs_and_outputs", "one_cut_one_result")
    small = {"SKC_STREAMS": "2", "SKC_REPLAYS": "20", "SKC_SOAK": "100", "SKC_SHARE": "36"}
    run(programs["cuda"], {**bare, **small}, "graphs", "create")
    return programs


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    shim = pathlib.Path(sys.argv[1]).resolve()
    nvrtc = cuda_variants.library_folder()
    bad_lists(nvrtc)
    with tempfile.TemporaryDirectory() as folder:
        with_nvidias_compiler(nvrtc, shim, pathlib.Path(folder))
        with_the_stand_in(shim, pathlib.Path(folder))


if __name__ == "__main__":
    main()
