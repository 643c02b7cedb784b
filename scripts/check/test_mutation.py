"""`scripts/mutation.py` puts mutants where cargo-mutants wants them, many into one file."""
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import mutation
import mutation_sources
from mutation_sources import Mutant, Switched

SOURCE = """fn first(a: [u8; { 2 }]) -> u8 {
    // A brace in a comment: }
    let text = "}";
    a[0] + 1
}

const TWO: u8 = 1 + 1;

fn second(b: bool) -> bool {
    b && true
}
"""


def mutant(old, new, function, source=SOURCE):
    """`function`: from where on its text begins; it ends with the next line that is a brace."""
    begin = source.index(old)
    at = function and (source.index(function), source.index("\n}\n", source.index(function)) + 2)
    return Mutant(f"{old}, {new}", f"{old}, {new}", "a.rs", (begin, begin + len(old)), at, new)


class Switches(unittest.TestCase):
    def test_each_mutant_has_a_body(self):
        plus, index = mutant("+ 1\n", "- 1\n", "fn first"), mutant("a[0]", "a[1]", "fn first")
        switched = Switched(SOURCE, {3: plus, 4: index, 7: mutant("&&", "||", "fn second")})
        self.assertEqual(switched.left_out, [])
        code = "".join(switched.text.split())
        right = '//Abraceinacomment:}lettext="}";a[0]+1'
        bodies = f"matchcrate::mutation::number(){{_if!matches!(crate::mutation::number(),3|4)=>{{{right}}},"
        bodies += f"3=>{{{right.replace('+', '-')}}},_=>{{{right.replace('a[0]', 'a[1]')}}},}}}}constTWO"
        self.assertIn("fnfirst(a:[u8;{2}])->u8{" + bodies, code)
        self.assertIn("number(),7)=>{b&&true},_=>{b||true},}}", code)

    def test_a_line_has_its_mutant(self):
        switched = Switched(SOURCE, {3: mutant("+ 1\n", "- 1\n", "fn first"), 4: mutant("&&", "||", "fn second"),
                                     5: mutant("a[0]", "a[1]", "fn first")})
        lines = switched.text.splitlines()
        found = {line.strip(): switched.at(number) for number, line in enumerate(lines, 1)}
        self.assertEqual([found[line] for line in ("a[0] - 1", "b || true", "a[1] + 1")], [[3], [4], [5]])
        self.assertEqual([found[line] for line in ("a[0] + 1", "b && true")], [[3, 5], [4]])
        self.assertEqual(found["const TWO: u8 = 1 + 1;"], [])

    def test_what_no_switch_can_hold(self):
        outer = "fn outer() -> u8 {\n    fn inner() -> u8 {\n        1 + 2\n    }\n    inner() * 3\n}\n"
        inside = Mutant("", "", "a.rs", (outer.index("+"), outer.index("+") + 1),
                        (outer.index("fn inner"), outer.index("    inner()") - 1), "-")
        outside = mutant("*", "/", "fn outer", outer)
        self.assertEqual(Switched(outer, {1: outside, 2: inside}).left_out, [2])
        self.assertEqual(Switched(SOURCE, {1: mutant("1 + 1", "1 - 1", None)}).left_out, [1])

    def test_a_constant_function_is_constant_no_more(self):
        source = "const ONE: u8 = 1;\npub const fn two() -> u8 {\n    ONE + ONE\n}\n"
        switched = Switched(source, {5: mutant("+", "-", "pub const fn two", source)})
        self.assertTrue(switched.text.startswith("const ONE: u8 = 1;\npub fn two() -> u8 {"))
        self.assertEqual((switched.constant, switched.left_out), ([5], []))

    def test_iterators_become_one_type(self):
        source = "fn two() -> impl Iterator<Item = u8> {\n    once(1).chain(once(2))\n}\n"
        some = {4: mutant("1", "3", "fn two", source), 6: mutant("2", "5", "fn two", source)}
        code = "".join(Switched(source, some).text.replace("crate::mutation::Either::", "").split())
        self.assertIn("4|6)=>Right({once(1).chain(once(2))}),4=>Wrong(Right({once(3).chain(once(2))})),", code)
        self.assertIn("_=>Wrong(Wrong({once(1).chain(once(5))})),}", code)

    def test_the_draw_depends_on_the_seed_alone(self):
        some = [Mutant(str(i), f"a.rs: {i}", "a.rs", (0, 1), None, "") for i in range(9)]
        order = mutation_sources.drawn(some, 1)
        self.assertEqual(mutation_sources.drawn(some[::-1], 1), order)
        self.assertEqual(mutation_sources.drawn(some[1:], 1), [m for m in order if m is not some[0]])
        self.assertNotEqual(mutation_sources.drawn(some, 2), order)


class Outputs(unittest.TestCase):
    def test_a_failed_test_is_seen(self):
        self.assertEqual(mutation.failed_test("test ring::tests::slots ... FAILED\n"), "ring::tests::slots")
        self.assertEqual(mutation.failed_test("[  FAILED  ] Edits.Rewind (3 ms)\n"), "Edits.Rewind")
        for line in ("test ring::tests::slots ... ok\n", "[  FAILED  ] 2 tests, listed below:\n", "FAILED\n"):
            self.assertIsNone(mutation.failed_test(line))


if __name__ == "__main__":
    unittest.main()
