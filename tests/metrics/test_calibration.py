"""Temperature scaling and the JSON border."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, softmax

from medvol.errors import MedvolError
from medvol.metrics.calibration import TEMPERATURE_BOUNDS, fit_temperature
from medvol.metrics.classification import ece
from medvol.metrics.json_ready import json_ready


def calibrated(seed, n=4000, classes=3):
    """Logits whose softmax is the very distribution the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, classes))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, labels.clip(max=classes - 1)


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_factor_that_spoilt_calibrated_logits_is_found(factor):
    logits, labels = calibrated(0)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.06)


def test_the_temperature_by_hand():
    # One logit of 2, right in three of four cases: calibrated when sigmoid(2 / T) = 3/4, T = 2 / ln 3.
    logits, labels = np.full(40_000, 2.0), np.array([1, 1, 1, 0] * 10_000)
    assert fit_temperature(logits, labels) == pytest.approx(2 / math.log(3), rel=1e-3)


def test_scaling_lowers_the_calibration_error_of_an_overconfident_network():
    logits, labels = calibrated(1)
    before = ece(labels, softmax(4 * logits, axis=1))
    after = ece(labels, softmax(4 * logits / fit_temperature(4 * logits, labels), axis=1))
    assert after < 0.3 * before


def test_one_logit_equals_two_with_the_first_at_zero():
    rng = np.random.default_rng(2)
    column, labels = rng.normal(size=50), rng.integers(0, 2, 50)
    two = np.stack([np.zeros(50), column], axis=1)
    assert fit_temperature(column, labels) == fit_temperature(two, labels) == fit_temperature(column[:, None], labels)


@pytest.mark.parametrize(("labels", "expected"), [([0, 1], TEMPERATURE_BOUNDS[0]), ([1, 0], TEMPERATURE_BOUNDS[1])])
def test_the_temperature_stays_within_its_bounds(labels, expected):
    # Larger logits would make the likelihood flat near the lower bound, and the prior decide.
    temperature = fit_temperature([[0.1, 0.0], [0.0, 0.1]] * 1000, labels * 1000)
    assert TEMPERATURE_BOUNDS[0] <= temperature <= TEMPERATURE_BOUNDS[1]
    assert temperature == pytest.approx(expected, rel=1e-3)


def test_four_cases_without_an_error_make_nobody_certain():
    # Their likelihood alone is largest at temperature 0. With the prior: 4 log(1 + exp(-0.7 / T)) + log(T)^2 / 2.
    temperature = fit_temperature([[0.7, 0.0]] * 4, [0] * 4)
    slope = 4 * 0.7 / temperature * expit(-0.7 / temperature) + math.log(temperature)
    assert slope == pytest.approx(0, abs=1e-4)
    assert expit(0.7 / temperature) == pytest.approx(0.869, abs=1e-3)
    assert fit_temperature([[8.0, 0.0]] * 4, [0] * 4) == pytest.approx(1, abs=0.02)  # no reason to change these


@pytest.mark.parametrize(
    ("logits", "labels"),
    [([[1.0, 2.0]], [0, 1]), ([[np.nan, 1.0]], [0]), ([[1.0, 2.0]], [2]), ([[1.0, 2.0]], [0.5]), ([[]], [0])],
)
def test_malformed_logits_are_refused(logits, labels):
    with pytest.raises(MedvolError) as refusal:
        fit_temperature(logits, labels)
    assert refusal.value.code == "BAD_PREDICTIONS"


@dataclass(frozen=True)
class Pair:
    first: float
    second: np.ndarray


def test_numbers_become_strict_json():
    value = {
        "nan": np.float32("nan"),
        1: float("inf"),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "array": np.array([[1.0, np.nan]]),
        "pair": Pair(0.5, np.array([1, 2])),
        "path": Path("a") / "b",
        "set": {"b", "a"},
        "none": (None, "x", True),
    }
    expected = {
        "nan": None,
        "1": None,
        "count": 3,
        "flag": True,
        "array": [[1.0, None]],
        "pair": {"first": 0.5, "second": [1, 2]},
        "path": "a/b",
        "set": ["a", "b"],
        "none": [None, "x", True],
    }
    assert json.loads(json.dumps(json_ready(value), allow_nan=False)) == expected
    assert type(json_ready(np.float64(1.5))) is float


def test_a_type_without_a_json_form_is_refused_by_name():
    with pytest.raises(TypeError, match="object"):
        json_ready([object()])
