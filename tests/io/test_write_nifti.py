"""Masks on disk: what is written is read back by three libraries, or nothing is left behind."""

import errno
import subprocess
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medvol.io import read_volume, write_nifti
from medvol.io.write_nifti import mask_paths, read_structures, write_mask

SHEARED = np.array([[1.0, 0.2, 0.0, 5.0], [0.0, 1.5, -0.4, -3.0], [0.1, 0.0, 3.0, 8.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 25, (7, 8, 9), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_medvol_nibabel_and_simpleitk_read_the_same_mask_back(tmp_path, labels, affine, dtype, order):
    path = tmp_path / "a.nii.gz"
    wide = np.asarray(labels.astype(dtype) * (1 if dtype == np.uint8 else 300), order=order)
    write_mask(path, wide, affine)
    image = nib.load(path)
    assert image.get_data_dtype() == np.dtype(dtype).newbyteorder("<")
    np.testing.assert_array_equal(np.asarray(image.dataobj), wide)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    ours = read_volume(str(path))
    np.testing.assert_array_equal(ours.array, wide)
    np.testing.assert_allclose(ours.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).T, wide)


def test_sform_and_qform_agree_and_the_unit_is_the_millimetre(tmp_path, labels, affine):
    write_mask(tmp_path / "a.nii.gz", labels, affine)
    header = nib.load(tmp_path / "a.nii.gz").header
    np.testing.assert_allclose(header.get_qform(coded=True)[0], affine, atol=1e-4)
    np.testing.assert_allclose(header.get_sform(coded=True)[0], affine, atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"
    assert header.get_intent()[0] == "label"
    np.testing.assert_allclose(header.get_zooms(), (1.0, 1.5, 3.0), atol=1e-6)


def test_a_sheared_grid_has_a_sform_alone(tmp_path, labels):
    write_mask(tmp_path / "a.nii.gz", labels, SHEARED)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header.get_qform(coded=True)[1] == 0
    np.testing.assert_allclose(read_volume(str(tmp_path / "a.nii.gz")).affine, SHEARED, atol=1e-6)


def test_a_volume_without_geometry_says_so(tmp_path, labels):
    write_mask(tmp_path / "a.nii.gz", labels, np.eye(4), has_geometry=False)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert b"voxel space" in header["descrip"].item()
    assert header.get_xyzt_units()[0] == "unknown"
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.nii.gz")).array, labels)


@pytest.mark.parametrize("structures", [(), ("background", "left kidney"), tuple(f"structure {n}" for n in range(300))])
def test_structures_travel_with_the_mask(tmp_path, labels, affine, structures):
    write_mask(tmp_path / "a.nii.gz", labels, affine, structures)
    assert read_structures(tmp_path / "a.nii.gz") == structures
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj), labels)


def test_two_writes_give_the_same_bytes(tmp_path, labels, affine):
    for name in ("a", "b"):
        write_mask(tmp_path / f"{name}.nii.gz", labels, affine, ("background",))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_blocks_of_a_few_planes_make_the_same_file(tmp_path, labels, affine, monkeypatch):
    monkeypatch.setattr(write_nifti, "_BLOCK_BYTES", 150)
    write_mask(tmp_path / "a.nii.gz", labels, affine)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj), labels)


def test_a_full_disk_leaves_the_old_file_and_no_part_of_a_new_one(tmp_path, labels, affine, monkeypatch, refused):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"old")

    def full(stream, checksum, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write_nifti, "_verify", full)
    with refused("DISK_FULL", "free space"):
        write_mask(path, labels, affine)
    assert [one.name for one in tmp_path.iterdir()] == ["a.nii.gz"]
    assert path.read_bytes() == b"old"


def test_a_file_system_that_is_full_is_refused_by_name(tmp_path, affine, refused):
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("no right to mount a small file system")
    except FileNotFoundError:
        pytest.skip("no mount command")
    try:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 64), dtype=np.uint8)
        with refused("DISK_FULL"):
            write_mask(folder / "a.nii.gz", noise, affine)
        assert not list(folder.iterdir())
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer"])
def test_a_file_that_does_not_read_back_is_never_given_its_name(tmp_path, labels, affine, monkeypatch, refused, damage):
    verify = write_nifti._verify

    def damaged(stream, checksum, size):
        end = stream.tell()
        if damage == "flipped":
            stream.seek(end // 2)
            stream.write(b"\xff\x00\xff")
        elif damage == "truncated":
            stream.truncate(end - 5)
        else:
            stream.write(b"more")
        stream.flush()
        verify(stream, checksum, size)

    monkeypatch.setattr(write_nifti, "_verify", damaged)
    with refused("CANNOT_WRITE"):
        write_mask(tmp_path / "a.nii.gz", labels, affine)
    assert not list(tmp_path.iterdir())


def test_another_content_with_a_valid_checksum_of_its_own_is_found(tmp_path):
    path = tmp_path / "a.gz"
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    path.write_bytes(packer.compress(b"other") + packer.flush())
    with path.open("r+b") as stream, pytest.raises(OSError, match="another checksum"):
        write_nifti._verify(stream, zlib.crc32(b"meant"), 5)


@pytest.mark.parametrize(
    "bad", [np.zeros((7, 8, 9), np.int16), np.zeros((7, 8), np.uint8), np.zeros((7, 0, 9), np.uint8)]
)
def test_what_is_no_mask_is_refused(tmp_path, affine, refused, bad):
    with refused("WRONG_ARRAY", "uint8"):
        write_mask(tmp_path / "a.nii.gz", bad, affine)


def test_another_suffix_and_a_flat_affine_are_refused(tmp_path, labels, refused):
    with refused("CANNOT_WRITE", ".nii.gz"):
        write_mask(tmp_path / "a.nii", labels, np.eye(4))
    with refused("WRONG_ARRAY", "affine"):
        write_mask(tmp_path / "a.nii.gz", labels, np.diag([1.0, 0.0, 1.0, 1.0]))


def test_masks_are_named_after_their_cases(tmp_path):
    paths = mask_paths(tmp_path, ["a", "b c", "Müller.1", "../x", "站"])
    assert [path.name for path in paths.values()] == [
        "a.nii.gz",
        "b_c.nii.gz",
        "Müller.1.nii.gz",
        "_x.nii.gz",
        "站.nii.gz",
    ]
    assert {path.parent for path in paths.values()} == {tmp_path}


@pytest.mark.parametrize("pair", [("a", "A"), ("a b", "a/b"), ("é", "e\u0301"), ("a", "a"), ("x", ".x")])
def test_two_cases_never_get_one_file(tmp_path, refused, pair):
    with refused("SAME_OUTPUT", pair[0]):
        mask_paths(tmp_path, pair)


def test_probabilities_are_written_as_they_are_on_the_grid(tmp_path):
    from medvol.io.write_nifti import write_probabilities

    values = np.random.default_rng(0).random((7, 8, 9)).astype(np.float16)
    affine = np.array([[-1.0, 0.2, 0, 4], [0.1, 1.5, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1]])
    write_probabilities(tmp_path / "a.liver.nii.gz", np.asfortranarray(values), affine)
    image = nib.load(tmp_path / "a.liver.nii.gz")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), values.astype(np.float32))
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
