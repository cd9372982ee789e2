"""One image as rows and columns, the same picture from every format that can hold it."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from medvol.geometry import Volume
from medvol.io.images import read_image
from medvol.phantoms.dicom import write_dicom_series


@pytest.fixture
def picture() -> np.ndarray:
    """Rows 0..6, columns 0..7, no two pixels alike."""
    return np.arange(56, dtype=np.uint8).reshape(7, 8) * 3


def dicom_file(folder, picture, **changed):
    """Write the picture as one DICOM file, with attributes changed, or deleted where they are None."""
    (path,) = write_dicom_series(Volume(picture.T[..., None].astype(np.int16)), folder)
    dataset = pydicom.dcmread(path)
    for name, value in changed.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def test_the_same_picture_comes_from_png_npy_npz_and_dicom(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", picture)
    np.savez(tmp_path / "a.npz", x=np.stack([np.zeros_like(picture), picture]))
    nib.save(nib.Nifti1Image(picture.T[..., None], np.eye(4)), tmp_path / "a.nii")
    dicom = dicom_file(tmp_path / "d", picture)
    for name in ("a.png", "a.npy", "a.npz#x[1]", "a.nii", str(dicom.relative_to(tmp_path)), "d"):
        image = read_image(f"{tmp_path}/{name}")
        np.testing.assert_array_equal(image.array, picture, err_msg=name)
        assert (image.channel_axis, image.has_geometry) == (None, False), name


def test_colours_are_the_last_axis_of_a_png_and_of_an_array(tmp_path, picture):
    colours = np.stack([picture, picture + 1, picture + 2], axis=-1)
    Image.fromarray(colours).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", colours)
    np.save(tmp_path / "grey.npy", colours[..., :1])
    for name in ("a.png", "a.npy"):
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(image.array, colours)
        assert image.channel_axis == 2
    assert read_image(tmp_path / "grey.npy").array.shape == (7, 8)


def test_a_radiograph_needs_no_place_in_space(tmp_path, picture):
    path = dicom_file(tmp_path / "d", picture, ImagePositionPatient=None, ImageOrientationPatient=None)
    for reference in (path, path.parent):
        np.testing.assert_array_equal(read_image(reference).array, picture)


@pytest.mark.parametrize("place", [{}, {"ImagePositionPatient": None}])
def test_monochrome1_is_inverted_within_its_range(tmp_path, picture, place):
    path = dicom_file(tmp_path / "d", picture, PhotometricInterpretation="MONOCHROME1", **place)
    image = read_image(path)
    np.testing.assert_array_equal(image.array, int(picture.max()) + int(picture.min()) - picture.astype(int))
    assert any("inverted" in note for note in image.notes)


def test_16_bits_come_in_a_type_that_torch_computes_with(tmp_path, picture):
    Image.fromarray(picture.astype(np.uint16) * 300).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.array.dtype == np.int32
    np.testing.assert_array_equal(image.array, picture.astype(int) * 300)


def test_a_volume_is_refused_and_the_way_out_named(tmp_path, refused, picture):
    np.save(tmp_path / "a.npy", np.zeros((7, 8, 9)))
    nib.save(nib.Nifti1Image(np.zeros((7, 8, 3), np.int16), np.eye(4)), tmp_path / "a.nii")
    write_dicom_series(Volume(np.zeros((7, 8, 2), np.int16)), tmp_path / "d")
    for name in ("a.npy", "a.nii", "d"):
        with refused("WRONG_DIMS", "3D bundle"):
            read_image(tmp_path / name)


def test_other_refusals_of_a_dicom_file_stay_what_they_are(tmp_path, refused, picture):
    path = dicom_file(tmp_path / "d", picture, ImagePositionPatient=None, PhotometricInterpretation="RGB")
    with refused("COLOUR_IMAGE"):
        read_image(path)
    with refused("NOT_FOUND"):
        read_image(tmp_path / "nowhere.png")
