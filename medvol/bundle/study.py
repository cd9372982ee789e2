"""The study that a bundle works on: the user's, or a synthetic cohort when none is given."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medvol.data.splits import assign_splits
from medvol.data.table import Study, open_study, require_task, write_table
from medvol.errors import MedvolError
from medvol.phantoms.cohort import classification_cohort

logger = logging.getLogger(__name__)

COHORT_FOLDER = "synthetic_cohort"
TABLE_FILE = "cases.csv"


def classification_study(
    dataset_dir: str,
    output_dir: str | Path,
    *,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    label_column: str = "label",
) -> Study:
    """Return a labelled, split classification study and write its table to `output_dir/cases.csv`.

    Args:
        dataset_dir: Any source that `open_study` reads. Empty: a synthetic cohort is made in `output_dir`.
        output_dir: Where the table, and the cohort if one is made, are written.
        split_seed: Seed of the split, where the source brings none.
        fractions: Shares of train, val and test.
        label_column: Column that holds the class.

    Raises:
        MedvolError: Whatever is wrong with the source; `WRONG_KIND` for a study of another kind.
    """
    if dataset_dir:
        source = str(dataset_dir)
    else:
        source = str(classification_cohort(Path(output_dir) / COHORT_FOLDER))
        logger.info("No --dataset_dir: using a synthetic cohort, vessels with and without an aneurysm, in %s", source)
    study = require_task(open_study(source, label_column=label_column, task=None), "classification")
    study = assign_splits(study, fractions=tuple(fractions), seed=split_seed)  # type: ignore[arg-type]
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
        return open_study(str(dataset_dir), require_label=False)
    logger.info("No --dataset_dir: predicting the test split of the synthetic cohort")
    study = classification_study("", output_dir)
    return select(study, lambda case: case.split == "test")


def select(study: Study, keep: Callable[[Any], bool]) -> Study:
    """Return the study with only the cases for which `keep` is true."""
    from dataclasses import replace

    return replace(study, cases=tuple(case for case in study.cases if keep(case)))


def describe(study: Study) -> str:
    """Return one line: cases and patients per split, and the classes."""
    parts = []
    for split in ("train", "val", "test"):
        cases = [case for case in study.cases if case.split == split]
        if cases:
            parts.append(f"{split} {len(cases)} cases of {len({case.patient for case in cases})} patients")
    return f"Study: {', '.join(parts)}; classes {', '.join(study.classes)}"


def require_split(study: Study, split: str) -> None:
    """Refuse a study without cases in `split`.

    Raises:
        MedvolError: `EMPTY_SPLIT`.
    """
    if not any(case.split == split for case in study.cases):
        raise MedvolError(
            "EMPTY_SPLIT",
            file=study.source,
            found=f"no case in the split '{split}'",
            expected="at least one",
            fix="remove the split column and medvol splits by patient, or pass --eval_split",
        )
