"""The chain from file to network input: geometry kept, sizes met, other kinds refused."""

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from scipy import ndimage

from medvol.data.facts import Facts
from medvol.errors import find_refusal
from medvol.geometry import apply_affine
from medvol.phantoms.grid import Grid, oblique_affine
from medvol.phantoms.shapes import ball
from medvol.phantoms.writers import write_nifti
from medvol.transforms.preprocess import volume_preprocessing


def facts(size, spacing, scheme="mr", limits=None, channels=("image",)):
    return Facts(("no", "yes"), channels, size, spacing, scheme, limits, spacing is not None, True)


def preprocess(path, known):
    return volume_preprocessing(known)({"case": "c1", "image": path if isinstance(path, list) else str(path)})["image"]


def test_a_ball_on_an_oblique_grid_keeps_its_centre_and_volume_in_millimetres(tmp_path):
    shape = (28, 24, 16)
    centre_mm = (4.0, -3.0, 2.0)
    phantom = ball(7.0, centre_mm=centre_mm, grid=Grid(shape, oblique_affine(shape)), values=(200.0, 0.0))
    path = write_nifti(phantom.image, tmp_path / "ball.nii.gz")
    image = preprocess(path, facts((32, 32, 32), (1.25, 1.25, 1.25), "ct", (0.0, 200.0)))
    assert image.shape == (1, 32, 32, 32)
    inside = image[0].numpy()
    centre = apply_affine(image.affine.numpy(), ndimage.center_of_mass(inside))
    np.testing.assert_allclose(centre, centre_mm, atol=0.25)
    assert inside.sum() * 1.25**3 / 1000 == pytest.approx(phantom.answer["volume_ml"], rel=0.03)
    assert nib.aff2axcodes(image.affine.numpy()) == ("R", "A", "S")


def test_an_array_without_geometry_is_resized_and_an_equal_size_is_left_alone(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (7, 8, 9)).astype(np.uint8)
    np.save(tmp_path / "v.npy", array)
    same = preprocess(tmp_path / "v.npy", facts((7, 8, 9), None, "scaled", (0.0, 255.0)))
    np.testing.assert_allclose(same[0].numpy(), array / 255, atol=1e-6)
    assert preprocess(tmp_path / "v.npy", facts((14, 8, 9), None, "scaled", (0.0, 255.0))).shape == (1, 14, 8, 9)


def test_padding_takes_the_volumes_minimum_and_cropping_keeps_the_centre(tmp_path):
    array = np.full((5, 6, 7), 300, np.int16)
    array[2, 3, 3] = -1000
    path = tmp_path / "v.nii.gz"
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    padded = preprocess(path, facts((9, 6, 7), (1.0, 1.0, 1.0), "ct", (-1000.0, 300.0)))
    assert float(padded[0, 0].max()) == 0.0
    cropped = preprocess(path, facts((1, 2, 1), (1.0, 1.0, 1.0), "ct", (-1000.0, 300.0)))
    assert float(cropped.min()) == 0.0


def test_several_images_of_a_case_become_channels(tmp_path):
    for name, value in (("a", 10), ("b", 20)):
        nib.save(nib.Nifti1Image(np.full((7, 8, 9), value, np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
    paths = [str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")]
    image = preprocess(paths, facts((7, 8, 9), (1.0,) * 3, "ct", (0.0, 100.0), channels=("t1", "t2")))
    np.testing.assert_allclose(image.mean(dim=(1, 2, 3)).numpy(), [0.1, 0.2], atol=1e-6)


def test_a_volume_that_a_client_loaded_itself_is_prepared_like_its_file(tmp_path):
    array = np.random.default_rng(0).integers(-500, 500, (7, 8, 9)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, oblique_affine((7, 8, 9))), tmp_path / "v.nii.gz")
    affine = nib.load(tmp_path / "v.nii.gz").affine
    known = facts((9, 9, 9), (1.25, 1.25, 1.25), "ct", (-500.0, 500.0))
    # MONAI Label's item has further keys that start as the image's does; MONAI Deploy's holds the volume.
    by_label = {"image": str(tmp_path / "v.nii.gz"), "image_path": str(tmp_path / "v.nii.gz"), "model": "m"}
    by_deploy = {"image": MetaTensor(array, affine=affine, meta={"original_channel_dim": "no_channel"})}
    expected = preprocess(tmp_path / "v.nii.gz", known)
    for item in (by_label, by_deploy):
        found = volume_preprocessing(known)(item)
        np.testing.assert_allclose(found["image"].numpy(), expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(found["image"].affine.numpy(), expected.affine.numpy(), atol=1e-5)
        assert {key: value for key, value in found.items() if key in ("image_path", "model")} == {
            key: value for key, value in item.items() if key != "image"
        }


@pytest.mark.parametrize(
    ("make", "known", "code"),
    [
        (lambda: np.zeros((7, 8, 9), np.uint8), facts((7, 8, 9), (1.0, 1.0, 1.0)), "NO_GEOMETRY"),
        (lambda: np.zeros((7, 8), np.uint8), facts((7, 8, 9), None), "WRONG_DIMS"),
        (lambda: np.zeros((7, 8, 9), np.uint8), facts((7, 8, 9), None, channels=("t1", "t2")), "WRONG_CHANNELS"),
        (lambda: np.full((7, 8, 9), 3000, np.int16), facts((7, 8, 9), None, "scaled", (0.0, 255.0)), "INTENSITY_RANGE"),
    ],
)
def test_a_volume_of_another_kind_is_refused_with_its_case(tmp_path, make, known, code):
    np.save(tmp_path / "v.npy", make())
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI's Compose wraps the refusal
        preprocess(tmp_path / "v.npy", known)
    refusal = find_refusal(wrapped.value)
    assert (refusal.code, refusal.case) == (code, "c1")
