#!/usr/bin/env python3
"""No import circle among the files of src/: a file that is imported, also through others, imports nothing back.

    scripts/check/cycles.py              fails and prints one circle of each group of files that import each other
    scripts/check/cycles.py --list       all imports, one a line: importing file, imported file, line, path
    scripts/check/cycles.py --root DIR   another copy of the repository

Counted are paths in `use` declarations and in code (`crate::`, `super::`, `self::`, names of modules). A path leads to
the file that defines what it names: re-exports are followed, `pub use *` too; the name of a module alone is none.
Tests inside files (`#[cfg(test)]`) are left out.
"""
import argparse
import pathlib
import re
import sys

import common

IDENT = r"[A-Za-z_]\w*"
PATH = re.compile(rf"(?<![\w:$.'])(?:\$\s*)?({IDENT}(?:\s*::\s*{IDENT})+)")
PATH_ATTRIBUTE = re.compile(r"#\[path\s*=\s*\"([^\"]+)\"\]\s*(?:pub(?:\([^)]*\))?\s*)?$")
DEFINITION = re.compile(rf"\b(?:fn|struct|enum|union|trait|type|const|static|mod|macro_rules!)\s+(?:mut\s+)?({IDENT})")


def strip(text):
    """The text with comments, strings and characters blanked: every line stays where it is."""
    token = re.compile(
        r"//[^\n]*|/\*|b?r(?P<hashes>#*)\"|b?\"(?:\\.|[^\"\\])*\"|b?'(?:\\(?:[^u]|u\{[^}]*\})[^']*|[^'\\\n])'", re.S
    )
    out, at = [], 0
    while match := token.search(text, at):
        end = match.end()
        if match.group() == "/*":
            depth = 1
            while depth and (mark := re.compile(r"/\*|\*/").search(text, end)):
                depth += 1 if mark.group() == "/*" else -1
                end = mark.end()
        elif match.group("hashes") is not None:
            close = text.find('"' + match.group("hashes"), end)
            end = len(text) if close < 0 else close + 1 + len(match.group("hashes"))
        out += [text[at:match.start()], re.sub(r"[^\n]", " ", text[match.start():end])]
        at = end
    return "".join(out) + text[at:]


def block_end(text, at):
    """Where the item that begins at `at` ends: after its `;` or its closing brace."""
    depth = 0
    for i in range(at, len(text)):
        if text[i] in "({[":
            depth += 1
        elif text[i] in ")}]":
            depth -= 1
            if depth == 0 and text[i] == "}":
                return i + 1
        elif text[i] == ";" and depth == 0:
            return i + 1
    return len(text)


def without_tests(text):
    """The text without items that are there for tests only."""
    for match in reversed(list(re.finditer(r"#\[cfg\((?:test|all\(test\b[^\]]*)\)\]", text))):
        end = block_end(text, match.end())
        text = text[:match.start()] + re.sub(r"[^\n]", " ", text[match.start():end]) + text[end:]
    return text


def use_trees(tree, prefix=()):
    """`a::{b, c as d, e::*}` -> (path, name it gets or None for `*`)"""
    tree = tree.strip().removeprefix("::")
    if match := re.fullmatch(r"((?:[^{},]*::)?)\s*\{(.*)\}", tree, re.S):
        head = tuple(s.strip() for s in match.group(1).split("::") if s.strip())
        depth, start, inner = 0, 0, match.group(2) + ","
        for i, c in enumerate(inner):
            depth += (c == "{") - (c == "}")
            if c == "," and depth == 0:
                if inner[start:i].strip():
                    yield from use_trees(inner[start:i], prefix + head)
                start = i + 1
        return
    path, _, name = re.sub(r"\s+", " ", tree).partition(" as ")
    segments = prefix + tuple(s.strip() for s in path.split("::") if s.strip())
    if segments and segments[-1] == "self":
        segments = segments[:-1]
    if segments and segments[-1] == "*":
        yield segments[:-1], None
    elif segments:
        yield segments, name.strip() or segments[-1]


class Module:
    def __init__(self, file, parent):
        self.file, self.parent = file, parent
        self.children, self.aliases, self.globs, self.defined = {}, {}, [], set()
        # (path, line) of every path in `use` and in code.
        self.paths = []


class Crate:
    def __init__(self, root):
        self.root = root
        self.modules = []
        self.top = self.load(pathlib.Path("src/lib.rs"), None, pathlib.Path("src"))

    def load(self, file, parent, folder):
        original = (self.root / file).read_text()
        module = Module(file, parent)
        self.scan(module, without_tests(strip(original)), original, 0, folder)
        return module

    def scan(self, module, text, original, first_line, folder):
        """Reads the items of a module; `folder`: where files of its children are."""
        self.modules.append(module)

        def line(at):
            return first_line + text.count("\n", 0, at) + 1

        # Modules in braces first: what is in them is theirs.
        for match in reversed(list(re.finditer(rf"\bmod\s+(\$?{IDENT})\s*\{{", text))):
            if match.start() >= len(text) or text[match.start():match.end()] != match.group():
                continue
            end = block_end(text, match.start())
            child = module.children[match.group(1)] = Module(module.file, module)
            start = match.end()
            self.scan(child, text[start:end - 1], None, line(start) - 1, folder / match.group(1))
            text = text[:start] + re.sub(r"[^\n]", " ", text[start:end - 1]) + text[end - 1:]
        for match in re.finditer(rf"\bmod\s+({IDENT})\s*;", text):
            name = match.group(1)
            place = folder / f"{name}.rs"
            named = PATH_ATTRIBUTE.search(original[:match.start()]) if original else None
            if named:
                place = module.file.parent / named.group(1)
            elif not (self.root / place).exists():
                place = folder / name / "mod.rs"
            inside = place.parent if place.name == "mod.rs" else place.parent / place.stem
            module.children[name] = self.load(place, module, inside)
        for match in re.finditer(r"\buse\s+([^;]+);", text):
            for path, name in use_trees(match.group(1)):
                module.paths.append((path, line(match.start()), name is None))
                if name is None:
                    module.globs.append(path)
                else:
                    module.aliases[name] = path
        module.defined = set(DEFINITION.findall(text))
        code = re.sub(r"\buse\s+[^;]+;", lambda m: re.sub(r"[^\n]", " ", m.group()), text)
        for match in PATH.finditer(code):
            module.paths.append((tuple(re.split(r"\s*::\s*", match.group(1))), line(match.start()), False))

    def resolve(self, module, path, seen=frozenset()):
        """The module that a path names, or the file that defines what it names; None for what is not the crate's."""
        if (id(module), path) in seen:
            return None
        seen = seen | {(id(module), path)}
        head, rest = path[0], path[1:]
        if head == "crate":
            at = self.top
        elif head == "self":
            at = module
        elif head == "super":
            at = module.parent
        elif head in module.children or head in module.aliases:
            at, rest = module, path
        else:
            return None
        while rest:
            if at is None or isinstance(at, pathlib.Path):
                return at
            if rest[0] == "super":
                at, rest = at.parent, rest[1:]
                continue
            at, rest = self.member(at, rest[0], seen, last=len(rest) == 1), rest[1:]
        return at

    def member(self, module, name, seen, last):
        """What a name of a module stands for; at the end of a path rather a function than a module of that name."""
        alias = None
        if name in module.aliases and module.aliases[name] != (name,):
            alias = self.resolve(module, module.aliases[name], seen)
        if name in module.children and not (last and isinstance(alias, pathlib.Path)):
            return module.children[name]
        if alias is not None or name in module.aliases:
            return alias
        if name in module.defined:
            return module.file
        for path in module.globs:
            target = self.resolve(module, path, seen)
            if isinstance(target, Module) and target is not module and name in target.defined | set(target.aliases):
                return self.member(target, name, seen, last)
        # An enum's variants and the like, or something that a macro defines.
        return module.file

    def knows(self, module, name):
        return module is None or name == "super" or name in module.defined | set(module.children) | set(module.aliases)

    def imports(self):
        """{(importing file, imported file): (line, path)}, the first of each."""
        found = {}
        for module in self.modules:
            for path, line, is_glob in module.paths:
                # What a macro gets as `super::name` for a module that it makes stands one module lower.
                if path[0] == "super" and len(path) > 1 and self.knows(module, path[1]):
                    if not self.knows(module.parent, path[1]):
                        path = path[1:]
                target = self.resolve(module, path)
                if isinstance(target, Module):
                    # Everything of it: as if the file were named.
                    target = target.file if is_glob else None
                if target is not None and target != module.file:
                    key = (module.file, target)
                    if key not in found or line < found[key][0]:
                        found[key] = (line, "::".join(path))
        return found


def components(edges):
    """Groups of nodes that all reach each other, of more than one node (Tarjan)."""
    after = {}
    for a, b in edges:
        after.setdefault(a, []).append(b)
    index, low, stack, groups = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in after.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                groups.append(set(group))

    sys.setrecursionlimit(10_000)
    for node in list(after):
        if node not in index:
            visit(node)
    return groups


def shortest_circle(edges, group):
    """The shortest circle inside a group."""
    best = None
    for start in sorted(group):
        before, queue = {start: None}, [start]
        for node in queue:
            for a, b in edges:
                if a == node and b == start:
                    path = [node]
                    while before[path[-1]] is not None:
                        path.append(before[path[-1]])
                    if best is None or len(path) < len(best):
                        best = path[::-1]
                elif a == node and b in group and b not in before:
                    before[b] = node
                    queue.append(b)
    return best


def circles(imports, name=lambda file: file):
    """One text for each group of nodes that import each other; `name`: the node of a file."""
    edges = {}
    for (a, b), (line, path) in sorted(imports.items()):
        if name(a) != name(b):
            edges.setdefault((name(a), name(b)), (a, line, path))
    for group in components(edges):
        ring = shortest_circle(edges, group)
        steps = [(a, b, *edges[a, b]) for a, b in zip(ring, ring[1:] + ring[:1])]
        yield f"circle of {len(ring)} in a group of {len(group)}:\n" + "\n".join(
            f"    {a} imports {b} ({file}:{line}: {path})" for a, b, file, line, path in steps)


def layer(file):
    """The module of src/ that a file belongs to: all of src/config/ is one."""
    return file.parts[1].removesuffix(".rs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print all imports")
    parser.add_argument("--root", type=pathlib.Path, default=common.ROOT)
    options = parser.parse_args()
    imports = Crate(options.root).imports()
    if options.list:
        for (a, b), (line, path) in sorted(imports.items()):
            print(f"{a} {b} {line} {path}")
        return
    # Files, and the modules of src/ as wholes.
    found = [*circles(imports), *circles(imports, layer)]
    print(f"{len({a for a, _ in imports} | {b for _, b in imports})} files, {len(imports)} imports")
    common.finish("import circles", found)


if __name__ == "__main__":
    main()
