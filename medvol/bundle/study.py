"""The study that a bundle works on: the user's, or a synthetic cohort when none is given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvol.bundle.quick_check import warn_of_headers
from medvol.bundle.quick_leaks import require_no_leak
from medvol.data.paths import file_of
from medvol.data.processes import in_turn, is_first
from medvol.data.sources import open_study
from medvol.data.splits import assign_splits, fold_splits
from medvol.data.table import Study, Task, items, require_features, require_images, require_task, write_table
from medvol.errors import MedvolError
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort
from medvol.phantoms.scenes import CLASSES

logger = logging.getLogger(__name__)

COHORT_FOLDER = "synthetic_cohort"
TABLE_FILE = "cases.csv"
COHORT_CASES_PREDICTED = 16
FOLDS = 5
TABULAR_SEED, TABULAR_FRACTIONS = 42, (0.64, 0.16, 0.2)  # of the split of rows


def classification_study(
    dataset_dir: str,
    output_dir: str | Path,
    *,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    label_column: str = "label",
    classes: Sequence[str] = (),
    layout: str = "nifti",
) -> Study:
    """Return a labelled, split classification study of images and write its table to `output_dir/cases.csv`.

    Args:
        dataset_dir: Any source that `open_study` reads. Empty: a synthetic cohort is made in `output_dir`.
        output_dir: Where the table, and the cohort if one is made, are written.
        split_seed: Seed of the split, where the source brings none.
        fractions: Shares of train, val and test.
        label_column: Column that holds the class.
        classes: Class names in their order, the positive one of two last; those of a trained model when it is
            evaluated. Empty: read off the labels, sorted.
        layout: Of the synthetic cohort: `nifti` for volumes, `png` for slices of them.

    Raises:
        MedvolError: Whatever is wrong with the source; `WRONG_KIND` for a study of another kind; `LEAK`.
    """
    study = _opened(dataset_dir, output_dir, layout, label_column=label_column, classes=tuple(classes))
    require_task(study, "classification")
    require_images(study)
    return _recorded(assign_splits(study, fractions=tuple(fractions), seed=split_seed), output_dir)


def tabular_study(
    dataset_dir: str,
    output_dir: str | Path,
    *,
    split_seed: int = TABULAR_SEED,
    fractions: Sequence[float] = TABULAR_FRACTIONS,
    label_column: str = "label",
    patient_column: str = "patient",
    classes: Sequence[str] = (),
) -> Study:
    """Return a labelled, split classification study of table rows and write its table to `output_dir/cases.csv`.

    Args:
        dataset_dir: A table that `open_study` reads. Empty: a synthetic one is made in `output_dir`.
        output_dir: Where the table, and the cohort if one is made, are written.
        split_seed: Seed of the split, where the source brings none.
        fractions: Shares of train, val and test.
        label_column: Column that holds the class; without a column `label` it is the last one.
        patient_column: Column that groups rows for the split; '' for none.
        classes: Class names in their order, the positive one of two last; empty: read off the labels, sorted.

    Raises:
        MedvolError: Whatever is wrong with the source; `WRONG_KIND` for a study of another kind.
    """
    options = {"label_column": label_column, "patient_column": patient_column, "classes": tuple(classes)}
    study = _opened(dataset_dir, output_dir, "csv", **options)
    require_task(study, "classification")
    require_features(study)
    return _recorded(assign_splits(study, fractions=tuple(fractions), seed=split_seed), output_dir)


def rows_to_predict(dataset_dir: str, output_dir: str | Path, *, patient_column: str = "patient") -> Study:
    """Return the rows of a table to predict; a column of labels is not looked at.

    Args:
        dataset_dir: A table that `open_study` reads. Empty: some rows of the synthetic cohort.
        output_dir: Where the cohort is made if there is no source.
        patient_column: Column of the patient, which is named beside the prediction; '' for none.

    Raises:
        MedvolError: Whatever is wrong with the source; `WRONG_KIND` for one without columns to learn from.
    """
    if dataset_dir:
        study = open_study(
            str(dataset_dir), task="unlabelled", patient_column=patient_column, require_label=False, for_prediction=True
        )
        _tell(study)
    else:
        study = open_study(_synthetic_cohort(Path(output_dir) / COHORT_FOLDER, "csv"), task="unlabelled")
        study = replace(study, cases=study.cases[:COHORT_CASES_PREDICTED])
    require_features(study)
    return study


def fusion_study(
    dataset_dir: str,
    output_dir: str | Path,
    *,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    label_column: str = "label",
    classes: Sequence[str] = (),
) -> Study:
    """Return a labelled, split classification study of images with covariates; single cases may lack their image.

    Args:
        dataset_dir: A case table with images and further columns. Empty: a synthetic cohort with age and sex is made
            in `output_dir`.
        output_dir: Where the table, and the cohort if one is made, are written.
        split_seed: Seed of the split, where the source brings none.
        fractions: Shares of train, val and test.
        label_column: Column that holds the class.
        classes: Class names in their order, the positive one of two last; empty: read off the labels, sorted.

    Raises:
        MedvolError: Whatever is wrong with the source; `WRONG_KIND` for a study of another kind, or one without images
            or without covariates; `LEAK`.
    """
    options = {"label_column": label_column, "classes": tuple(classes), "require_image": False}
    study = _opened(dataset_dir, output_dir, "nifti", **options)
    require_task(study, "classification")
    require_features(study)
    study = assign_splits(study, fractions=tuple(fractions), seed=split_seed)
    train = tuple(case for case in study.cases if case.split == "train")
    if not any(case.image for case in train):  # single cases may lack theirs, not all that are learnt from
        require_images(replace(study, cases=train))
    without = sum(not case.image for case in study.cases)
    if without:
        logger.info("%d of %d cases have no image", without, len(study.cases))
    return _recorded(study, output_dir)


def segmentation_study(
    dataset_dir: str,
    output_dir: str | Path,
    *,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    label_column: str = "label",
    split: str | int = "fractions",
) -> Study:
    """Return a split segmentation study and write its table to `output_dir/cases.csv`.

    Args:
        dataset_dir: Any source that `open_study` reads. Empty: a synthetic cohort is made in `output_dir`.
        output_dir: Where the table, and the cohort if one is made, are written.
        split_seed: Seed of the split, where the source brings none.
        fractions: Shares of train, val and test.
        label_column: Column that holds the path of the mask.
        split: `fractions`; a number from 0 to 4 for that fold of five in `val` and the others in `train`; or `all` to
            train on every case but those of a test split that the source brings, with nothing to validate on.

    Raises:
        MedvolError: Whatever is wrong with the source; `WRONG_KIND` for a study of another kind; `LEAK`;
            `UNKNOWN_OPTION`.
    """
    if dataset_dir:
        study = open_study(str(dataset_dir), label_column=label_column)
    else:
        logger.info("No --dataset_dir: using a synthetic cohort, organs of a small body, in %s", output_dir)
        with in_turn():
            study = open_study(str(segmentation_cohort(Path(output_dir) / COHORT_FOLDER)))
    require_task(study, "segmentation")
    require_images(study)
    if split == "fractions":
        study = assign_splits(study, fractions=tuple(fractions), seed=split_seed)
    elif split == "all":
        cases = tuple(case if case.split == "test" else replace(case, split="train") for case in study.cases)
        study = replace(study, cases=cases, notes=(*study.notes, "every case that is not in test is trained on"))
    elif isinstance(split, int) and 0 <= split < FOLDS:
        study = fold_splits(study, FOLDS, seed=split_seed)[split]
    else:
        raise MedvolError(
            "UNKNOWN_OPTION",
            found=f"--split {split}",
            expected=f"fractions, all, or a fold from 0 to {FOLDS - 1}",
            fix="leave it out for train, val and test by --split_fractions",
        )
    return _recorded(study, output_dir)


def cases_to_predict(
    dataset_dir: str,
    output_dir: str | Path,
    *,
    task: str = "classification",
    require_image: bool = True,
    layout: str = "nifti",
) -> Study:
    """Return the cases to predict: a table, a folder, a DICOM tree or one file; labels are not needed.

    How the source was read, and what of it was not, is logged. Results of this run's output folder are no cases of the
    folder around it. Class labels that are there are not looked at: their order would be the table's, not the model's.

    Args:
        dataset_dir: Any source that `open_study` reads. Empty: some cases of the synthetic cohort.
        output_dir: Of the run, where the cohort is made if there is no source.
        task: Which cohort.
        require_image: Whether a row of a table must name an image.
        layout: Of the classification cohort: `nifti` for volumes, `png` for slices of them.

    Raises:
        MedvolError: Whatever is wrong with the source.
    """
    read_as: Task | None = "unlabelled" if task == "classification" else None
    if dataset_dir:
        study = open_study(
            str(dataset_dir), require_label=False, task=read_as, require_image=require_image, for_prediction=True
        )
        study = _without_own(study, output_dir)
        _tell(study)
        if require_image:
            require_images(study)
        return study
    folder = Path(output_dir) / COHORT_FOLDER
    made = str(segmentation_cohort(folder)) if task == "segmentation" else _synthetic_cohort(folder, layout)
    study = open_study(made, task=read_as)
    return replace(study, cases=study.cases[:COHORT_CASES_PREDICTED])


def cases_of(study: Study, split: str) -> list[dict[str, Any]]:
    """Return the items of a split; none for a validation split that is empty, as when all cases are trained on."""
    if split == "val" and not any(case.split == split for case in study.cases):
        return []
    return items(study, split)


def _without_own(study: Study, output_dir: str | Path) -> Study:
    """Leave the results of an earlier run out of a folder that the output folder lies in; a table names what it names.

    Raises:
        MedvolError: `EMPTY_DATASET` where nothing is left.
    """
    source, output = Path(study.source).resolve(), Path(output_dir).resolve()
    own = next((folder for folder in (output, output / "predictions") if source in folder.parents), None)
    if own is None or not source.is_dir():
        return study
    kept = tuple(case for case in study.cases if not any(_lies_in(own, reference) for reference in case.image))
    if len(kept) == len(study.cases):
        return study
    if not kept:
        found, fix = "nothing but results of an earlier run", "name the folder of the scans"
        raise MedvolError("EMPTY_DATASET", file=source, found=found, expected="at least one case", fix=fix)
    note = f"{len(study.cases) - len(kept)} images in the output folder {own.name} are taken for results, and not read"
    return replace(study, cases=kept, notes=(*study.notes, note))


def _lies_in(folder: Path, reference: str) -> bool:
    path = Path(file_of(reference)).resolve()  # of a DICOM series the folder
    return folder in (path, *path.parents)


def _tell(study: Study) -> None:
    for note in study.notes:
        logger.info("%s", note)


def _recorded(study: Study, output_dir: str | Path) -> Study:
    _tell(study)
    warn_of_headers(study)
    require_no_leak(study)
    if is_first():
        write_table(study, Path(output_dir) / TABLE_FILE)
    logger.info("%s", describe(study))
    return study


def describe(study: Study) -> str:
    """Return one line: cases and patients per split, and the classes."""
    parts = []
    for split in ("train", "val", "test"):
        cases = [case for case in study.cases if case.split == split]
        if cases:
            parts.append(f"{split} {len(cases)} cases of {len({case.patient for case in cases})} patients")
    classes = f"; classes {', '.join(study.classes)}" if study.classes else ""
    return f"Study: {', '.join(parts)}{classes}"


def _opened(dataset_dir: str, output_dir: str | Path, layout: str, **options: Any) -> Study:
    """Return the user's study, or the synthetic one, whose columns and classes are its own."""
    if dataset_dir:
        return open_study(str(dataset_dir), **options)
    return open_study(_synthetic_cohort(Path(output_dir) / COHORT_FOLDER, layout), classes=CLASSES)


def _synthetic_cohort(folder: Path, layout: str) -> str:
    logger.info("No --dataset_dir: using a synthetic cohort, vessels with and without an aneurysm, in %s", folder)
    with in_turn():
        return str(classification_cohort(folder, layout=layout))
