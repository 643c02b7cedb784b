"""Runs the tests of the package that Python imports, and lists what was skipped: `python run.py [PATTERN ...]`."""
import pathlib
import sys
import unittest

if __name__ == "__main__":
    folder = str(pathlib.Path(__file__).parent)
    tests = unittest.TestSuite()
    for pattern in sys.argv[1:] or ["test_*.py"]:
        found = unittest.TestLoader().discover(folder, pattern)
        if not found.countTestCases():
            sys.exit(f"no tests in {pattern}")
        tests.addTests(found)
    result = unittest.TextTestRunner(stream=sys.stdout).run(tests)
    for _, reason in result.skipped:
        print(reason)
    sys.exit(not result.wasSuccessful())
