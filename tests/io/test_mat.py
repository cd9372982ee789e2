"""The figshare struct `cjdata`, as HDF5 (7.3) and as version 5."""

import h5py
import numpy as np
import pytest
import scipy.io

from medvol.errors import MedvolError
from medvol.io import read_volume
from medvol.io.mat import read_mat_fields


@pytest.fixture
def picture() -> np.ndarray:
    """Rows y = 0..7, columns x = 0..6, as MATLAB indexes it."""
    return np.arange(56, dtype=np.int16).reshape(8, 7)


@pytest.fixture
def write_mat(tmp_path, picture):
    def write(version: str):
        path = tmp_path / f"{version}.mat"
        mask = (picture > 30).astype(np.uint8)
        if version == "v5":
            fields = {"image": picture, "label": 2.0, "PID": "100360", "tumorMask": mask}
            scipy.io.savemat(path, {"cjdata": fields})
            return path
        with h5py.File(path, "w", userblock_size=512) as archive:
            struct = archive.create_group("cjdata")
            struct["image"] = picture.T  # MATLAB stores by columns, HDF5 reads by rows
            struct["tumorMask"] = mask.T
            struct["label"] = np.array([[2.0]])
            struct["PID"] = np.array([[ord(letter)] for letter in "100360"], np.uint16)
        data = bytearray(path.read_bytes())
        data[:19] = b"MATLAB 7.3 MAT-file"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("version", ["v5", "v73"])
def test_image_mask_label_and_patient_are_read(write_mat, picture, version):
    path = write_mat(version)
    volume = read_volume(path)
    assert volume.array.shape == (7, 8)
    assert volume.array[6, 2] == picture[2, 6]
    assert volume.array.dtype == np.int16
    assert not volume.has_geometry
    fields = read_mat_fields(path)
    assert (fields.label, fields.patient) == (2, "100360")
    np.testing.assert_array_equal(fields.mask, picture.T > 30)
    np.testing.assert_array_equal(read_volume(f"{path}#tumorMask").array, picture.T > 30)


@pytest.mark.parametrize("version", ["v5", "v73"])
def test_an_unknown_field_is_refused(write_mat, refused, version):
    with refused("BAD_REFERENCE", "did you mean 'tumorMask'?"):
        read_volume(f"{write_mat(version)}#tumourMask")


@pytest.mark.parametrize("version", ["v5", "v73"])
def test_a_truncated_file_is_refused(write_mat, refused, version):
    path = write_mat(version)
    path.write_bytes(path.read_bytes()[:-100])
    with refused("CORRUPT", path.name):
        read_volume(path)


def test_another_matlab_file_is_refused(tmp_path, refused):
    scipy.io.savemat(tmp_path / "a.mat", {"x": np.zeros((7, 8))})
    with refused("NOT_CJDATA"):
        read_volume(tmp_path / "a.mat")


def test_a_link_to_another_file_is_not_followed(tmp_path, write_mat, refused):
    path = write_mat("v73")
    with h5py.File(path, "r+") as archive:
        del archive["cjdata"]["image"]
        archive["cjdata"]["image"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.zeros((7, 8))
    with refused("NOT_CJDATA", "image"):
        read_volume(path)


def test_an_empty_file_is_refused(tmp_path, refused):
    (tmp_path / "a.mat").touch()
    with refused("CORRUPT"):
        read_volume(tmp_path / "a.mat")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f4", "f8"])
def test_version_5_agrees_with_scipy(tmp_path, compressed, dtype):
    array = (np.arange(56).reshape(8, 7) * 3 - 4 * (dtype != "u4")).astype(dtype)
    fields = {"label": 3.0, "PID": "MR1", "image": array, "tumorBorder": np.zeros((1, 5))}
    scipy.io.savemat(tmp_path / "a.mat", {"x": 1.0, "cjdata": fields}, do_compression=compressed)
    expected = scipy.io.loadmat(tmp_path / "a.mat")["cjdata"]["image"][0, 0]
    volume = read_volume(tmp_path / "a.mat")
    np.testing.assert_array_equal(volume.array, expected.T)
    assert read_mat_fields(tmp_path / "a.mat").mask is None


@pytest.mark.parametrize("version", ["v5", "v73"])
def test_only_refusals_escape_from_damaged_files(write_mat, version):
    path = write_mat(version)
    data, rng = path.read_bytes(), np.random.default_rng(3)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(data)
        for position in rng.integers(0, len(data), size=4):
            changed[position] = rng.integers(256)
        path.write_bytes(changed[: rng.integers(len(data))] if rng.random() < 0.1 else changed)
        try:
            read_volume(path)
            read_mat_fields(path)
            outcomes.add("read")
        except MedvolError as error:
            outcomes.add(error.code)
    assert {"read", "CORRUPT"} <= outcomes
