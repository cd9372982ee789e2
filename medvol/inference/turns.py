"""Timing several ways of doing one thing on a machine that others use as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

Way = TypeVar("Way")

REPEATS = 5
HOPELESS = 1.5  # times as slow as the fastest


def seconds_in_turns(calls: Mapping[Way, Callable[[], float]], seconds: float) -> dict[Way, float]:
    """Return the seconds that each way takes, the fastest of five calls or fewer.

    They take turns, so that a machine that is busy for a while is so for all of them. The first call builds kernels and
    counts only where there is no other; a way that is far behind by its second call is called no more.

    Args:
        calls: Each does the work once and returns the seconds that it took.
        seconds: Time for all together, shared evenly; each is called at least once.
    """
    durations: dict[Way, list[float]] = {way: [] for way in calls}
    for turn in range(REPEATS + 1):
        best = min((min(past) for past in durations.values() if past), default=0.0)
        for way, past in durations.items():
            hopeless = turn > 1 and min(past) > HOPELESS * best
            if not past or (sum(past) < seconds / len(calls) and not hopeless):
                past.append(calls[way]())
    return {way: min(past[1:] or past) for way, past in durations.items()}
