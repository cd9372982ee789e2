"""A bundle for a study of one's own: `medvol new`.

The study is opened as training would, a shipped bundle is chosen, its own configuration is asked for the numbers, and a
copy is written whose defaults are this study's. Everything that was inferred is handed back in words.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medvol.bundle.config_text import config_literal, config_text
from medvol.bundle.new_choice import Choice, choose_bundle, task_in_words
from medvol.bundle.new_files import Contents, require_free, write_bundle
from medvol.bundle.new_labels import write_labelled_table
from medvol.bundle.new_numbers import Numbers, Row, fit_numbers
from medvol.bundle.study import describe
from medvol.data.covariates import column_refusals
from medvol.data.sources import open_study
from medvol.data.splits import assign_splits
from medvol.data.study import Study
from medvol.data.table import items
from medvol.errors import MedvolError, find_refusal, nearest

TASKS = ("classification", "segmentation")
IGNORED = ("TOO_MANY_CATEGORIES", "NO_FEATURES")
"""With these a column is refused that holds names, free text or always the same."""

TOLD = ": train "
"""Where a note on the split goes on with the counts, which another line tells as well."""

NEGATIVE = ("absent", "benign", "control", "false", "healthy", "negative", "no", "none", "normal")
"""Names of classes that are looked for in nobody: of two classes, the other one is the positive one."""


@dataclass(frozen=True)
class NewOptions:
    """What a user may state about a new bundle.

    Args:
        bundle: Name or folder of the bundle to copy; empty to have one chosen.
        labels: Table of labels for a folder without them.
        label_column: Column of the label.
        series: Text that the description of a DICOM series must hold, together with `labels`.
        classes: Class names in their order, the positive one of two last; for masks the names of the structures.
        exclude_columns: Covariates to leave out.
        minutes: Budget of the whole training.
        memory_gb: Budget of the training process; for a segmentation.
        relative: Whether the configuration names the study relative to the bundle, so that both can be moved together.
        authors: For the metadata.
        measure: Whether a training step is timed to predict the time.
    """

    bundle: str = ""
    labels: str = ""
    label_column: str = "label"
    series: str = ""
    classes: tuple[str, ...] = ()
    exclude_columns: tuple[str, ...] = ()
    minutes: float | None = None
    memory_gb: float | None = None
    relative: bool = False
    authors: str = ""
    measure: bool = True


@dataclass(frozen=True)
class NewBundle:
    """A bundle that was made, and how it came about.

    Args:
        folder: Where it stands.
        source: What it trains on.
        study: A line on cases and splits.
        task: Sentences on the task.
        choice: Which bundle was copied, and why.
        numbers: Name, value and reason of each.
        parameters: Of the network.
        notes: What was assumed of the study.
    """

    folder: Path
    source: str
    study: str
    task: tuple[str, ...]
    choice: Choice
    numbers: tuple[Row, ...]
    parameters: int
    notes: tuple[str, ...]


def make_bundle(target: str, source: str, options: NewOptions | None = None) -> NewBundle:
    """Write a bundle for a study and return what it is.

    Args:
        target: Its folder, or a name in the working directory. The task is appended to a name without it, for MONAI
            Label reads it there.
        source: Any study that `open_study` reads; with `options.labels` a folder of scans.
        options: What the user states.

    Raises:
        MedvolError: `FOLDER_IN_USE`; `BAD_NAME`; `WRONG_KIND` for a study that no bundle takes, as one to regress;
            whatever is wrong with the study.
    """
    stated = options or NewOptions()
    folder = Path(os.path.abspath(target))  # noqa: PTH100 - links stay as they are
    _require_name(folder)
    if any(task in folder.name for task in TASKS):  # else its name is not settled yet
        require_free(folder)
    notes: tuple[str, ...] = ()
    if not stated.labels:
        return _make(folder, source, stated, notes)
    table = folder.parent / f"{folder.name}_cases.csv"
    require_free(table)
    notes = write_labelled_table(source, stated.labels, table, label_column=stated.label_column, series=stated.series)
    try:
        return _make(folder, str(table), stated, (*notes, f"the case table is {table}"))
    except BaseException:
        table.unlink()
        raise


def _make(folder: Path, source: str, stated: NewOptions, notes: tuple[str, ...]) -> NewBundle:
    source = os.path.abspath(Path(source).expanduser())  # noqa: PTH100
    label_column = "label" if stated.labels else stated.label_column
    study = _positive_last(_opened(source, label_column, stated), stated.classes)
    split = assign_splits(study)
    _require_columns(study, stated.exclude_columns)
    covariates, idle = _covariates(split, stated.exclude_columns)
    choice = choose_bundle(split, covariates=covariates, named=stated.bundle)
    folder = _named_for(folder, study.task)
    require_free(folder)
    further: dict[str, Any] = {}
    if choice.kind in ("features", "volumes and covariates"):
        further["exclude_columns"] = sorted({*stated.exclude_columns, *idle})
    if study.task == "segmentation" and stated.classes:
        further["structures"] = list(stated.classes)
    elif study.task == "classification":
        further["classes"] = list(study.classes)
    numbers = _numbers(choice.folder, source, {"label_column": label_column, **further}, stated)
    if study.task == "classification":
        items(numbers.study, "val")  # training refuses a study that has none
    write_bundle(
        Contents(
            folder=folder,
            copied=choice.folder,
            dataset_dir=_named_source(source, folder) if stated.relative else config_text(source),
            label_column=label_column,
            numbers=numbers,
            stated=further,
            authors=stated.authors,
            kind=choice.kind,
        )
    )
    return NewBundle(
        folder=folder,
        source=source,
        study=describe(numbers.study).removeprefix("Study: "),
        task=tuple(task_in_words(numbers.study, choice.kind)),
        choice=choice,
        numbers=numbers.rows,
        parameters=numbers.parameters,
        notes=(*notes, *_assumed(numbers.study, further.get("exclude_columns", ())), *numbers.notes),
    )


def _opened(source: str, label_column: str, stated: NewOptions) -> Study:
    try:
        return open_study(source, label_column=label_column, classes=stated.classes)
    except MedvolError as refusal:
        if refusal.code != "NO_LABEL" or not Path(source).is_dir():
            raise
        fix = "pass --labels with a CSV that names patients, folders or files and their label; or a case table"
        raise MedvolError(
            refusal.code, file=refusal.file, found=refusal.found, expected=refusal.expected, fix=fix
        ) from refusal


def _positive_last(study: Study, stated: Sequence[str]) -> Study:
    """Return the study with `healthy` and the like first of two classes, where nobody stated their order."""
    if stated or len(study.classes) != 2 or list(study.classes) != sorted(study.classes):
        return study
    first, last = study.classes
    return replace(study, classes=(last, first)) if last.lower() in NEGATIVE else study


def _numbers(copied: Path, source: str, further: dict[str, Any], stated: NewOptions) -> Numbers:
    config = json.loads((copied / "configs" / "train.json").read_text())
    with TemporaryDirectory() as place:  # for the case table, which is the training's to write
        config.update(further, bundle_root=str(copied), dataset_dir=config_text(source), output_dir=config_text(place))
        try:
            return fit_numbers(config, minutes=stated.minutes, memory_gb=stated.memory_gb, measure=stated.measure)
        except RuntimeError as error:  # what MONAI wraps the refusals of a configuration's components in
            raise find_refusal(error) or error from error


def _covariates(study: Study, excluded: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the columns that a model can learn from, and those that tell nothing: names, free text, constants."""
    known: list[str] = []
    idle: list[str] = []
    for name, refusal in column_refusals(study).items():
        if name in excluded:
            continue
        if refusal is not None and refusal.code not in IGNORED:
            raise refusal
        (known if refusal is None else idle).append(name)
    return known, idle


def _require_columns(study: Study, names: Sequence[str]) -> None:
    known = {name for case in study.cases for name in case.covariates}
    for name in names:
        if name not in known:
            raise MedvolError(
                "UNKNOWN_OPTION",
                file=study.source,
                found=f"--exclude-columns names '{name}'",
                expected="a column of covariates" if known else "none: the study has no covariates",
                fix=nearest(name, known) or "leave it out",
                details=sorted(known),
            )


def _assumed(study: Study, left_out: Sequence[str]) -> list[str]:
    notes = [note.partition(TOLD)[0] for note in study.notes]
    if all(case.split != "test" for case in study.cases):
        notes.append("no case in test: nothing but validation can be evaluated, with --eval_split val")
    return [*notes, f"columns that are left out: {', '.join(left_out)}"] if left_out else notes


def _require_name(folder: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", folder.name, re.ASCII):
        raise MedvolError(
            "BAD_NAME",
            file=folder,
            found=f"the name '{folder.name}'",
            expected="letters, digits, '_', '-' and '.'",
            fix="name another folder, such as lung_nodules_classification",
        )


def _named_for(folder: Path, task: str) -> Path:
    """Return the folder with the task's word in its name; a name with the other task's word is refused."""
    other = next(one for one in TASKS if one != task)
    if task in folder.name:
        return folder
    if other in folder.name:
        raise MedvolError(
            "BAD_NAME",
            file=folder,
            found=f"'{other}' in the name of a bundle for {task}",
            expected=f"'{task}', which MONAI's clients read there",
            fix="name another folder",
        )
    return folder.with_name(f"{folder.name}_{task}")


def _named_source(source: str, folder: Path) -> str:
    """Return an expression for the study's place as seen from the bundle."""
    return f"$@bundle_root + {config_literal('/' + os.path.relpath(source, folder))}"
