"""`scripts/coverage.py` reads llvm-cov's account, and leaves out what only tests have."""
import contextlib
import io
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import coverage

SOURCE = """\
fn one() {
    two();
}

#[cfg(test)]
use std::one;

#[cfg(test)]
#[allow(unused)]
/// Text.
fn three() {
    if four() {
    }
}

mod inner {
    #[cfg(all(test, unix))]
    mod tests {
        fn five() {
        }
    }
    #[cfg(not(test))]
    fn six() {}
    #[cfg(any(unix, test))]
    fn seven() {}
}
"""


class Counts(unittest.TestCase):
    def test_records_are_added_and_others_ignored(self):
        lcov = ("SF:/r/src/a.rs\nFN:1,f\nDA:1,2\nDA:2,0\nBRDA:1,0,0,-\nBRDA:1,0,1,3\nend_of_record\n"
                "SF:/other/a.rs\nDA:1,1\nend_of_record\n"
                "SF:/r/src/a.rs\nDA:2,4\nDA:3,0\nBRDA:1,0,0,0\nend_of_record\n")
        files = coverage.parse(lcov, pathlib.Path("/r/src"))
        self.assertEqual(list(files), ["a.rs"])
        self.assertEqual(files["a.rs"].lines, {1: 2, 2: 4, 3: 0})
        self.assertEqual(files["a.rs"].branches, {(1, 0, 0): 0, (1, 0, 1): 3})
        self.assertEqual(files["a.rs"].counts(), [3, 2, 2, 1])
        self.assertEqual(files["a.rs"].without({1}).counts(), [2, 1, 0, 0])

    def test_lines_of_tests_are_found(self):
        self.assertEqual(coverage.ranges(coverage.test_lines(SOURCE)), "5-6, 8-14, 17-21")

    def test_ranges(self):
        self.assertEqual(coverage.ranges({9, 3, 5, 4}), "3-5, 9")
        self.assertEqual(coverage.ranges([]), "")


class Report(unittest.TestCase):
    def report(self, lcov, flags=frozenset()):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name in ("a.rs", "backend/cpu/simd/amx/b.rs", "c.rs"):
                (root / "src" / name).parent.mkdir(parents=True, exist_ok=True)
                (root / "src" / name).write_text(SOURCE)
            places = mock.patch.multiple(coverage, ROOT=root, OUT=root / "out")
            with places, contextlib.redirect_stdout(io.StringIO()) as said:
                covered = coverage.report(coverage.parse(lcov, pathlib.Path("/src")), flags)
            return covered, said.getvalue(), *((root / "out" / f"{x}.txt").read_text() for x in ("lines", "branches"))

    def test_what_is_not_covered_is_listed_with_its_text(self):
        lcov = "SF:/src/a.rs\nDA:1,1\nDA:2,0\nDA:11,0\nDA:24,7\nBRDA:1,0,0,0\nBRDA:1,0,1,2\nBRDA:12,0,0,0\n"
        covered, said, lines, branches = self.report(lcov)
        self.assertAlmostEqual(covered, 200 / 3)
        self.assertEqual(lines, "src/a.rs: 2\n      2      two();\n")
        self.assertEqual(branches, "src/a.rs:1: never true: fn one() {\n")
        self.assertIn("left out: c.rs: not compiled here", said)

    def test_files_for_another_processor_do_not_count(self):
        lcov = "SF:/src/a.rs\nDA:1,1\nend_of_record\nSF:/src/backend/cpu/simd/amx/b.rs\nDA:1,0\n"
        covered, said, *_ = self.report(lcov)
        self.assertEqual(covered, 100)
        self.assertIn("left out: backend/cpu/simd/amx/b.rs: the processor has no avx512_bf16", said)
        self.assertEqual(self.report(lcov, {"avx512_bf16"})[0], 50)


if __name__ == "__main__":
    unittest.main()
