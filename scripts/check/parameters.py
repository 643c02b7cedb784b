#!/usr/bin/env python3
"""No function has more than six parameters (structs instead), and in Rust none is a tuple of three or more.

Free to have more: the C ABI and its C++ header, functions of CUDA's, ggml's and candle's form, and kernel entry points.
`self` is a parameter.
"""
import re

import common
from cycles import strip

MOST = 6
# Whose functions have the form of the C ABI, of CUDA's driver, of ggml, of candle's operations.
FOREIGN = ("include/", "tools/cuda_shim/api_", "benches/peers/ggml_", "examples/candle/src/sink_attention.rs")
RUST = re.compile(r"\b(extern\s*(?:\"[^\"]*\")?\s*)?fn\s+(\w+)\s*")
# A definition: a type or a qualified name before the name, the body after the parameters.
CPP = re.compile(r"(?:[\w>&*\]]\s+|[&*]|::)(~?\w+|operator\W+)\s*\(")
AFTER = re.compile(r"\s*(?:const|noexcept|override|final|mutable|\s)*(?:->\s*[\w:<>,&*\s]+)?(?::\s*\w+[({][^;{}]*)?\{")
KEYWORDS = {"if", "for", "while", "switch", "return", "catch", "sizeof", "else", "do", "new", "throw", "case"}


def close(text, at):
    """Where the bracket that opens at `at` closes."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return len(text)


def split(text):
    """Parameters of a list, without what is inside brackets."""
    parts, depth, start = [], 0, 0
    text += ","
    for i, c in enumerate(text):
        if c in "([{<":
            depth += 1
        elif c in ")]}" or c == ">" and text[i - 1] not in "-=":
            depth -= 1
        elif c == "," and depth == 0:
            if text[start:i].strip():
                parts.append(text[start:i].strip())
            start = i + 1
    return parts


def generics_end(text, at):
    """After `<...>`, if there is one."""
    if at >= len(text) or text[at] != "<":
        return at
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "<") - (text[i] == ">" and text[i - 1] not in "-=")
        if depth == 0:
            return i + 1
    return len(text)


def rust(text):
    """(position, name, parameters) of functions outside of the C ABI."""
    for match in RUST.finditer(text):
        start = generics_end(text, match.end())
        if match.group(1) or start >= len(text) or text[start] != "(":
            continue
        parameters = split(text[start + 1:close(text, start)])
        # proptest's are what it draws: `n in 0..9`.
        if not any(" in " in parameter for parameter in parameters):
            yield match.start(2), match.group(2), parameters


def cpp(text):
    for match in CPP.finditer(text):
        start = match.end() - 1
        end = close(text, start)
        before = text[max(0, match.start() - 80):match.start() + 1].split("\n")[-1]
        if match.group(1) in KEYWORDS or not AFTER.match(text, end + 1) or "__global__" in before or "extern" in before:
            continue
        yield match.start(1), match.group(1), split(text[start + 1:end])


def problems(root):
    for path in common.tracked(root, "*.rs", "*.h", "*.hpp", "*.c", "*.cpp", "*.cu", "*.cuh"):
        if str(path).startswith(FOREIGN):
            continue
        text = strip((root / path).read_text())
        for at, name, parameters in (rust if path.suffix == ".rs" else cpp)(text):
            where = f"{path}:{text.count(chr(10), 0, at) + 1}: {name}"
            if len(parameters) > MOST:
                yield f"{where} has {len(parameters)} parameters, at most {MOST} are allowed"
            for parameter in parameters if path.suffix == ".rs" else ():
                kind = parameter.partition(":")[2].strip().lstrip("&").removeprefix("mut ").strip()
                if kind.startswith("(") and len(split(kind[1:-1])) > 2:
                    yield f"{where}: a tuple of {len(split(kind[1:-1]))}: {parameter}"


if __name__ == "__main__":
    common.finish("parameters", list(problems(common.ROOT)))
