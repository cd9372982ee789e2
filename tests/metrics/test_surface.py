"""HD95 and NSD: gaps known by hand, MONAI, SimpleITK and distance transforms beside them, properties."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from medvol.geometry import apply_affine
from medvol.metrics.masks import diagonal_mm
from medvol.metrics.surface import hd95_mm, nsd, surface_distances, surface_voxels
from medvol.phantoms.grid import centred_grid, oblique_affine
from medvol.phantoms.shapes import ball

SHAPE = (7, 8, 9)
SPACING = (1.0, 1.5, 3.0)


def one_voxel(*place):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[place] = True
    return mask


def blobs(seed, shape=(20, 18, 14)):
    """Two smooth random masks that mostly overlap; some touch the edge of the image."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), 2.0)
    other = field + 0.3 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return field > 0.02, other > 0.03


def as_tensor(mask):
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()


def test_two_voxels_are_as_far_apart_as_their_centres():
    assert hd95_mm(one_voxel(1, 2, 3), one_voxel(3, 4, 4), SPACING) == pytest.approx(np.hypot(np.hypot(2, 3), 3))
    assert nsd(one_voxel(1, 2, 3), one_voxel(1, 2, 4), SPACING, tolerance_mm=2.9) == 0.0
    assert nsd(one_voxel(1, 2, 3), one_voxel(1, 2, 4), SPACING, tolerance_mm=3.0) == 1.0


def test_a_tolerance_of_one_voxel_holds_for_a_spacing_that_went_through_float32():
    spacing = np.full(3, np.float32(0.3), dtype=np.float64)
    assert spacing[0] > 0.3
    assert nsd(one_voxel(1, 2, 3), one_voxel(1, 2, 4), spacing, tolerance_mm=0.3) == 1.0


def test_hd95_is_the_larger_of_the_two_directions():
    few, many = one_voxel(0, 0, 0), one_voxel(0, 0, 0)
    many[6, 0, 0] = True
    # From the truth: distances 0 and 6, the 95th percentile of which is 0.95 * 6; from the prediction: 0.
    assert hd95_mm(few, many, (1.0, 1.0, 1.0)) == pytest.approx(5.7)
    assert hd95_mm(many, few, (1.0, 1.0, 1.0)) == pytest.approx(5.7)


def test_concentric_balls_are_the_difference_of_their_radii_apart():
    grid = centred_grid((40, 40, 40), (0.8, 0.8, 0.8))
    small, large = (ball(radius, grid=grid).mask.array for radius in (8.0, 12.0))
    distances = surface_distances(small, large, grid.affine)
    assert np.concatenate([distances.of_prediction, distances.of_truth]).mean() == pytest.approx(4.0, abs=0.2)
    assert hd95_mm(small, large, grid.affine) == pytest.approx(4.0, abs=0.8)  # a voxel
    assert nsd(small, large, grid.affine, tolerance_mm=2.5) == 0.0
    assert nsd(small, large, grid.affine, tolerance_mm=5.5) == 1.0


def test_a_ball_moved_along_a_world_axis_is_hausdorff_the_way_it_moved_whatever_the_grid():
    grid = centred_grid((44, 30, 28), (1.0, 1.0, 1.0), angles_deg=(20.0, -10.0, 5.0))
    here, there = (ball(6.0, centre_mm=(x, 0.0, 0.0), grid=grid).mask.array for x in (-7.0, 7.0))
    distances = surface_distances(here, there, grid.affine)
    # The gap of two balls: nearest surface points 14 - 12 = 2 mm apart, farthest 14 mm.
    assert distances.of_prediction.min() == pytest.approx(2.0, abs=1.0)
    assert distances.of_prediction.max() == pytest.approx(14.0, abs=1.0)


def test_empty_masks_are_worst_for_one_and_perfect_for_two():
    empty, full = np.zeros(SHAPE, dtype=bool), one_voxel(1, 2, 3)
    worst = diagonal_mm(SHAPE, SPACING)
    assert worst == pytest.approx(np.sqrt(7**2 + 12**2 + 27**2))
    assert (hd95_mm(empty, empty, SPACING), nsd(empty, empty, SPACING)) == (0.0, 1.0)
    for pair in ((empty, full), (full, empty)):
        assert (hd95_mm(*pair, SPACING), nsd(*pair, SPACING)) == (worst, 0.0)


def test_the_surface_is_the_mask_minus_its_erosion_also_at_the_edge_of_the_image():
    for mask in (np.ones(SHAPE, dtype=bool), *blobs(0)):
        np.testing.assert_array_equal(surface_voxels(mask.astype(np.uint8)), mask & ~ndimage.binary_erosion(mask))


def test_where_two_structures_touch_both_have_a_surface():
    labels = np.ones((6, 5, 5), dtype=np.uint8)
    labels[3:] = 2
    for label in (1, 2):
        mask = labels == label
        np.testing.assert_array_equal(surface_voxels(labels) & mask, mask & ~ndimage.binary_erosion(mask))


# MONAI 1.6.1 passes itself an argument that it has deprecated.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_values_equal_those_of_monai(seed, spacing):
    pred, truth = blobs(seed)
    tensors = as_tensor(pred), as_tensor(truth)
    monai_hd95 = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
    assert hd95_mm(pred, truth, spacing) == pytest.approx(float(monai_hd95), rel=1e-4)  # torch.quantile in float32
    for tolerance in (0.5, 1.2, 3.1):
        monai_nsd = compute_surface_dice(*tensors, [tolerance], include_background=True, spacing=spacing)
        assert nsd(pred, truth, spacing, tolerance_mm=tolerance) == pytest.approx(float(monai_nsd), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_distance_equals_simpleitks_distance_map_at_the_surface(seed):
    pred, truth = blobs(seed)
    images = [sitk.GetImageFromArray(mask.astype(np.uint8).transpose(2, 1, 0)) for mask in (pred, truth)]
    for image in images:
        image.SetSpacing(SPACING)
    # SimpleITK measures from whole masks, we from surfaces; outside the other mask these are the same distance.
    far = sitk.SignedMaurerDistanceMap(images[1], squaredDistance=False, useImageSpacing=True)
    outside = pred & ~truth & surface_voxels(pred.astype(np.uint8))
    expected = sitk.GetArrayFromImage(far).transpose(2, 1, 0)[outside]
    here = np.argwhere(surface_voxels(pred.astype(np.uint8)))
    ours = surface_distances(pred, truth, SPACING).of_prediction
    np.testing.assert_allclose(np.sort(ours[outside[tuple(here.T)]]), np.sort(expected), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_a_distance_transform(seed):
    pred, truth = blobs(seed)
    surfaces = [surface_voxels(mask.astype(np.uint8)) for mask in (pred, truth)]
    expected = ndimage.distance_transform_edt(~surfaces[1], sampling=SPACING)[surfaces[0]]
    np.testing.assert_allclose(np.sort(surface_distances(pred, truth, SPACING).of_prediction), np.sort(expected))


def test_distances_on_a_sheared_grid_are_those_between_positions():
    affine = oblique_affine()
    affine[:3, 2] += 0.5 * affine[:3, 1]
    pred, truth = one_voxel(1, 2, 3), one_voxel(2, 5, 1)
    expected = np.linalg.norm(np.subtract(*apply_affine(affine, [(1, 2, 3), (2, 5, 1)])))
    assert hd95_mm(pred, truth, affine) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2), st.floats(0.1, 10.0))
def test_distances_are_symmetric_scale_with_the_spacing_and_do_not_care_for_flips(seed, axis, factor):
    pred, truth = blobs(seed, (12, 11, 10))
    value, share = hd95_mm(pred, truth, SPACING), nsd(pred, truth, SPACING, tolerance_mm=1.2)
    assert hd95_mm(truth, pred, SPACING) == pytest.approx(value)
    assert nsd(truth, pred, SPACING, tolerance_mm=1.2) == share
    scaled = [factor * step for step in SPACING]
    assert hd95_mm(pred, truth, scaled) == pytest.approx(factor * value)
    assert nsd(pred, truth, scaled, tolerance_mm=factor * 1.2) == share
    flipped = np.flip(pred, axis), np.flip(truth, axis)
    assert hd95_mm(*flipped, SPACING) == pytest.approx(value)
    turned = pred.transpose(2, 0, 1), truth.transpose(2, 0, 1)
    assert hd95_mm(*turned, (3.0, 1.0, 1.5)) == pytest.approx(value)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(0.0, 8.0), min_size=2, max_size=5))
def test_nsd_grows_with_the_tolerance_within_bounds(seed, tolerances):
    pred, truth = blobs(seed, (12, 11, 10))
    values = [nsd(pred, truth, SPACING, tolerance_mm=tolerance) for tolerance in sorted(tolerances)]
    assert values == sorted(values)
    assert 0.0 <= values[0] <= values[-1] <= 1.0
    assert nsd(pred, pred, SPACING, tolerance_mm=0.0) == 1.0
    assert nsd(pred, truth, SPACING, tolerance_mm=1e3) == 1.0
