"""NRRD and MetaImage: agreement with SimpleITK's own geometry, converted from LPS, and what it would let pass."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medvol.geometry import apply_affine
from medvol.io import ReadOptions, read_volume


@pytest.fixture
def image(voxels, affine):
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    result = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    result.SetSpacing(steps.tolist())
    result.SetDirection((lps[:3, :3] / steps).ravel().tolist())
    result.SetOrigin(lps[:3, 3].tolist())
    return result


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_voxels_and_places_are_those_of_simpleitk(tmp_path, image, voxels, affine, name, compressed):
    sitk.WriteImage(image, tmp_path / name, useCompression=compressed)
    volume = read_volume(tmp_path / name)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    index = (2, 5, 3)
    x, y, z = image.TransformIndexToPhysicalPoint(index)
    np.testing.assert_allclose(apply_affine(volume.affine, index), (-x, -y, z), atol=1e-5)
    assert volume.notes == ()


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_refused(tmp_path, image, refused, name, compressed):
    sitk.WriteImage(image, tmp_path / name, useCompression=compressed)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-30])
    with refused("TRUNCATED", name):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_a_flip_in_compressed_voxels_is_refused(tmp_path, image, name):
    sitk.WriteImage(image, tmp_path / name, useCompression=True)
    data = bytearray((tmp_path / name).read_bytes())
    data[-60] ^= 0x55
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Exception, match=f"CORRUPT.*{name}"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.nrrd", b"space: left-posterior-superior", b"space: scanner-xyz"),
        ("a.nrrd", b"space: left-posterior-superior", b'space: LPS\nspace units: "cm" "cm" "cm"'),
        ("a.mha", b"ElementSpacing =", b"Comment ="),
    ],
)
def test_a_header_that_places_nothing_is_refused_unless_a_spacing_is_assumed(
    tmp_path, image, voxels, refused, name, old, new
):
    path = tmp_path / name
    sitk.WriteImage(image, path)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with refused("NO_GEOMETRY", name):
        read_volume(path)
    volume = read_volume(path, options=ReadOptions(assume_spacing_mm=(1.0, 1.5, 3.0)))
    np.testing.assert_array_equal(volume.affine, np.diag([1.0, 1.5, 3.0, 1.0]))
    np.testing.assert_array_equal(volume.array, voxels)


def test_right_anterior_superior_nrrd_is_not_flipped_twice(tmp_path, voxels):
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 7 8 9\n"
        "space directions: (1,0,0) (0,1.5,0) (0,0,3)\nendian: little\nencoding: raw\nspace origin: (4,5,6)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(head.encode() + voxels.tobytes(order="F"))
    volume = read_volume(tmp_path / "a.nrrd")
    expected = np.diag([1.0, 1.5, 3.0, 1.0])
    expected[:3, 3] = (4, 5, 6)
    np.testing.assert_allclose(volume.affine, expected)
    np.testing.assert_array_equal(volume.array, voxels)


def test_several_numbers_per_voxel_are_channels_on_request(tmp_path, image, refused):
    pair = sitk.Compose(sitk.Cast(image, sitk.sitkFloat32), sitk.Cast(image, sitk.sitkFloat32) * 2)
    sitk.WriteImage(pair, tmp_path / "a.mha")
    with refused("WRONG_DIMS"):
        read_volume(tmp_path / "a.mha")
    volume = read_volume(tmp_path / "a.mha", options=ReadOptions(channels=True))
    assert (volume.array.shape, volume.channel_axis) == ((7, 8, 9, 2), 3)
    np.testing.assert_array_equal(volume.array[..., 1], volume.array[..., 0] * 2)


def test_complex_voxels_are_refused(tmp_path, image, refused):
    real = sitk.Cast(image, sitk.sitkFloat32)
    sitk.WriteImage(sitk.RealAndImaginaryToComplex(real, real), tmp_path / "a.nrrd")
    with refused("BAD_DTYPE"):
        read_volume(tmp_path / "a.nrrd")


def test_nan_voxels_are_refused(tmp_path, image, refused):
    bad = sitk.Cast(image, sitk.sitkFloat32)
    bad[1, 2, 3] = float("nan")
    sitk.WriteImage(bad, tmp_path / "a.mha")
    with refused("NONFINITE", "(1, 2, 3)"):
        read_volume(tmp_path / "a.mha")


def test_a_flat_image_has_no_place_in_space(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(56, dtype=np.int16).reshape(8, 7)), tmp_path / "a.mha")
    volume = read_volume(tmp_path / "a.mha")
    assert volume.array.shape == (7, 8)
    assert not volume.has_geometry


def test_more_than_the_limit_is_refused_before_reading(tmp_path, image, refused):
    sitk.WriteImage(image, tmp_path / "a.nrrd")
    data = (tmp_path / "a.nrrd").read_bytes().replace(b"sizes: 7 8 9", b"sizes: 30000 30000 30000")
    (tmp_path / "a.nrrd").write_bytes(data)
    with refused("TOO_LARGE"):
        read_volume(tmp_path / "a.nrrd")


def test_a_header_may_not_name_a_file_elsewhere(tmp_path, image, refused):
    sitk.WriteImage(image, tmp_path / "a.mhd")
    text = (tmp_path / "a.mhd").read_text().replace("a.raw", "../a.raw")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.mhd").write_text(text)
    with refused("BAD_HEADER", "same folder"):
        read_volume(tmp_path / "sub" / "a.mhd")


def test_a_missing_voxel_file_is_named(tmp_path, image, refused):
    sitk.WriteImage(image, tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    with refused("NOT_FOUND", "a.raw"):
        read_volume(tmp_path / "a.mhd")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd"])
def test_an_error_page_is_refused(tmp_path, refused, name):
    (tmp_path / name).write_text("<html>404</html>")
    with refused("NOT_NRRD" if name == "a.nrrd" else "NOT_METAIMAGE", "HTML"):
        read_volume(tmp_path / name)
