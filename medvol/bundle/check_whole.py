"""What a check finds that no reader refuses, once files were read: contrast, units, splits, classes and structures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.data.build import class_gaps
from medvol.data.column_facts import encode_row
from medvol.data.covariates import column_refusals, fit_columns
from medvol.data.facts import Sampled
from medvol.data.notes import telling
from medvol.data.structures import name_structures, require_declared
from medvol.data.study import SPLITS, Study
from medvol.data.table import items
from medvol.data.telltale import telltale, telltale_columns
from medvol.errors import MedvolError
from medvol.io.nifti_affine import CONFLICT
from medvol.training.plan_words import absent_structures

PLAUSIBLE_MM = (0.001, 100.0)  # from a micrometre to ten times the thickest slice; beyond it a unit is wrong
MOST_FACTOR = 10.0  # of a study's median: from the thinnest to the thickest slices of CT, 0.5 to 5 mm


def odd_spacings(sampled: Sequence[Sampled]) -> Iterator[MedvolError]:
    """Yield an `ODD_SPACING` for each volume whose header has other units than it says or the others, or is damaged."""
    low, high = PLAUSIBLE_MM
    spacings = [one.spacing_mm for one in sampled if one.spacing_mm]
    median = np.median(spacings, axis=0) if spacings else np.ones(3)
    for one in sampled:
        if not one.spacing_mm:
            continue
        ratios = np.array(one.spacing_mm) / median
        if not all(low <= step <= high for step in one.spacing_mm):
            expected = f"{low:g} to {high:g} mm"
        elif ratios.max() > MOST_FACTOR or ratios.min() < 1 / MOST_FACTOR:
            expected = f"the study's median of {_by(median)} mm, within a factor of {MOST_FACTOR:g}"
        else:
            continue
        yield MedvolError(
            "ODD_SPACING",
            case=one.case,
            found=f"a spacing of {_by(one.spacing_mm)} mm",
            expected=expected,
            fix="look at the file's units; sizes in mm and ml will be wrong with it",
        )


def single_slices(sampled: Sequence[Sampled]) -> Iterator[MedvolError]:
    """Yield a `ONE_SLICE` for each volume with an axis of one voxel, which is padded or stretched for a network."""
    for one in sampled:
        if min(one.size) == 1:
            yield MedvolError(
                "ONE_SLICE",
                case=one.case,
                found=f"a volume of {_by(one.size)} voxels",
                expected="several along each axis",
                fix="see whether slices are missing; a study of single slices is for a bundle for images",
            )


def no_contrast(case: str, reference: str, voxels: npt.NDArray[Any]) -> MedvolError:
    """Return the warning of an image whose voxels are all equal, in which there is nothing to learn from."""
    found = f"all voxels are {float(voxels.flat[0]):g}"
    return MedvolError("NO_CONTRAST", case=case, file=reference, found=found, fix="look at the file, or remove it")


def noted(case: str, reference: str, notes: Iterable[str]) -> Iterator[MedvolError]:
    """Yield a `NOTED` for each note of a reader, `AFFINE_CONFLICT` for that of two places stated by one header."""
    for note in telling(notes):
        if note.startswith(CONFLICT):
            fix = "find out which is right, and set the code of the other to 0"
            yield MedvolError("AFFINE_CONFLICT", case=case, file=reference, found=note, fix=fix)
        else:
            yield MedvolError("NOTED", case=case, file=reference, found=note[:150])


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(f"{one:g}" for one in numbers)


def empty_splits(study: Study) -> tuple[list[MedvolError], list[MedvolError]]:
    """Return an `EMPTY_SPLIT` for each split without a case: those that training refuses, and those it does without.

    Training needs a validation split but for masks; without a test split there is nothing to evaluate on but `val`.
    A study that could not be split has none, and was refused with the reason.
    """
    refused: list[MedvolError] = []
    told: list[MedvolError] = []
    if any(case.split for case in study.cases):
        for split in SPLITS:
            try:
                items(study, split)
            except MedvolError as refusal:
                needed = split == "train" or (split == "val" and study.task != "segmentation")
                (refused if needed else told).append(refusal)
    return refused, told


def columns_to_mend(study: Study) -> tuple[list[MedvolError], list[MedvolError]]:
    """Return what a table of features is refused for, columns first, then rows, and what is told of other columns."""
    if all(case.split != "train" for case in study.cases):
        return [], []  # refused as such
    found = {name: one for name, one in column_refusals(study).items() if one is not None}
    idle = [one for one in found.values() if one.code == "NO_FEATURES"]
    refused = [one for one in found.values() if one.code != "NO_FEATURES"]
    try:
        columns = fit_columns(study, exclude_columns=list(found))
    except MedvolError as refusal:  # nothing is left
        return [*refused, refusal], idle
    for case in study.cases:
        try:
            encode_row(columns, case.covariates, case.case)
        except MedvolError as refusal:
            refused.append(refusal)
    return refused, [*idle, *map(telltale, telltale_columns(study, columns))]


def structures_to_mend(
    study: Study, values_of: Mapping[str, Collection[int]], named: Mapping[int, str]
) -> tuple[list[MedvolError], list[MedvolError]]:
    """Return what a segmentation is refused for because of its masks' values, and which structures cannot be learnt.

    Args:
        study: Split.
        values_of: Values in the mask of each case; () for a mask that was refused.
        named: Structures by value, as masks from DICOM name them.
    """
    refused: list[MedvolError] = []
    for case, values in values_of.items():
        try:
            require_declared(dict.fromkeys(values, case), study)
        except MedvolError as refusal:
            refused.append(refusal)
    told = list(_empty_masks(values_of, study))
    train = {value for case in study.cases if case.split == "train" for value in values_of.get(case.case, ())}
    if not train:
        return refused, told
    try:  # as the planner names them
        values, classes = name_structures(
            sorted(train),
            study.classes,
            {} if study.classes else named,
            mask_values=study.mask_values,
            file=study.source,
        )
    except MedvolError as refusal:
        return [*refused, refusal], told
    gaps = absent_structures(train, values, classes)
    return refused, [*told, *(_class_missing(study, gap, "add cases, or take it out of the labels") for gap in gaps)]


def _empty_masks(values_of: Mapping[str, Collection[int]], study: Study) -> Iterator[MedvolError]:
    """Yield one `EMPTY_MASK` for all masks without a structure beside others that have one."""
    read = {case: set(values) for case, values in values_of.items() if values}
    empty = [case for case, values in read.items() if values == {0}]
    if empty and len(empty) < len(read):
        yield MedvolError(
            "EMPTY_MASK",
            case=empty[0],
            file=next((str(case.label) for case in study.cases if case.case == empty[0]), ""),
            found=f"{len(empty)} of {len(read)} masks hold nothing but 0, this is the first",
            fix="keep them if these cases have no structure; else correct the masks",
            details=empty[:10],
        )


def class_and_structure_gaps(study: Study, values: Mapping[str, Collection[int]]) -> Iterator[MedvolError]:
    """Yield a `CLASS_MISSING` for each class that a split lacks, and each structure of the training masks.

    Args:
        study: Split.
        values: Values in the masks of each split.
    """
    gaps = list(class_gaps(study))
    if study.task == "segmentation":
        gaps += [
            f"mask value {value} is in no case of {split}"
            for split in SPLITS[1:]
            for value in sorted(values["train"])
            if values[split] and value not in values[split]
        ]
    for gap in gaps:
        yield _class_missing(study, gap, "it can be neither learnt nor measured there; add cases")


def _class_missing(study: Study, gap: str, fix: str) -> MedvolError:
    return MedvolError("CLASS_MISSING", file=study.source, found=gap, fix=fix)
