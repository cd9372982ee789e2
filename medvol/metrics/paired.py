"""Two models on the same cases: the difference of every metric with its interval, patients resampled.

Both models see the same resamples. What is hard in one of them is hard for both, so the difference is far surer than
two intervals that stand side by side suggest.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.metrics.classification import METRICS, Floats, check_predictions, weighted_metrics
from medvol.metrics.statistics import Intervals, percentile_intervals, resampled_weights


def paired_differences(
    labels: npt.ArrayLike,
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    groups: Sequence[Hashable] | npt.NDArray[Any],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Intervals:
    """Return `metric(a) - metric(b)` for each of the standard metrics with its percentile interval.

    Args:
        labels: Class indices, shape (n,).
        a: Probabilities of the first model, shape (n, classes).
        b: Probabilities of the second.
        groups: The patient of each case, length n.
        resamples: Number of resamples.
        seed: Equal seeds give equal intervals.
        level: Coverage aimed at.

    Returns:
        As `medvol.metrics.statistics.bootstrap_intervals`.

    Raises:
        MedvolError: BAD_PREDICTIONS for malformed input, BAD_ARGUMENT for a level outside (0, 1) or no resamples.
    """
    truth, first = check_predictions(labels, a)
    _, second = check_predictions(labels, b)
    if first.shape != second.shape:
        raise MedvolError(
            "BAD_PREDICTIONS", found=f"probabilities {first.shape} and {second.shape}", expected="one shape"
        )

    def measure(drawn: Floats) -> dict[str, Floats]:
        left, right = (weighted_metrics(truth, scores, drawn) for scores in (first, second))
        return {name: left[name] - right[name] for name in METRICS}

    weights = resampled_weights(groups, len(truth), resamples, seed)
    return percentile_intervals(measure(np.ones((1, len(truth)))), (measure(drawn) for drawn in weights), groups, level)
