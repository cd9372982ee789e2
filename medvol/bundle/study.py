"""The study that a bundle works on: the user's, or a synthetic cohort when none is given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medvol.data.sources import open_study
from medvol.data.splits import assign_splits
from medvol.data.table import Study, require_images, require_task, write_table
from medvol.phantoms.cohort import classification_cohort

logger = logging.getLogger(__name__)

COHORT_FOLDER = "synthetic_cohort"
TABLE_FILE = "cases.csv"
COHORT_CLASSES = ("vessel", "aneurysm")  # the last of two classes is the positive one
COHORT_CASES_PREDICTED = 16


def classification_study(
    dataset_dir: str,
    output_dir: str | Path,
    *,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    label_column: str = "label",
    classes: Sequence[str] = (),
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

    Raises:
        MedvolError: Whatever is wrong with the source; `WRONG_KIND` for a study of another kind.
    """
    if dataset_dir:
        study = open_study(str(dataset_dir), label_column=label_column, classes=tuple(classes))
    else:
        study = open_study(_synthetic_cohort(Path(output_dir) / COHORT_FOLDER), classes=COHORT_CLASSES)
    require_task(study, "classification")
    require_images(study)
    study = assign_splits(study, fractions=tuple(fractions), seed=split_seed)
    for note in study.notes:
        logger.info("%s", note)
    write_table(study, Path(output_dir) / TABLE_FILE)
    logger.info("%s", describe(study))
    return study


def cases_to_predict(dataset_dir: str, output_dir: str | Path) -> Study:
    """Return the cases to predict: a table, a folder, a DICOM tree or one file; labels are not needed.

    Raises:
        MedvolError: Whatever is wrong with the source.
    """
    if dataset_dir:
        study = open_study(str(dataset_dir), require_label=False)
        require_images(study)
        return study
    study = open_study(_synthetic_cohort(Path(output_dir) / COHORT_FOLDER))
    return replace(study, cases=study.cases[:COHORT_CASES_PREDICTED])


def describe(study: Study) -> str:
    """Return one line: cases and patients per split, and the classes."""
    parts = []
    for split in ("train", "val", "test"):
        cases = [case for case in study.cases if case.split == split]
        if cases:
            parts.append(f"{split} {len(cases)} cases of {len({case.patient for case in cases})} patients")
    return f"Study: {', '.join(parts)}; classes {', '.join(study.classes)}"


def _synthetic_cohort(folder: Path) -> str:
    logger.info("No --dataset_dir: using a synthetic cohort, vessels with and without an aneurysm, in %s", folder)
    return str(classification_cohort(folder))
