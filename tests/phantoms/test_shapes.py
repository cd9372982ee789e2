"""Grids, coverage, and the shapes with closed forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medvol.errors import MedvolError
from medvol.geometry import affine_from, apply_affine, is_sheared, spacing_mm
from medvol.phantoms import grid as grid_module
from medvol.phantoms.grid import Grid, centred_grid, coverage, oblique_affine, oblique_grid
from medvol.phantoms.shapes import ball, ball_distance, box, ellipsoid_distance, shell
from medvol.phantoms.vessel import VesselShape, vessel, vessel_distance

SHAPES = {
    "ball": ball_distance((1.0, -2.0, 0.5), 6.0),
    "ellipsoid": ellipsoid_distance((0.0, 1.0, 2.0), (8.0, 4.0, 6.0)),
    "vessel": vessel_distance(VesselShape(aneurysm_radius_mm=4.0)),
}


def brute_force_coverage(distance, grid, counts):
    """Every point of every voxel, without any shortcut."""
    steps = [(np.arange(count) + 0.5) / count - 0.5 for count in counts]
    share = np.zeros(grid.shape)
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    for offset in itertools.product(*steps):
        share += distance(apply_affine(grid.affine, voxels + offset)) <= 0
    return share / math.prod(counts)


def test_the_oblique_affine_has_the_spacing_asked_for_and_its_grid_is_centred():
    affine = oblique_affine((7, 8, 9), centre_mm=(5.0, -3.0, 2.0))
    assert spacing_mm(affine) == pytest.approx((1.0, 1.5, 3.0))
    assert not is_sheared(affine)
    assert apply_affine(affine, (3, 3.5, 4)) == pytest.approx((5.0, -3.0, 2.0))
    assert np.linalg.det(affine[:3, :3]) == pytest.approx(-4.5)  # one flip: left-handed
    assert apply_affine(oblique_affine(centre_mm=(1, 2, 3)), (0, 0, 0)) == pytest.approx((1, 2, 3))


def test_the_angles_turn_about_x_then_y_then_z():
    angles_deg = (20.0, -10.0, 35.0)
    affine = oblique_affine(spacing=(1, 1, 1), angles_deg=angles_deg, flip=(False, False, False))
    expected = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    np.testing.assert_allclose(affine[:3, :3], expected, atol=1e-12)
    # A quarter turn about z takes x to y.
    quarter = oblique_affine(spacing=(2, 1, 1), angles_deg=(0, 0, 90), flip=(False, False, False))
    assert apply_affine(quarter, (1, 0, 0)) == pytest.approx((0, 2, 0))


def test_the_share_of_a_half_filled_voxel_is_one_half():
    # Voxel edges at whole millimetres, so a box from -0.5 to 1.5 fills voxels 0 and 1 and halves of their neighbours.
    place = Grid((5, 5, 5), affine_from((1, 1, 1), origin=(-2, -2, -2)))
    phantom = box((2.0, 1.0, 1.0), grid=place, values=(300.0, 100.0))
    assert phantom.image.array[:, 2, 2].tolist() == [100, 200, 300, 200, 100]
    assert phantom.mask.array[:, 2, 2].tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("name", SHAPES)
def test_coverage_equals_the_brute_force_one(name):
    place = Grid((7, 8, 9), oblique_affine((7, 8, 9)))
    # Spacing 1, 1.5, 3 and two points along the shortest side: 2, 3, 6.
    np.testing.assert_array_equal(
        coverage(SHAPES[name], place, samples=2), brute_force_coverage(SHAPES[name], place, (2, 3, 6))
    )


def test_coverage_in_small_pieces_equals_coverage_at_once(monkeypatch):
    place = oblique_grid((7, 8, 9))
    whole = coverage(SHAPES["ball"], place)
    monkeypatch.setattr(grid_module, "_CHUNK_POINTS", 50)
    np.testing.assert_array_equal(coverage(SHAPES["ball"], place), whole)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 10_000))
def test_no_surface_lies_nearer_than_the_distance_says(name, seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-14, 14, (2000, 3))
    value = SHAPES[name](points)
    step = rng.normal(size=(2000, 3))
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    # 3 micrometres less: the centre line of a vessel is a polygon.
    there = SHAPES[name](points + step * np.maximum(np.abs(value) - 3e-3, 0.0)[:, None])
    np.testing.assert_array_equal(there <= 0, value <= 0)


@pytest.mark.parametrize(
    "phantom",
    [ball(), box(), shell(), ball(6.0, centre_mm=(2, -3, 4)), box((5, 9, 12), centre_mm=(1, 2, -3))],
    ids=["ball", "box", "shell", "small ball", "small box"],
)
def test_the_image_holds_the_volume_and_the_centre_of_the_answer(phantom):
    image, answer = phantom.image, phantom.answer
    voxel_ml = Grid(image.array.shape, image.affine).voxel_ml
    assert image.array.sum(dtype=np.float64) * voxel_ml == pytest.approx(answer["volume_ml"], rel=0.003)
    # Voxels of 3 mm against a radius of 6: the mask cannot do better.
    assert phantom.mask.array.sum() * voxel_ml == pytest.approx(answer["volume_ml"], rel=0.1)
    voxels = np.argwhere(image.array > 0)
    weights = image.array[image.array > 0]
    centre = np.average(apply_affine(image.affine, voxels), axis=0, weights=weights)
    assert centre == pytest.approx(answer["centre_mm"], abs=0.05)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.7, 2.0)] * 3),
    st.tuples(*[st.booleans()] * 3),
)
def test_the_volume_of_a_ball_depends_on_no_grid(angles_deg, spacing, flip):
    place = centred_grid((34, 34, 34), spacing, angles_deg=angles_deg, flip=flip)
    phantom = ball(8.0, grid=place)
    measured_ml = phantom.image.array.sum(dtype=np.float64) * place.voxel_ml
    assert measured_ml == pytest.approx(phantom.answer["volume_ml"], rel=0.01)


def test_volumes_and_surfaces_by_hand():
    assert ball(3.0).answer["volume_ml"] == pytest.approx(0.036 * math.pi)
    assert ball(3.0).answer["surface_mm2"] == pytest.approx(36 * math.pi)
    assert box((10, 10, 10)).answer["volume_ml"] == 1.0
    assert box((2, 3, 4)).answer["surface_mm2"] == 52
    assert shell(6.0, 3.0).answer["volume_ml"] == pytest.approx((288 - 36) * math.pi / 1000)
    assert shell(6.0, 3.0).answer["surface_mm2"] == pytest.approx(180 * math.pi)


def test_the_surface_is_the_growth_of_the_volume():
    step = 1e-4
    growth = (ball(9 + step).answer["volume_ml"] - ball(9 - step).answer["volume_ml"]) / (2 * step) * 1000
    assert growth == pytest.approx(ball(9.0).answer["surface_mm2"])


def test_a_shell_is_hollow():
    phantom = shell(grid=centred_grid((29, 31, 33)), values=(5.0, 1.0))
    assert phantom.image.array[14, 15, 16] == 1.0
    assert phantom.image.array[14 + 10, 15, 16] == 5.0


@pytest.mark.parametrize("make", [lambda: ball(30.0), lambda: box((80, 5, 5)), lambda: ball(3.0, centre_mm=(99, 0, 0))])
def test_a_shape_that_does_not_fit_is_refused(make):
    with pytest.raises(MedvolError, match="edge of the grid") as refusal:
        make()
    assert refusal.value.code == "PHANTOM_CLIPPED"


def test_a_vessel_that_does_not_fit_is_refused():
    with pytest.raises(MedvolError, match="PHANTOM_CLIPPED"):
        vessel(VesselShape(length_mm=60.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ball(0.0),
        lambda: ball(float("nan")),
        lambda: box((1, 0, 1)),
        lambda: shell(4.0, 4.0),
        lambda: ball(samples=0),
        lambda: Grid((0, 1, 1), np.eye(4)),
        lambda: Grid((1, 1, 1), np.diag([1.0, 0.0, 1.0, 1.0])),
    ],
)
def test_arguments_that_describe_no_phantom_are_refused(make):
    with pytest.raises(MedvolError) as refusal:
        make()
    assert refusal.value.code == "BAD_ARGUMENT"
