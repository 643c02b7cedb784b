"""Mutants of `scripts/mutation.py` that no test can find, each with the reason: key -> reason."""

EQUIVALENT = {
    "src/cache/device.rs: replace < with <= in Cache::note_replay":
        "0 tokens are cut off: `Seq::cut` changes nothing at an unchanged length",
    "src/ranges.rs: replace > with >= in RangeEdit::keeps":
        "only `EditedRange::NONE` has 0 tokens, and is left out either way: its first token, 0, is above none",
}
