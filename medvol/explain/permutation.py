"""How much a classifier of table rows loses when a column is shuffled, with an interval by patient.

scikit-learn's `permutation_importance` gives the spread over shuffles, which shrinks with their number, however few the
patients are. Here the shuffles are averaged over and the patients are resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.metrics.paired import paired_differences

Floats = npt.NDArray[np.float64]

SHUFFLES = 5
RESAMPLES = 500


def auc_drops(
    predict: Callable[[npt.NDArray[Any]], Floats],
    features: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    patients: Sequence[Hashable],
    columns: Mapping[str, Sequence[int]],
    *,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return by column how much AUC is lost when its values are exchanged between the cases (Breiman, 2001).

    A column is underrated when another one carries the same information, and overrated never means that it is a cause.
    The AUC of the shuffled copies is taken over all `SHUFFLES` together, and a patient is resampled with its copies.

    Args:
        predict: Features (n, features) to probabilities (n, classes).
        features: Of the cases.
        labels: Class indices, shape (n,).
        patients: The patient of each case.
        columns: Name to the places of its features; those of a category are shuffled together.
        seed: Of the shuffles and of the resampling.

    Returns:
        By column `value` and `ci95`, the largest value first.
    """
    rng = np.random.default_rng(seed)
    whole = np.tile(predict(features), (SHUFFLES, 1))
    truth, groups = np.tile(labels, SHUFFLES), list(patients) * SHUFFLES
    drops = {}
    for name, places in columns.items():
        shuffled = np.tile(features, (SHUFFLES, 1))
        for copy in range(SHUFFLES):
            rows = slice(copy * len(features), (copy + 1) * len(features))
            shuffled[rows, places] = features[rng.permutation(len(features))][:, places]
        lost = paired_differences(truth, whole, predict(shuffled), groups, resamples=RESAMPLES, seed=seed)["auc"]
        drops[name] = {"value": lost["value"], "ci95": lost["ci95"]}
    return dict(sorted(drops.items(), key=lambda item: -item[1]["value"]))
