"""The checks find what they are for, in copies of the repository with a mistake planted."""
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import common
import cycles
import links
import parameters
import text


class Planted(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def put(self, name, content):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(content)

    def circles(self):
        imports = cycles.Crate(self.root).imports()
        return [*cycles.circles(imports)]


class Circles(Planted):
    def test_one_planted_in_the_library_is_found(self):
        """Any import, turned around: the imported file names the importing one."""
        shutil.copytree(common.ROOT / "src", self.root / "src")
        crate = cycles.Crate(self.root)
        before = self.circles()
        modules = {module.file: module for module in reversed(crate.modules)}
        importing, imported = next((a, b) for a, b in sorted(crate.imports())
                                   if a.name not in ("mod.rs", "lib.rs") and not any(str(b) in text for text in before))
        names, module = [], modules[importing]
        while module.parent:
            names.append(next(n for n, child in module.parent.children.items() if child is module))
            module = module.parent
        path = "::".join(["crate", *reversed(names), "planted"])
        with open(self.root / imported, "a") as file:
            file.write(f"\nfn planted() {{\n    {path}();\n}}\n")
        found = [text for text in self.circles() if text not in before]
        self.assertTrue(any(str(importing) in text and str(imported) in text for text in found), found)
        done = subprocess.run(["python3", cycles.__file__, "--root", self.root], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn(path, done.stdout)

    def test_paths_of_every_kind_count(self):
        self.put("src/lib.rs", "mod a;\nmod b;\npub use a::One;\n")
        self.put("src/b/mod.rs", "pub mod c;\npub use self::c::Two as Other;\npub struct Three;\n")
        for path, circle in (
            ("use crate::b::c::Two;", True),
            ("use crate::{b::{self, c::{Two, self}}};", True),
            ("use crate::b::Other;", True),
            ("use super::b::c;\nfn f() { c::two(); }", True),
            ("fn f() { crate::b::c::two(); }", True),
            ("use crate::b::*;\nfn f() -> Other { Other }", True),
            ("use crate::b::Three;", True),
            ("use crate::b::c;", False),
            ("#[cfg(test)]\nmod tests {\n    use crate::b::c::Two;\n}", False),
            ("// use crate::b::c::Two;\nconst T: &str = \"crate::b::c::Two\";", False),
            ("use std::b::c::Two;", False),
        ):
            self.put("src/b/c.rs", "use crate::One;\npub struct Two;\npub fn two() {}\n")
            self.put("src/a.rs", f"pub struct One;\n{path}\n")
            self.assertEqual(bool(self.circles()), circle, path)

    def test_a_circle_of_three_is_printed_whole(self):
        self.put("src/lib.rs", "mod a;\nmod b;\nmod c;\n")
        for one, other in ("ab", "bc", "ca"):
            self.put(f"src/{one}.rs", f"use crate::{other}::{other.upper()};\npub struct {one.upper()};\n")
        (text,) = self.circles()
        for line in ("src/a.rs imports src/b.rs", "src/b.rs imports src/c.rs",
                     "src/c.rs imports src/a.rs (src/c.rs:1: crate::a::A)"):
            self.assertIn(line, text)


class Documents(Planted):
    def test_broken_links_are_found(self):
        self.put("docs/b.md", "# One thing: `code`\n\n# Two\n# Two\n")
        self.put("src/x.rs", "")
        self.put("fuzz/y.rs", "")
        self.put("Makefile", "ALL = a-b\na-b:\n\ttrue\n")
        good = ("[x](docs/b.md#one-thing-code) [y](docs/b.md#two-1) [z]: docs/b.md\n"
                "`src/x.rs` `src/*.rs` `fuzz/artifacts/a/` `make a-b` [n](https://example.org/x)\n")
        self.put("README.md", good + "```\n[no](link.md)\n```\n`[no](link.md)`\n")
        self.assertEqual(list(links.problems(self.root)), [])
        for bad in ("[x](docs/c.md)", "[x](docs/b.md#three)", "[x](#nowhere)", "![x](p.svg)",
                    "[![x](p.svg)](docs/b.md)", "`src/y.rs`", "`make c`", "[x]: docs/c.md", "<img src=\"p.png\">"):
            self.put("README.md", good + bad + "\n")
            self.assertEqual(len(set(links.problems(self.root))), 1, bad)

    def test_wide_lines_and_a_long_readme_are_found(self):
        self.put("README.md", "x\n" * 200)
        self.put("src/x.rs", "é" * 120 + "\n// https://example.org/" + "x" * 120 + "\n")
        self.assertEqual(list(text.problems(self.root)), [])
        self.put("README.md", "x\n" * 201)
        self.put("src/x.rs", "x" * 121 + "\n")
        self.assertEqual(len(list(text.problems(self.root))), 2)


class Parameters(Planted):
    def test_too_many_are_found(self):
        seven = ", ".join(f"x{i}: Map<u8, u8>" for i in range(7))
        self.put("src/a.rs", f"fn a<T: Fn(u8) -> u8>(x: &mut [(u8, u8, u8)], f: fn(u8, u8)) {{}}\n"
                 f"extern \"C\" fn b({seven}) {{}}\n")
        self.put("src/a.cpp", "int f(int a, std::map<int, int> b) { return g(1, 2, 3, 4, 5, 6, 7); }\n"
                 "extern \"C\" __global__ void k(int a, int b, int c, int d, int e, int f, int g) {}\n")
        self.assertEqual(list(parameters.problems(self.root)), [])
        self.put("src/a.rs", f"fn a<T>(x: &(u8, u8, u8)) {{}}\nfn b({seven}) {{}}\n")
        self.put("src/a.cpp", "A::A(int a, int b, int c, int d, int e, int f, int g) : a(a) {}\n"
                 "auto f(int a, int b, int c, int d, int e, int f, int g) const -> int {}\n")
        self.assertEqual(len(list(parameters.problems(self.root))), 4)


class Subjects(unittest.TestCase):
    def test_subjects_are_held_to_the_form(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "scripts" / "check").mkdir(parents=True)
            check = shutil.copy2(common.ROOT / "scripts" / "check" / "commits", root / "scripts" / "check")

            def git(*arguments):
                command = ["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
                return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

            def commit(subject):
                git("commit", "-q", "--allow-empty", "-m", subject)

            def outcome(base):
                return subprocess.run([check, base], capture_output=True, text=True)

            git("init", "-q")
            commit("Anything before the base")
            base = git("rev-parse", "HEAD")
            commit("area: what")
            self.assertEqual(outcome(base).returncode, 0)
            commit("area: " + "x" * 67)
            self.assertIn("73 characters", outcome(base).stdout)
            commit("What it does")
            done = outcome(base)
            self.assertEqual(done.returncode, 1)
            self.assertIn('is not "area: what"', done.stdout)
            self.assertIn("SKIPPED: ", outcome("0" * 40).stdout)


if __name__ == "__main__":
    unittest.main()
