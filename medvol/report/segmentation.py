"""The results of a segmentation run: predictions.csv, metrics.json with intervals, and pictures."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvol.errors import MedvolError
from medvol.io.atomic import write_text
from medvol.metrics.json_ready import json_ready
from medvol.metrics.lesions import MIN_IOU
from medvol.metrics.segmentation import EMPTY_MASK_RULES, empty_counts, summarise
from medvol.metrics.statistics import bootstrap_means
from medvol.report import overlays
from medvol.report.cautions import cautions
from medvol.report.classification import can_draw
from medvol.report.log_words import interval_text
from medvol.report.segmented_cases import SegmentedCases

logger = logging.getLogger(__name__)

SCORE_COLUMNS = ("dice", "hd95_mm", "nsd", "volume_ml", "true_volume_ml")
"""Columns of an evaluation for each structure; an inference has `volume_ml` only."""


def write_predictions(path: str | Path, cases: SegmentedCases, split: str = "") -> Path:
    """Write a row per case: case, patient, split, scores of each structure, file of the mask, and what failed.

    Args:
        path: CSV file.
        cases: Scored, or only segmented.
        split: Name of the split, empty for inference.
    """
    scored = any("dice" in score for row in cases.rows for score in row.scores.values())
    names = SCORE_COLUMNS if scored else ("volume_ml",)
    columns = [(name, structure) for structure in cases.structures for name in names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [f"{name}_{structure}" for name, structure in columns]
    writer.writerow(["case", "patient", "split", *head, "output", "error"])
    errors = {failure.case: str(failure) for failure in cases.failures}
    for row in cases.rows:
        values = [_number(row.scores[structure].get(name)) for name, structure in columns]
        writer.writerow([row.case, row.patient, split, *values, row.output, errors.pop(row.case, "")])
    for case, error in errors.items():
        writer.writerow([case, "", split, *[""] * len(columns), "", error])
    write_text(path, text.getvalue())
    return Path(path)


def evaluate_segmentation(cases: SegmentedCases, *, bundle: str, split: str, seed: int = 0) -> dict[str, Any]:
    """Return the content of metrics.json: every metric with its 95 % interval, patients resampled.

    Args:
        cases: All with truth.
        bundle: Name of the bundle.
        split: Name of the split.
        seed: Of the resampling.

    Raises:
        MedvolError: `NO_LABEL` when a case has no truth, EMPTY_DATASET without a case.
    """
    for row in cases.rows:
        if any("dice" not in score for score in row.scores.values()):
            raise MedvolError(
                "NO_LABEL", case=row.case, found="no true mask", expected="one for each case", fix="run inference.json"
            )
    scores, patients = [row.scores for row in cases.rows], [row.patient for row in cases.rows]
    result = {
        "bundle": bundle,
        "split": split,
        "n_cases": len(cases.rows),
        "n_patients": len(set(patients)),
        "structures": list(cases.structures),
        "metrics": summarise(scores, patients, seed=seed),
        "baseline": None,  # there is no trivial one: an empty mask has a Dice of 0
        "rules": _rules(cases),
        "empty_masks": empty_counts(scores),
    }
    if cases.lesion_structures:
        result["lesions"] = {name: _lesions(cases, name, seed) for name in cases.lesion_structures}
    return result


def write_evaluation(output_dir: str | Path, cases: SegmentedCases, *, bundle: str, split: str) -> list[Path]:
    """Write metrics.json, predictions.csv and the pictures; log the table; return the files.

    Args:
        output_dir: Folder of the run.
        cases: All with truth.
        bundle: Name of the bundle.
        split: Name of the split.
    """
    folder = Path(output_dir)
    result = evaluate_segmentation(cases, bundle=bundle, split=split)
    ready = json_ready(result)
    write_text(folder / "metrics.json", json.dumps(ready, indent=4))
    files = [folder / "metrics.json", write_predictions(folder / "predictions.csv", cases, split)]
    for line in metrics_table(result):
        logger.info("%s", line)
    for line in cautions(ready):
        logger.warning("%s", line)
    return files + draw_evaluation(folder, cases)


def draw_evaluation(folder: Path, cases: SegmentedCases) -> list[Path]:
    """Write the Dice of every case, and best, median and worst with outlines; or say which extra brings pictures."""
    if not can_draw():
        return []
    dice = {name: [row.scores[name]["dice"] for row in cases.rows] for name in cases.structures}
    files = [overlays.draw_dice_by_case(folder / "dice_by_case.png", dice)]
    shown = cases.shown()
    if shown:
        files.append(overlays.draw_overlays(folder / "overlays.png", shown, cases.structures))
    return files


def metrics_table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table: metric, value, interval."""
    width = max(len(name) for name in result["metrics"]) + 2
    return [
        f"{result['bundle']} on {result['split']}: {result['n_cases']} cases of {result['n_patients']} patients",
        f"  {'metric':<{width}}{'value':>9}   95 % interval",
        *(
            f"  {name:<{width}}{entry['value']:>9.3f}   {interval_text(entry['ci95'])}"
            for name, entry in result["metrics"].items()
        ),
    ]


def _rules(cases: SegmentedCases) -> dict[str, Any]:
    """Return what a reader must know to compare the numbers with others."""
    return {
        "empty_mask": EMPTY_MASK_RULES,
        "nsd_tolerance_mm": cases.nsd_tolerance_mm,
        "surface": "voxels of the mask with a face neighbour outside of it; distances between voxel centres",
        "hd95_mm": "larger of the two directed 95th percentiles",
        "mean": "over cases, each case the mean over structures; intervals resample patients",
        "lesion_match_iou": MIN_IOU if cases.lesion_structures else None,
        "cases_without_geometry": cases.without_geometry,
    }


def _lesions(cases: SegmentedCases, structure: str, seed: int) -> dict[str, Any]:
    """Return the lesions of all cases in numbers, and the means over the cases in which a share is defined."""
    counts = [row.lesions[structure] for row in cases.rows]
    totals = ("true_positives", "false_positives", "false_negatives")
    shares = {name: [getattr(count, name) for count in counts] for name in ("sensitivity", "precision", "f1")}
    return {
        **{name: sum(getattr(count, name) for count in counts) for name in totals},
        "metrics": bootstrap_means(shares, [row.patient for row in cases.rows], seed=seed),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
