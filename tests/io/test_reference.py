from pathlib import Path

import pytest

from medvol.io import parse_reference, source_files
from medvol.io.reference import Reference


@pytest.mark.parametrize(
    ("text", "path", "key", "index"),
    [
        ("a.npy#12", "a.npy", None, 12),
        ("a.npz#train_images[12]", "a.npz", "train_images", 12),
        ("a.npz#train_images", "a.npz", "train_images", None),
        ("folder#1.2.840.99", "folder", "1.2.840.99", None),
        ("a.mat#tumorMask", "a.mat", "tumorMask", None),
        ("dir/a b.nii.gz", "dir/a b.nii.gz", None, None),
    ],
)
def test_a_reference_splits_into_path_key_and_row(text, path, key, index):
    assert parse_reference(text) == Reference(Path(path), key, index, text)


def test_a_path_object_is_a_reference():
    assert parse_reference(Path("a.npy")).path == Path("a.npy")


def test_a_file_named_with_a_hash_is_that_file(tmp_path):
    path = tmp_path / "a#12.npy"
    path.touch()
    assert parse_reference(str(path)) == Reference(path, text=str(path))


def test_a_fragment_behind_a_file_named_with_a_hash_is_found(tmp_path):
    path = tmp_path / "a#b.npz"
    path.touch()
    assert parse_reference(f"{path}#x[3]") == Reference(path, "x", 3, f"{path}#x[3]")


def test_a_hash_within_an_array_name_belongs_to_the_name(tmp_path):
    path = tmp_path / "a.npz"
    path.touch()
    assert parse_reference(f"{path}#x#1[3]") == Reference(path, "x#1", 3, f"{path}#x#1[3]")


@pytest.mark.parametrize("text", ["a.npy#x", "a.npy#-1", "a.npz#x[", "a.npz#[3]", "a.npz#x[-1]", "a.npz#", "", "a\0b"])
def test_a_fragment_of_no_format_is_refused(text, refused):
    with refused("BAD_REFERENCE"):
        parse_reference(text)


def test_the_source_of_a_row_is_its_file(tmp_path):
    path = tmp_path / "a.npy"
    path.touch()
    assert source_files(f"{path}#3") == (path,)


def test_the_sources_of_a_series_are_its_files_only(tmp_path, voxels, write_series):
    files = write_series(tmp_path / "one", voxels)
    write_series(tmp_path / "two", voxels, series="1.2.3.5")
    assert source_files(f"{tmp_path}#1.2.3.4") == tuple(sorted(files))


def test_the_sources_of_a_detached_header_are_both_files(tmp_path):
    import numpy as np
    import SimpleITK as sitk  # noqa: N813

    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((9, 8, 7), np.int16)), tmp_path / "a.mhd")
    assert source_files(tmp_path / "a.mhd") == (tmp_path / "a.mhd", tmp_path / "a.raw")


def test_a_missing_source_is_refused_with_the_nearest_name(tmp_path, refused):
    (tmp_path / "volume.nii.gz").touch()
    with refused("NOT_FOUND", "did you mean 'volume.nii.gz'?"):
        source_files(tmp_path / "volumes.nii.gz")
