"""The likeliest classes of each case with their percentages, as one looks at the output of an ImageNet network."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medvol.inference.collect import Predictions
from medvol.io.atomic import write_text

MOST_LINES = 20


def ranked(predictions: Predictions, classes: Sequence[str], top: int = 5) -> list[list[tuple[str, float]]]:
    """Return name and percentage of the likeliest classes of each case, the first first; all where there are fewer."""
    order = np.argsort(-predictions.probabilities, axis=1, kind="stable")[:, :top]
    return [
        [(classes[index], 100 * float(row[index])) for index in chosen]
        for row, chosen in zip(predictions.probabilities, order, strict=True)
    ]


def write_ranked(path: str | Path, predictions: Predictions, classes: Sequence[str], top: int = 5) -> Path:
    """Write a row per case: case, then name and percentage of the first class, the second, and so on."""
    count = min(top, len(classes))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *[name for rank in range(1, count + 1) for name in (f"class_{rank}", f"percent_{rank}")]])
    for case, best in zip(predictions.cases, ranked(predictions, classes, top), strict=True):
        writer.writerow([case, *[cell for name, percent in best for cell in (name, f"{percent:.2f}")]])
    write_text(path, text.getvalue())
    return Path(path)


def ranked_table(predictions: Predictions, classes: Sequence[str], top: int = 5) -> list[str]:
    """Return a line per case, at most 20: `case: glioma 91.2 %, meningioma 6.1 %, ...`."""
    lines = [
        f"  {case}: " + ", ".join(f"{name} {percent:.1f} %" for name, percent in best)
        for case, best in zip(predictions.cases, ranked(predictions, classes, top), strict=True)
    ]
    more = [f"  and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return lines[:MOST_LINES] + more
