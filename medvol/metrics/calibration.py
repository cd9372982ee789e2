"""Temperature scaling: one number that makes a network's confidence match its accuracy (Guo et al., ICML 2017).

It never changes which class is the most probable one, so accuracy and AUC of a binary model stay what they were.
`medvol.transforms.classes` applies it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError

Floats = npt.NDArray[np.float64]

TEMPERATURE_BOUNDS = (0.05, 20.0)
PRIOR_SD = 1.0
"""Of the temperature's logarithm: without a case it is 1, and within a factor of e twice as often as not."""


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the most probable temperature within `TEMPERATURE_BOUNDS`, given a weak log-normal prior about 1.

    The likelihood alone has its maximum at 0 where validation holds no error, as a handful of cases may: every
    probability would be 0 or 1. A hundred cases outweigh the prior.

    Args:
        logits: Shape (n, classes); or (n,) or (n, 1), the one logit of a binary model, positive for class 1.
        labels: Class indices, shape (n,).

    Raises:
        MedvolError: BAD_PREDICTIONS when shapes disagree, a logit is not finite or a label has no column.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    scores = _two_columns(logits)
    truth = np.asarray(labels)
    fits = truth.ndim == 1 and len(truth) == len(scores) > 0 and np.issubdtype(truth.dtype, np.integer)
    if not fits or truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise _bad(f"logits of shape {scores.shape}, labels of shape {truth.shape} and type {truth.dtype}")

    def loss(log_temperature: float) -> float:
        scaled = scores / math.exp(log_temperature)
        surprise = float(np.sum(logsumexp(scaled, axis=1) - scaled[np.arange(len(truth)), truth]))
        return surprise + 0.5 * (log_temperature / PRIOR_SD) ** 2

    # With the prior there may be two valleys: look everywhere before going down.
    low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
    places = np.linspace(low, high, 61)
    lowest = int(np.argmin([loss(place) for place in places]))
    around = (places[max(lowest - 1, 0)], places[min(lowest + 1, len(places) - 1)])
    found = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6})
    return float(np.clip(math.exp(found.x), *TEMPERATURE_BOUNDS))


def _two_columns(logits: npt.ArrayLike) -> Floats:
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or scores.shape[1] == 0 or not np.isfinite(scores).all():
        raise _bad(f"logits of shape {scores.shape}, {int((~np.isfinite(scores)).sum())} of them not finite")
    # sigmoid(x) is softmax over (0, x).
    return np.hstack([np.zeros_like(scores), scores]) if scores.shape[1] == 1 else scores


def _bad(found: str) -> MedvolError:
    return MedvolError(
        "BAD_PREDICTIONS",
        found=found,
        expected="finite logits (n, classes), integer labels (n,)",
        fix="pass the network's outputs before softmax",
    )
