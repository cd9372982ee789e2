"""The case table as the rest of medvol uses it: items, files, a content hash, and what a step may demand of a study."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvol.data.checks import check_study
from medvol.data.labels import require_class
from medvol.data.paths import file_of
from medvol.data.source_table import sidecar_of
from medvol.data.splits import DRAWN
from medvol.data.study import SPLITS, TASKS, Case, Label, Study, Task
from medvol.errors import MedvolError, nearest

__all__ = [
    "SPLITS",
    "TASKS",
    "Case",
    "Study",
    "Task",
    "check_study",
    "content_hash",
    "covariate_column",
    "items",
    "require_features",
    "require_images",
    "require_task",
    "with_classes",
    "write_table",
]


def items(study: Study, split: str | None = None) -> list[dict[str, Any]]:
    """Return the cases of a split as MONAI takes them, in the order of the table.

    Keys are `case`, `patient`, `split`, `image` (a reference, or a list of them for several channels; absent in a study
    of features), `label` (class index, number, or reference of a mask; absent when there is none) and, for classes,
    `label_name`. No key starts with `image_`: MONAI's Spacingd breaks on one.

    Args:
        study: The study.
        split: `train`, `val`, `test`, or None for all cases.

    Raises:
        MedvolError: `BAD_SPLIT` for another word, `EMPTY_SPLIT` when no case is in it.
    """
    if split is not None and split not in SPLITS:
        raise MedvolError("BAD_SPLIT", found=f"split '{split}'", expected=", ".join(SPLITS), fix=nearest(split, SPLITS))
    chosen = [case for case in study.cases if split is None or case.split == split]
    if not chosen:
        raise _empty_split(study, split)
    index = {name: position for position, name in enumerate(study.classes)}
    return [_item(study, case, index) for case in chosen]


def with_classes(study: Study, classes: Sequence[str]) -> Study:
    """Return a classification study whose classes are those of a trained model, in its order.

    Raises:
        MedvolError: `WRONG_KIND`, or `UNKNOWN_LABEL` with the nearest class.
    """
    require_task(study, "classification")
    for case in study.cases:
        if case.label is not None:
            require_class(str(case.label), classes, case=case.case, file=study.source)
    return replace(study, classes=tuple(classes))


def require_task(study: Study, task: Task) -> None:
    """Raise `WRONG_KIND` when the labels of a study are of another kind than a step works on."""
    if study.task != task:
        example = next((str(case.label) for case in study.cases if case.label is not None), "")
        raise MedvolError(
            "WRONG_KIND",
            file=study.source,
            found=f"a study for {study.task}" + (f", with labels such as '{example[-40:]}'" if example else ""),
            expected=f"one for {task}",
            fix=f"use a {study.task} bundle, or another label column",
        )


def require_images(study: Study) -> None:
    """Raise `WRONG_KIND` when a study has features only."""
    if not all(case.image for case in study.cases):
        raise MedvolError(
            "WRONG_KIND",
            file=study.source,
            found=f"a table of {len(study.cases[0].covariates)} features without images",
            expected="a study of images",
            fix="name the image column, or use a tabular bundle",
        )


def require_features(study: Study) -> None:
    """Raise `WRONG_KIND` when a study has no covariates."""
    if not any(case.covariates for case in study.cases):
        raise MedvolError(
            "WRONG_KIND",
            file=study.source,
            found="a study without covariates",
            expected="columns with features",
            fix="add columns to the case table, or use an image bundle",
        )


def write_table(study: Study, path: str | Path) -> None:
    """Write the study as a CSV case table, with what a table cannot say in `<stem>.study.json` beside it.

    Both files are written atomically. Paths below the table's folder are written relative to it, others absolute, so
    that either the tree or the table alone may be moved. `open_study` reads back the same cases, task, classes and
    laterality.

    Raises:
        MedvolError: When the folder cannot be written to or the disk is full.
    """
    from medvol.io.atomic import write_text

    path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as they are
    names = list(dict.fromkeys(name for case in study.cases for name in case.covariates))
    columns = [covariate_column(name) for name in names]
    # A 4-D file per case holds all channels of the study; it is one column.
    count = max((len(case.image) for case in study.cases), default=0)
    channels = study.channels if len(study.channels) == count else tuple(str(index) for index in range(count))
    images = ["image"] if count == 1 and channels in (("image",), ("0",)) else [f"image:{name}" for name in channels]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", *images, "label", "split", *columns])
    for case in study.cases:
        label = case.label
        if study.task == "segmentation" and label is not None:
            label = _relative(str(label), path.parent)
        cells = [
            case.case,
            case.patient,
            *([_relative(one, path.parent) for one in case.image] or [""] * count),
            _cell(label),
            case.split or "",
        ]
        writer.writerow([*cells, *(_cell(case.covariates.get(name)) for name in names)])
    task = None if study.task == "unlabelled" else study.task  # labels that are added later must count
    facts: dict[str, Any] = {
        "task": task,
        "classes": list(study.classes),
        "laterality_matters": study.laterality_matters,
    }
    if study.mask_values:
        facts["mask_values"] = list(study.mask_values)
    write_text(sidecar_of(path), json.dumps(facts, indent=4, ensure_ascii=False))
    write_text(path, text.getvalue())


def covariate_column(name: str) -> str:
    """Return the column that a covariate is written to: its name, or `covariate_<name>` where that has a role."""
    reserved = name in ("case", "patient", "image", "label", "split") or name.startswith("image:")
    return f"covariate_{name}" if reserved else name


def content_hash(study: Study) -> str:
    """Return a SHA-256 over what the study holds, the same for any order of rows and any place on disk.

    It covers case, patient, label, split, covariates and the name and size of every source file; not the voxels.
    """
    files_of = _file_facts()
    lines = sorted(json.dumps(_facts(study, case, files_of), sort_keys=True) for case in study.cases)
    return hashlib.sha256("\n".join([study.task, *lines]).encode()).hexdigest()


def _item(study: Study, case: Case, index: dict[str, int]) -> dict[str, Any]:
    item: dict[str, Any] = {"case": case.case, "patient": case.patient, "split": case.split}
    if case.image:
        item["image"] = case.image[0] if len(case.image) == 1 else list(case.image)
    if case.label is None:
        return item
    if study.task == "classification":
        return item | {"label": index[str(case.label)], "label_name": case.label}
    return item | {"label": case.label}


def _empty_split(study: Study, split: str | None) -> MedvolError:
    """Return the refusal of a split without a case, with the way out that its origin leaves."""
    there = ", ".join(name for name in SPLITS if any(case.split == name for case in study.cases)) or "none"
    found = f"no case in the split '{split}'"
    expected = f"one; splits with cases: {there}"
    if any(note.startswith(DRAWN) for note in study.notes):
        pairs = {(case.patient, case.label) for case in study.cases}
        most = max(Counter(label for _, label in pairs).values(), default=0)
        fix = "give it a share when splitting, or name the splits in a table"
        if study.task == "classification" and most < len(SPLITS):
            patients = len({case.patient for case in study.cases})
            found += f": {patients} patients, at most {most} of a class, are too few"
            expected = f"at least {len(SPLITS)} patients of a class"
            fix = "add patients, or name the splits in a table"
    elif Path(study.source).suffix.lower() in (".csv", ".tsv", ".txt"):
        fix = "add cases, or remove the column 'split' to have medvol split"
    else:
        found += ", the source brings none"
        fix = "add it to the source, or write a case table without splits to have medvol split"
    return MedvolError("EMPTY_SPLIT", file=study.source, found=found, expected=expected, fix=fix)


def _relative(reference: str, folder: Path) -> str:
    return reference.removeprefix(f"{folder}{os.sep}")


def _cell(value: Label) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return "" if value is None else str(value)


def _facts(study: Study, case: Case, files_of: Callable[[str], list[list[Any]]]) -> list[Any]:
    label: Any = case.label
    if study.task == "segmentation" and label is not None:
        label = files_of(str(label))
    images = [[files_of(one), one[len(file_of(one)) :]] for one in case.image]
    return [case.case, case.patient, label, case.split, images, case.covariates]


def _file_facts() -> Callable[[str], list[list[Any]]]:
    """Return a function that gives name and size of the files of a reference, asking for each file once."""
    sizes: dict[str, list[list[Any]]] = {}

    def facts(reference: str) -> list[list[Any]]:
        path = reference if os.path.isfile(reference) else file_of(reference)  # noqa: PTH113 - a reference is no path
        key = path if os.path.isfile(path) else reference  # noqa: PTH113
        if key not in sizes:
            sizes[key] = [[one.name, one.stat().st_size] for one in sorted(_source_files(key))]
        return sizes[key]

    return facts


def _source_files(reference: str) -> Sequence[Path]:
    path = Path(reference)
    if path.is_file() and path.suffix.lower() not in (".mhd", ".nhdr", ".hdr", ".img"):
        return [path]
    from medvol.io.reference import source_files

    return source_files(reference)
