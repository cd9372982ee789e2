"""What the metrics of an evaluation cannot show, in words, for its log and its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvol.report.html_page import plural

FEW_PATIENTS = 30

FEW_OF_CLASS = 10
"""Of so many patients one in e^10 resamples holds none; of fewer, an interval may be no more than a point."""

MOST_NAMES = 5


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
    found += _rare_classes(result.get("patients_of_class", {}))
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


def _rare_classes(patients_of_class: Mapping[str, int]) -> list[str]:
    absent = [name for name, patients in patients_of_class.items() if patients == 0]
    rare = [f"'{name}' ({patients})" for name, patients in patients_of_class.items() if 0 < patients < FEW_OF_CLASS]
    found = []
    if absent and len(patients_of_class) > 2:  # of two classes, the AUC says it
        names = [f"'{name}'" for name in absent]
        found.append(
            f"No case of {_listed(names)}: the numbers say nothing of it, and means over classes leave it out."
        )
    if rare:
        found.append(f"Classes with few patients: {_listed(rare)}. What is said of them hangs on single patients.")
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
