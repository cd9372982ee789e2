"""What `dataset.json` declares under `labels`: MSD maps mask values to names, nnU-Net names to values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvol.data.labels import as_number
from medvol.data.structures import BACKGROUND
from medvol.data.study import Options
from medvol.errors import MedvolError

MOST = 65536  # values of 16 bits; a larger number is no mask value
IGNORE = "ignore"
"""nnU-Net's name for voxels that count neither in training nor in evaluation."""


def names_by_value(labels: Any) -> dict[int, str]:
    """Return the name of each value, ascending; empty where the source names none, or not values alone."""
    named = {value: name for _, name, value in _entries(labels)}
    if not named or not all(isinstance(value, int) for value in named):
        return {}
    return dict(sorted(named.items()))


def structures_by_value(labels: Any, file: Path, options: Options) -> dict[int, str]:
    """Return the names for masks, that of 0 included.

    There are none after a refusal that was only reported, lest every mask be refused for it.
    """
    try:
        _require_one_value_each(labels, file)
    except MedvolError as refusal:
        if options.require_label:  # to predict, a model brings its own names
            options.report(refusal)
        return {}
    names = names_by_value(labels)
    return {0: names.get(0, BACKGROUND), **names} if names else {}


def _require_one_value_each(labels: Any, file: Path) -> None:
    """Raise `BAD_TABLE` for a region, an ignore label or any other entry that is not one structure of one mask value.

    A region overlaps the structures it holds, and the voxels of an ignore label would train as a structure.
    """
    first: dict[int, str] = {}
    for entry, name, value in _entries(labels):
        if isinstance(value, tuple):
            found = f"the region '{name[:40]}' of the values {', '.join(map(str, value))}"[:90]
            fix = "regions are not supported; give each structure its own value, and add regions up after segmentation"
        elif name.casefold() == IGNORE and isinstance(value, int):
            found = f"the label '{name}' of value {value}"
            fix = "ignored voxels are not supported; give them the value of a structure or 0, and remove the label"
        elif not isinstance(value, int):
            found, fix = f"the label {entry[:80]}", "correct the labels"
        elif first.setdefault(value, name) != name:
            found, fix = f"the names '{first[value][:40]}' and '{name[:40]}' of value {value}", "correct the labels"
        else:
            continue
        raise MedvolError("BAD_TABLE", file=file, found=found, expected="a mask value for each structure", fix=fix)


def _entries(labels: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield each entry in words, its name, and its mask value; a tuple for a region, None for what is no value."""
    if not isinstance(labels, dict):
        return
    for key, content in labels.items():
        by_value = as_number(key) is not None and isinstance(content, str)
        name, value = (content, key) if by_value else (str(key), content)
        number = None if isinstance(value, bool) else as_number(value)
        if number is not None and number.is_integer() and 0 <= number < MOST:
            value = int(number)
        else:
            value = tuple(value) if isinstance(value, list) else None
        yield f"'{key}': {content!r}", name, value
