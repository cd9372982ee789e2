"""Images that lie at one place: a copy is dropped, volumes of one series are told apart by the tag that explains them.

An explanation is a tag, or several, each of whose values has exactly one image at every place; or, at every place, the
order of trigger times, or of acquisition times that keep the volumes apart. Whatever no tag explains is refused;
instance numbers explain nothing. Slices of other echo times, b-values or the like make no volume, even side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.io.dicom_geometry import place_tolerance, sort_slices
from medvol.io.dicom_header import SliceHeader
from medvol.io.dicom_pixels import pixel_fingerprint
from medvol.io.dicom_select import NONE, Selection, fragment_of
from medvol.io.dicom_tags import CONTRAST_TAGS, SPLITTING_TAGS, TIME_TAGS, TRIGGER_RANK

CONTRAST_TOLERANCE = 0.05
"""Largest difference between echo times and the like in one volume, as a share of the value."""

_NOON = 120000.0  # as a time of the day, HHMMSS
MOST_TAGS = 3  # echo, b-value and direction together tell every series apart that was met

Slices = tuple[SliceHeader, ...]


@dataclass(frozen=True)
class Parted:
    """One volume of an image.

    Args:
        slices: At most one at every place.
        tags: Names and values that tell it from the others; none when it is the only one.
        notes: What was dropped.
    """

    slices: Slices
    tags: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def part_volumes(group: Sequence[SliceHeader], selection: Selection) -> tuple[Parted, ...]:
    """Return the volumes of the slices of one image, those that a selection by clock time leaves.

    Raises:
        MedvolError: `NO_GEOMETRY`, `BAD_AFFINE`, `DUPLICATE_POSITION`, or `NOT_FOUND` for a rank that there is not.
    """
    if len(group) == 1:
        return (Parted(tuple(group)),)
    parts = _part_places(group, selection)
    for part in parts:
        _require_one_contrast(part.slices)
    return parts


def only_volume(group: Sequence[SliceHeader], selection: Selection, path: Path) -> Parted:
    """Return the volume of the slices of one image that was found at a path.

    Raises:
        MedvolError: `SEVERAL_VOLUMES`, or what `part_volumes` finds.
    """
    parts = part_volumes(group, selection)
    if len(parts) > 1:
        raise several_volumes(parts, path if path.is_dir() else path.parent)
    return parts[0]


def _part_places(group: Sequence[SliceHeader], selection: Selection) -> tuple[Parted, ...]:
    ordered, levels = sort_slices(group)
    places = np.concatenate([[0], np.cumsum(np.diff(levels) > place_tolerance(ordered[0]))])
    if places[-1] + 1 == len(ordered):
        return (Parted(ordered),)
    kept, notes = _without_copies(ordered, places, of_equal_tags=True)
    slices, places = tuple(ordered[index] for index in kept), places[kept]
    if places[-1] + 1 == len(slices):
        return (Parted(slices, notes=notes),)
    parts = _explain(slices, places) or _rank(slices, places)
    if not parts:
        # The same image may have been sent twice with another acquisition number.
        kept, more = _without_copies(slices, places, of_equal_tags=False)
        return (Parted(tuple(slices[index] for index in kept), notes=notes + more),)
    wanted = [part for part in parts if set(selection.clocks) <= set(part.tags)]
    if not wanted:
        name, value = selection.clocks[0]
        raise MedvolError(
            "NOT_FOUND", file=slices[0].path.parent, found=f"no {name} {value}", expected=_told_apart(parts)
        )
    return tuple(Parted(part.slices, part.tags, notes) for part in wanted)


def several_volumes(parts: Sequence[Parted], folder: Path) -> MedvolError:
    """Return the refusal of an image of several volumes, which lists how each is named."""
    first = parts[0]
    tags = ";".join(f"{name}={value}" for name, value in first.tags)
    return MedvolError(
        "SEVERAL_VOLUMES",
        file=folder,
        found=f"{len(parts)} volumes of {len(first.slices)} slices, told apart by {_told_apart(parts)}",
        expected="one volume",
        fix=f"name one, as in folder#UID;{tags}"[:80],
        details=[f"{folder}#{fragment_of(one.slices[0].series_uid, one.tags)}" for one in parts],
    )


def _told_apart(parts: Sequence[Parted]) -> str:
    names = [name for name, _ in parts[0].tags]
    if len(names) > 1:
        return " and ".join(names)
    return f"{names[0]}: {', '.join(part.tags[0][1] for part in parts)}"[:80]


def _without_copies(
    slices: Slices, places: npt.NDArray[np.int64], *, of_equal_tags: bool
) -> tuple[list[int], tuple[str, ...]]:
    """Return the indices of slices of which none is a copy of another; refuse other pixels behind the same header."""
    kept: list[int] = []
    dropped: list[str] = []
    first_of: dict[tuple[int, object], int] = {}
    for index, one in enumerate(slices):
        first = first_of.setdefault((int(places[index]), one.tags if of_equal_tags else None), index)
        if first == index:
            kept.append(index)
        elif _is_copy(slices[first], one):
            dropped.append(one.name)
        else:
            raise _duplicate(slices[first], one, len(slices), int(places[-1]) + 1)
    names = ", ".join(dropped[:3]) + (", ..." if len(dropped) > 3 else "")
    return kept, (f"{len(dropped)} files dropped, same image at the same position: {names}",) if dropped else ()


def _is_copy(first: SliceHeader, second: SliceHeader) -> bool:
    apart = np.linalg.norm(np.subtract(first.position or (), second.position or ()))
    return bool(apart <= place_tolerance(first)) and pixel_fingerprint(first) == pixel_fingerprint(second)


def _explain(slices: Slices, places: npt.NDArray[np.int64]) -> list[Parted]:
    """Return the volumes by the first tags that explain them, fewest tags first; none when no tags do."""
    count, rest = divmod(len(slices), int(places[-1]) + 1)
    if rest:
        return []
    codes = _codes(slices)
    useful = [name for name, (known, _) in codes.items() if len(known) <= count]
    for size in range(1, MOST_TAGS + 1):
        for names in combinations(useful, size):
            if np.prod([len(codes[name][0]) for name in names]) < count:
                continue
            columns = np.stack([codes[name][1] for name in names])
            _, part = np.unique(columns, axis=1, return_inverse=True)
            part = part.reshape(-1)
            if part.max() + 1 == count and len(np.unique(part * (places[-1] + 1) + places)) == len(slices):
                return [_part(slices, part == number, {name: codes[name] for name in names}) for number in range(count)]
    return []


def _rank(slices: Slices, places: npt.NDArray[np.int64]) -> list[Parted]:
    """Return the volumes by the rank of a time among the images at each place; none where times do not tell."""
    count, rest = divmod(len(slices), int(places[-1]) + 1)
    if rest or (np.bincount(places) != count).any():
        return []
    for tag, name in (("TriggerTime", TRIGGER_RANK), ("AcquisitionTime", "AcquisitionTime")):
        texts = [dict(one.tags).get(tag, "") for one in slices]
        try:
            times = np.array([float(text) for text in texts])
        except ValueError:
            continue
        # One row per place: slices are sorted by place already.
        order = np.lexsort((times, places)).reshape(-1, count)
        ranked = times[order]
        if (np.diff(ranked, axis=1) <= 0).any():
            continue
        # Volumes that were acquired one after the other; not so beats of a heart, and not around midnight.
        if tag == "AcquisitionTime" and (
            np.ptp(times) > _NOON or (ranked[:, :-1].max(axis=0) >= ranked[:, 1:].min(axis=0)).any()
        ):
            continue
        return [
            Parted(tuple(slices[index] for index in sorted(order[:, number])), ((name, str(number + 1)),))
            for number in range(count)
        ]
    return []


def _require_one_contrast(slices: Slices) -> None:
    """Refuse slices side by side that show different things.

    Raises:
        MedvolError: `MIXED_SERIES`.
    """
    tags = [dict(one.tags) for one in slices]
    for name in CONTRAST_TAGS:
        values = sorted({value for one in tags if (value := one.get(name))}, key=_sort_key)
        if len(values) > 1 and not _are_near(values):
            raise MedvolError(
                "MIXED_SERIES",
                file=slices[0].path.parent,
                found=f"slices of {len(values)} values of {name} side by side: {', '.join(values)}"[:110],
                expected="one contrast",
                fix=f"name one, as in folder#UID;{name}={values[0]}"[:80],
                details=[f"{fragment_of(slices[0].series_uid, [(name, value)])}" for value in values],
            )


def _are_near(values: Sequence[str]) -> bool:
    """Tell whether values are numbers that rounding could have set apart."""
    try:
        known = [float(value) for value in values]
    except ValueError:
        return False
    return max(known) - min(known) <= CONTRAST_TOLERANCE * max(abs(value) for value in known)


def _codes(slices: Slices) -> dict[str, tuple[list[str], npt.NDArray[np.int64]]]:
    """Return for every tag that varies its sorted values, as shown, and the index of each slice's value."""
    values_of = [dict(one.tags) for one in slices]
    codes = {}
    for name in SPLITTING_TAGS:
        values = [one.get(name, NONE) for one in values_of]
        known = sorted(set(values), key=_sort_key)
        if len(known) > 1:
            index = {value: position for position, value in enumerate(known)}
            shown = [str(rank + 1) for rank in range(len(known))] if name in TIME_TAGS else known
            codes[name] = (shown, np.array([index[value] for value in values]))
    return codes


def _part(
    slices: Slices, mask: npt.NDArray[np.bool_], codes: dict[str, tuple[list[str], npt.NDArray[np.int64]]]
) -> Parted:
    chosen = np.flatnonzero(mask)
    tags = tuple((name, known[int(index[chosen[0]])]) for name, (known, index) in codes.items())
    return Parted(tuple(slices[index] for index in chosen), tags)


def _sort_key(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def _duplicate(first: SliceHeader, second: SliceHeader, count: int, places: int) -> MedvolError:
    several = f" ({count} images in {places} places, no tag explains them)" if count > places + 1 else ""
    return MedvolError(
        "DUPLICATE_POSITION",
        file=first.path,
        found=f"other pixels at the same position in {second.name[-60:]}{several}",
        expected="one image per position",
        fix="put each volume into a folder of its own",
    )
