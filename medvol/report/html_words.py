"""What each metric means and what can go wrong with it, one sentence each, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "nsd": "Surface Dice (NSD)",
    "iou": "IoU",
}

LOWER_IS_BETTER = ("brier", "ece", "hd95_mm")

_TWO_CLASSES = {
    "auc": "The chance that a case of {positive} gets a higher score than a case of {negative}: 0.5 is guessing. It "
    "says nothing about any one threshold, nor whether the probabilities are right.",
    "accuracy": "The share of cases given the right class. Where one class is common, always naming it scores high "
    "too: compare with the baseline.",
    "balanced_accuracy": "The mean of the shares found of {positive} and of {negative}: 0.5 is guessing, however "
    "unequal the classes are. It holds for the class of highest probability, not for another threshold.",
    "f1": "Combines the share of {positive} found with the share of right calls of {positive}. It ignores the cases "
    "of {negative} that were recognised, and changes with how common {positive} is.",
    "sensitivity": "The share of the cases of {positive} that were found; the others were missed. It can be raised at "
    "will at the cost of specificity: read the two together.",
    "specificity": "The share of the cases of {negative} that were left in peace; the others were false alarms. Where "
    "{positive} is rare, even a high one can mean mostly false alarms.",
}
_MANY_CLASSES = {
    "auc": "The chance that a case of a class gets a higher score for it than a case of another class, averaged over "
    "the classes: 0.5 is guessing. A good mean can hide a class that is never found: see the curves.",
    "accuracy": "The share of cases given the right class. Where one class is common, always naming it scores high "
    "too: compare with the baseline.",
    "balanced_accuracy": "The share found of each class, averaged, so that rare classes count as much as common ones. "
    "With few cases of a class one case more or less moves it much.",
    "f1": "Combines the share of a class that was found with the share of right calls of it, averaged over the "
    "classes. It changes with how common the classes are.",
    "sensitivity": "The share of the cases of a class that were found, averaged over the classes. See the confusion "
    "matrix for which class is mistaken for which.",
    "specificity": "The share of the cases outside of a class that were not called it, averaged over the classes. "
    "With many classes it is high for nearly any model.",
}
_EITHER = {
    "brier": "The mean squared error of the probabilities, so lower is better. It mixes telling the classes apart with "
    "being calibrated, and depends on how common the classes are.",
    "ece": "How far stated confidence and share of right answers lie apart on average; lower is better. Small samples "
    "make it look worse than it is, and it says nothing about single cases.",
    "dice": "Overlap of the predicted and the true mask, from 0 for none to 1 for equal. A voxel along the border "
    "costs a small structure far more than a large one.",
    "hd95_mm": "95 % of either surface lie within this distance of the other; lower is better. An island far away "
    "barely moves the Dice and may raise it much; a structure missed altogether counts as the image's diagonal.",
    "nsd": "The share of the surfaces that lie within {tolerance:g} mm of each other. It depends on that tolerance: "
    "choose what a second reader would differ by.",
    "iou": "Shared voxels over the voxels of either mask. It orders cases as the Dice does and is always the lower of "
    "the two: do not compare one with the other.",
}


def metric_name(metric: str, structures: Sequence[str] = ()) -> tuple[str, str]:
    """Return the plain name of a metric and the structure it is of, '' where it is of all."""
    for plain, name in NAMES.items():
        if metric == plain:
            return name, ""
        if metric.startswith(f"{plain}_") and metric[len(plain) + 1 :] in structures:
            return name, metric[len(plain) + 1 :]
    return metric, ""


def sentence(metric: str, result: Mapping[str, Any]) -> str:
    """Return what a metric of `metrics.json` means and what can go wrong, unescaped; '' for an unknown one."""
    classes = result.get("classes", ())
    words = {**_EITHER, **(_TWO_CLASSES if len(classes) == 2 else _MANY_CLASSES)}.get(metric, "")
    return words.format(
        positive=f"“{classes[1]}”" if len(classes) == 2 else "",
        negative=f"“{classes[0]}”" if len(classes) == 2 else "",
        tolerance=result.get("rules", {}).get("nsd_tolerance_mm") or 0.0,
    )


def undefined(metric: str) -> str:
    """Return why a metric has no value."""
    reasons = {
        "auc": "the split holds cases of one class only",
        "balanced_accuracy": "the split holds cases of one class only",
        "sensitivity": "the split holds no case of the positive class",
        "specificity": "the split holds no case of the negative class",
    }
    return f"Not defined here: {reasons.get(metric, 'the cases do not determine it')}."
