#!/usr/bin/env python3
"""Adds up what has run as PTX: tools/ptx/summary.py OUT... [--kernels] [--lines]

OUT: folders that SKC_PTX_OUT named.
"""
import argparse
import collections
import pathlib


class Total:
    def __init__(self):
        self.launches = self.warps = self.threads = 0
        self.variants = set()
        self.ran, self.all = set(), set()

    def add(self, variant, numbers, ran, others):
        for name, n in zip(("launches", "warps", "threads"), numbers):
            setattr(self, name, getattr(self, name) + int(n))
        self.variants.add(variant)
        self.ran |= set(ran.split())
        self.all |= set(ran.split()) | set(others.split())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--kernels", action="store_true", help="a line for each kernel")
    parser.add_argument("--lines", action="store_true", help="lines of sources of which nothing ran")
    options = parser.parse_args()
    whole, kernels = Total(), collections.defaultdict(Total)
    for folder in options.folders:
        for path in folder.glob("*.stats"):
            for row in path.read_text().splitlines():
                variant, kernel, *rest = row.split("\t")
                for total in (whole, kernels[kernel]):
                    total.add(variant, rest[:3], *rest[3:])
    if options.kernels:
        print("| kernel | variants | launches | thread instructions | source lines run |\n|---|---|---|---|---|")
        for name, t in sorted(kernels.items()):
            print(f"| `{name}` | {len(t.variants)} | {t.launches:,} | {t.threads:,} | {len(t.ran)} of {len(t.all)} |")
    if options.lines:
        for name, t in sorted(kernels.items()):
            if t.ran != t.all:
                print(f"{name}: {' '.join(sorted(t.all - t.ran))}")
    print(f"{whole.launches:,} launches of {len(whole.variants)} variants, {whole.warps:,} warp instructions, "
          f"{whole.threads:,} thread instructions")


if __name__ == "__main__":
    main()
