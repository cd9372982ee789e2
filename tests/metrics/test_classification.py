"""Classification metrics: by hand, against scikit-learn, and by their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from medvol.errors import MedvolError
from medvol.metrics.classification import (
    METRICS,
    accuracy,
    auc,
    balanced_accuracy,
    brier,
    check_predictions,
    classification_metrics,
    confusion_matrix,
    ece,
    f1,
    reliability_bins,
    roc_curve,
    sensitivity,
    specificity,
    weighted_metrics,
)

MACRO = ("auc", "balanced_accuracy", "f1", "sensitivity", "specificity")


def binary(*positive):
    column = np.array(positive, dtype=float)
    return np.stack([1 - column, column], axis=1)


def random_study(seed, n=60, classes=3, decimals=2):
    """Every class occurs; scores are rounded so that ties occur too."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)]))
    raw = np.round(rng.dirichlet(np.ones(classes), n), decimals) + 0.01
    return labels, raw / raw.sum(axis=1, keepdims=True)


# Labels 0 0 1 1 1; scores .1 .6 .4 .6 .9: 2 true, 1 false alarm, 1 missed.
LABELS = np.array([0, 0, 1, 1, 1])
SCORES = binary(0.1, 0.6, 0.4, 0.6, 0.9)


def test_binary_metrics_by_hand():
    # Pairs (positive, negative): .4>.1, .6>.1, .9>.1, .4<.6, .6=.6 (half), .9>.6: 4.5 of 6.
    assert auc(LABELS, SCORES) == pytest.approx(4.5 / 6)
    assert accuracy(LABELS, SCORES) == pytest.approx(3 / 5)
    assert sensitivity(LABELS, SCORES) == pytest.approx(2 / 3)
    assert specificity(LABELS, SCORES) == pytest.approx(1 / 2)
    assert balanced_accuracy(LABELS, SCORES) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert f1(LABELS, SCORES) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert brier(LABELS, SCORES) == pytest.approx((0.01 + 0.36 + 0.36 + 0.16 + 0.01) / 5)


def test_ece_by_hand():
    # Confidence .9 and .9 in (.8, .9], both right; .6, .6, .6 in (.5, .6], one of three right.
    assert ece(LABELS, SCORES) == pytest.approx((2 * 0.1 + abs(3 * 0.6 - 1)) / 5)


def test_a_confidence_on_a_bin_edge_belongs_to_the_bin_below_it():
    bins = reliability_bins(LABELS, SCORES)
    assert bins.count.tolist() == [0, 0, 0, 0, 0, 3, 0, 0, 2, 0]
    assert bins.accuracy[5] == pytest.approx(1 / 3)
    assert np.isnan(bins.confidence[0])


def test_float_noise_moves_no_case_over_a_bin_edge():
    noisy = 0.1 + 0.2 + 0.4
    assert noisy > 0.7
    assert reliability_bins([1], binary(noisy)).count[6] == 1


def test_multi_class_metrics_by_hand():
    labels = np.array([0, 1, 2, 2])
    scores = np.array([[0.6, 0.2, 0.2], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    # Predicted 0 0 2 1.
    assert accuracy(labels, scores) == 0.5
    assert sensitivity(labels, scores) == pytest.approx((1 + 0 + 1 / 2) / 3) == balanced_accuracy(labels, scores)
    assert specificity(labels, scores) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert f1(labels, scores) == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    # Class 0: .6 beats all three. Class 1: .3 beats .2 .2, not .5. Class 2: .7 and .3 beat .2 .2.
    assert auc(labels, scores) == pytest.approx((1 + 2 / 3 + 1) / 3)
    squares = [0.16 + 0.04 + 0.04, 0.25 + 0.49 + 0.04, 0.01 + 0.04 + 0.09, 0.04 + 0.25 + 0.49]
    assert brier(labels, scores) == pytest.approx(sum(squares) / 4)


def test_confusion_matrix_has_labels_as_rows():
    assert confusion_matrix(LABELS, SCORES).tolist() == [[1, 1], [1, 2]]


def test_a_tie_between_classes_goes_to_the_lower_index():
    assert confusion_matrix([1, 1], binary(0.5, 0.51)).tolist() == [[0, 0], [1, 1]]


def test_a_probability_without_information_has_auc_one_half():
    assert auc([0, 1, 1], binary(0.3, 0.3, 0.3)) == 0.5


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [
        ([0, 0], {"auc", "balanced_accuracy", "sensitivity", "f1"}),
        ([1, 1], {"auc", "balanced_accuracy", "specificity"}),
    ],
)
def test_metrics_that_one_class_does_not_define_are_nan(labels, undefined):
    values = classification_metrics(labels, binary(0.2, 0.3))
    assert {name for name, value in values.items() if np.isnan(value)} == undefined


def test_a_class_that_does_not_occur_is_left_out_of_every_macro_average():
    labels = np.array([0, 0, 1, 1])
    three = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    values = classification_metrics(labels, three)
    assert values["sensitivity"] == 0.5
    assert values["f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert values["auc"] == pytest.approx(sk.roc_auc_score(labels == 0, three[:, 0]) / 2 + 0.75 / 2)


def test_one_class_only_of_three_leaves_the_macro_area_undefined():
    assert np.isnan(auc([2, 2], [[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]))


@pytest.mark.parametrize("seed", range(4))
def test_binary_metrics_agree_with_scikit_learn(seed):
    labels, scores = random_study(seed, classes=2)
    predicted = scores.argmax(axis=1)
    values = classification_metrics(labels, scores)
    assert values["auc"] == pytest.approx(sk.roc_auc_score(labels, scores[:, 1]))
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert values["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert values["f1"] == pytest.approx(sk.f1_score(labels, predicted))
    assert values["sensitivity"] == pytest.approx(sk.recall_score(labels, predicted))
    assert values["specificity"] == pytest.approx(sk.recall_score(labels, predicted, pos_label=0))
    assert values["brier"] == pytest.approx(sk.brier_score_loss(labels, scores[:, 1]))
    assert (confusion_matrix(labels, scores) == sk.confusion_matrix(labels, predicted)).all()


@pytest.mark.parametrize("seed", range(4))
def test_multi_class_metrics_agree_with_scikit_learn(seed):
    labels, scores = random_study(seed, classes=4)
    predicted = scores.argmax(axis=1)
    values = classification_metrics(labels, scores)
    assert values["auc"] == pytest.approx(sk.roc_auc_score(labels, scores, multi_class="ovr"))
    assert values["f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert values["sensitivity"] == pytest.approx(sk.recall_score(labels, predicted, average="macro"))
    one_against_rest = [sk.recall_score(labels != k, predicted != k) for k in range(4)]
    assert values["specificity"] == pytest.approx(np.mean(one_against_rest))
    assert values["brier"] == pytest.approx(sk.brier_score_loss(labels, scores, labels=range(4)))


@pytest.mark.parametrize("seed", range(3))
def test_roc_points_agree_with_scikit_learn(seed):
    labels, scores = random_study(seed, classes=2)
    curve = roc_curve(labels == 1, scores[:, 1])
    alarms, found, threshold = sk.roc_curve(labels, scores[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, alarms)
    np.testing.assert_allclose(curve.true_positive_rate, found)
    np.testing.assert_allclose(curve.threshold, threshold)
    assert sk.auc(curve.false_positive_rate, curve.true_positive_rate) == pytest.approx(auc(labels, scores))


@pytest.mark.parametrize(
    ("labels", "scores", "found"),
    [
        ([0, 1], [[0.5, 0.5]], r"shape \(2,\)"),
        ([], np.zeros((0, 2)), r"shape \(0,\)"),
        ([0, 2], binary(0.1, 0.2), "label 2 in row 1"),
        ([0.0, 1.0], binary(0.1, 0.2), "float64"),
        ([0, 1], [[0.5, 0.5], [2.0, -3.1]], "in row 1, 1 such rows"),
        ([0, 1], [[0.5, 0.5], [1.2, -0.2]], "in row 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "in row 1"),
        ([0, 1], [[0.3], [0.4]], "classes >= 2"),
    ],
)
def test_malformed_predictions_are_refused_with_the_row(labels, scores, found):
    with pytest.raises(MedvolError, match=found) as refusal:
        check_predictions(labels, scores)
    assert refusal.value.code == "BAD_PREDICTIONS"
    assert len(str(refusal.value)) <= 300


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(6, 40))
def test_metrics_stay_in_range_and_ignore_the_order_of_cases(seed, classes, n):
    labels, scores = random_study(seed, n, classes)
    values = classification_metrics(labels, scores)
    assert tuple(values) == METRICS
    assert all(0 <= value <= (2 if name == "brier" else 1) for name, value in values.items())
    order = np.random.default_rng(seed).permutation(n)
    shuffled = classification_metrics(labels[order], scores[order])
    assert shuffled == pytest.approx(values)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 5))
def test_renaming_the_classes_changes_no_macro_metric(seed, classes):
    # Unrounded scores: a tie between classes is broken by index, which renaming changes.
    labels, scores = random_study(seed, 40, classes, decimals=12)
    names = np.random.default_rng(seed).permutation(classes)
    renamed = classification_metrics(names[labels], scores[:, np.argsort(names)])
    assert renamed == pytest.approx(classification_metrics(labels, scores))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_swapping_the_two_classes_swaps_sensitivity_and_specificity_and_keeps_auc(seed):
    labels, scores = random_study(seed, 40, 2, decimals=12)
    here, there = classification_metrics(labels, scores), classification_metrics(1 - labels, scores[:, ::-1])
    assert here["auc"] == pytest.approx(there["auc"])
    assert here["sensitivity"] == pytest.approx(there["specificity"])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5.0))
def test_a_monotone_change_of_the_score_keeps_the_area(seed, power):
    labels, scores = random_study(seed, 40, 2)
    bent = binary(*scores[:, 1] ** power)
    assert auc(labels, bent) == pytest.approx(auc(labels, scores))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_a_weight_is_the_same_as_a_repeated_case(seed, classes):
    labels, scores = random_study(seed, 20, classes)
    times = np.random.default_rng(seed).integers(0, 4, 20)
    times[:classes] += 1  # at least one case
    row = np.repeat(np.arange(20), times)
    weighted = weighted_metrics(labels, scores, times[None].astype(float))
    repeated = classification_metrics(labels[row], scores[row])
    for name in METRICS:
        np.testing.assert_allclose(weighted[name][0], repeated[name], err_msg=name)
