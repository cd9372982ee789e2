"""The classes of a segmentation: which mask value is which structure, and which structures mirror each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvol.data.study import Study
from medvol.errors import MedvolError

BACKGROUND = "background"

Structures = Mapping[Any, str] | Sequence[str]
"""Names as a user states them: of the non-zero values in ascending order, or by value."""

_SIDES = {"left": "right", "lh": "rh"}  # lh and rh: FreeSurfer's hemispheres; a bare l or r may be anything


def name_structures(
    found: Sequence[int],
    declared: Sequence[str] = (),
    structures: Structures = (),
    *,
    mask_values: Sequence[int] = (),
    file: str = "",
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the mask values of all classes, ascending from the background's 0, and their names.

    What the user states comes first, then what the source declares, then `label_<value>`. A name that the source gives
    to a value stays with it. Of names in a list the index is the value; where masks hold values beyond them and there
    are as many names as values, as in a mask of 0 and 255 with two names, they are taken in order. A declared structure
    that no mask shows stays a class, so that a test case may have it.

    Args:
        found: Distinct values of the training masks.
        declared: Names that the source gives, background first.
        structures: Names that the user gives.
        mask_values: The value of each declared name, where the source gives them; empty for a list of names.
        file: The source, for messages.

    Raises:
        MedvolError: `BAD_VALUE` for names that do not fit the values, or that are given twice.
    """
    values = sorted({0, *found})
    stated = _stated(values, structures)
    names = _declared(values, declared, mask_values)
    shown = set(values) - {0}
    if shown <= stated.keys() and not shown <= names.keys():
        names = {}  # the user names all that there is, the source does not: it describes other masks
    names |= stated
    names[0] = BACKGROUND
    values = sorted({*values, *names})
    result = tuple(names.get(value, f"label_{value}") for value in values)
    twice = sorted({name for name in result if result.count(name) > 1})
    if twice:
        of_it = [value for value, name in zip(values, result, strict=True) if name == twice[0]]
        raise MedvolError(
            "BAD_VALUE",
            file=file,
            found=f"the structure '{twice[0][:40]}' for the mask values {', '.join(map(str, of_it[:4]))}",
            expected="a name for each",
            fix=f"'{BACKGROUND}' is value 0" if BACKGROUND in twice else "correct structures, or the source's labels",
        )
    return tuple(values), result


def require_declared(case_of: Mapping[int, str], study: Study, structures: Structures = ()) -> None:
    """Refuse a mask value that a source which names structures by value does not name.

    It would train as a structure that nobody described; most often it is a slip of the pen in some of the masks.

    Args:
        case_of: The values found, and a case whose mask holds it.
        study: What the source declares.
        structures: Names that the user gives: a list names all values, a mapping those that it holds.

    Raises:
        MedvolError: `UNKNOWN_LABEL` with the lowest such value.
    """
    in_order = bool(structures) and not isinstance(structures, Mapping)
    if not study.mask_values or in_order:
        return
    known = {0, *study.mask_values, *_stated((), structures)}
    strange = sorted(case_of.keys() - known)
    if not strange:
        return
    case = case_of[strange[0]]
    declared = [f"{value} {name[:16]}" for value, name in zip(study.mask_values, study.classes, strict=True)]
    more = f" ... ({len(declared)} values)" if len(declared) > 5 else ""
    raise MedvolError(
        "UNKNOWN_LABEL",
        case=case,
        file=next((str(one.label) for one in study.cases if one.case == case), study.source),
        found=f"the mask value {strange[0]}",
        expected=f"{', '.join(declared[:5])}{more}",
        fix=f"correct the mask, or the labels in {Path(study.source).name[:30] or 'the source'}",
    )


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


def _declared(values: Sequence[int], names: Sequence[str], mask_values: Sequence[int]) -> dict[int, str]:
    """Return the source's names by value."""
    if mask_values:
        return dict(zip(mask_values, names, strict=True))
    if max(values) >= len(names) == len(values):
        return dict(zip(values, names, strict=True))
    return dict(enumerate(names))


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
