"""The end of a fusion bundle's evaluation: the same network once more without images, and once without covariates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator

from medvol.bundle.explained import Evaluated
from medvol.bundle.finish import baselines_on_covariates, finish_evaluation
from medvol.bundle.session import Session
from medvol.data.table import Study
from medvol.inference.collect import CollectPredictions, Predictions
from medvol.inference.record import ModelRecord

EXTRA_INPUTS = ("covariates", "has_image")
"""What the network is given after the image, in the order of its arguments."""

WITHOUT_IMAGE = "network without the image"
WITHOUT_COVARIATES = "network without the covariates"


def prepare_fusion_batch() -> PrepareBatchExtraInput:
    """Return what hands a batch's image, covariates and `has_image` to the network."""
    return PrepareBatchExtraInput(EXTRA_INPUTS)


def finish_fusion_evaluation(
    session: Session,
    evaluated: Evaluated,
    study: Study,
    record: ModelRecord,
    split: str,
) -> None:
    """Write what `finish_evaluation` writes, with what the image adds to the covariates, and they to it.

    Beside the network stand logistic regression and gradient boosting on the covariates, fitted on the same training
    cases, and the network itself with one modality withheld.

    Args:
        session: From `begin`.
        evaluated: The split, with what collected its predictions.
        study: What it is a split of.
        record: Of the model.
        split: `val` or `test`.
    """
    evaluator, collected = evaluated.evaluator, evaluated.collected
    if not isinstance(collected, CollectPredictions):
        raise TypeError("the evaluator is run again and its collector must be asked again")
    everything = replace(evaluated, collected=collected.result())
    others = dict(baselines_on_covariates(study, record, collected))
    others[WITHOUT_IMAGE] = _withheld(evaluator, collected, "has_image", 0.0).probabilities
    blind = tuple(others)
    others[WITHOUT_COVARIATES] = _withheld(evaluator, collected, "covariates", torch.nan).probabilities
    finish_evaluation(session, everything, study, record, split, others, blind)


def _withheld(evaluator: SupervisedEvaluator, collected: CollectPredictions, key: str, value: float) -> Predictions:
    """Return the predictions of a run in which an extra input is replaced by a number that means "not known"."""
    prepare = evaluator.prepare_batch

    def blindfolded(batch: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        return prepare({**batch, key: torch.full_like(batch[key], value)}, *arguments, **options)

    evaluator.prepare_batch = blindfolded
    try:
        evaluator.run()
    finally:
        evaluator.prepare_batch = prepare
    return collected.result()
