"""Differences of two models on the same cases."""

import numpy as np
import pytest

from medvol.errors import MedvolError
from medvol.metrics.classification import METRICS, classification_metrics
from medvol.metrics.paired import paired_differences
from medvol.metrics.statistics import bootstrap_intervals, delong_test


def scores(seed, labels, strength):
    positive = np.random.default_rng(seed).normal(size=len(labels)) + strength * labels
    positive = 1 / (1 + np.exp(-positive))
    return np.stack([1 - positive, positive], axis=1)


LABELS = np.arange(200) % 2
PATIENTS = [f"p{index // 2}" for index in range(200)]


def test_the_difference_is_that_of_the_metrics():
    a, b = scores(0, LABELS, 2.0), scores(1, LABELS, 0.5)
    found = paired_differences(LABELS, a, b, PATIENTS, resamples=50)
    one, two = classification_metrics(LABELS, a), classification_metrics(LABELS, b)
    assert list(found) == list(METRICS)
    for name in METRICS:
        assert found[name]["value"] == pytest.approx(one[name] - two[name])


def test_a_model_is_no_better_than_itself():
    a = scores(0, LABELS, 1.0)
    for entry in paired_differences(LABELS, a, a, PATIENTS, resamples=50).values():
        assert (entry["value"], entry["ci95"]) == (0.0, [0.0, 0.0])


def test_swapping_the_models_turns_the_interval_over():
    a, b = scores(0, LABELS, 1.0), scores(1, LABELS, 1.2)
    there, back = (paired_differences(LABELS, *pair, PATIENTS, resamples=200)["auc"] for pair in ((a, b), (b, a)))
    assert there["value"] == pytest.approx(-back["value"])
    np.testing.assert_allclose(there["ci95"], [-bound for bound in reversed(back["ci95"])], atol=1e-12)


def test_both_models_see_the_same_resamples_as_the_plain_bootstrap():
    a, chance = scores(0, LABELS, 1.0), np.full((200, 2), 0.5)
    difference = paired_differences(LABELS, a, chance, PATIENTS, resamples=300, seed=4)["auc"]
    plain = bootstrap_intervals(LABELS, a, PATIENTS, resamples=300, seed=4)["auc"]
    np.testing.assert_allclose(difference["ci95"], [bound - 0.5 for bound in plain["ci95"]], atol=1e-12)


def test_the_interval_is_close_to_delong_where_cases_are_independent():
    a = scores(0, LABELS, 1.0)
    b = scores(1, LABELS, 0.2) * 0.3 + a * 0.7
    found = paired_differences(LABELS, a, b, list(range(200)), resamples=2000)["auc"]["ci95"]
    np.testing.assert_allclose(found, delong_test(LABELS, a[:, 1], b[:, 1]).ci95, atol=0.012)


def test_models_with_other_classes_are_refused():
    three = np.full((200, 3), 1 / 3)
    with pytest.raises(MedvolError, match=r"BAD_PREDICTIONS.*\(200, 2\) and \(200, 3\)"):
        paired_differences(LABELS, scores(0, LABELS, 1.0), three, PATIENTS)
