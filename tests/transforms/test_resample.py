import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from medvol.geometry import affine_from, apply_affine, is_sheared, spacing_mm
from medvol.transforms.resample import StretchToSpacingd, stretch, stretched_affine, stretched_shape

SHAPE, SPACING = (7, 8, 9), (1.0, 1.5, 3.0)
ANGLE = np.radians(25)
OBLIQUE = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1.0]])
AFFINE = affine_from(SPACING, OBLIQUE, (5.0, -3.0, 11.0))


def corners(affine, shape):
    """World positions of the outer corners of a grid, half a voxel beyond the outer centres."""
    ends = np.array(np.meshgrid(*[(-0.5, length - 0.5) for length in shape], indexing="ij")).reshape(3, -1).T
    return apply_affine(affine, ends)


def test_doubling_the_resolution_of_a_line_gives_the_values_worked_out_by_hand():
    line = torch.tensor([0.0, 4.0]).reshape(1, 2, 1, 1)
    # Centres of the new voxels lie at -0.25, 0.25, 0.75, 1.25 of the old ones.
    assert stretch(line, (4, 1, 1)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert stretch(line, (4, 1, 1), nearest=True).flatten().tolist() == [0.0, 0.0, 4.0, 4.0]


@given(st.tuples(*[st.integers(1, 12)] * 3))
def test_the_outer_borders_of_the_volume_stay_where_they_were(new_shape):
    moved = stretched_affine(AFFINE, SHAPE, new_shape)
    np.testing.assert_allclose(corners(moved, new_shape), corners(AFFINE, SHAPE), atol=1e-9)


@given(st.tuples(*[st.integers(1, 12)] * 3))
def test_a_new_voxel_holds_the_old_voxel_nearest_to_its_place_in_the_world(new_shape):
    names = torch.arange(np.prod(SHAPE)).reshape(1, *SHAPE)
    found = stretch(names, new_shape, nearest=True)[0]
    affine = stretched_affine(AFFINE, SHAPE, new_shape)
    index = np.argwhere(np.ones(new_shape))
    place = apply_affine(np.linalg.inv(AFFINE), apply_affine(affine, index))
    old = np.array(np.unravel_index(found.numpy().ravel(), SHAPE)).T
    assert np.abs(place - old).max() <= 0.5 + 1e-9


def test_a_linear_ramp_stays_the_same_ramp_in_world_space():
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    ramp = apply_affine(AFFINE, index) @ [0.3, -0.2, 0.7]
    item = {"image": MetaTensor(torch.tensor(ramp[None], dtype=torch.float32), affine=torch.tensor(AFFINE))}
    result = StretchToSpacingd("image", (0.7, 1.1, 1.4))(item)["image"]
    assert tuple(result.shape[1:]) == stretched_shape(SHAPE, SPACING, (0.7, 1.1, 1.4)) == (10, 11, 19)
    index = np.stack(np.meshgrid(*map(np.arange, result.shape[1:]), indexing="ij"), -1)
    expected = apply_affine(result.affine.numpy(), index) @ [0.3, -0.2, 0.7]
    inner = (slice(1, -1), slice(1, -1), slice(2, -2))  # at the border there is nothing to extrapolate from
    np.testing.assert_allclose(result[0].numpy()[inner], expected[inner], atol=1e-4)


def test_shear_is_kept():
    sheared = AFFINE.copy()
    sheared[:3, 2] += 0.4 * AFFINE[:3, 1]
    moved = stretched_affine(sheared, SHAPE, (7, 8, 20))
    assert is_sheared(moved)
    np.testing.assert_allclose(spacing_mm(moved)[2], spacing_mm(sheared)[2] * 9 / 20)


def test_a_volume_that_has_the_spacing_already_is_not_touched():
    image = MetaTensor(torch.rand(2, *SHAPE), affine=torch.tensor(AFFINE))
    item = {"image": image}
    assert StretchToSpacingd("image", SPACING)(item)["image"] is image


def test_a_mask_keeps_its_type_and_values():
    mask = MetaTensor(torch.randint(0, 3, (1, *SHAPE), dtype=torch.uint8), affine=torch.tensor(AFFINE))
    result = StretchToSpacingd("label", (2.0, 2.0, 2.0), nearest=True)({"label": mask})["label"]
    assert result.dtype == torch.uint8
    assert set(result.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("new", [(100.0, 100.0, 100.0)])
def test_at_least_one_voxel_is_left(new):
    assert stretched_shape(SHAPE, SPACING, new) == (1, 1, 1)
