"""Which cleaning of predicted masks pays, decided on validation predictions, structure by structure.

nnU-Net does this with the largest component over cross-validation (Isensee et al., Nat Methods 2021). Here a step must
raise the mean Dice by more than `MARGIN`, help `LEAST_HELPED` patients or more and harm no more than it helps, and what
was tried is returned.

A case is reduced to the voxels of each component of the prediction and how many of them are true. Every removal can be
judged from these two lists, exactly, so volumes are seen once, one by one, and never kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.metrics.masks import components
from medvol.metrics.overlap import dice_of_counts
from medvol.transforms.components import Cleaning, Labels, Mask, is_large_enough, with_holes_filled

MARGIN = 0.001
"""A tenth of a point of Dice; a step that gains less is not worth what it may remove from a new case."""

LEAST_HELPED = 3
"""Patients; what helped one or two may be those two's alone."""

FRACTIONS = (0.1, 0.5)
"""Volumes tried, as parts of the smallest and of the median true component: well below what has to stay."""

Case = tuple[Labels, Labels, float, str]


@dataclass(frozen=True)
class TriedCleaning:
    """One step that was tried on one structure.

    Args:
        structure: Name.
        cleaning: The step, together with what was chosen before it.
        dice_before: Mean validation Dice without the step.
        dice_after: With it.
        helped: Patients whose mean Dice it raised.
        harmed: Patients whose mean Dice it lowered.
        chosen: Whether it was taken.
    """

    structure: str
    cleaning: Cleaning
    dice_before: float
    dice_after: float
    helped: int
    harmed: int
    chosen: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return a flat JSON-ready row."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "cleaning"}
        return {**fields, **self.cleaning.as_dict()}


@dataclass(frozen=True)
class _Pieces:
    """Components of a mask: voxels of each, and how many of them are true."""

    voxels: npt.NDArray[np.int64]
    true: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Seen:
    """What is kept of one structure of one case."""

    patient: str
    voxel_ml: float
    true_voxels: int
    smallest_true_ml: float
    plain: _Pieces
    filled: _Pieces


def choose_cleaning(
    cases: Iterable[Case], structures: Mapping[str, int], *, margin: float = MARGIN
) -> tuple[dict[int, Cleaning], list[TriedCleaning]]:
    """Return the cleaning of each structure, and everything that was tried.

    Removal is settled first, by the candidate with the highest mean Dice (of equal ones the gentlest: volumes from
    small to large, then the largest component); hole filling is tried on top of it. A structure is judged by itself:
    that a neighbour's holes are filled too is not taken into account.

    Args:
        cases: Prediction, truth (label maps of one shape), volume of a voxel in millilitres, patient. Consumed once.
        structures: Name to label.
        margin: Least gain of mean Dice, exceeded.

    Returns:
        Label to cleaning, only for structures to which something is done; and the steps tried, in order.
    """
    seen: dict[str, list[_Seen]] = {name: [] for name in structures}
    for pred, truth, voxel_ml, patient in cases:
        for name, box in _boxes(pred, truth, structures).items():
            seen[name].append(_reduce(pred[box], truth[box], structures[name], voxel_ml, patient))
    cleanings: dict[int, Cleaning] = {}
    tried: list[TriedCleaning] = []
    for name, label in structures.items():
        cleaning, rows = _choose(name, seen[name], margin) if seen[name] else (Cleaning(), [])
        tried += rows
        if cleaning.does_something:
            cleanings[label] = cleaning
    return cleanings, tried


def cleaning_table(tried: Sequence[TriedCleaning]) -> list[str]:
    """Return the lines of a table of the steps that changed anything."""
    lines = [f"  {'structure':<24}{'step':<34}{'Dice before':>12}{'after':>8}{'helped':>8}{'harmed':>8}  chosen"]
    for row in tried:
        if row.helped or row.harmed:
            lines.append(
                f"  {row.structure:<24}{_words(row.cleaning):<34}{row.dice_before:>12.4f}{row.dice_after:>8.4f}"
                f"{row.helped:>8}{row.harmed:>8}  {'yes' if row.chosen else ''}"
            )
    return lines


def _choose(name: str, cases: Sequence[_Seen], margin: float) -> tuple[Cleaning, list[TriedCleaning]]:
    volumes = _candidate_volumes(cases)
    removals = [Cleaning(min_volume_ml=volume) for volume in volumes] + [Cleaning(keep_largest=True)]
    chosen, rows = _best_step(name, cases, Cleaning(), removals, margin)
    filled, more = _best_step(name, cases, chosen, [replace(chosen, fill_holes=True)], margin)
    return filled, rows + more


def _best_step(
    name: str, cases: Sequence[_Seen], before: Cleaning, candidates: Sequence[Cleaning], margin: float
) -> tuple[Cleaning, list[TriedCleaning]]:
    """Return the best candidate that passes, or `before`, and a row per candidate."""
    base = _dice(cases, before)
    rows = []
    for candidate in candidates:
        dice = _dice(cases, candidate)
        gain = _mean_by_patient(cases, dice - base)
        helped, harmed = int((gain > 1e-9).sum()), int((gain < -1e-9).sum())
        rows.append(TriedCleaning(name, candidate, float(base.mean()), float(dice.mean()), helped, harmed))
    passing = [row for row in rows if row.dice_after - row.dice_before > margin and _is_evident(row)]
    if not passing:
        return before, rows
    # Rounding must not prefer the harsher of two candidates that do the same; the first of the best is the gentlest.
    best = max(passing, key=lambda row: round(row.dice_after, 9))
    return best.cleaning, [replace(row, chosen=row is best) for row in rows]


def _is_evident(row: TriedCleaning) -> bool:
    return row.helped >= max(row.harmed, LEAST_HELPED)


def _dice(cases: Sequence[_Seen], cleaning: Cleaning) -> npt.NDArray[np.float64]:
    """Return the Dice of each case after a cleaning."""
    values = []
    for case in cases:
        pieces = case.filled if cleaning.fill_holes else case.plain
        stays = is_large_enough(pieces.voxels, case.voxel_ml, cleaning.min_volume_ml)
        if cleaning.keep_largest and len(stays):
            stays &= np.arange(len(stays)) == pieces.voxels.argmax()
        voxels, true = int(pieces.voxels[stays].sum()), int(pieces.true[stays].sum())
        values.append(dice_of_counts(true, voxels, case.true_voxels))
    return np.array(values)


def _candidate_volumes(cases: Sequence[_Seen]) -> list[float]:
    smallest = [case.smallest_true_ml for case in cases if case.smallest_true_ml > 0]
    if not smallest:
        return []
    volumes = [part * size for part in FRACTIONS for size in (min(smallest), float(np.median(smallest)))]
    # Three digits are what a person reads; whatever is below one voxel removes nothing.
    return sorted({float(f"{volume:.3g}") for volume in volumes if volume > min(case.voxel_ml for case in cases)})


def _mean_by_patient(cases: Sequence[_Seen], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, of_case = np.unique([case.patient for case in cases], return_inverse=True)
    return np.asarray(np.bincount(of_case, weights=values) / np.bincount(of_case))


def _boxes(pred: Labels, truth: Labels, structures: Mapping[str, int]) -> dict[str, tuple[slice, ...]]:
    """Return by structure the box that holds it in both maps; one voxel for a structure in neither."""
    from scipy import ndimage

    highest = max(structures.values(), default=1)
    first, second = (ndimage.find_objects(labels, max_label=highest) for labels in (pred, truth))
    result = {}
    for name, label in structures.items():
        boxes = [box for box in (first[label - 1], second[label - 1]) if box is not None]
        result[name] = tuple(
            slice(min((side.start for side in sides), default=0), max((side.stop for side in sides), default=1))
            for sides in (zip(*boxes, strict=True) if boxes else ((), (), ()))
        )
    return result


def _reduce(pred: Labels, truth: Labels, label: int, voxel_ml: float, patient: str) -> _Seen:
    true = truth == label
    true_sizes = components(true)[1][1:]
    mask, filled = pred == label, with_holes_filled(pred, label)
    plain = _pieces(mask, true)
    return _Seen(
        patient=patient,
        voxel_ml=voxel_ml,
        true_voxels=int(true_sizes.sum()),
        smallest_true_ml=float(true_sizes.min() * voxel_ml) if len(true_sizes) else 0.0,
        plain=plain,
        filled=plain if np.array_equal(mask, filled) else _pieces(filled, true),
    )


def _pieces(mask: Mask, true: Mask) -> _Pieces:
    numbers, sizes = components(mask)
    return _Pieces(sizes[1:], np.bincount(numbers[true], minlength=len(sizes))[1:])


def _words(cleaning: Cleaning) -> str:
    steps = [
        "largest component" if cleaning.keep_largest else "",
        f"at least {cleaning.min_volume_ml:g} ml" if cleaning.min_volume_ml > 0 else "",
        "fill holes" if cleaning.fill_holes else "",
    ]
    return ", ".join(step for step in steps if step) or "nothing"
