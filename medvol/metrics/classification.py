"""Classification metrics from labels and class probabilities.

Every metric is written once, for *weighted* cases: the plain value is the one with all weights 1, a bootstrap resample
is the one whose weights say how often each case was drawn. That is why 2,000 resamples cost a few matrix products.

Words and rules:

* `labels` holds class indices, shape (n,); `probabilities` has shape (n, classes) and rows that sum to 1.
* The *predicted class* is the most probable one; a tie goes to the lower index. With two classes, class 1 is positive.
* With more than two classes, `auc`, `balanced_accuracy`, `f1`, `sensitivity` and `specificity` are macro averages, one
  class against the rest, over the classes that occur in `labels`. scikit-learn's macro F1 also counts a class that was
  predicted but never occurs; here its errors already lower the F1 of the classes they were taken from.
* A value that the data do not define is nan, never 0 or 1: `auc` and `balanced_accuracy` when `labels` hold one class
  only, `sensitivity` without positives, `specificity` without negatives, `f1` with no positive case and no positive
  prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

METRICS = ("auc", "accuracy", "balanced_accuracy", "f1", "sensitivity", "specificity", "brier", "ece")
"""The names of `classification_metrics`, in the order in which they are reported."""

ECE_BINS = 10

ROW_SUM_TOLERANCE = 1e-2
"""Rows of a softmax computed in bfloat16 miss 1 by up to 0.8 %; a column of logits misses it by far more."""


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve, shape (points,) each, from (0, 0) to (1, 1).

    Args:
        false_positive_rate: 1 - specificity.
        true_positive_rate: Sensitivity.
        threshold: A case counts as positive when its score is at least this; the first is infinite.
    """

    false_positive_rate: Floats
    true_positive_rate: Floats
    threshold: Floats


@dataclass(frozen=True)
class ReliabilityBins:
    """What a reliability diagram shows, shape (bins,) each; nan in an empty bin.

    Args:
        low: Lower edge of the confidence bin, not part of it.
        high: Upper edge, part of it.
        count: Number of cases.
        confidence: Mean probability of the predicted class.
        accuracy: Share of right predictions.
    """

    low: Floats
    high: Floats
    count: Floats
    confidence: Floats
    accuracy: Floats


def check_predictions(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> tuple[Labels, Floats]:
    """Return labels and probabilities as int64 (n,) and float64 (n, classes), or say what is wrong with them.

    Raises:
        MedvolError: BAD_PREDICTIONS, naming the first offending row.
    """
    truth = np.asarray(labels)
    scores = np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 1 or scores.ndim != 2 or len(truth) != len(scores) or len(truth) == 0 or scores.shape[1] < 2:
        raise _bad(
            f"labels of shape {truth.shape}, probabilities of shape {scores.shape}", "(n,) and (n, classes >= 2)"
        )
    if not (np.issubdtype(truth.dtype, np.integer) or truth.dtype == np.bool_):
        raise _bad(f"labels of type {truth.dtype}", "class indices as integers")
    wrong = np.flatnonzero((truth < 0) | (truth >= scores.shape[1]))
    if wrong.size:
        raise _bad(f"label {truth[wrong[0]]} in row {wrong[0]}", f"0 to {scores.shape[1] - 1}")
    with np.errstate(invalid="ignore"):
        sound = (scores >= -1e-6).all(axis=1) & (np.abs(scores.sum(axis=1) - 1) <= ROW_SUM_TOLERANCE)
    wrong = np.flatnonzero(~sound)
    if wrong.size:
        row = np.array2string(scores[wrong[0]][:5], precision=4)
        raise _bad(f"probabilities {row} in row {wrong[0]}, {wrong.size} such rows", "rows >= 0 that sum to 1")
    return truth.astype(np.int64), scores


def auc(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Area under the ROC curve; ties count one half."""
    return classification_metrics(labels, probabilities)["auc"]


def accuracy(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Share of cases whose predicted class is right."""
    return classification_metrics(labels, probabilities)["accuracy"]


def balanced_accuracy(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean over the classes of the share of their cases that was found."""
    return classification_metrics(labels, probabilities)["balanced_accuracy"]


def f1(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """2 TP / (2 TP + FP + FN), of the positive class or macro."""
    return classification_metrics(labels, probabilities)["f1"]


def sensitivity(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """TP / (TP + FN), of the positive class or macro."""
    return classification_metrics(labels, probabilities)["sensitivity"]


def specificity(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """TN / (TN + FP), of the positive class or macro."""
    return classification_metrics(labels, probabilities)["specificity"]


def brier(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean squared error of the probability.

    Two classes: of the positive class only, 0 to 1. More: summed over the classes, 0 to 2, as Brier (1950) has it.
    """
    return classification_metrics(labels, probabilities)["brier"]


def ece(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Expected calibration error: mean distance of accuracy from confidence over ten equal bins of confidence.

    Confidence is the probability of the predicted class; bins are (0, 0.1], (0.1, 0.2], ... (Guo et al., ICML 2017).
    """
    return classification_metrics(labels, probabilities)["ece"]


def classification_metrics(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, float]:
    """Return all of `METRICS` for labels (n,) and probabilities (n, classes).

    Raises:
        MedvolError: BAD_PREDICTIONS, see `check_predictions`.
    """
    truth, scores = check_predictions(labels, probabilities)
    values = weighted_metrics(truth, scores, np.ones((1, len(truth))))
    return {name: float(values[name][0]) for name in METRICS}


def weighted_metrics(labels: Labels, probabilities: Floats, weights: Floats) -> dict[str, Floats]:
    """Return all of `METRICS`, shape (samples,) each, for weights (samples, n); the inputs are taken as checked."""
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    actual_of = np.eye(classes)[labels]  # (n, classes)
    predicted_of = np.eye(classes)[predicted]
    total = weights.sum(axis=1)
    actual = weights @ actual_of  # (samples, classes), as the next two
    called = weights @ predicted_of
    hits = weights @ (actual_of * predicted_of)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / actual
        # Negatives that were called positive are `called - hits`.
        rejection = 1.0 - (called - hits) / (total[:, None] - actual)
        overlap = 2.0 * hits / (actual + called)
        mistakes = (probabilities - actual_of) ** 2
        error = mistakes[:, 1] if classes == 2 else mistakes.sum(axis=1)
        return {
            "auc": _auc(labels, probabilities, weights),
            "accuracy": hits.sum(axis=1) / total,
            "balanced_accuracy": np.where((actual > 0).sum(axis=1) > 1, _macro(recall, actual), np.nan),
            "f1": overlap[:, 1] if classes == 2 else _macro(overlap, actual),
            "sensitivity": recall[:, 1] if classes == 2 else _macro(recall, actual),
            "specificity": rejection[:, 1] if classes == 2 else _macro(rejection, actual),
            "brier": weights @ error / total,
            "ece": _ece(predicted == labels, probabilities.max(axis=1), weights) / total,
        }


def weighted_auc(positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Return the probability that a positive outscores a negative, ties one half.

    Args:
        positive: Shape (n,).
        scores: Shape (n,).
        weights: Shape (samples, n), how often each case counts.

    Returns:
        Shape (samples,); nan where a sample has no positive or no negative.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))  # first of each run of equal scores
    drawn = weights[:, order]
    positives = np.add.reduceat(drawn * positive[order], starts, axis=1)
    negatives = np.add.reduceat(drawn * ~positive[order], starts, axis=1)
    beaten = np.cumsum(negatives, axis=1) - 0.5 * negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (positives * beaten).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))
    return np.asarray(share)


def confusion_matrix(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return counts of shape (classes, classes): row = label, column = predicted class."""
    truth, scores = check_predictions(labels, probabilities)
    classes = scores.shape[1]
    cells = np.bincount(truth * classes + scores.argmax(axis=1), minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def roc_curve(positive: npt.ArrayLike, scores: npt.ArrayLike) -> RocCurve:
    """Return the ROC curve of one score, shape (n,), for the cases where `positive`, shape (n,), is true.

    Raises:
        MedvolError: BAD_PREDICTIONS when the shapes differ or a score is not finite.
    """
    truth = np.asarray(positive).astype(bool)
    values = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape or not np.isfinite(values).all() or len(truth) == 0:
        raise _bad(f"labels {truth.shape} and scores {values.shape}", "two equally long rows, finite, not empty")
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    ends = np.flatnonzero(np.concatenate((ordered[1:] != ordered[:-1], [True])))
    with np.errstate(invalid="ignore"):
        found = np.concatenate(([0.0], np.cumsum(truth[order])[ends] / truth.sum()))
        alarms = np.concatenate(([0.0], np.cumsum(~truth[order])[ends] / (~truth).sum()))
    return RocCurve(alarms, found, np.concatenate(([np.inf], ordered[ends])))


def reliability_bins(labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = ECE_BINS) -> ReliabilityBins:
    """Return accuracy and confidence per equal bin of confidence; the bins are those of `ece`."""
    truth, scores = check_predictions(labels, probabilities)
    confidence = scores.max(axis=1)
    place = _bin_of(confidence, bins)
    count = np.bincount(place, minlength=bins).astype(np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    right = (scores.argmax(axis=1) == truth).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(place, weights=confidence, minlength=bins) / count
        mean_right = np.bincount(place, weights=right, minlength=bins) / count
    return ReliabilityBins(edges[:-1], edges[1:], count, mean_confidence, mean_right)


def _auc(labels: Labels, probabilities: Floats, weights: Floats) -> Floats:
    if probabilities.shape[1] == 2:
        return weighted_auc(labels == 1, probabilities[:, 1], weights)
    one_against_rest = [weighted_auc(labels == k, probabilities[:, k], weights) for k in range(probabilities.shape[1])]
    # A class that does not occur has no area and a sample of one class has none at all: nan either way.
    defined = np.isfinite(np.stack(one_against_rest, axis=1)).astype(np.float64)
    return _macro(np.stack(one_against_rest, axis=1), defined)


def _macro(values: Floats, present: Floats) -> Floats:
    """Mean over the classes (axis 1) whose `present` is above zero; nan where there is none or one is undefined."""
    counted = present > 0
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(counted, values, 0.0).sum(axis=1) / counted.sum(axis=1))


def _ece(right: npt.NDArray[np.bool_], confidence: Floats, weights: Floats) -> Floats:
    members = np.eye(ECE_BINS)[_bin_of(confidence, ECE_BINS)]  # (n, bins)
    gap = weights @ (members * (right - confidence)[:, None])
    return np.asarray(np.abs(gap).sum(axis=1))


def _bin_of(confidence: Floats, bins: int) -> Labels:
    # 1e-9: a confidence of 0.7 that float arithmetic made 0.7000000000000001 belongs into (0.6, 0.7].
    return np.clip(np.ceil(confidence * bins - 1e-9) - 1, 0, bins - 1).astype(np.int64)


def _bad(found: str, expected: str) -> MedvolError:
    return MedvolError("BAD_PREDICTIONS", found=found, expected=expected, fix="pass softmax outputs and class indices")
