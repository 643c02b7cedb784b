"""Mutants of cargo-mutants: which there are, which are drawn, and sources that hold many of them at once.

A build takes a minute, a run of the tests that find a mutant a second. So one build holds all drawn mutants: each
function has its body once as it is and once for every mutant, and `SKC_MUTANT`, a number, says which runs.
"""
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "check"))
from cycles import strip

VERSION = "27.1.0"
# What decides, as against kernels, whose mutants are marked: scripts/mutants_table.py. Left out are models of loom.
FILES = ("src/ring.rs", "src/ranges.rs", "src/batch.rs", "src/cache/**/*.rs", "src/config/**/*.rs", "src/ffi/**/*.rs")
EXCLUDED = ("src/ffi/models.rs",)
CONST_FN = re.compile(r"\bconst\s+((?:unsafe\s+)?(?:extern\s+\"C\"\s+)?fn\b)")
# The variable is read without an allocation, since tests count those.
SWITCH = """
mod mutation {
    /// What a function returns whose bodies have iterators of their own types.
    #[derive(Clone)]
    pub enum Either<A, B> {
        Right(A),
        Wrong(B),
    }

    impl<T, A: Iterator<Item = T>, B: Iterator<Item = T>> Iterator for Either<A, B> {
        type Item = T;

        fn next(&mut self) -> Option<T> {
            match self {
                Self::Right(a) => a.next(),
                Self::Wrong(b) => b.next(),
            }
        }

        fn size_hint(&self) -> (usize, Option<usize>) {
            match self {
                Self::Right(a) => a.size_hint(),
                Self::Wrong(b) => b.size_hint(),
            }
        }
    }

    impl<T, A, B> DoubleEndedIterator for Either<A, B>
    where
        A: DoubleEndedIterator<Item = T>,
        B: DoubleEndedIterator<Item = T>,
    {
        fn next_back(&mut self) -> Option<T> {
            match self {
                Self::Right(a) => a.next_back(),
                Self::Wrong(b) => b.next_back(),
            }
        }
    }

    impl<T, A: ExactSizeIterator<Item = T>, B: ExactSizeIterator<Item = T>> ExactSizeIterator for Either<A, B> {}

    use std::sync::atomic::{AtomicU32, Ordering};

    static NUMBER: AtomicU32 = AtomicU32::new(u32::MAX);

    pub fn number() -> u32 {
        match NUMBER.load(Ordering::Relaxed) {
            u32::MAX => read(),
            number => number,
        }
    }

    #[cold]
    fn read() -> u32 {
        // SAFETY: a string that ends with zero; nobody changes the environment.
        let number = unsafe {
            let text = libc::getenv(c"SKC_MUTANT".as_ptr());
            if text.is_null() { 0 } else { libc::atoi(text) as u32 }
        };
        NUMBER.store(number, Ordering::Relaxed);
        number
    }
}
"""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """`span` and `function` are from and to in the characters of the file; `function` is None outside of any."""
    name: str
    key: str
    file: str
    span: tuple
    function: tuple
    replacement: str


def tool():
    """cargo-mutants, which is installed into the user's cache."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    folder = cache / "sinkcache" / "cargo-mutants" / VERSION
    if not (folder / "bin" / "cargo-mutants").exists():
        command = ["cargo", "install", "--quiet", "--locked", "--root", folder, "cargo-mutants", "--version", VERSION]
        subprocess.run(command, check=True)
    return folder / "bin" / "cargo-mutants"


def offsets(text):
    """A function from cargo-mutants' line and column to the place in the text."""
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    return lambda at: lines[at["line"] - 1] + at["column"] - 1


def population(root=ROOT):
    """All mutants. A key has no line numbers: it stays while the code around it changes."""
    command = [tool(), "mutants", "--list", "--json", "--no-config", "-p", "sinkcache", "--dir", root]
    command += [argument for name in FILES for argument in ("--file", name)]
    command += [argument for name in EXCLUDED for argument in ("--exclude", name)]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    count, places, mutants = collections.Counter(), {}, []
    for item in listed:
        file = item["file"]
        if file not in places:
            places[file] = offsets((root / file).read_text())
        place = places[file]
        what = item["name"].split(": ", 1)[1]
        count[file, what] += 1
        number = count[file, what]
        key = f"{file}: {what}" + (f", number {number}" if number > 1 else "")
        span, function = item["span"], item["function"] and item["function"]["span"]
        mutants.append(Mutant(item["name"], key, file, (place(span["start"]), place(span["end"])),
                              function and (place(function["start"]), place(function["end"])), item["replacement"]))
    return mutants


def drawn(mutants, seed):
    """The mutants in an order that the seed says. A mutant's place does not depend on the others."""
    return sorted(mutants, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.key}".encode()).digest())


def body(text, function):
    """From and to of a function's body, without its braces. None where it has none."""
    code = strip(text)
    begin, end = function
    stack, found = [], None
    for at in range(begin, end):
        if code[at] in "({[":
            stack.append(at)
        elif code[at] in ")}]" and stack:
            opened = stack.pop()
            if not stack and code[at] == "}":
                found = (opened + 1, at)
    return found


def applied(text, mutant, begin=0, end=None):
    """Part of the text with the mutant."""
    end = len(text) if end is None else end
    return text[begin:mutant.span[0]] + mutant.replacement + text[mutant.span[1]:end]


def wrapped(header, n):
    """What stands before and behind the right body and each of the `n` wrong ones of a function. Iterators have types
    of their own, which have to become one."""
    if not re.search(r"-> impl \w*Iterator\b", header):
        return [("", "")] * (n + 1)
    right, wrong = "crate::mutation::Either::Right(", "crate::mutation::Either::Wrong("
    return [(wrong * i + right, ")" * (i + 1)) for i in range(n)] + [(wrong * n, ")" * n)]


class Switched:
    """A file that holds many mutants."""

    def __init__(self, text, numbered):
        """`numbered`: number -> mutant. `left_out` are those that no switch can hold: outside of functions, or in a
        function inside another. `constant` are those in functions that were constant."""
        self.left_out, self.parts, self.bodies, self.constant = [], [], [], []
        by_body = collections.defaultdict(dict)
        for number, mutant in numbered.items():
            inside = mutant.function and body(text, mutant.function)
            if inside and inside[0] <= mutant.span[0] and mutant.span[1] <= inside[1]:
                by_body[inside][number] = mutant
            else:
                self.left_out.append(number)
        out, done = [], 0
        for (begin, end), mutants in sorted(by_body.items()):
            if begin < done:
                self.left_out += mutants
                continue
            begun = "".join([*out, text[done:begin]]).count("\n")
            head = next(iter(mutants.values())).function[0]
            header = text[head:begin]
            if CONST_FN.search(header):
                self.constant += mutants
            # The right body comes first: where types differ, the compiler then complains of the wrong one.
            numbers = " | ".join(map(str, mutants))
            pattern, wraps = f"_ if !matches!(crate::mutation::number(), {numbers})", wrapped(header, len(mutants))
            out += [text[done:head], header, "\nmatch crate::mutation::number() {"]
            out += [f"\n{pattern} => {wraps[0][0]}{{", text[begin:end], f"\n}}{wraps[0][1]},"]
            patterns = [*map(str, mutants)][:-1] + ["_"]
            for (number, mutant), pattern, (before, after) in zip(mutants.items(), patterns, wraps[1:]):
                out.append(f"\n{pattern} => {before}{{")
                first = "".join(out).count("\n") + 1
                out += [applied(text, mutant, begin, end), f"\n}}{after},"]
                self.parts.append((first, "".join(out).count("\n") + 1, number))
            out.append("}\n")
            self.bodies.append((begun + 1, "".join(out).count("\n") + 1, list(mutants)))
            done = end
        self.text = "".join([*out, text[done:]])
        # A constant function could not ask which mutant runs, nor be called by those that stay constant. Where one must
        # be constant, nothing compiles.
        if self.constant:
            self.text = CONST_FN.sub(r"\1", self.text)

    def at(self, line):
        """The mutants that a line is of: one, or all of the function, or none."""
        for first, last, number in self.parts:
            if first <= line <= last:
                return [number]
        return [number for first, last, numbers in self.bodies if first <= line <= last for number in numbers]


class Copy:
    """A copy of the sources in a folder. Only what differs is written: cargo goes by the time of files, and one that
    was put back with its old time would count as built."""

    def __init__(self, folder, names):
        self.folder, self.names = folder, names
        for path in [p for p in folder.rglob("*") if p.is_file() and str(p.relative_to(folder)) not in names]:
            path.unlink()

    def write(self, changed):
        """`changed`: name -> text, in place of the sources' own."""
        for name in self.names:
            new = changed[name].encode() if name in changed else (ROOT / name).read_bytes()
            path = self.folder / name
            if not path.is_file() or path.read_bytes() != new:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(new)
                shutil.copymode(ROOT / name, path)
