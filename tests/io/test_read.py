"""Choosing a reader by content, and what importing costs."""

import os
import subprocess
import sys

import numpy as np
import pytest

from medvol.errors import MedvolError
from medvol.io import read_volume


def test_content_wins_over_a_misleading_name_with_a_note(tmp_path, voxels):
    np.save(tmp_path / "a.npy", voxels)
    (tmp_path / "a.npy").rename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.array, voxels)
    assert volume.notes[0] == "named like NIfTI, read as npy by its content"


@pytest.mark.parametrize("suffix", ["nii.gz", "npy", "nrrd"])
def test_a_volume_without_a_suffix_is_read(tmp_path, voxels, write_nifti, suffix):
    if suffix == "nii.gz":
        path = write_nifti(tmp_path / "a.nii.gz", voxels)
    elif suffix == "npy":
        path = tmp_path / "a.npy"
        np.save(path, voxels)
    else:
        import SimpleITK as sitk  # noqa: N813

        path = tmp_path / "a.nrrd"
        sitk.WriteImage(sitk.GetImageFromArray(voxels.transpose(2, 1, 0)), path)
    path = path.rename(tmp_path / "bare")
    np.testing.assert_array_equal(read_volume(path).array, voxels)


def test_an_unknown_format_is_refused(tmp_path, refused):
    (tmp_path / "a.xyz").write_bytes(bytes(range(200)))
    with refused("UNKNOWN_FORMAT", "00 01 02"):
        read_volume(tmp_path / "a.xyz")


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path, voxels, write_nifti, refused):
    write_nifti(tmp_path / "case_001.nii.gz", voxels)
    with refused("NOT_FOUND", "did you mean 'case_001.nii.gz'?"):
        read_volume(tmp_path / "case_01.nii.gz")
    with refused("NOT_FOUND", "no such file"):
        read_volume(tmp_path / "nowhere" / "at all" / "a.nii.gz")


def test_a_fragment_where_none_is_known_is_refused(tmp_path, voxels, write_nifti, refused):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    with refused("BAD_REFERENCE", "NIfTI"):
        read_volume(f"{path}#1")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path, voxels, write_nifti, refused):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    path.chmod(0)
    with refused("CANNOT_READ", "Permission denied"):
        read_volume(path)


def test_an_input_output_error_is_a_refusal(tmp_path, voxels, write_nifti, refused, monkeypatch):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("medvol.io.nifti.inflate", fail)
    with refused("CANNOT_READ", "Input/output error"):
        read_volume(path)


def test_too_little_memory_is_a_refusal(tmp_path, voxels, write_nifti, refused, monkeypatch):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr("medvol.io.nifti.inflate", fail)
    with refused("TOO_LARGE", "memory"):
        read_volume(path)


def test_importing_the_package_loads_no_heavy_library():
    heavy = ["torch", "monai", "nibabel", "pydicom", "SimpleITK", "pandas", "scipy", "sklearn", "h5py", "PIL"]
    code = f"import sys, medvol.io; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_an_index_behind_a_dicom_folder_is_refused_and_not_dropped(tmp_path):
    (tmp_path / "series").mkdir()
    with pytest.raises(MedvolError) as caught:
        read_volume(f"{tmp_path / 'series'}#1.2.3[1]")
    assert caught.value.code == "BAD_REFERENCE"
    assert "[1]" in str(caught.value)
