"""Mutants of `scripts/mutation.py` that no test can find, each with the reason: key -> reason."""

EQUIVALENT = {}
