"""What a run has left in its folder, read back for the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.training.handlers import read_history

Row = dict[str, str]


@dataclass(frozen=True)
class RunFiles:
    """The tables of an evaluated run.

    Args:
        folder: Where they are.
        metrics: Content of metrics.json.
        predictions: Rows of predictions.csv of the cases that were evaluated.
        failed: Case and reason of those that could not be.
        cases: Rows of cases.csv; empty where there is none.
        history: Rows of history.csv; empty where the model was trained elsewhere.
        training: Content of run.json about the training; empty likewise.
    """

    folder: Path
    metrics: Mapping[str, Any]
    predictions: list[Row]
    failed: list[tuple[str, str]]
    cases: list[Row]
    history: list[dict[str, float]]
    training: Mapping[str, Any]


def read_run(folder: str | Path) -> RunFiles:
    """Return what an evaluation has left in `folder`; metrics.json and predictions.csv must be there."""
    folder = Path(folder)
    rows = _rows(folder / "predictions.csv")
    history = folder / "history.csv"
    return RunFiles(
        folder=folder,
        metrics=json.loads((folder / "metrics.json").read_text()),
        predictions=[row for row in rows if not row["error"]],
        failed=[(row["case"], row["error"]) for row in rows if row["error"]],
        cases=_rows(folder / "cases.csv"),
        history=read_history(history) if history.is_file() else [],
        training=_training(folder / "run.json"),
    )


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _training(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text()).get("train", {})
    except (OSError, ValueError):  # not there, or damaged: the run's record is written anew afterwards
        return {}
    return record if isinstance(record, dict) else {}
