"""Dividing patients among splits so that each split gets its share of every class.

The largest patients come first, each to the part where it adds least to the chi-squared distance between counts and
shares: parts fill at the same relative pace, so large patients are not all in train, and for patients with one case
each this is Sainte-Lague's apportionment. A class then is within one patient of its share. Where it would be absent
from a part although it has patients to spare, the smallest such patient is moved there afterwards. All sums are
integers, so that the result is the same on every platform.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

SHARES_TO_WHOLE = 1_000_000
PRECISION = 10**18  # distances are whole multiples of its inverse, so that ties are ties on every platform


@dataclass(frozen=True)
class Group:
    """All cases of one patient.

    Args:
        patient: Who.
        strata: Number of cases per stratum (class, or bin of the number to regress).
        fixed: Index of the part the group must stay in, or None.
    """

    patient: str
    strata: Mapping[Hashable, int]
    fixed: int | None = None

    @property
    def size(self) -> int:
        """Number of cases."""
        return sum(self.strata.values())


def allocate(groups: Sequence[Group], fractions: Sequence[float], first: Sequence[int]) -> list[int]:
    """Return the part of each group.

    Args:
        groups: In an order that depends on nothing but patients and seed; it breaks ties.
        fractions: Share of each part, summing to one; a part of share zero stays empty.
        first: Order in which parts are given a class that has too few patients for all of them.
    """
    weights = [round(fraction * SHARES_TO_WHOLE) for fraction in fractions]
    totals: Counter[Hashable] = Counter()
    for group in groups:
        totals.update(group.strata)
    filled: list[Counter[Hashable]] = [Counter() for _ in weights]
    parts = [-1] * len(groups)
    for index, group in enumerate(groups):
        if group.fixed is not None:
            parts[index] = group.fixed
            filled[group.fixed].update(group.strata)
    free = [index for index, group in enumerate(groups) if group.fixed is None]
    for index in sorted(free, key=lambda index: -groups[index].size):  # stable: ties keep the given order
        best = min(
            (part for part, weight in enumerate(weights) if weight),
            key=lambda part: _added_distance(groups[index], weights[part], filled[part], totals),
        )
        parts[index] = best
        filled[best].update(groups[index].strata)
    _fill_gaps(groups, parts, [part for part in first if weights[part]], totals)
    return parts


def _added_distance(group: Group, weight: int, filled: Counter[Hashable], totals: Counter[Hashable]) -> tuple[int, int]:
    """Return by how much a group raises a part's chi-squared distance over the strata, then over all cases."""
    strata = sum(
        count * (2 * filled[name] + count) * PRECISION // (weight * totals[name])
        for name, count in group.strata.items()
    )
    return strata, group.size * (2 * filled.total() + group.size) * PRECISION // weight


def _fill_gaps(groups: Sequence[Group], parts: list[int], first: Sequence[int], totals: Counter[Hashable]) -> None:
    """Move the smallest spare patient into each part that lacks a stratum, rarest stratum first."""
    holders = {name: [index for index, group in enumerate(groups) if name in group.strata] for name in totals}
    for name in sorted(totals, key=lambda name: (len(holders[name]), str(name))):
        for part in first:
            if any(parts[index] == part for index in holders[name]):
                continue
            spare = [index for index in holders[name] if _is_spare(index, groups, parts, holders)]
            if spare:
                crowd = Counter(parts[index] for index in holders[name])
                parts[min(spare, key=lambda index: (-crowd[parts[index]], groups[index].size))] = part


def _is_spare(
    index: int, groups: Sequence[Group], parts: Sequence[int], holders: Mapping[Hashable, Sequence[int]]
) -> bool:
    """Tell whether a group may leave its part without taking the last patient of any stratum along."""
    if groups[index].fixed is not None:
        return False
    return all(sum(parts[other] == parts[index] for other in holders[name]) > 1 for name in groups[index].strata)
