#!/usr/bin/env python3
"""Runs the tests of llama.cpp's own programs with the library.

run.py --programs FOLDER --library FILE [--python FILE] [--page FOLDER] [--everything] [PATTERN]
"""
import argparse
import os
import pathlib
import sys
import unittest


def main():
    parser = argparse.ArgumentParser(description="Tests of llama.cpp's own programs with libsinkcache_llama.so.")
    parser.add_argument("--programs", required=True, type=pathlib.Path, help="folder, as scripts/llama_hosts prints it")
    parser.add_argument("--library", required=True, type=pathlib.Path, help="libsinkcache_llama.so")
    parser.add_argument("--python", type=pathlib.Path, help="a Python that has llama-cpp-python's sources")
    parser.add_argument("--page", type=pathlib.Path, help="folder, as scripts/llama_web_page prints it")
    parser.add_argument("--picture", type=pathlib.Path, help="where a picture of the web page is to be written")
    parser.add_argument("--everything", action="store_true", help="long streams in full, not a share")
    parser.add_argument("pattern", nargs="?", default="test_*.py")
    options = parser.parse_args()
    for needed in (options.programs / "llama-server", options.library):
        if not needed.exists():
            parser.error(f"{needed} does not exist")
    # Before the tests are imported: places.py reads them.
    os.environ["SKC_HOST_PROGRAMS"] = str(options.programs.resolve())
    os.environ["SKC_HOST_LIBRARY"] = str(options.library.resolve())
    os.environ["SKC_HOST_EVERYTHING"] = "yes" if options.everything else "no"
    # A link into an environment is not the same as what it leads to.
    for name, value in (("PYTHON", options.python), ("PAGE", options.page), ("PICTURE", options.picture)):
        if value:
            os.environ["SKC_HOST_" + name] = str(value.absolute())
    if options.page:
        sys.path.extend(map(str, options.page.glob("python/lib/python3.*/site-packages")))

    folder = pathlib.Path(__file__).resolve().parent
    sys.path.insert(0, str(folder))
    tests = unittest.defaultTestLoader.discover(str(folder), options.pattern)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(tests)
    for _, reason in result.skipped:
        print(f"skipped: {reason.removeprefix('skipped: ')}")
    sys.exit(not result.wasSuccessful() or not result.testsRun)


if __name__ == "__main__":
    main()
