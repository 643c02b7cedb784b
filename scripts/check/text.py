#!/usr/bin/env python3
"""Lines of sources are at most 120 characters wide, as rustfmt has it for code; README.md has at most 200 lines."""
import common

WIDTH = 120
SOURCES = ("*.rs", "*.py", "*.h", "*.c", "*.hpp", "*.cpp", "*.cu", "*.cuh", "*.cmake", "*CMakeLists.txt", "*.sh",
           "*.go", "*.js", "*.java", "*.cs", "Makefile", "scripts/*")
README_LINES = 200


def problems(root):
    for path in common.tracked(root, *SOURCES):
        text = (root / path).read_text(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            # A long address cannot be broken.
            if len(line) > WIDTH and "://" not in line:
                yield f"{path}:{number}: {len(line)} characters, at most {WIDTH} are allowed"
    lines = len((root / "README.md").read_text().splitlines())
    if lines > README_LINES:
        yield f"README.md: {lines} lines, at most {README_LINES} are allowed"


if __name__ == "__main__":
    common.finish("width and length", list(problems(common.ROOT)))
