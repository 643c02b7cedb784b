"""The contenders. Each executes the case's step on `data.layers` layers, each with its own cache and rows."""

from contenders import copy, peers, sinkcache, streaming_llm, window


def contenders_for(case, platform):
    """Classes for a case, the most valuable first."""
    found = [*sinkcache.CONTENDERS]
    if platform.name != "shim":
        found += [*streaming_llm.CONTENDERS, *window.CONTENDERS, *peers.CONTENDERS, *copy.CONTENDERS]
    return [c for c in found if c.supports(case, platform)]
