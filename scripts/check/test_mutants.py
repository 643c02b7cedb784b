"""`scripts/mutants.py --check` finds marks and entries that do not belong together."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import mutants
from mutants_table import Delete, Line, Replace


class Marks(unittest.TestCase):
    def find(self, source, table):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "src").mkdir()
            (pathlib.Path(folder) / "src" / "a.rs").write_text(source)
            return mutants.find(pathlib.Path(folder), table)

    def wrong_lines(self, source, table):
        lines, problems = self.find(source, table)
        self.assertEqual(problems, [])
        return {name: (line.number, mutants.changed(line.code, table[name])) for name, line in lines.items()}

    def test_a_mark_behind_a_line_or_above_it(self):
        source = "    one(); // mutant: a\n    // mutant: b\n    // Why.\n\n    two(1);\n"
        table = {"a": Delete(), "b": Replace("1", "2")}
        self.assertEqual(self.wrong_lines(source, table), {"a": (1, ""), "b": (5, "    two(2);")})

    def test_several_marks_for_one_line(self):
        source = "// mutant: a, b\n  one(1); // mutant: c\n"
        table = {"a": Replace("1", "2"), "b": Line("two();"), "c": Replace("one", "three")}
        wrong = {"a": (2, "  one(2);"), "b": (2, "  two();"), "c": (2, "  three(1);")}
        self.assertEqual(self.wrong_lines(source, table), wrong)

    def test_what_does_not_fit_is_found(self):
        once = {"a": Replace("one", "two")}
        for source, table, problem in (
            ("one(); // mutant: b\none(); // mutant: a\n", once, "'b' is not in the table"),
            ("one();\n", once, "no line in src/ is marked"),
            ("one(); // mutant: a\none(); // mutant: a\n", once, "marked 2 times"),
            ("one(one); // mutant: a\n", once, "stands 2 times"),
            ("three(); // mutant: a\n", once, "stands 0 times"),
            ("one();\n// mutant: a\n", once, "no line of code follows"),
            ("two(); // mutant: a\n", {"a": Line("two();")}, "changes nothing"),
        ):
            problems = self.find(source, table)[1]
            self.assertEqual(len(problems), 1, problems)
            self.assertIn(problem, problems[0])


if __name__ == "__main__":
    unittest.main()
