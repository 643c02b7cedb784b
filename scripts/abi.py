#!/usr/bin/env python3
"""Compares the C ABI of include/sinkcache.h with the one that is committed: structs, functions, callbacks, constants.

    scripts/abi.py           fails on every difference, additions too: whoever adds something writes the new ABI
    scripts/abi.py --write   writes cpp_tests/abi.xml

Needs a C compiler, and abidw and abidiff of libabigail (Debian: abigail-tools). The ABI is read from the debug
information of a library whose functions, made from the header, are empty. Then fields are swapped, a type and a
constant changed in copies of the header: each has to be found.
"""
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

from python_abi import CONSTANT, FUNCTION, HEADER

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "cpp_tests" / "abi.xml"
BUILD = ROOT / "build" / "abi"


def library(header, name):
    """Builds a library with every function of the header, and its constants as enumerations; returns its path."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sinkcache.h").write_text(header)
    # One enumeration each: of enumerators with values that others have, abidiff does not see a change.
    names = [name for name, _ in CONSTANT.findall(header)]
    constants = "\n".join(f"enum value_of_{name} {{ VALUE_OF_{name} = {name} }};" for name in names)
    all_of_them = ", ".join(f"enum value_of_{name} a{i}" for i, name in enumerate(names))
    functions = "\n".join(f"{match[0][:-1]} {{ __builtin_trap(); }}" for match in FUNCTION.finditer(header))
    source = f'#include "sinkcache.h"\n{constants}\nvoid skc_constants({all_of_them}) {{}}\n{functions}\n'
    (folder / "stub.c").write_text(source)
    path = folder / "libabi.so"
    compiler = os.environ.get("CC", "cc").split()
    # By a relative name: the debug information has it, and so has what is committed.
    command = [*compiler, "-std=c11", "-g", "-w", "-shared", "-fPIC", "-o", path.name, "stub.c"]
    subprocess.run(command, check=True, cwd=folder)
    return path


def differences(path):
    """What abidiff says of the committed ABI and that of a library; empty if nothing."""
    command = ["abidiff", "--no-default-suppression", "--harmless", str(COMMITTED), str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    # Bit 0: an error of abidiff, bit 1: of its usage.
    if done.returncode & 3:
        sys.exit(f"abidiff failed with {done.returncode}")
    return done.stdout if done.returncode else ""


def swapped(header, one, other):
    """The header with two fields that follow each other in the other order."""
    found = re.search(rf"{re.escape(one)}((?:    /\*\*.*?\*/\n)?){re.escape(other)}", header, re.S)
    assert found, one
    return header[:found.start()] + other + found[1] + one + header[found.end():]


def replaced(header, old, new):
    assert header.count(old) == 1, old
    return header.replace(old, new)


# Each must be found.
PLANTED = (
    ("two fields in another order", swapped, "    uint32_t layer;\n", "    uint32_t n_entries;\n"),
    ("a wider field", replaced, "    uint32_t n_layers;", "    uint64_t n_layers;"),
    ("another parameter", replaced, "skc_destroy_cache(struct skc_cache *cache)", "skc_destroy_cache(uint64_t cache)"),
    ("a constant of another value", replaced, "#define SKC_ON_DEVICE 1\n", "#define SKC_ON_DEVICE 4\n"),
    ("a function less", replaced, "SKC_API const char *skc_version(void);", ""),
)


def main():
    if sys.argv[1:] not in ([], ["--write"]):
        sys.exit(__doc__)
    for program in ("abidw", "abidiff"):
        if not shutil.which(program):
            sys.exit(f"{program} is missing: scripts/setup abi installs it")
    if platform.machine() != "x86_64":
        print("SKIPPED: the committed ABI is that of x86-64")
        return
    header = HEADER.read_text()
    path = library(header, "header")
    if sys.argv[1:]:
        subprocess.run(["abidw", "--no-show-locs", "--no-corpus-path", "--no-comp-dir-path", "--drop-private-types",
                        "--out-file", str(COMMITTED), str(path)], check=True)
        print(f"{COMMITTED.relative_to(ROOT)}: {len(FUNCTION.findall(header))} functions")
        return
    if found := differences(path):
        sys.exit(f"{found}\nThe ABI is not that of {COMMITTED.relative_to(ROOT)}. If it is meant to change: is every "
                 "struct extended at its end only, do numbers keep their meaning? Then scripts/abi.py --write.")
    missed = [what for what, change, old, new in PLANTED
              if not differences(library(change(header, old, new), "planted"))]
    if missed:
        sys.exit(f"changes that were not found: {', '.join(missed)}")
    print(f"{len(FUNCTION.findall(header))} functions and {len(CONSTANT.findall(header))} constants are as committed")
    print(f"{len(PLANTED)} of {len(PLANTED)} passed: planted changes are found")


if __name__ == "__main__":
    main()
