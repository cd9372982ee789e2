"""What the metrics of an evaluation cannot show, in words, for its log and its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvol.report.html_page import plural

FEW_PATIENTS = 30


def cautions(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before looking at the numbers, a sentence each.

    Args:
        result: Content of metrics.json, with None for what is undefined.
    """
    found = []
    if result["n_patients"] < FEW_PATIENTS:
        found.append(
            f"Only {plural(result['n_patients'], 'patient')}: one case more or less moves these numbers, and intervals "
            "from so few patients are too narrow."
        )
    area = result["metrics"].get("auc")
    if area is not None and area["value"] is None:
        found.append(
            "The split holds cases of one class only: how well classes are told apart cannot be measured on it."
        )
    elif area is not None and area["ci95"][0] is not None and area["ci95"][0] <= 0.5:
        found.append("The interval of the AUC reaches 0.5: this model is not shown to be better than guessing.")
    if result["split"] == "val":
        found.append("Measured on the validation split, on which choices were made: expect less on new patients.")
    return found
