#!/usr/bin/env python3
"""Licences and sources of all packages that Cargo.lock names: what the library is linked with, and what only tests and
examples need.

    scripts/dependencies.py [--list]

A package must come from crates.io, and one of its licences must be in ALLOWED. --list prints who has which.
"""
import collections
import json
import os
import pathlib
import re
import subprocess
import sys

# Permissive ones: nothing is asked of a program that is linked with them but to name them.
ALLOWED = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "ISC",
           "MIT-0", "Unicode-3.0", "Unlicense", "Zlib", "0BSD", "CC0-1.0"}
# Tools with another licence, of which nothing is in what is built.
TOOLS = {"cbindgen": "MPL-2.0",  # writes the header, in a test
         "libfuzzer-sys": "(MIT OR Apache-2.0) AND NCSA"}
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def allowed(expression):
    """Whether an SPDX expression can be met. Before SPDX, `/` was written for OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    merged = []
    for token in tokens:
        if merged and (token == "WITH" or merged[-1].endswith(" WITH")):
            merged[-1] += " " + token
        else:
            merged.append(token)
    words = [t if t in ("(", ")") else t.lower() if t in ("AND", "OR") else str(t in ALLOWED) for t in merged]
    # Only brackets, and, or, True and False are left.
    return bool(words) and bool(eval(" ".join(words)))  # pylint: disable=eval-used


def problems(packages):
    for package in packages:
        name = f"{package['name']} {package['version']}"
        if package["source"] != CRATES_IO:
            yield f"{name} comes from {package['source']}: crates.io is allowed"
        licence = package["license"] or ""
        if not allowed(licence) and TOOLS.get(package["name"]) != licence:
            yield f"{name} has licence '{licence}': allowed are {', '.join(sorted(ALLOWED))}"


def main():
    os.chdir(pathlib.Path(__file__).resolve().parent.parent)
    failed, total = False, 0
    for manifest in ("Cargo.toml", "fuzz/Cargo.toml"):
        out = subprocess.run([os.environ.get("CARGO", "cargo"), "metadata", "--locked", "--format-version=1",
                              f"--manifest-path={manifest}"], check=True, stdout=subprocess.PIPE, text=True).stdout
        packages = [p for p in json.loads(out)["packages"] if p["source"]]
        total += len(packages)
        for problem in problems(packages):
            failed = True
            print(problem)
        if "--list" in sys.argv:
            licences = collections.defaultdict(list)
            for package in packages:
                licences[package["license"]].append(package["name"])
            for licence, names in sorted(licences.items(), key=lambda item: str(item[0])):
                print(f"{licence}: {', '.join(sorted(names))}")
    print(f"{total} packages" + (", some not allowed" if failed else ": licences and sources are as they should be"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
