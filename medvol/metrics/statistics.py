"""How sure a number is: bootstrap intervals by patient, the majority baseline, paired tests.

Cases of one patient resemble each other. Whoever resamples cases pretends to have more independent evidence than there
is, so the bootstrap here always draws patients, with all their cases.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.metrics.classification import Floats, check_predictions, weighted_auc, weighted_metrics

Intervals = dict[str, dict[str, Any]]

_CHUNK_ELEMENTS = 4_000_000
"""Weights held at once: 32 MB, whatever the number of cases and resamples."""


@dataclass(frozen=True)
class PairedAuc:
    """DeLong's comparison of two scores on the same cases.

    Args:
        auc_a: Area of the first score.
        auc_b: Area of the second.
        difference: `auc_a - auc_b`.
        ci95: Interval of the difference.
        z: The difference in standard errors; nan when the data give it no variance.
        p_value: Two-sided.
    """

    auc_a: float
    auc_b: float
    difference: float
    ci95: tuple[float, float]
    z: float
    p_value: float


@dataclass(frozen=True)
class PairedAccuracy:
    """McNemar's exact comparison of two classifiers on the same cases.

    Args:
        only_a: Cases that only the first got right.
        only_b: Cases that only the second got right.
        p_value: Two-sided, exact binomial; 1 when the two never differ.
    """

    only_a: int
    only_b: int
    p_value: float


def bootstrap_intervals(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: Sequence[Hashable] | npt.NDArray[Any],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Intervals:
    """Return each of the eight standard metrics with its percentile interval, patients resampled with replacement.

    Resamples in which a metric is undefined (nan) are dropped and counted. A percentile interval can miss the value
    itself, because resampling inflates the ECE; the bound is then the value.

    Args:
        labels: Class indices, shape (n,).
        probabilities: Shape (n, classes).
        groups: The patient of each case, length n.
        resamples: Number of resamples.
        seed: Equal seeds give equal intervals.
        level: Coverage aimed at; it names the key, `ci95` for 0.95.

    Returns:
        `{name: {"value": x, "ci95": [low, high], "undefined_resamples": k}}`; the bounds are nan for a single patient.

    Raises:
        MedvolError: BAD_PREDICTIONS for malformed input, BAD_ARGUMENT for a level outside (0, 1) or no resamples.
    """
    truth, scores = check_predictions(labels, probabilities)
    weights = resampled_weights(groups, len(truth), resamples, seed)
    resampled = (weighted_metrics(truth, scores, drawn) for drawn in weights)
    once = weighted_metrics(truth, scores, np.ones((1, len(truth))))
    return percentile_intervals(once, resampled, groups, level)


def bootstrap_means(
    values: Mapping[str, npt.ArrayLike],
    groups: Sequence[Hashable] | npt.NDArray[Any],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Intervals:
    """Return the mean of per-case values, e.g. Dice, with its interval by patient; nan cases are left out of the mean.

    Args:
        values: Name to values of shape (n,).
        groups: The patient of each case, length n.
        resamples: Number of resamples.
        seed: Equal seeds give equal intervals.
        level: Coverage aimed at.

    Raises:
        MedvolError: BAD_PREDICTIONS when lengths differ, BAD_ARGUMENT as for `bootstrap_intervals`.
    """
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}
    for name, column in columns.items():
        if column.shape != (len(groups),) or len(groups) == 0:
            raise _unequal(f"{column.shape} values of '{name}' for {len(groups)} groups")

    def measure(drawn: Floats) -> dict[str, Floats]:
        means = {}
        with np.errstate(invalid="ignore"):
            for name, column in columns.items():
                known = np.isfinite(column)
                means[name] = drawn @ np.where(known, column, 0.0) / (drawn @ known.astype(np.float64))
        return means

    weights, once = resampled_weights(groups, len(groups), resamples, seed), np.ones((1, len(groups)))
    return percentile_intervals(measure(once), (measure(drawn) for drawn in weights), groups, level)


def majority_baseline(
    train_labels: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    classes: int | Sequence[str],
    groups: Sequence[Hashable] | npt.NDArray[Any],
) -> Intervals:
    """Return the metrics on the test cases of a predictor that looks at no image.

    Its probabilities are the shares of the classes in training, so its class is always training's most frequent one.

    Args:
        train_labels: Class indices, shape (n_train,).
        test_labels: Class indices, shape (n_test,).
        classes: Number of classes, or their names.
        groups: The patient of each test case.

    Raises:
        MedvolError: BAD_PREDICTIONS for labels outside the classes or an empty side.
    """
    number = classes if isinstance(classes, int) else len(classes)
    seen = np.asarray(train_labels)
    if seen.ndim != 1 or seen.size == 0 or seen.min() < 0 or seen.max() >= number:
        raise _unequal(f"training labels of shape {seen.shape} for {number} classes")
    share = np.bincount(seen.astype(np.int64), minlength=number) / seen.size
    test = np.asarray(test_labels)
    return bootstrap_intervals(test, np.tile(share, (len(test), 1)), groups)


def delong_test(labels: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> PairedAuc:
    """Compare the AUC of two scores on the same cases (DeLong et al., Biometrics 1988).

    It takes the cases as independent: with several cases per patient its p-value is too small.

    Args:
        labels: 0 or 1, shape (n,).
        a: First score, shape (n,), higher for class 1.
        b: Second score, shape (n,).

    Raises:
        MedvolError: BAD_PREDICTIONS for other labels, unequal lengths, scores that are not finite, or one class only.
    """
    from scipy.stats import norm

    truth = np.asarray(labels)
    scores = [np.asarray(score, dtype=np.float64) for score in (a, b)]
    if any(score.shape != truth.shape or not np.isfinite(score).all() for score in scores) or truth.ndim != 1:
        raise _unequal(f"labels {truth.shape}, scores {scores[0].shape} and {scores[1].shape}")
    if set(np.unique(truth).tolist()) != {0, 1}:
        raise _unequal(f"labels {np.unique(truth)[:5]}; DeLong's test needs both 0 and 1")
    positive = truth == 1
    shares = [_placements(positive, score) for score in scores]
    high, low = (_covariance(np.stack([share[side] for share in shares])) for side in (0, 1))
    spread = high + low
    # Identical scores leave rounding noise where the variance is zero.
    variance = float(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])
    auc_a, auc_b = (float(weighted_auc(positive, score, np.ones((1, truth.size)))[0]) for score in scores)
    difference = auc_a - auc_b
    if not variance > 1e-15:
        known = (0.0, 1.0) if np.array_equal(scores[0], scores[1]) else (np.nan, np.nan)
        return PairedAuc(auc_a, auc_b, difference, (known[0], known[0]), np.nan, known[1])
    error = float(np.sqrt(variance))
    z = difference / error
    half = float(norm.ppf(0.975)) * error
    return PairedAuc(auc_a, auc_b, difference, (difference - half, difference + half), z, float(2 * norm.sf(abs(z))))


def mcnemar_test(labels: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> PairedAccuracy:
    """Compare the accuracy of two classifiers on the same cases by the exact test on the cases where only one is right.

    Args:
        labels: Class indices, shape (n,).
        a: Classes predicted by the first, shape (n,).
        b: Classes predicted by the second, shape (n,).

    Raises:
        MedvolError: BAD_PREDICTIONS for unequal lengths.
    """
    from scipy.stats import binomtest

    truth, first, second = (np.asarray(values) for values in (labels, a, b))
    if truth.ndim != 1 or not truth.shape == first.shape == second.shape:
        raise _unequal(f"labels {truth.shape}, predicted classes {first.shape} and {second.shape}")
    only_a = int(((first == truth) & (second != truth)).sum())
    only_b = int(((first != truth) & (second == truth)).sum())
    differing = only_a + only_b
    return PairedAccuracy(only_a, only_b, float(binomtest(only_a, differing, 0.5).pvalue) if differing else 1.0)


def resampled_weights(
    groups: Sequence[Hashable] | npt.NDArray[Any], cases: int, resamples: int, seed: int
) -> Iterator[Floats]:
    """Yield weights, shape (some resamples, cases): how often each case is in the resample."""
    if len(groups) != cases:
        raise _unequal(f"{len(groups)} groups for {cases} cases")
    if resamples < 1:
        raise MedvolError("BAD_ARGUMENT", found=f"resamples={resamples}", expected="at least 1")
    # Numbered by first appearance: mixed types cannot be sorted, and names must not decide the draw.
    numbers: dict[Hashable, int] = {}
    of_case = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    count = len(numbers)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_ELEMENTS // max(cases, count))

    def chunks() -> Iterator[Floats]:
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            drawn = rng.integers(0, count, size=(rows, count)) + np.arange(rows)[:, None] * count
            times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
            yield times[:, of_case].astype(np.float64)

    return chunks()


def percentile_intervals(
    value_of: dict[str, Floats],
    resampled: Iterator[dict[str, Floats]],
    groups: Sequence[Hashable] | npt.NDArray[Any],
    level: float,
) -> Intervals:
    """Return each value, shape (1,), with the percentiles of its resamples, chunk after chunk of shape (resamples,)."""
    if not 0.0 < level < 1.0:
        raise MedvolError("BAD_ARGUMENT", found=f"level={level}", expected="between 0 and 1, e.g. 0.95")
    parts = list(resampled)
    tail = 100 * (1 - level) / 2
    result: Intervals = {}
    for name, value in value_of.items():
        point = float(value[0])
        drawn = np.concatenate([part[name] for part in parts])
        known = drawn[np.isfinite(drawn)]
        low = high = float("nan")
        # One patient always resamples to itself; a width of zero would claim certainty.
        if known.size and np.isfinite(point) and len(set(groups)) > 1:
            low, high = (float(bound) for bound in np.percentile(known, [tail, 100 - tail]))
            low, high = min(low, point), max(high, point)
        bounds = {f"ci{100 * level:g}": [low, high]}
        result[name] = {"value": point, **bounds, "undefined_resamples": int(drawn.size - known.size)}
    return result


def _placements(positive: npt.NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """Return for each positive the share of negatives it beats, and for each negative the share that beat it."""
    high, low = score[positive], score[~positive]
    sorted_low, sorted_high = np.sort(low), np.sort(high)
    beaten = (np.searchsorted(sorted_low, high, "left") + np.searchsorted(sorted_low, high, "right")) / 2
    beating = (np.searchsorted(sorted_high, low, "left") + np.searchsorted(sorted_high, low, "right")) / 2
    return beaten / low.size, 1 - beating / high.size


def _covariance(placements: Floats) -> Floats:
    """Return the 2x2 covariance of the mean placement; nan for a single case, which has no spread to estimate."""
    cases = placements.shape[1]
    return np.cov(placements) / cases if cases > 1 else np.full((2, 2), np.nan)


def _unequal(found: str) -> MedvolError:
    return MedvolError(
        "BAD_PREDICTIONS", found=found, expected="rows of equal length, one entry per case, labels within the classes"
    )
