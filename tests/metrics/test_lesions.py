"""Lesions found, invented and missed: by hand, against connected components of SimpleITK, by properties."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.metrics.lesions import LesionCounts, count_lesions

SHAPE = (12, 10, 9)


def with_boxes(*corners, size=3):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for x, y, z in corners:
        mask[x : x + size, y : y + size, z : z + size] = 1
    return mask


def specks(seed, share=0.08):
    rng = np.random.default_rng(seed)
    truth = rng.random(SHAPE) < share
    pred = np.where(rng.random(SHAPE) < 0.3, rng.random(SHAPE) < share, truth)
    return pred, truth


def test_one_found_one_missed_and_one_invented_are_counted_as_such():
    truth = with_boxes((0, 0, 0), (8, 0, 0))
    pred = with_boxes((1, 0, 0), (0, 6, 5))  # the first overlaps by 18 of 36 voxels
    counts = count_lesions(pred, truth)
    assert counts == LesionCounts(1, 1, 1)
    assert (counts.sensitivity, counts.precision, counts.f1) == (0.5, 0.5, 0.5)


def test_the_threshold_is_reached_by_exactly_its_iou():
    truth, pred = with_boxes((0, 0, 0)), with_boxes((1, 0, 0))
    assert count_lesions(pred, truth, min_iou=0.5).true_positives == 1
    assert count_lesions(pred, truth, min_iou=0.51).true_positives == 0


def test_a_prediction_that_swallows_everything_finds_nothing():
    truth = with_boxes((0, 0, 0), (8, 0, 0), size=2)
    counts = count_lesions(np.ones(SHAPE), truth)
    assert counts == LesionCounts(0, 1, 2)


def test_one_prediction_across_two_lesions_finds_one_of_them():
    truth = with_boxes((0, 0, 0), (4, 0, 0))
    pred = np.zeros(SHAPE)
    pred[0:7, 0:3, 0:3] = 1
    assert count_lesions(pred, truth) == LesionCounts(1, 0, 1)


def test_the_matching_has_as_many_pairs_as_can_be():
    # The long prediction touches both lesions, the short one only the first: a greedy choice would give it away.
    truth, pred = np.zeros(SHAPE), np.zeros(SHAPE)
    truth[0:5, 0, 0], truth[6:9, 0, 0] = 1, 1
    pred[2:9, 0, 0], pred[0:1, 0, 0] = 1, 1
    assert count_lesions(pred, truth) == LesionCounts(2, 0, 0)


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    truth = np.zeros(SHAPE)
    truth[1, 1, 1] = truth[2, 2, 2] = 1
    assert count_lesions(truth, truth) == LesionCounts(1, 0, 0)


def test_without_lesions_shares_are_undefined_and_f1_is_that_of_agreement():
    empty, one = np.zeros(SHAPE), with_boxes((0, 0, 0))
    nothing = count_lesions(empty, empty)
    assert nothing == LesionCounts(0, 0, 0)
    assert np.isnan([nothing.sensitivity, nothing.precision]).all()
    assert nothing.f1 == 1.0
    invented = count_lesions(one, empty)
    assert (invented.precision, invented.f1) == (0.0, 0.0)
    assert np.isnan(invented.sensitivity)


@pytest.mark.parametrize("min_iou", [0.0, -1.0, 1.1])
def test_a_threshold_that_says_nothing_is_refused(min_iou):
    with pytest.raises(ValueError, match="min_iou"):
        count_lesions(np.ones(SHAPE), np.ones(SHAPE), min_iou=min_iou)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2))
def test_counts_add_up_to_simpleitks_components_and_mirror_when_swapped(seed, axis):
    pred, truth = specks(seed)
    counts = count_lesions(pred, truth)
    for mask, total in (
        (pred, counts.true_positives + counts.false_positives),
        (truth, counts.true_positives + counts.false_negatives),
    ):
        filtered = sitk.ConnectedComponentImageFilter()
        filtered.SetFullyConnected(True)
        filtered.Execute(sitk.GetImageFromArray(mask.astype(np.uint8)))
        assert filtered.GetObjectCount() == total
    mirrored = count_lesions(truth, pred)
    assert mirrored == LesionCounts(counts.true_positives, counts.false_negatives, counts.false_positives)
    assert count_lesions(np.flip(pred, axis), np.flip(truth, axis)) == counts
    assert count_lesions(truth, truth).f1 == 1.0
    stricter = count_lesions(pred, truth, min_iou=0.6)
    assert stricter.true_positives <= counts.true_positives
