"""Runs the tests of the package that Python imports, and lists what was skipped: `python run.py [PATTERN]`."""
import pathlib
import sys
import unittest

if __name__ == "__main__":
    pattern = sys.argv[1] if len(sys.argv) > 1 else "test_*.py"
    tests = unittest.defaultTestLoader.discover(str(pathlib.Path(__file__).parent), pattern)
    result = unittest.TextTestRunner(stream=sys.stdout).run(tests)
    for _, reason in result.skipped:
        print(reason)
    sys.exit(not result.wasSuccessful() or not result.testsRun)
