"""What a check finds in a study as a whole, after its files were read: units, splits, classes and structures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from medvol.data.build import class_gaps
from medvol.data.column_facts import encode_row
from medvol.data.covariates import column_refusals, fit_columns
from medvol.data.facts import Sampled
from medvol.data.study import SPLITS, Study
from medvol.data.table import items
from medvol.errors import MedvolError

PLAUSIBLE_MM = (0.001, 100.0)  # from a micrometre to ten times the thickest slice; beyond it a unit is wrong


def odd_spacings(sampled: Sequence[Sampled]) -> Iterator[MedvolError]:
    """Yield an `ODD_SPACING` for each volume whose header has other units than it says, or is damaged."""
    low, high = PLAUSIBLE_MM
    for one in sampled:
        if one.spacing_mm and not all(low <= step <= high for step in one.spacing_mm):
            yield MedvolError(
                "ODD_SPACING",
                case=one.case,
                found=f"a spacing of {' x '.join(f'{step:g}' for step in one.spacing_mm)} mm",
                expected=f"{low:g} to {high:g} mm",
                fix="look at the file's units; sizes in mm and ml will be wrong with it",
            )


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
    """Return what a table of features is refused for, columns first, then rows, and which columns are left out."""
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
    return refused, idle


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
        yield MedvolError(
            "CLASS_MISSING", file=study.source, found=gap, fix="it can be neither learnt nor measured there; add cases"
        )
