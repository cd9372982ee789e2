"""The words of the case table: a *case* is one row, a *study* is all rows and what holds for all of them.

A *reference* is a string that names voxels: a path, or `path#fragment` for one row of a stacked array or one series of
a DICOM folder. In a study every reference is absolute, so that it means the same from any working directory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from medvol.errors import MedvolError

Task = Literal["classification", "regression", "segmentation", "unlabelled"]
Label = str | float | None

TASKS: tuple[Task, ...] = ("classification", "regression", "segmentation", "unlabelled")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Case:
    """One row of the case table.

    Args:
        case: Unique name, safe as a file name; outputs are named after it.
        patient: Who it is of; splits never divide a patient.
        image: Absolute references, one per channel; empty in a study of features only.
        label: Class name, number, or absolute reference of a mask, by the study's task; None when there is none.
        split: `train`, `val`, `test` or None.
        covariates: The other columns: numbers where the whole column is numeric, else text; None where empty.
    """

    case: str
    patient: str
    image: tuple[str, ...] = ()
    label: Label = None
    split: str | None = None
    covariates: dict[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A case table that was read and checked.

    Args:
        cases: The rows, in the order of the source.
        task: What the labels are.
        classes: Class names in index order; for segmentation the structure of each mask value, where the source says.
        channels: Names of the images of a case; ("image",) when there is one column, () for features only.
        laterality_matters: Whether mirroring left and right could change the label.
        source: The path it was read from.
        notes: What was assumed, chosen or left out while reading, one sentence each.
        mask_values: Segmentation: the mask value of each class, where the source gives the names by value; () where it
            gives none, or names in order.
    """

    cases: tuple[Case, ...]
    task: Task
    classes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ("image",)
    laterality_matters: bool = True
    source: str = ""
    notes: tuple[str, ...] = ()
    mask_values: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {TASKS}, got {self.task!r}")
        if self.task == "unlabelled" and any(case.label is not None for case in self.cases):
            raise ValueError("an unlabelled study holds cases with labels")
        if self.mask_values and len(self.mask_values) != len(self.classes):
            raise ValueError(f"{len(self.mask_values)} mask values for {len(self.classes)} classes")


@dataclass(frozen=True)
class Row:
    """One row as a source gave it, before names, labels and splits are settled.

    Args:
        image: References, absolute already.
        label: Text or number as found; None when there is none.
        case: Name if the source has one.
        patient: Patient if the source has one.
        split: Split as spelt in the source.
        covariates: The other columns.
        where: Words for an error message, such as `line 7`.
    """

    image: tuple[str, ...]
    label: Label = None
    case: str | None = None
    patient: str | None = None
    split: str | None = None
    covariates: dict[str, str | float | None] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Draft:
    """What a reader makes of its source; `medvol.data.build` turns it into a checked study.

    Args:
        rows: The rows in the order of the source.
        source: File or folder the rows come from, for messages.
        folder: Folder that relative mask paths start from.
        channels: Names of the images of a case.
        classes: Class names in index order where the source declares them.
        task: The task where the source declares it.
        laterality_matters: Where the source or common knowledge of it says.
        drop_unlabelled: Rows without a label belong to the format (a challenge's test list) and are left out quietly.
        notes: What was assumed, chosen or left out.
        mask_values: The mask value of each of `classes` where the source gives them by value.
    """

    rows: tuple[Row, ...]
    source: str
    folder: str
    channels: tuple[str, ...] = ("image",)
    classes: tuple[str, ...] = ()
    task: Task | None = None
    laterality_matters: bool | None = None
    drop_unlabelled: bool = False
    notes: tuple[str, ...] = ()
    mask_values: tuple[int, ...] = ()


def raise_refusal(refusal: MedvolError) -> None:
    """Raise what a check refuses: what a study that is to be used is opened with."""
    raise refusal


@dataclass(frozen=True)
class Options:
    """What a user may say about a source; see `medvol.data.sources.open_study`."""

    label_column: str = "label"
    image_column: str = "image"
    patient_column: str = "patient"
    split_column: str = "split"
    task: Task | None = None
    classes: tuple[str, ...] = ()
    laterality_matters: bool | None = None
    require_label: bool = True
    require_image: bool = True
    for_prediction: bool = False
    report: Callable[[MedvolError], None] = raise_refusal
