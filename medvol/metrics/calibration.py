"""Calibration on validation: a temperature (Guo et al., ICML 2017) and a bias per class (Alexandari et al., ICML 2020).

The temperature makes a network's confidence match its accuracy, and never changes which class is the most probable one.
The biases make the mean probability of each class match its share: a network trained with label smoothing and shown
augmented cases is often too careful about the rarer class, and the threshold of one half then misses it. The AUC of a
binary model stays what it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError

BIAS_PRIOR = 1.0
"""Standard deviation of a bias in logits: an odds ratio of 2.7, more than a shift of prevalence usually is."""

Floats = npt.NDArray[np.float64]

TEMPERATURE_BOUNDS = (0.05, 20.0)
"""On a validation set without an error the best temperature is 0; the bound keeps probabilities away from 0 and 1."""


@dataclass(frozen=True)
class Calibration:
    """What turns logits into honest probabilities: `softmax(logits / temperature + bias)`.

    Args:
        temperature: Divides the logits.
        bias: Added to the scaled logits, one number per class; () adds none.
    """

    temperature: float = 1.0
    bias: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0 and np.isfinite(self.bias).all()):
            raise _bad(f"temperature {self.temperature}, bias {self.bias}")


def fit_calibration(logits: npt.ArrayLike, labels: npt.ArrayLike, *, with_bias: bool = True) -> Calibration:
    """Return the calibration with the least negative log-likelihood, the temperature within `TEMPERATURE_BOUNDS`.

    The biases have a normal prior of standard deviation `BIAS_PRIOR`: where a class has a handful of validation cases
    it stays near the others, and where it has none it cannot run away.

    Args:
        logits: Shape (n, classes); or (n,) or (n, 1), the one logit of a binary model, positive for class 1.
        labels: Class indices, shape (n,).
        with_bias: Whether to fit biases; without them no predicted class changes.

    Raises:
        MedvolError: BAD_PREDICTIONS when shapes disagree, a logit is not finite or a label has no column.
    """
    from scipy.optimize import minimize

    scores = _two_columns(logits)
    truth = np.asarray(labels)
    fits = truth.ndim == 1 and len(truth) == len(scores) > 0 and np.issubdtype(truth.dtype, np.integer)
    if not fits or truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise _bad(f"logits of shape {scores.shape}, labels of shape {truth.shape} and type {truth.dtype}")
    count, classes = scores.shape
    true = np.eye(classes)[truth]

    def loss(numbers: Floats) -> tuple[float, Floats]:
        sharpness, bias = numbers[0], numbers[1:] if with_bias else np.zeros(classes)
        scaled = sharpness * scores + bias
        total = _log_sum(scaled)
        excess = np.exp(scaled - total[:, None]) - true
        prior = bias / (BIAS_PRIOR**2 * count)
        value = float(np.mean(total - (scaled * true).sum(axis=1)) + 0.5 * (bias * prior).sum())
        slope = [(excess * scores).sum() / count, *(excess.mean(axis=0) + prior if with_bias else ())]
        return value, np.array(slope)

    # In 1 / temperature and the biases the loss is convex.
    low, high = (1 / bound for bound in reversed(TEMPERATURE_BOUNDS))
    bounds = [(low, high)] + [(None, None)] * (classes if with_bias else 0)
    start = np.array([1.0] + [0.0] * (len(bounds) - 1))
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-13, "gtol": 1e-9})
    bias = tuple(float(number) for number in found.x[1:] - found.x[1:].mean()) if with_bias else ()
    return Calibration(float(1 / np.clip(found.x[0], low, high)), bias)


def apply_calibration(logits: npt.ArrayLike, calibration: Calibration) -> Floats:
    """Return softmax(logits / temperature + bias), shape (n, classes); two columns for the logit of a binary model.

    Raises:
        MedvolError: BAD_PREDICTIONS when a logit is not finite or the biases are not one per class.
    """
    scaled = _two_columns(logits) / calibration.temperature
    if calibration.bias:
        if len(calibration.bias) != scaled.shape[1]:
            raise _bad(f"{len(calibration.bias)} biases for {scaled.shape[1]} classes")
        scaled = scaled + np.asarray(calibration.bias)
    return np.asarray(np.exp(scaled - _log_sum(scaled)[:, None]))


def _two_columns(logits: npt.ArrayLike) -> Floats:
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or scores.shape[1] == 0 or not np.isfinite(scores).all():
        raise _bad(f"logits of shape {scores.shape}, {int((~np.isfinite(scores)).sum())} of them not finite")
    # sigmoid(x) is softmax over (0, x).
    return np.hstack([np.zeros_like(scores), scores]) if scores.shape[1] == 1 else scores


def _log_sum(scores: Floats) -> Floats:
    peak = scores.max(axis=1)
    return np.asarray(peak + np.log(np.exp(scores - peak[:, None]).sum(axis=1)))


def _bad(found: str) -> MedvolError:
    return MedvolError(
        "BAD_PREDICTIONS",
        found=found,
        expected="finite logits (n, classes), integer labels (n,), a temperature above 0",
        fix="pass the network's outputs before softmax",
    )
