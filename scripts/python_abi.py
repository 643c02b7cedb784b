#!/usr/bin/env python3
"""Writes python/sinkcache/_abi.py, the C ABI for ctypes, from include/sinkcache.h; --check only compares.

    scripts/python_abi.py [--check]
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADER = ROOT / "include" / "sinkcache.h"
MODULE = ROOT / "python" / "sinkcache" / "_abi.py"
# What one cannot write in the header's macros as Python can: the value of a macro of the C library.
VALUES = {"UINT32_MAX": str(2**32 - 1)}
SCALARS = {"float": "c_float", "double": "c_double", "char": "c_char", "size_t": "c_size_t", "skc_status": "c_int32",
           **{f"{sign}int{bits}_t": f"c_{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}}
# What attributes and results of these types are in Python.
PYTHON_TYPES = {"c_float": "float", "c_double": "float", "c_char_p": "bytes | None", "c_void_p": "int | None"}
# Opaque: a handle is a number.
HANDLES = ("skc_cache",)

CONSTANT = re.compile(r"^#define (SKC_\w+) (\(-\d+\)|-?\d+|UINT32_MAX)$", re.M)
STRUCT = re.compile(r"^typedef struct (skc_\w+) \{\n(.*?)^\} \1;$", re.M | re.S)
CALLBACK = re.compile(r"^typedef ([\w *]+?)\(\*(skc_\w+)\)\(([^)]*)\);$", re.M)
FUNCTION = re.compile(r"^SKC_API ([\w *]+?)(skc_\w+)\(([^)]*)\);$", re.M)
FIELD = re.compile(r"^(?P<type>[\w ]+?[ *]+)(?P<name>\w+)(?:\[(?P<count>\d+)\])?$")


class Unknown(Exception):
    """The header has something that this program does not know."""


def parameters(text):
    text = " ".join(text.split())
    return [] if text == "void" else [FIELD.fullmatch(part.strip()) for part in text.split(",")]


def ctype(text, known):
    """The ctypes expression of a C type; `known` are the names of structs and callbacks so far."""
    words = text.replace("*", " * ").split()
    stars = words.count("*")
    base = [word for word in words if word not in ("const", "struct", "*")]
    if len(base) != 1:
        raise Unknown(text)
    name = base[0]
    if name == "void" and stars:
        name, stars = "c_void_p", stars - 1
    elif name == "char" and stars:
        name, stars = "c_char_p", stars - 1
    elif name in HANDLES and stars:
        name, stars = "c_void_p", stars - 1
    elif name == "void":
        name = "None"
    elif name in SCALARS:
        name = SCALARS[name]
    elif name not in known:
        raise Unknown(text)
    for _ in range(stars):
        name = f"POINTER({name})"
    return name


def annotation(name):
    """What an attribute of that ctypes type is, for type checkers."""
    if name in PYTHON_TYPES:
        return PYTHON_TYPES[name]
    return "int" if name.startswith(("c_int", "c_uint", "c_size")) else "Any"


def wrap(head, items, tail):
    """A bracketed list, broken at 120 characters."""
    lines, line = [], head
    for i, item in enumerate(items):
        item += "," if i + 1 < len(items) else tail
        if len(line) + 1 + len(item) > 120:
            lines.append(line)
            line = " " * 8 + item
        else:
            line += item if line == head else " " + item
    return "\n".join([*lines, line if items else head + tail])


def generate(header):
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    code = re.sub(r"^[ \t]*\n", "", code, flags=re.M)
    out = ['"""The C ABI of sinkcache for ctypes. Generated from include/sinkcache.h; do not edit."""',
           "# fmt: off", "import ctypes",
           "from ctypes import (CFUNCTYPE, POINTER, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t,",
           "                    c_uint8, c_uint32, c_uint64, c_void_p)", "from typing import Any", ""]
    constants = CONSTANT.findall(code)
    macros = {name for name in re.findall(r"^#define (SKC_\w+)", code, re.M)}
    left = macros - {name for name, _ in constants} - {"SKC_API", "SKC_CACHE_CONFIG_INIT", "SKC_LAYER_CONFIG_INIT"}
    if left:
        raise Unknown(f"constants {sorted(left)}")
    out += [f"{name} = {VALUES.get(value, value).strip('()')}" for name, value in constants]
    known = set()
    types = [(m.start(), "struct", m) for m in STRUCT.finditer(code)]
    types += [(m.start(), "callback", m) for m in CALLBACK.finditer(code)]
    for _, kind, match in sorted(types, key=lambda entry: entry[0]):
        if kind == "callback":
            result, name, text = match.groups()
            kinds = [ctype(result, known), *(ctype(p["type"], known) for p in parameters(text))]
            out += ["", wrap(f"{name} = CFUNCTYPE(", kinds, ")")]
            known.add(name)
            continue
        name, body = match.groups()
        fields = [FIELD.fullmatch(line.strip().removesuffix(";")) for line in body.splitlines() if line.strip()]
        if None in fields:
            raise Unknown(f"a field of {name}: {body}")
        listed, typed = [], []
        for field in fields:
            kind = ctype(field["type"], known)
            array = f"{kind} * {field['count']}" if field["count"] else kind
            listed.append(f'("{field["name"]}", {array})')
            typed.append(f"    {field['name']}: {'bytes' if field['count'] else annotation(kind)}")
        out += ["", "", f"class {name}(ctypes.Structure):", *typed, wrap("    _fields_ = [", listed, "]")]
        known.add(name)
    if len(known) != len(re.findall(r"^typedef (?!struct skc_cache skc_cache;|int32_t skc_status;)", code, re.M)):
        raise Unknown("a typedef")
    out += ["", "", "def declare(lib: Any) -> None:",
            '    """Sets the types of all functions of the library: ctypes would cut handles to 32 bits."""']
    functions = FUNCTION.findall(code)
    if len(functions) != len(re.findall(r"^SKC_API ", code, re.M)):
        raise Unknown("a function")
    for result, name, text in functions:
        kinds = [ctype(p["type"], known) for p in parameters(text)]
        out += [f"    lib.{name}.restype = {ctype(result, known)}", wrap(f"    lib.{name}.argtypes = [", kinds, "]")]
    return "\n".join(out) + "\n"


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    text = generate(HEADER.read_text())
    if not check:
        MODULE.write_text(text)
    elif not MODULE.exists() or MODULE.read_text() != text:
        sys.exit(f"{MODULE.relative_to(ROOT)} is not what {HEADER.relative_to(ROOT)} says: run scripts/python_abi.py")
    print(f"{MODULE.relative_to(ROOT)}: ok")


if __name__ == "__main__":
    main()
