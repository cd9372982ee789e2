"""Who the images in class folders are of: as `patients.csv` says, else by the folders below the classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medvol.data.build import SPLIT_WORDS
from medvol.data.column_roles import find_column, missing_column
from medvol.data.columns import read_delimited
from medvol.data.folder_layout import NOT_CLASSES
from medvol.data.labels import is_missing
from medvol.data.study import Label, Options, Row
from medvol.errors import MedvolError

PATIENTS_FILE = "patients.csv"


def with_listed_patients(rows: Sequence[Row], listed: Path, options: Options) -> tuple[list[Row], list[str]]:
    """Return the rows with the patients that `patients.csv` names, and notes on what it does not name.

    Raises:
        MedvolError: `MISSING_COLUMN`, `BAD_TABLE` where it does not fit; `SPLIT_LEAK` for an image of two patients.
    """
    table = read_delimited(listed)
    image, _ = find_column(table, options.image_column, "image", optional=False)
    patient, _ = find_column(table, options.patient_column, "patient", optional=False)
    if image is None or patient is None:
        raise missing_column(table, "image" if image is None else "patient")
    folder = listed.parent
    patients: dict[str, Label] = {}
    for name, who, where in zip(table.column(image), table.column(patient), table.where, strict=True):
        path = os.path.normpath(os.path.join(folder, str(name).replace("\\", "/")))  # noqa: PTH118
        if _text(patients.setdefault(path, who)) != _text(who):
            raise MedvolError(
                "SPLIT_LEAK",
                file=listed,
                found=f"one image belongs to two patients: {where} names '{str(name)[-60:]}' once more",
                expected="one patient per image",
                fix="correct or remove the line",
            )
    joined = [
        Row(row.image, row.label, row.case, _text(patients.get(row.image[0])), row.split, row.covariates, row.where)
        for row in rows
    ]
    matched = sum(row.image[0] in patients for row in rows)
    if not matched:
        raise MedvolError(
            "BAD_TABLE",
            file=listed,
            found=f"none of its {len(patients)} images is among the {len(rows)} files in the class folders",
            expected="paths relative to this file, such as class/name.png",
            fix="correct the column 'image'",
        )
    notes = [f"patients of {matched} of {len(rows)} files from {listed.name}"]
    if matched < len(patients):
        notes.append(f"{len(patients) - matched} images in {listed.name} are not there")
    return joined, notes


def with_folder_patients(rows: Sequence[Row], tops: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """Return the rows with the first folder below their class as the patient, and a note of it.

    Folders of one name in two classes are one patient: wrongly joined they cost a little, wrongly divided they leak. No
    patients are folders that say what files are, and those without a number that every class has (axial, coronal).

    Args:
        rows: Labelled rows of one image each.
        tops: The class folder of each row.
    """
    owners = _owners(rows, tops)
    classes: dict[Label, set[str]] = {row.label: set() for row in rows}
    for row, owner in zip(rows, owners, strict=True):
        if owner:
            classes[row.label].add(owner)
    times = Counter(name for names in classes.values() for name in names)
    if not times:
        return list(rows), []
    reason = _no_patients(list(classes.values()))
    if reason:
        return list(rows), [f"the folders below the classes were not taken for patients: {reason}"]
    several = sum(count > 1 for count in times.values())
    shared = f", of whom {several} have cases of several classes" if several else ""
    joined = [replace(row, patient=owner) for row, owner in zip(rows, owners, strict=True)]
    return joined, [f"the folders below the classes are patients: {len(times)}{shared}"]


def _owners(rows: Sequence[Row], tops: Sequence[Path]) -> list[str | None]:
    """Return the first folder between each class and its image, or None.

    The folder of a DICOM series is the case itself, unless several series lie in it.
    """
    places = [_place(row.image[0]).relative_to(top) for row, top in zip(rows, tops, strict=True)]
    times = Counter(zip(tops, places, strict=True))
    return [
        place.parts[0] if len(place.parts) > 1 or (place.parts and times[top, place] > 1) else None
        for top, place in zip(tops, places, strict=True)
    ]


def _place(reference: str) -> Path:
    folder, _, series = reference.rpartition("#")
    return Path(folder if folder and os.sep not in series and Path(folder).is_dir() else reference)


def _no_patients(classes: Sequence[set[str]]) -> str:
    """Return why folder names below each class are none of patients, or nothing when they may be."""
    names = set().union(*classes)
    kinds = sorted(name for name in names if name.lower() in NOT_CLASSES or name.lower() in SPLIT_WORDS)
    if kinds:
        return f"one is called '{kinds[0]}'"
    if all(len(one) < 2 for one in classes):
        return "no class has two of them"
    unnumbered = not any(letter.isdigit() for name in names for letter in name)
    return (
        "every class has the same ones, and none has a number"
        if unnumbered and all(one == names for one in classes)
        else ""
    )


def _text(value: Label) -> str | None:
    return None if is_missing(value) else str(value)
