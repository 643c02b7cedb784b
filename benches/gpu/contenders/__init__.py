"""Who is measured. A contender does the case's step on `data.layers` layers, each with its own cache and rows."""
from contenders import copy, peers, sinkcache, streaming_llm, window


def contenders_for(case, place):
    """Classes for a case, the most valuable first."""
    found = [*sinkcache.CONTENDERS]
    if place.name != "shim":
        found += [*streaming_llm.CONTENDERS, *window.CONTENDERS, *peers.CONTENDERS, *copy.CONTENDERS]
    return [c for c in found if c.does(case, place)]
