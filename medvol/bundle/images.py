"""What the bundles for 2D images add to the others: a synthetic cohort, the study to predict, the likeliest classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medvol.bundle.finish import finish_inference
from medvol.bundle.session import Session
from medvol.bundle.study import (
    COHORT_CASES_PREDICTED,
    COHORT_CLASSES,
    COHORT_FOLDER,
    cases_to_predict,
    classification_study,
)
from medvol.data.table import Study
from medvol.inference.collect import CollectPredictions
from medvol.inference.record import ModelRecord
from medvol.inference.volumes import VolumesToPredict
from medvol.phantoms.cohort import classification_cohort
from medvol.report.ranked import ranked_table, write_ranked

logger = logging.getLogger(__name__)

TOP_FILE = "top5.csv"


def image_study(
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
        dataset_dir: Any source that `open_study` reads. Empty: PNG slices of a synthetic cohort in `output_dir`.
        output_dir: Where the table, and the cohort if one is made, are written.
        split_seed: Seed of the split, where the source brings none.
        fractions: Shares of train, val and test.
        label_column: Column that holds the class.
        classes: Class names in their order, the positive one of two last; empty: read off the labels, sorted.

    Raises:
        MedvolError: As `medvol.bundle.study.classification_study`.
    """
    if not dataset_dir:
        dataset_dir, classes = _synthetic_cohort(output_dir), COHORT_CLASSES
    return classification_study(
        dataset_dir,
        output_dir,
        split_seed=split_seed,
        fractions=fractions,
        label_column=label_column,
        classes=classes,
    )


def images_to_predict(dataset_dir: str, output_dir: str | Path) -> Study:
    """Return the images to predict: a table, a folder or one file; labels are neither needed nor looked at.

    Args:
        dataset_dir: Any source that `open_study` reads. Empty: some cases of the synthetic cohort.
        output_dir: Where the cohort is made if there is no source.

    Raises:
        MedvolError: Whatever is wrong with the source.
    """
    if dataset_dir:
        return cases_to_predict(dataset_dir, output_dir)
    study = cases_to_predict(_synthetic_cohort(output_dir), output_dir)
    return replace(study, cases=study.cases[:COHORT_CASES_PREDICTED])


def finish_ranked_inference(
    session: Session, collected: CollectPredictions, dataset: VolumesToPredict, record: ModelRecord, *, top: int = 5
) -> None:
    """Write and log the likeliest classes of each image, then end as every classification bundle does.

    Raises:
        MedvolError: The first refusal, when every image was refused.
        SystemExit: With code 3, when some images could not be read.
    """
    predictions, classes = collected.result(), record.facts.classes
    written = [session.output_dir / TOP_FILE] if predictions.cases else []
    if written:
        write_ranked(written[0], predictions, classes, top)
        for line in ranked_table(predictions, classes, top):
            logger.info("%s", line)
    finish_inference(session, collected, dataset, record, further=written)


def _synthetic_cohort(output_dir: str | Path) -> str:
    folder = Path(output_dir) / COHORT_FOLDER
    logger.info(
        "No --dataset_dir: using a synthetic cohort, slices of vessels with and without an aneurysm, in %s", folder
    )
    return str(classification_cohort(folder, layout="png"))
