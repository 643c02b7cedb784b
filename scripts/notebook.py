#!/usr/bin/env python3
"""Executes examples/notebook/streaming_llm.ipynb and compares what it prints with what is committed there.

  scripts/notebook.py            numbers may differ by 1 %, and as many pictures are drawn
  scripts/notebook.py --write    commits what it prints and draws: writes the notebook

Needs nbconvert, ipykernel and what the notebook imports. Cells with the tag "sampled" print what other processors may
sample otherwise: they have to print something.
"""
import pathlib
import re
import sys

import nbformat
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "notebook" / "streaming_llm.ipynb"
TOLERANCE = 0.01
NUMBER = re.compile(r"(?<![A-Za-z])\d[\d,]*(?:\.\d+)?")


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def differences(want, got, tags=()):
    """Why what a cell printed is not what is committed; empty if it is."""
    if pictures(want) != pictures(got):
        yield f"{pictures(got)} pictures, {pictures(want)} are committed"
    want, got = printed(want), printed(got)
    if "sampled" in tags:
        if bool(want.strip()) != bool(got.strip()):
            yield f"printed {got!r}, {want!r} is committed"
        return
    if NUMBER.sub("0", want).split() != NUMBER.sub("0", got).split():
        yield f"printed {got!r}, {want!r} is committed"
        return
    for a, b in zip(NUMBER.findall(want), NUMBER.findall(got)):
        x, y = (float(number.replace(",", "")) for number in (a, b))
        if abs(x - y) > TOLERANCE * max(abs(x), abs(y)):
            yield f"printed {b}, {a} is committed"


def execute():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    runner = ExecutePreprocessor(timeout=600, kernel_name="python3", record_timing=False)
    runner.preprocess(notebook, {"metadata": {"path": str(NOTEBOOK.parent)}})
    # Progress and warnings of libraries.
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    return notebook


def main():
    notebook = execute()
    if sys.argv[1:] == ["--write"]:
        nbformat.write(notebook, NOTEBOOK)
        return
    committed, found, cells = nbformat.read(NOTEBOOK, as_version=4), [], 0
    for number, (want, got) in enumerate(zip(committed.cells, notebook.cells)):
        if want.cell_type == "code":
            cells += 1
            found += [f"cell {number}: {why}" for why in differences(want, got, want.metadata.get("tags", ()))]
    drawn = sum(pictures(cell) for cell in committed.cells if cell.cell_type == "code")
    if not drawn:
        found.append("no pictures are committed")
    if found:
        sys.exit("\n".join(found))
    print(f"{NOTEBOOK.relative_to(ROOT)}: {cells} cells as committed, {drawn} pictures")


if __name__ == "__main__":
    main()
