"""Evaluations whose model was trained anew since: marked in `run.json`, and not compared."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from medvol.errors import MedvolError

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
_MARK = "outdated_by_training"


def mark_outdated(runs: dict[str, Any], folder: Path, mode: str, finished: str) -> None:
    """Mark what a run that ends makes worthless in its folder, and warn of it.

    Args:
        runs: Content of `run.json`, by mode; changed in place.
        folder: Of the results.
        mode: Of the run that ends.
        finished: When it ended.
    """
    if mode == "train" and "evaluate" in runs:
        runs["evaluate"][_MARK] = finished
        logger.warning("The evaluation in %s is of an earlier model; evaluate again", folder)
    if mode == "inference" and mode in runs:
        logger.warning("Predictions of %s in %s were replaced", runs[mode].get("finished", "an earlier run"), folder)


def require_current(predictions: Path) -> None:
    """Refuse the predictions of an evaluation whose model was trained anew since.

    Raises:
        MedvolError: `OUTDATED`.
    """
    record = predictions.parent / RUN_FILE
    if not record.is_file():
        return
    try:
        runs = json.loads(record.read_text())
        trained = runs.get("evaluate", {}).get(_MARK)
    except (ValueError, AttributeError) as error:
        raise MedvolError("BAD_RECORD", file=record, found=str(error), expected="what a run writes") from error
    if trained:
        raise MedvolError(
            "OUTDATED",
            file=predictions,
            found=f"an evaluation of before the training that ended {trained}",
            expected="an evaluation of the model that is there",
            fix="run `medvol evaluate` again",
        )
