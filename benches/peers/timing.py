"""Times of calls, taken in bursts."""

import statistics
import time


def burst(call, seconds, least=3):
    """Seconds of each call of a burst that lasts at least this long and has at least `least` calls.

    A contender whose threads poll while they wait has `begin` and `end`, which start and stop them.
    """
    begin, end = getattr(call, "begin", None), getattr(call, "end", None)
    if begin:
        begin()
    times, until = [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    if end:
        end()
    return times


def median_of_burst(call, seconds):
    median = statistics.median(burst(call, seconds))
    # The other libraries' threads spin for a while after their last call.
    time.sleep(0.02)
    return median


def contest(calls, rounds, seconds):
    """Bursts in alternation. -> {name: median seconds}, {name: median over the rounds of the ratio to the first}"""
    for call in calls.values():
        median_of_burst(call, seconds / 2)
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(median_of_burst(call, seconds))
    first = next(iter(calls))
    ratios = {name: statistics.median(b / a for a, b in zip(taken[first], taken[name])) for name in calls}
    return {name: statistics.median(t) for name, t in taken.items()}, ratios
