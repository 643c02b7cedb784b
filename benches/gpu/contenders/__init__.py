"""The contenders. Each executes the case's step on `data.layers` layers, each with its own cache and rows."""

from contenders import copy, flash_attention, flashinfer_decode, sinkcache, streaming_llm, window


def contenders_for(case, platform):
    """Classes for a case, the most valuable first."""
    found = [*sinkcache.CONTENDERS]
    if platform.name != "shim":
        for module in (streaming_llm, window, flash_attention, flashinfer_decode, copy):
            found += module.CONTENDERS
    return [c for c in found if c.supports(case, platform)]
