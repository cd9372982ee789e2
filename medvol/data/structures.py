"""The classes of a segmentation: which mask value is which structure, and which structures mirror each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from medvol.errors import MedvolError

BACKGROUND = "background"

Structures = Mapping[Any, str] | Sequence[str]
"""Names as a user states them: of the non-zero values in ascending order, or by value."""

_SIDES = {"left": "right", "lh": "rh"}  # lh and rh: FreeSurfer's hemispheres; a bare l or r may be anything


def name_structures(
    found: Sequence[int], declared: Sequence[str] = (), structures: Structures = ()
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the mask values of all classes, ascending from the background's 0, and their names.

    What the user states comes first, then what the source declares (its index is the mask value, as in MSD), then
    `label_<value>`. Where masks hold values beyond the declared names and there are as many names as values, as in a
    mask of 0 and 255 with two names, they are taken in order. A declared structure that no mask shows stays a class, so
    that a test case may have it.

    Args:
        found: Distinct values of the training masks.
        declared: Names that the source gives, background first.
        structures: Names that the user gives.

    Raises:
        MedvolError: `BAD_VALUE` for names that do not fit the values, or that are given twice.
    """
    values = sorted({0, *found})
    if max(values) >= len(declared) == len(values):
        names = dict(zip(values, declared, strict=True))
    else:
        names = dict(enumerate(declared))
    names |= _stated(values, structures)
    names[0] = BACKGROUND
    values = sorted({*values, *names})
    result = tuple(names.get(value, f"label_{value}") for value in values)
    twice = sorted({name for name in result if result.count(name) > 1})
    if twice:
        raise MedvolError(
            "BAD_VALUE",
            found=f"the structure '{twice[0]}' for more than one mask value",
            expected="a name for each",
            fix=f"'{BACKGROUND}' is value 0" if BACKGROUND in twice else "correct structures, or the source's labels",
        )
    return tuple(values), result


def find_mirror_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return the indices of classes whose names differ in their side alone, as `kidney_left` and `kidney_right`."""
    index = {name.lower(): position for position, name in enumerate(names)}
    pairs = []
    for name, position in index.items():
        other = index.get(_other_side(name))
        if other is not None:
            pairs.append((position, other))
    return tuple(sorted((min(pair), max(pair)) for pair in pairs))


def _other_side(name: str) -> str:
    """Return the name with left replaced by right, where it stands as a word of its own; else an empty string."""
    words = re.split(r"([^a-z0-9]+)", name)
    swapped = [_SIDES.get(word, word) for word in words]
    return "".join(swapped) if swapped != words else ""


def _stated(values: Sequence[int], structures: Structures) -> dict[int, str]:
    """Return the user's names by value."""
    if isinstance(structures, Mapping):
        try:
            stated = {int(value): str(name) for value, name in structures.items()}
        except ValueError:
            stated = {-1: ""}
        if any(value < 0 for value in stated):
            raise MedvolError(
                "BAD_VALUE",
                found=f"structures {dict(structures)}"[:120],
                expected="mask values, 0 or more, and their names",
                fix="write --structures \"{1: 'liver', 2: 'tumour'}\"",
            )
        return stated
    if structures and len(structures) != len(values) - 1:
        raise MedvolError(
            "BAD_VALUE",
            found=f"{len(structures)} structures for {len(values) - 1} values in the training masks",
            expected=f"names for {', '.join(map(str, values[1:9]))}{' ...' if len(values) > 9 else ''}",
            fix="name all of them in this order, or in a bundle by value: --structures \"{1: 'liver'}\"",
        )
    return dict(zip(values[1:], map(str, structures), strict=True)) if structures else {}
