"""Specks, holes and pieces: by hand, SimpleITK beside them, properties, and the adapter for MONAI's chains."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from medvol.errors import MedvolError
from medvol.phantoms.grid import centred_grid, oblique_affine
from medvol.phantoms.shapes import shell
from medvol.transforms.components import Cleaning, CleanStructuresd, clean_labels, drop_small, fill_holes, keep_largest

SHAPE = (12, 10, 9)


def with_boxes(*sides):
    """A mask of cubes along the diagonal, one free voxel between them."""
    mask, start = np.zeros(SHAPE, dtype=bool), 0
    for side in sides:
        mask[start : start + side, :side, :side] = True
        start += side + 1
    return mask


def random_mask(seed, share=0.35):
    return np.random.default_rng(seed).random(SHAPE) < share


def sizes_by_simpleitk(mask):
    numbered = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    return np.bincount(sitk.GetArrayFromImage(numbered).ravel())[1:], sitk.GetArrayFromImage(numbered)


def test_the_largest_of_three_boxes_stays_whole_and_alone():
    expected = np.zeros(SHAPE, dtype=bool)
    expected[3:7, :4, :4] = True
    np.testing.assert_array_equal(keep_largest(with_boxes(2, 4, 3)), expected)
    one = with_boxes(3)
    np.testing.assert_array_equal(keep_largest(one), one)
    assert not keep_largest(np.zeros(SHAPE, dtype=bool)).any()


def test_a_component_of_exactly_the_smallest_volume_stays():
    mask = with_boxes(2, 3)  # 8 and 27 voxels
    voxel_ml = 0.1 + 0.2  # 0.30000000000000004
    assert drop_small(mask, voxel_ml, min_volume_ml=8 * 0.3).sum() == 35
    assert drop_small(mask, 0.3, min_volume_ml=8 * voxel_ml).sum() == 35
    assert drop_small(mask, voxel_ml, min_volume_ml=8 * 0.3 + 0.01).sum() == 27
    assert drop_small(mask, voxel_ml, min_volume_ml=100.0).sum() == 0


def test_voxels_that_touch_at_a_corner_are_one_component():
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[8, 8, 8] = True
    assert keep_largest(mask).sum() == 2


def test_a_hollow_ball_is_filled_and_an_open_cavity_is_not():
    phantom = shell(12.0, 8.0, grid=centred_grid((30, 30, 30)))
    mask = phantom.mask.array > 0
    filled = fill_holes(mask)
    assert filled.sum() / 1000 == pytest.approx(4 / 3 * np.pi * 12**3 / 1000, rel=0.02)
    assert mask[:15].any()
    np.testing.assert_array_equal(fill_holes(mask[:15]), mask[:15])  # cut open, the cavity reaches the edge


@pytest.mark.parametrize("seed", range(4))
def test_components_and_holes_equal_those_of_simpleitk(seed):
    mask = random_mask(seed, 0.12)
    sizes, numbered = sizes_by_simpleitk(mask)
    assert keep_largest(mask).sum() == sizes.max()
    kept = np.isin(numbered, 1 + np.flatnonzero(sizes >= 3))
    np.testing.assert_array_equal(drop_small(mask, 1.0, min_volume_ml=3.0), kept)
    dense = random_mask(seed, 0.75)
    filler = sitk.BinaryFillholeImageFilter()
    filler.SetForegroundValue(1)
    filler.SetFullyConnected(False)  # of the background
    expected = sitk.GetArrayFromImage(filler.Execute(sitk.GetImageFromArray(dense.astype(np.uint8)))) > 0
    assert expected.sum() > dense.sum()
    np.testing.assert_array_equal(fill_holes(dense), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2), st.sampled_from([0.1, 0.4, 0.75]))
def test_cleaning_twice_is_cleaning_once_and_does_not_care_for_flips(seed, axis, share):
    mask = random_mask(seed, share)
    for clean in (fill_holes, lambda values: drop_small(values, 1.0, min_volume_ml=3.0)):
        once = clean(mask)
        np.testing.assert_array_equal(clean(once), once)
        np.testing.assert_array_equal(clean(np.flip(mask, axis)), np.flip(once, axis))
    largest = keep_largest(mask)
    assert (largest <= mask).all()
    assert largest.sum() == keep_largest(np.flip(mask, axis)).sum()
    np.testing.assert_array_equal(keep_largest(largest), largest)
    assert (fill_holes(mask) >= mask).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 3.0]), st.booleans())
def test_a_label_map_is_cleaned_as_its_structures_are_one_by_one(seed, largest, volume, fill):
    labels = np.random.default_rng(seed).choice(np.array([0, 1, 300], dtype=np.uint16), SHAPE, p=[0.2, 0.75, 0.05])
    before = labels.copy()
    cleaned = clean_labels(labels, {1: Cleaning(largest, volume, fill)}, 1.0)
    np.testing.assert_array_equal(labels, before)
    assert cleaned.dtype == np.uint16
    mask = labels == 1
    if fill:
        mask = fill_holes(mask) & (labels != 300)
    if largest:
        mask = keep_largest(mask)
    if volume:
        mask = drop_small(mask, 1.0, min_volume_ml=volume)
    np.testing.assert_array_equal(cleaned == 1, mask)
    np.testing.assert_array_equal(cleaned == 300, labels == 300)


def nested():
    """Structure 1 around background around structure 2 around background."""
    labels = np.zeros((9, 9, 9), dtype=np.uint8)
    for inset, label in enumerate((1, 0, 2, 0)):
        labels[inset : 9 - inset, inset : 9 - inset, inset : 9 - inset] = label
    return labels


def test_holes_are_filled_from_the_inside_out_and_never_with_another_structure():
    cleaned = clean_labels(nested(), {1: Cleaning(fill_holes=True), 2: Cleaning(fill_holes=True)}, 1.0)
    assert (cleaned[2:7, 2:7, 2:7] == 2).all()
    assert (cleaned == 2).sum() == 5**3
    assert (cleaned == 1).sum() == 9**3 - 5**3


def test_a_hole_counts_to_the_volume_that_decides_about_the_component():
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:4, 1:4, 1:4] = 1
    labels[2, 2, 2] = 0  # 26 voxels around a hole
    assert clean_labels(labels, {1: Cleaning(min_volume_ml=27.0)}, 1.0).sum() == 0
    assert clean_labels(labels, {1: Cleaning(min_volume_ml=27.0, fill_holes=True)}, 1.0).sum() == 27


def test_a_cleaning_survives_json_and_refuses_what_it_does_not_know():
    cleaning = Cleaning(True, 1.5, False)
    assert Cleaning.from_dict(cleaning.as_dict()) == cleaning
    assert Cleaning.from_dict({}) == Cleaning()
    assert not Cleaning().does_something
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION.*keep_lagest"):
        Cleaning.from_dict({"keep_lagest": True})
    for volume in (-1.0, float("nan"), float("inf")):
        with pytest.raises(MedvolError, match="BAD_ARGUMENT"):
            Cleaning(min_volume_ml=volume)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_the_adapter_takes_the_volume_from_the_affine_and_keeps_type_and_metadata(dtype):
    affine = oblique_affine(SHAPE)  # 4.5 cubic mm
    labels = MetaTensor(torch.from_numpy(with_boxes(2, 3).astype(np.uint8))[None].to(dtype), affine=affine)
    labels.meta["case"] = "c1"
    labels.applied_operations = [{"class": "Flip"}]
    item = {"pred": labels, "other": 1}
    result = CleanStructuresd("pred", {1: Cleaning(min_volume_ml=0.05)})(item)
    assert isinstance(result["pred"], MetaTensor)
    assert (result["pred"].dtype, result["pred"].shape) == (dtype, labels.shape)
    assert result["pred"].meta["case"] == "c1"
    assert result["pred"].applied_operations == labels.applied_operations
    np.testing.assert_allclose(result["pred"].affine, affine)
    assert int(result["pred"].sum()) == 27  # 8 voxels are 0.036 ml, 27 are 0.12
    assert int(labels.sum()) == 35
    assert result["other"] == 1


def test_the_adapter_takes_arrays_with_a_stated_volume_only():
    labels = with_boxes(2, 3).astype(np.int16)[None]
    step = CleanStructuresd("pred", {1: Cleaning(keep_largest=True)}, voxel_volume_ml=1.0)
    result = step({"pred": labels})["pred"]
    assert isinstance(result, np.ndarray)
    assert (result.dtype, result.sum()) == (np.int16, 27)
    with pytest.raises(MedvolError, match="NO_GEOMETRY: case c1"):
        CleanStructuresd("pred", {1: Cleaning(keep_largest=True)})({"pred": labels, "case": "c1"})
    assert CleanStructuresd("pred", {1: Cleaning()})({"pred": labels})["pred"] is labels
