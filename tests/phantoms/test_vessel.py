"""The vessel and the body."""

import itertools
import math

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from medvol.errors import MedvolError
from medvol.geometry import Volume, apply_affine
from medvol.phantoms.body import (
    AIR_HU,
    FAT_HU,
    ORGANS,
    STRUCTURES,
    TORSO,
    WATER_HU,
    body,
    centroid_mm,
    side_of,
    varied_organs,
)
from medvol.phantoms.grid import Grid, centred_grid, oblique_grid
from medvol.phantoms.vessel import VesselShape, centre_line, vessel, vessel_distance

FINE = centred_grid((52, 48, 44), (0.6, 0.6, 0.6))


def measured_ml(phantom, place):
    return phantom.image.array.sum(dtype=np.float64) * place.voxel_ml


def test_the_volume_of_a_straight_vessel_is_that_of_a_cylinder():
    assert VesselShape(2.0, 10.0, tortuosity_mm=0.0).volume_ml == pytest.approx(0.04 * math.pi)


def test_an_aneurysm_adds_what_integration_says():
    shape = VesselShape(2.0, 20.0, aneurysm_radius_mm=5.0, tortuosity_mm=0.0)
    area, _ = quad(lambda x: math.pi * max(4.0, 25.0 - x * x), -10, 10, points=[-math.sqrt(21), math.sqrt(21)])
    assert shape.volume_ml * 1000 == pytest.approx(area)


@pytest.mark.parametrize(
    "shape",
    [
        VesselShape(tortuosity_mm=0.0),
        VesselShape(),
        VesselShape(tortuosity_mm=3.5, radius_mm=1.6),
        VesselShape(aneurysm_radius_mm=5.0),
        VesselShape(aneurysm_radius_mm=3.0, tortuosity_mm=3.0, direction=(0, 0, -2), centre_mm=(1, -1, 0)),
    ],
)
def test_the_image_holds_the_volume_of_the_answer(shape):
    phantom = vessel(shape, grid=FINE)
    assert measured_ml(phantom, FINE) == pytest.approx(phantom.answer["volume_ml"], rel=0.005)


def test_the_default_vessel_fits_the_default_grid_and_has_its_volume():
    place = oblique_grid()
    assert measured_ml(vessel(), place) == pytest.approx(vessel().answer["volume_ml"], rel=0.01)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 3), st.floats(15, 40), st.floats(0, 6), st.tuples(*[st.floats(-1, 1)] * 3))
def test_the_centre_line_is_as_long_as_asked_and_passes_the_centre(tortuosity_mm, length_mm, aneurysm_mm, direction):
    if np.linalg.norm(direction) < 0.1:
        direction = (0.0, 0.0, 1.0)
    shape = VesselShape(1.0, length_mm, aneurysm_mm, tortuosity_mm, direction=direction, centre_mm=(1.0, 2.0, 3.0))
    line = centre_line(shape)
    steps = np.diff(line.points_mm, axis=0)
    assert np.linalg.norm(steps, axis=1).sum() == pytest.approx(length_mm, rel=1e-4)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), np.diff(line.along_mm), rtol=1e-3)
    middle = len(line.points_mm) // 2
    assert line.along_mm[middle] == 0
    assert line.points_mm[middle] == pytest.approx((1.0, 2.0, 3.0))
    chords = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    assert ((chords * line.tangents[1:]).sum(axis=1) > 0.999).all()


def test_the_distance_is_that_to_the_nearest_point_of_a_fine_line():
    shape = VesselShape(tortuosity_mm=3.0)
    line = centre_line(shape)
    fine = np.stack([np.interp(np.linspace(-12, 12, 4801), line.along_mm, line.points_mm[:, i]) for i in range(3)], 1)
    # Points beside the vessel, clear of its flat ends.
    rng = np.random.default_rng(0)
    points = fine[rng.integers(900, 3900, 300)] + rng.uniform(-2.4, 2.4, (300, 3))
    slow = np.linalg.norm(points[:, None] - fine[None], axis=-1).min(axis=1) - shape.radius_mm
    np.testing.assert_allclose(vessel_distance(shape)(points), slow, atol=3e-3)


def test_a_straight_vessel_is_flat_at_its_ends():
    shape = VesselShape(3.0, 20.0, tortuosity_mm=0.0, direction=(1, 0, 0))
    assert vessel_distance(shape)(np.array([[9.99, 2.9, 0], [10.01, 2.9, 0], [9.9, 3.01, 0]])) == pytest.approx(
        [-0.01, 0.01, 0.01]
    )


def test_a_winding_vessel_is_straight_where_its_aneurysm_sits():
    line = centre_line(VesselShape(aneurysm_radius_mm=5.0, tortuosity_mm=3.0, direction=(1, 0, 0)))
    beside = np.abs(line.points_mm[:, 1:]).max(axis=1)
    assert beside[np.abs(line.along_mm) <= 5].max() < 1e-9
    assert beside.max() > 1


def test_the_answer_knows_the_aneurysm():
    with_it, without = vessel(VesselShape(aneurysm_radius_mm=5.0)), vessel()
    assert (with_it.answer["aneurysm"], with_it.answer["aneurysm_radius_mm"]) == (True, 5.0)
    assert (without.answer["aneurysm"], without.answer["aneurysm_radius_mm"]) == (False, 0.0)
    # A ball thinner than the tube is no aneurysm and changes nothing.
    hidden = vessel(VesselShape(aneurysm_radius_mm=2.0))
    assert hidden.answer == without.answer
    np.testing.assert_array_equal(hidden.image.array, without.image.array)


def test_a_winding_vessel_is_longer_than_its_chord():
    answer = vessel(VesselShape(tortuosity_mm=3.0)).answer
    assert answer["chord_mm"] < 0.97 * answer["length_mm"]
    straight = vessel(VesselShape(tortuosity_mm=0.0)).answer
    assert straight["chord_mm"] == pytest.approx(straight["length_mm"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"radius_mm": 0.0},
        {"length_mm": -1.0},
        {"tortuosity_mm": -1.0},
        {"period_mm": 0.0},
        {"tortuosity_mm": 9.0},  # bends tighter than the radius
        {"aneurysm_radius_mm": 13.0},
        {"direction": (0.0, 0.0, 0.0)},
        {"radius_mm": float("nan")},
    ],
)
def test_impossible_vessels_are_refused(arguments):
    with pytest.raises(MedvolError) as refusal:
        VesselShape(**arguments)
    assert refusal.value.code == "BAD_ARGUMENT"


def test_the_liver_is_on_the_right_in_nibabels_eyes():
    phantom = body()
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(phantom.mask.array, phantom.mask.affine))
    assert nibabel.aff2axcodes(canonical.affine) == ("R", "A", "S")
    labels = canonical.get_fdata()
    half = labels.shape[0] // 2
    assert (labels[half:] == STRUCTURES["liver"]).any()
    assert not (labels[:half] == STRUCTURES["liver"]).any()
    assert not (labels[half:] == STRUCTURES["spleen"]).any()
    # The spine is behind, the heart above the liver.
    spine, liver, heart = (np.argwhere(labels == STRUCTURES[name]).mean(axis=0) for name in ("spine", "liver", "heart"))
    assert spine[1] < liver[1]
    assert heart[2] > liver[2]


@pytest.mark.parametrize("place", [None, oblique_grid((80, 60, 28))], ids=["straight", "oblique"])
def test_sides_volumes_and_centres_are_those_of_the_answer(place):
    phantom = body(grid=place)
    voxel_ml = Grid(phantom.mask.array.shape, phantom.mask.affine).voxel_ml
    assert set(phantom.answer["volume_ml"]) == {"liver", "spleen", "heart", "spine"}
    for name, label in phantom.answer["label"].items():
        assert side_of(phantom.mask, label) == phantom.answer["side"][name]
        assert centroid_mm(phantom.mask, label) == pytest.approx(phantom.answer["centre_mm"][name], abs=0.7)
        voxels = (phantom.mask.array == label).sum()
        assert voxels * voxel_ml == pytest.approx(phantom.answer["volume_ml"][name], rel=0.08)
    assert phantom.answer["side"] == {"liver": "right", "spleen": "left", "heart": "left", "spine": "middle"}


def test_a_lost_flip_shows_as_a_change_of_side():
    phantom = body()
    flipped = Volume(phantom.mask.array[::-1], phantom.mask.affine)
    assert side_of(flipped, STRUCTURES["liver"]) == "left"


def test_the_body_shows_every_hounsfield_value_unmixed():
    phantom = body(grid=centred_grid((68, 54, 64)))
    found = set(np.unique(phantom.image.array[phantom.image.array == np.rint(phantom.image.array)]).tolist())
    assert {AIR_HU, FAT_HU, WATER_HU, *(part.hu for part in ORGANS)} <= found
    assert phantom.image.array[0, 0, 0] == AIR_HU
    heart = phantom.mask.array == STRUCTURES["heart"]
    assert np.median(phantom.image.array[heart]) == 40.0


def surface(part, number=400):
    """Points on an ellipsoid, evenly spread (golden angle)."""
    z = np.linspace(-1, 1, number)
    angle = np.arange(number) * math.pi * (3 - math.sqrt(5))
    ring = np.sqrt(1 - z**2)
    unit = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)
    return np.asarray(part.centre) + unit * part.semi_axes


def within(part, points):
    return (((points - part.centre) / part.semi_axes) ** 2).sum(axis=1) < 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 100_000))
def test_organs_touch_neither_each_other_nor_the_fat(seed):
    organs = varied_organs(np.random.default_rng(seed))
    for first, second in itertools.permutations(organs, 2):
        assert not within(second, surface(first)).any(), (first.name, second.name)
    for part in organs:
        assert within(TORSO[1], surface(part)).all(), part.name


def test_the_largest_organs_at_the_worst_places_do_not_touch():
    # Full size, each pair moved towards each other by all that `varied_organs` allows.
    for first, second in itertools.permutations(ORGANS, 2):
        gap = np.sign(np.asarray(second.centre) - first.centre)
        assert not within(second, surface(first) + 0.04 * gap).any(), (first.name, second.name)


def test_varied_organs_repeat_with_their_generator_and_none_is_the_standard():
    assert varied_organs(np.random.default_rng(5)) == varied_organs(np.random.default_rng(5))
    assert varied_organs(np.random.default_rng(5)) != varied_organs(np.random.default_rng(6))
    assert varied_organs(np.random.default_rng(5), amount=0.0) == ORGANS


def test_body_arguments_that_make_no_sense_are_refused():
    for make in (
        lambda: body(-1.0),
        lambda: varied_organs(np.random.default_rng(0), amount=2.0),
        lambda: centroid_mm(body().mask, 99),
    ):
        with pytest.raises(MedvolError) as refusal:
            make()
        assert refusal.value.code == "BAD_ARGUMENT"
    with pytest.raises(MedvolError, match="PHANTOM_CLIPPED"):
        body(100.0, grid=oblique_grid())


def test_the_midline_and_the_tolerance_decide_about_the_middle():
    mask = Volume(np.zeros((7, 8, 9), np.uint8), np.eye(4))
    mask.array[5, 4, 4] = 1
    assert apply_affine(mask.affine, (5, 4, 4))[0] == 5
    assert side_of(mask, 1) == "right"
    assert side_of(mask, 1, midline_mm=9.0) == "left"
    assert side_of(mask, 1, midline_mm=4.0) == "middle"
