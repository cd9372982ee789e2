"""The results of a classification run: predictions.csv, metrics.json with intervals, and pictures."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.inference.collect import Predictions
from medvol.io.atomic import write_text
from medvol.metrics.json_ready import json_ready
from medvol.metrics.paired import paired_differences
from medvol.metrics.statistics import bootstrap_intervals, majority_baseline
from medvol.report import pictures
from medvol.report.cautions import cautions
from medvol.report.log_words import interval_text

logger = logging.getLogger(__name__)

COMPARED = ("auc", "accuracy")
"""Metrics of other models that the logged table shows; metrics.json has all."""


@dataclass(frozen=True)
class EvaluatedSplit:
    """The split that was evaluated, with what its numbers are compared to.

    Args:
        bundle: Name of the bundle.
        split: `val` or `test`.
        classes: Class names in the order of the labels.
        train_labels: Class indices of the training cases; the baseline predicts their most frequent one. Without any,
            there is no baseline.
        others: Class probabilities of other models for the same cases, (n, classes), by the models' names.
        blind: Names of those among `others` that see no image.
    """

    bundle: str
    split: str
    classes: tuple[str, ...]
    train_labels: tuple[int, ...]
    others: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    blind: tuple[str, ...] = ()


def write_predictions(
    path: str | Path,
    predictions: Predictions,
    classes: Sequence[str],
    split: str = "",
    failures: Sequence[MedvolError] = (),
) -> Path:
    """Write a row per case: case, patient, split, label, pred, a probability per class, and what failed.

    Args:
        path: CSV file.
        predictions: Of the cases that could be read.
        classes: Class names.
        split: Name of the split, empty for inference.
        failures: Refusals of the cases that could not, and of results of those that could.
    """
    errors = {failure.case: str(failure) for failure in failures}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "split", "label", "pred", *[f"prob_{name}" for name in classes], "error"])
    for index, (case, patient) in enumerate(zip(predictions.cases, predictions.patients, strict=True)):
        label = "" if predictions.labels is None else classes[predictions.labels[index]]
        row = predictions.probabilities[index]
        # In full: rounded probabilities would make equal what the network told apart, and the AUC another one.
        pred, error = classes[int(row.argmax())], errors.pop(case, "")
        writer.writerow([case, patient, split, label, pred, *map(repr, row.tolist()), error])
    for case, error in errors.items():
        writer.writerow([case, "", split, "", "", *[""] * len(classes), error])
    write_text(path, text.getvalue())
    return Path(path)


def evaluate_predictions(predictions: Predictions, evaluated: EvaluatedSplit, *, seed: int = 0) -> dict[str, Any]:
    """Return the content of metrics.json: every metric with its 95 % interval, patients resampled.

    Other models stand under `comparisons`, each with its metrics and with `difference`: the network's value minus its.

    Raises:
        MedvolError: `NO_LABEL` when the cases have none.
    """
    if predictions.labels is None:
        raise MedvolError(
            "NO_LABEL", found="cases without labels", expected="a label for each", fix="run inference.json"
        )
    labels, probabilities, patients = predictions.labels, predictions.probabilities, predictions.patients
    comparisons = {
        name: {
            "metrics": bootstrap_intervals(labels, other, patients, seed=seed),
            "difference": paired_differences(labels, probabilities, other, patients, seed=seed),
        }
        for name, other in evaluated.others.items()
    }
    return {
        "bundle": evaluated.bundle,
        "split": evaluated.split,
        "n_cases": len(predictions.cases),
        "n_patients": len(set(predictions.patients)),
        "classes": list(evaluated.classes),
        "patients_of_class": {
            name: len({patient for patient, label in zip(patients, labels, strict=True) if label == index})
            for index, name in enumerate(evaluated.classes)
        },
        "metrics": bootstrap_intervals(labels, probabilities, patients, seed=seed),
        "baseline": _baseline(evaluated, predictions),
        **({"comparisons": comparisons} if comparisons else {}),
        **({"image_value": image_value(comparisons, evaluated.blind)} if evaluated.blind else {}),
    }


def _baseline(evaluated: EvaluatedSplit, predictions: Predictions) -> dict[str, Any] | None:
    if not evaluated.train_labels or predictions.labels is None:
        return None
    train_labels = np.asarray(evaluated.train_labels, dtype=np.int64)
    return {
        "name": "prevalence of the training split",
        "metrics": majority_baseline(train_labels, predictions.labels, evaluated.classes, predictions.patients),
    }


def write_evaluation(output_dir: str | Path, predictions: Predictions, evaluated: EvaluatedSplit) -> list[Path]:
    """Write metrics.json, predictions.csv and the pictures; log the table; return the files."""
    folder = Path(output_dir)
    result = evaluate_predictions(predictions, evaluated)
    ready = json_ready(result)
    write_text(folder / "metrics.json", json.dumps(ready, indent=4))
    files = [
        folder / "metrics.json",
        write_predictions(folder / "predictions.csv", predictions, evaluated.classes, evaluated.split),
    ]
    for line in metrics_table(result):
        logger.info("%s", line)
    for line in cautions(ready):
        logger.warning("%s", line)
    return files + draw_evaluation(folder, predictions, evaluated.classes)


def draw_evaluation(folder: Path, predictions: Predictions, classes: Sequence[str]) -> list[Path]:
    """Write the three pictures, or say which extra brings them."""
    if predictions.labels is None or not can_draw():
        return []
    labels, probabilities = predictions.labels, predictions.probabilities
    return [
        pictures.draw_confusion(folder / "confusion.png", labels, probabilities, classes),
        pictures.draw_roc(folder / "roc.png", labels, probabilities, classes),
        pictures.draw_reliability(folder / "reliability.png", labels, probabilities),
    ]


def can_draw() -> bool:
    """Tell whether matplotlib is installed, and say what to do when not."""
    if find_spec("matplotlib") is None:
        logger.warning("No pictures: pip install 'medvol-monai[plot]' brings matplotlib")
        return False
    return True


def metrics_table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table: metric, value, interval, and the baseline where there is one."""
    head = f"{result['bundle']} on {result['split']}: {result['n_cases']} cases of {result['n_patients']} patients"
    baseline = (result["baseline"] or {}).get("metrics", {})
    columns = f"  {'metric':<20}{'value':>7}   {'95 % interval':<16}"
    lines = [head, f"{columns}{'baseline':>9}" if baseline else columns.rstrip()]
    for name, entry in result["metrics"].items():
        line = f"  {name:<20}{entry['value']:>7.3f}   {interval_text(entry['ci95']):<16}"
        lines.append(f"{line}{baseline[name]['value']:>9.3f}" if baseline else line.rstrip())
    lines += _comparison_lines(result.get("comparisons", {}))
    return lines + ([result["image_value"]["sentence"]] if "image_value" in result else [])


def image_value(comparisons: Mapping[str, Any], blind: Sequence[str]) -> dict[str, Any]:
    """Return whether the image adds value: the AUC with it against the best model that sees the covariates alone.

    The best is chosen on the very cases that are measured. That favours the covariates: what is claimed for the image
    holds against each of those models.

    Args:
        comparisons: As in metrics.json; `difference` is the network's value minus the other model's.
        blind: Names of the models that see no image; at least one.

    Returns:
        `than`, the name of that model; `auc_difference` with its interval; `sentence`.
    """
    than = max(blind, key=lambda name: comparisons[name]["metrics"]["auc"]["value"])
    area, difference = comparisons[than]["metrics"]["auc"], comparisons[than]["difference"]["auc"]
    low, high = difference["ci95"]
    if low > 0:
        verdict = "The image adds value over the covariates alone"
    elif high < 0:
        verdict = "The image makes it worse than the covariates alone"
    else:
        verdict = "The image is not shown to add value over the covariates alone"
    sentence = (
        f"{verdict}: AUC {area['value'] + difference['value']:.3f} with it, {area['value']:.3f} of {than} without, "
        f"difference {difference['value']:+.3f} (95 % interval {interval_text((low, high), signed=True)}, "
        "patients resampled)."
    )
    return {"than": than, "auc_difference": difference, "sentence": sentence}


def _comparison_lines(comparisons: Mapping[str, Any]) -> list[str]:
    """Return a line for each other model and metric: its value, and how much more the network has."""
    if not comparisons:
        return []
    width = max(map(len, comparisons))
    lines = [f"  {'other models':<{width}}  {'metric':<10}{'value and 95 % interval':<25}network minus it"]
    for name, compared in comparisons.items():
        for metric in COMPARED:
            entry, difference = compared["metrics"][metric], compared["difference"][metric]
            value = f"{entry['value']:.3f} ({interval_text(entry['ci95'])})"
            gain = f"{difference['value']:+.3f} ({interval_text(difference['ci95'], signed=True)})"
            lines.append(f"  {name:<{width}}  {metric:<10}{value:<25}{gain}")
    return lines
