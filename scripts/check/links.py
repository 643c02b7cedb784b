#!/usr/bin/env python3
"""Every relative link of the documents leads to a file and a heading of it; files and make's targets that they
name in `code` exist.

Addresses on the network are not followed.
"""
import os
import pathlib
import re

import common

FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?^ {0,3}\1[`~]*[ \t]*$", re.M | re.S)
INLINE = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
IMAGE_IN_LINK = re.compile(r"!\[[^\]]*\]\(\s*<?([^)\s>]+)>?")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)", re.M)
HTML = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]+)\"")
CODE = re.compile(r"(`+)(.+?)\1", re.S)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$", re.M)
# Characters that a path in a document is made of; others mean that it is a pattern or a program's arguments.
PATH = re.compile(r"[\w./+-]+")
GENERATED = ("target/", "build", "fuzz/artifacts/")
MAKE = re.compile(r"make ((?:[a-z][a-z-]* ?)+)")


def blank(match):
    """As many lines, without their text."""
    return re.sub(r"[^\n]", " ", match.group(0))


def anchors(text):
    """Those that GitHub gives the headings of a document."""
    seen, found = {}, set()
    prose = FENCE.sub(blank, text)
    for heading in HEADING.findall(prose):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = "".join(c for c in heading.lower() if c.isalnum() or c in " -_").replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found | set(re.findall(r"<a\s+(?:id|name)=\"([^\"]+)\"", prose))


def problems(root):
    documents = common.tracked(root, "*.md")
    top = {path.parts[0] for path in common.tracked(root, "*") if len(path.parts) > 1}
    makefile = (root / "Makefile").read_text() if (root / "Makefile").exists() else ""
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    texts = {path: (root / path).read_text() for path in documents}
    headings = {path: anchors(text) for path, text in texts.items()}
    for path, text in texts.items():
        prose = FENCE.sub(blank, text)
        links = CODE.sub(blank, prose)
        for pattern in (INLINE, IMAGE_IN_LINK, DEFINITION, HTML):
            for match in pattern.finditer(links):
                target = match.group(1)
                where = f"{path}:{links.count(chr(10), 0, match.start()) + 1}"
                if why := broken(root, path, target, headings):
                    yield f"{where}: {target}: {why}"
        for match in CODE.finditer(prose):
            command = MAKE.fullmatch(match.group(2))
            for name in command.group(1).split() if command else ():
                if name not in targets:
                    yield f"{path}:{prose.count(chr(10), 0, match.start()) + 1}: `make {name}`: no such target"
            word = (match.group(2).split() or [""])[0].split("::")[0].rstrip(".,;:")
            is_path = "/" in word and word.split("/")[0] in top and PATH.fullmatch(word)
            # A changelog also names files of the past.
            is_path = is_path and not word.startswith(GENERATED) and path.name != "CHANGELOG.md"
            if is_path and not (root / word).exists():
                line = prose.count("\n", 0, match.start()) + 1
                yield f"{path}:{line}: `{word}` does not exist"


def broken(root, path, target, headings):
    """Why a link cannot be followed, or None."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    name, _, anchor = target.partition("#")
    file = path
    if name:
        file = pathlib.Path(os.path.normpath(name.lstrip("/") if name[0] == "/" else path.parent / name))
    if str(file).startswith("..") or not (root / file).exists():
        return "no such file"
    if anchor and file in headings and anchor not in headings[file]:
        return f"{file} has no heading #{anchor}"
    return None


if __name__ == "__main__":
    common.finish("links", sorted(set(problems(common.ROOT))))
