"""Intervals by patient, baseline and paired tests: by hand, against a slow second implementation, by properties."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from medvol.errors import MedvolError
from medvol.metrics.classification import METRICS, classification_metrics
from medvol.metrics.statistics import (
    bootstrap_intervals,
    bootstrap_means,
    delong_test,
    majority_baseline,
    mcnemar_test,
    resampled_weights,
)


def study(seed, n, classes=2, strength=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    logits = strength * np.eye(classes)[labels] + rng.normal(size=(n, classes))
    odds = np.exp(logits)
    return labels, odds / odds.sum(axis=1, keepdims=True)


def width(interval):
    return interval["ci95"][1] - interval["ci95"][0]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_fast_path_equals_a_loop_over_resamples(classes):
    labels, scores = study(0, 25, classes)
    groups = [f"p{i // 2}" for i in range(25)]
    fast = bootstrap_intervals(labels, scores, groups, resamples=60, seed=4)
    times = np.concatenate(list(resampled_weights(groups, 25, 60, 4))).astype(int)
    rows = [np.repeat(np.arange(25), one) for one in times]
    loop = [classification_metrics(labels[row], scores[row]) for row in rows]
    for name in METRICS:
        value, drawn = classification_metrics(labels, scores)[name], np.array([metrics[name] for metrics in loop])
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        assert fast[name]["ci95"] == pytest.approx([min(low, value), max(high, value)]), name
        assert fast[name]["value"] == pytest.approx(value)
        assert fast[name]["undefined_resamples"] == np.isnan(drawn).sum()


def test_resamples_in_chunks_equal_resamples_at_once(monkeypatch):
    labels, scores = study(1, 30)
    whole = bootstrap_intervals(labels, scores, range(30), resamples=50)
    monkeypatch.setattr("medvol.metrics.statistics._CHUNK_ELEMENTS", 100)
    parts = bootstrap_intervals(labels, scores, range(30), resamples=50)
    for name in METRICS:
        # Matrix products of another size round differently.
        assert parts[name]["ci95"] == pytest.approx(whole[name]["ci95"], abs=1e-12), name


def test_patients_are_resampled_not_cases():
    # Ten identical cases per patient hold as much evidence as one, so copies must not narrow the interval.
    labels, scores = study(2, 30)
    single = bootstrap_intervals(labels, scores, range(30))
    copies = bootstrap_intervals(
        np.repeat(labels, 10), np.repeat(scores, 10, axis=0), np.repeat(np.arange(30), 10), resamples=2000
    )
    pretended = bootstrap_intervals(np.repeat(labels, 10), np.repeat(scores, 10, axis=0), range(300))
    assert copies["accuracy"]["ci95"] == pytest.approx(single["accuracy"]["ci95"])
    assert width(pretended["accuracy"]) < 0.5 * width(single["accuracy"])


def test_the_accuracy_interval_is_close_to_the_binomial_one():
    labels = np.ones(200, dtype=int)
    labels[:40] = 0
    scores = np.tile([0.1, 0.9], (200, 1))  # 160 of 200 right
    low, high = bootstrap_intervals(labels, scores, range(200))["accuracy"]["ci95"]
    expected = stats.binomtest(160, 200).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_undefined_resamples_are_dropped_and_counted():
    labels, scores = np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    result = bootstrap_intervals(labels, scores, "abc", resamples=4000)
    # No case of class 0 among three draws: 8/27; only class 0: 1/27.
    assert result["auc"]["undefined_resamples"] / 4000 == pytest.approx(9 / 27, abs=0.03)
    assert result["accuracy"]["undefined_resamples"] == 0
    assert result["auc"]["ci95"] == [1.0, 1.0]


def test_an_interval_that_resampling_shifts_off_the_value_is_widened_to_it():
    # Calibrated to the case, so the ECE is 0, but hardly any resample is.
    confidence = np.repeat([0.6, 0.7, 0.8, 0.9], 10)
    labels = np.concatenate([np.arange(10) < right for right in (6, 7, 8, 9)]).astype(int)
    entry = bootstrap_intervals(labels, np.stack([1 - confidence, confidence], axis=1), range(40))["ece"]
    assert entry["value"] == pytest.approx(0, abs=1e-12)
    assert entry["ci95"][0] == entry["value"]
    assert entry["ci95"][1] > 0.1


def test_one_patient_gives_a_value_without_an_interval():
    labels, scores = study(3, 6)
    result = bootstrap_intervals(labels, scores, ["p"] * 6, resamples=20)
    assert np.isfinite(result["accuracy"]["value"])
    assert np.isnan(result["accuracy"]["ci95"]).all()


def test_the_level_names_the_key_and_sets_the_width():
    labels, scores = study(4, 50)
    wide = bootstrap_intervals(labels, scores, range(50))["auc"]["ci95"]
    narrow = bootstrap_intervals(labels, scores, range(50), level=0.8)["auc"]["ci80"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_names_of_patients_do_not_change_the_interval():
    labels, scores = study(5, 20)
    numbers = [i // 2 for i in range(20)]
    names = [f"z{99 - number}" for number in numbers]
    assert bootstrap_intervals(labels, scores, numbers) == bootstrap_intervals(labels, scores, names)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_the_interval_contains_the_value_and_repeats_with_its_seed(seed, classes):
    labels, scores = study(seed, 24, classes)
    groups = np.arange(24) // 2
    result = bootstrap_intervals(labels, scores, groups, resamples=100, seed=seed)
    for entry in result.values():
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
    assert result == bootstrap_intervals(labels, scores, groups, resamples=100, seed=seed)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 3))
def test_the_interval_shrinks_with_the_root_of_the_number_of_patients(seed, classes):
    labels, scores = study(seed, 40, classes)
    few = bootstrap_intervals(labels, scores, range(40), resamples=300)
    many = bootstrap_intervals(np.tile(labels, 16), np.tile(scores, (16, 1)), range(640), resamples=300)
    for name in ("auc", "brier", "accuracy"):
        # Sixteen times the patients: a quarter of the width, give or take.
        assert width(many[name]) < 0.5 * width(few[name])


def test_the_auc_interval_covers_the_truth_about_as_often_as_it_says():
    # Two unit normals one apart: the true AUC is Phi(1 / sqrt 2).
    truth = stats.norm.cdf(1 / np.sqrt(2))
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        labels = np.arange(120) % 2
        score = stats.norm.cdf(rng.normal(size=120) + labels)
        low, high = bootstrap_intervals(labels, np.stack([1 - score, score], 1), range(120), resamples=400)["auc"][
            "ci95"
        ]
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_eight_metrics_of_300_cases_with_2000_resamples_take_under_five_seconds():
    labels, scores = study(6, 300)
    start = time.perf_counter()
    bootstrap_intervals(labels, scores, np.arange(300) // 2)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("change", "code"),
    [({"level": 1.0}, "BAD_ARGUMENT"), ({"resamples": 0}, "BAD_ARGUMENT"), ({"groups": range(3)}, "BAD_PREDICTIONS")],
)
def test_malformed_bootstrap_arguments_are_refused(change, code):
    labels, scores = study(0, 8)
    with pytest.raises(MedvolError) as refusal:
        bootstrap_intervals(labels, scores, **({"groups": range(8)} | change))
    assert refusal.value.code == code


def test_means_of_case_values_leave_nan_cases_out():
    result = bootstrap_means({"dice": [0.5, np.nan, 1.0], "none": [np.nan] * 3}, ["a", "b", "c"], resamples=500)
    assert result["dice"]["value"] == 0.75
    assert result["dice"]["ci95"] == [0.5, 1.0]
    assert np.isnan(result["none"]["value"])
    assert result["none"]["undefined_resamples"] == 500


def test_means_match_the_bootstrap_of_scipy():
    values = np.random.default_rng(0).normal(size=80)
    ours = bootstrap_means({"x": values}, range(80), resamples=8000)["x"]["ci95"]
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=8000, rng=1).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.03)


def test_the_majority_baseline_predicts_the_training_prevalence():
    result = majority_baseline([0, 0, 0, 1], [0, 1, 1, 1, 1], ("vessel", "aneurysm"), range(5))
    assert result["auc"]["value"] == 0.5
    assert result["accuracy"]["value"] == pytest.approx(1 / 5)
    assert result["sensitivity"]["value"] == 0
    assert result["brier"]["value"] == pytest.approx((0.25**2 + 4 * 0.75**2) / 5)
    assert result["ece"]["value"] == pytest.approx(0.75 - 0.2)


def test_the_majority_baseline_knows_classes_that_training_never_saw():
    result = majority_baseline([0, 0, 1], [0, 2], 3, range(2))
    assert result["accuracy"]["value"] == 0.5


@pytest.mark.parametrize("train", [[], [0, 3], [-1]])
def test_the_majority_baseline_refuses_labels_outside_the_classes(train):
    with pytest.raises(MedvolError, match="training labels"):
        majority_baseline(np.array(train, dtype=int), [0, 1], 2, range(2))


def naive_delong(labels, a, b):
    """The definition, pair by pair."""
    parts = []
    for score in (a, b):
        high, low = score[labels == 1], score[labels == 0]
        kernel = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in low] for x in high])
        parts.append((kernel.mean(), kernel.mean(axis=1), kernel.mean(axis=0)))
    contrast = np.array([1.0, -1.0])
    s10, s01 = (np.cov(np.stack([part[side] for part in parts])) for side in (1, 2))
    spread = s10 / (labels == 1).sum() + s01 / (labels == 0).sum()
    return parts[0][0], parts[1][0], (parts[0][0] - parts[1][0]) / np.sqrt(contrast @ spread @ contrast)


@pytest.mark.parametrize("seed", range(4))
def test_delong_agrees_with_its_definition_and_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(40) % 2)
    a = np.round(labels + rng.normal(size=40), 1)  # rounded: ties
    b = np.round(0.3 * labels + rng.normal(size=40), 1)
    result = delong_test(labels, a, b)
    area_a, area_b, z = naive_delong(labels, a, b)
    assert (result.auc_a, result.auc_b, result.z) == pytest.approx((area_a, area_b, z))
    assert result.auc_a == pytest.approx(roc_auc_score(labels, a))
    assert result.p_value == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert (result.ci95[0] > 0 or result.ci95[1] < 0) == (result.p_value < 0.05)


def test_swapping_the_scores_flips_the_sign_and_keeps_the_p_value():
    labels, scores = study(7, 40)
    other = study(8, 40)[1][:, 1]
    there, back = delong_test(labels, scores[:, 1], other), delong_test(labels, other, scores[:, 1])
    assert there.difference == pytest.approx(-back.difference)
    assert there.p_value == pytest.approx(back.p_value)


def test_a_score_compared_with_itself_is_no_different():
    labels, scores = study(9, 30)
    result = delong_test(labels, scores[:, 1], scores[:, 1])
    assert (result.difference, result.p_value, result.ci95) == (0.0, 1.0, (0.0, 0.0))


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 0, 1, 1]])
def test_a_difference_without_variance_has_no_p_value(labels):
    perfect, constant = np.array(labels, dtype=float), np.zeros(len(labels))
    assert np.isnan(delong_test(labels, perfect, constant).p_value)


def test_a_single_positive_has_no_p_value():
    assert np.isnan(delong_test([0, 0, 0, 1], [0.1, 0.9, 0.2, 0.5], [0.1, 0.2, 0.3, 0.4]).p_value)


def test_delong_rejects_true_null_hypotheses_at_its_level():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    shared = rng.normal(size=(300, 80)) + labels
    p_values = [delong_test(labels, s + rng.normal(size=80), s + rng.normal(size=80)).p_value for s in shared]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09


@pytest.mark.parametrize(
    ("labels", "a", "found"),
    [([0, 1], [0.1], "scores"), ([1, 1], [0.1, 0.2], "both 0 and 1"), ([0, 1], [0.1, np.nan], "scores")],
)
def test_delong_refuses_what_it_cannot_compare(labels, a, found):
    with pytest.raises(MedvolError, match=found):
        delong_test(labels, a, np.zeros(len(labels)))


def test_mcnemar_by_hand():
    labels = np.zeros(10, dtype=int)
    a, b = labels.copy(), labels.copy()
    a[0], b[1:7] = 1, 1  # the second errs alone six times, the first once
    result = mcnemar_test(labels, a, b)
    assert (result.only_a, result.only_b) == (6, 1)
    # Two-sided: 2 * (C(7, 0) + C(7, 1)) / 2^7
    assert result.p_value == pytest.approx(2 * 8 / 128)


def test_mcnemar_of_equal_predictions_is_one():
    assert mcnemar_test([0, 1], [1, 1], [1, 1]).p_value == 1.0


def test_mcnemar_refuses_unequal_lengths():
    with pytest.raises(MedvolError, match="predicted classes"):
        mcnemar_test([0, 1], [0, 1], [0])
