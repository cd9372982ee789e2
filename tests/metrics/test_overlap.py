"""Dice, IoU, volumes and counts: boxes by hand, MONAI and SimpleITK as second implementations, properties."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_iou

from medvol.errors import MedvolError
from medvol.metrics.masks import compact_labels, crop_to_foreground, diagonal_mm
from medvol.metrics.overlap import confusion_counts, dice, iou, volume_ml
from medvol.phantoms.grid import oblique_affine
from medvol.phantoms.shapes import box

SHAPE = (7, 8, 9)


def boxes(start, stop):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1:4, start:stop, 2:6] = True
    return mask


def random_masks(seed):
    rng = np.random.default_rng(seed)
    return rng.random(SHAPE) < 0.4, rng.random(SHAPE) < 0.3


def as_tensor(mask):
    return torch.from_numpy(mask)[None, None].float()


def test_boxes_that_share_half_have_dice_one_half_and_iou_one_third():
    assert dice(boxes(0, 4), boxes(2, 6)) == 0.5
    assert iou(boxes(0, 4), boxes(2, 6)) == pytest.approx(1 / 3)


def test_empty_masks_agree_with_each_other_and_with_nothing_else():
    empty, full = np.zeros(SHAPE, dtype=bool), boxes(0, 4)
    assert (dice(empty, empty), iou(empty, empty)) == (1.0, 1.0)
    assert (dice(empty, full), iou(empty, full)) == (0.0, 0.0)
    assert (dice(full, empty), iou(full, empty)) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_dice_and_iou_equal_those_of_monai_and_simpleitk(seed):
    pred, truth = random_masks(seed)
    assert dice(pred, truth) == pytest.approx(float(compute_dice(as_tensor(pred), as_tensor(truth))))
    assert iou(pred, truth) == pytest.approx(float(compute_iou(as_tensor(pred), as_tensor(truth))))
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (pred, truth)))
    assert dice(pred, truth) == pytest.approx(measure.GetDiceCoefficient())
    assert iou(pred, truth) == pytest.approx(measure.GetJaccardCoefficient())


def test_the_volume_of_a_box_is_its_edges_multiplied_also_on_a_sheared_grid():
    affine = oblique_affine(SHAPE)
    assert volume_ml(boxes(0, 4), affine) == pytest.approx(3 * 4 * 4 * 1.0 * 1.5 * 3.0 / 1000)
    assert volume_ml(boxes(0, 4), (1.0, 1.5, 3.0)) == pytest.approx(volume_ml(boxes(0, 4), affine))
    sheared = affine.copy()
    sheared[:3, 2] += 0.4 * sheared[:3, 1]  # gantry tilt: longer step, same volume
    assert volume_ml(boxes(0, 4), sheared) == pytest.approx(volume_ml(boxes(0, 4), affine))


def test_the_volume_of_a_phantom_box_is_the_closed_form():
    phantom = box((14.0, 10.5, 18.0))
    measured = volume_ml(phantom.mask.array, phantom.mask.affine)
    assert measured == pytest.approx(phantom.answer["volume_ml"], rel=0.06)  # voxels of 4.5 cubic mm


@pytest.mark.parametrize("labels", [2, 26])
def test_counts_of_all_structures_in_slabs_equal_one_comparison_per_pair(labels, monkeypatch):
    monkeypatch.setattr("medvol.metrics.overlap._SLAB_VOXELS", 200)  # some rows of x at a time, the last slab shorter
    rng = np.random.default_rng(0)
    pred, truth = (rng.integers(0, labels, SHAPE).astype(np.uint8) for _ in range(2))
    counts = confusion_counts(pred, truth, labels)
    expected = [[((truth == row) & (pred == column)).sum() for column in range(labels)] for row in range(labels)]
    np.testing.assert_array_equal(counts, expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2))
def test_dice_is_symmetric_within_bounds_and_blind_to_the_order_of_voxels(seed, axis):
    pred, truth = random_masks(seed)
    value = dice(pred, truth)
    assert 0.0 <= value <= 1.0
    assert value == dice(truth, pred)
    assert value == dice(np.flip(pred, axis), np.flip(truth, axis))
    order = np.random.default_rng(seed).permutation(pred.size)
    shuffled = [mask.ravel()[order].reshape(SHAPE) for mask in (pred, truth)]
    assert value == dice(*shuffled)
    assert dice(pred, pred) == 1.0
    assert iou(pred, truth) == pytest.approx(value / (2 - value))


def test_labels_are_renumbered_and_strangers_become_background():
    labels = np.array([[[-3, 0, 7, 300, 205, 206]]], dtype=np.int16)
    np.testing.assert_array_equal(compact_labels(labels, [205, 7]), [[[0, 0, 2, 0, 1, 0]]])
    in_order = np.array([[[0, 1, 2, 3]]], dtype=np.uint8)
    np.testing.assert_array_equal(compact_labels(in_order, [1, 2]), [[[0, 1, 2, 0]]])


def test_cropping_keeps_everything_of_both_masks_and_nothing_around():
    pred, truth = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    pred[2, 3, 4], truth[5, 3, 8] = 1, 2
    cropped = crop_to_foreground(pred, truth)
    assert cropped[0].shape == cropped[1].shape == (4, 1, 5)
    assert (cropped[0].sum(), cropped[1].sum()) == (1, 2)
    assert crop_to_foreground(0 * pred, 0 * pred)[0].size == 0


def test_the_diagonal_reaches_from_edge_to_edge():
    assert diagonal_mm((240, 240, 155), (1.0, 1.0, 1.0)) == pytest.approx(373.13, abs=0.01)  # BraTS' number
    assert diagonal_mm((3, 4, 1), oblique_affine(spacing=(1.0, 1.0, 12.0))) == pytest.approx(13.0)
    sheared = np.eye(4)
    sheared[0, 1] = -1.0  # a parallelogram of which the corners (1, 0) and (-1, 1) are the far ones
    assert diagonal_mm((1, 1, 0), sheared) == pytest.approx(np.sqrt(5))


@pytest.mark.parametrize(
    ("pred", "truth", "code"),
    [
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), "SHAPE_MISMATCH"),
        (np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2, 2)), "WRONG_DIMS"),
        (np.full((2, 2, 2), 0.7), np.zeros((2, 2, 2)), "BAD_DTYPE"),
        (np.full((2, 2, 2), "a"), np.zeros((2, 2, 2)), "BAD_DTYPE"),
    ],
)
def test_what_is_no_pair_of_masks_is_refused(pred, truth, code):
    with pytest.raises(MedvolError, match=code):
        dice(pred, truth)


@pytest.mark.parametrize("grid", [(1.0, 2.0), (1.0, 0.0, 2.0), np.eye(3), np.full((4, 4), np.nan)])
def test_what_is_no_grid_is_refused(grid):
    with pytest.raises(MedvolError, match="BAD_ARGUMENT"):
        volume_ml(np.ones(SHAPE), grid)
