"""From a preprocessed volume to labels, volumes and a file."""

import errno
import tempfile
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from torch.nn import functional

from medvol.data.facts import Facts
from medvol.errors import MedvolError
from medvol.inference.segment import WriteMasks
from medvol.inference.segmented import predict_labels
from medvol.inference.sliding_window import SlidingWindow
from medvol.io.write_nifti import read_structures

SHAPE = (9, 8, 7)
AFFINE = np.array([[0.0, 0.0, 3.0, 4.0], [0.0, -1.5, 0.0, 5.0], [1.0, 0.0, 0.0, 6.0], [0.0, 0.0, 0.0, 1.0]])
WINDOW = SlidingWindow((4, 4, 4))


def thresholds(windows):
    """Class 0 below 1, class 1 from 1 to 2, class 2 above."""
    return torch.cat([1 - windows, torch.full_like(windows, 0.0), windows - 2], dim=1)


@pytest.fixture
def source():
    """Labels 0, 1, 2 in boxes of known size, grey values in the middle of each class."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[:4, :3, :5] = 1
    labels[5:, 4:, 2:] = 2
    return labels


def image_of(source, has_geometry=True, affine=AFFINE):
    grey = np.array([0.0, 1.5, 4.0], dtype=np.float32)[source]
    if not has_geometry:
        meta = {"original_affine": np.eye(4), "spatial_shape": np.array(SHAPE), "has_geometry": False}
        return MetaTensor(torch.from_numpy(grey)[None], meta={**meta, "affine": np.eye(4)})
    oriented = nib.as_closest_canonical(nib.Nifti1Image(grey, affine))
    meta = {"original_affine": affine, "spatial_shape": np.array(SHAPE), "affine": torch.from_numpy(oriented.affine)}
    return MetaTensor(torch.from_numpy(oriented.get_fdata(dtype=np.float32).copy())[None], meta=meta)


def test_labels_counts_and_volumes_are_those_of_the_source(tmp_path, source):
    result = predict_labels(image_of(source), thresholds, WINDOW, folder_for_memmap=tmp_path)
    np.testing.assert_array_equal(result.labels, source)
    assert result.voxels_per_label == (504 - 60 - 80, 60, 80)
    np.testing.assert_allclose(result.volumes_ml, np.array([364, 60, 80]) * 4.5 / 1000)


def test_the_memmap_has_no_name_and_lives_on_disk(tmp_path, source):
    result = predict_labels(image_of(source), thresholds, WINDOW, folder_for_memmap=tmp_path / "new")
    assert isinstance(result.labels, np.memmap)
    assert not list((tmp_path / "new").iterdir())


def test_probabilities_of_chosen_structures_come_along(tmp_path, source):
    image = image_of(source)
    result = predict_labels(image, thresholds, WINDOW, folder_for_memmap=tmp_path, structures=[2, 0])
    everywhere = functional.softmax(WINDOW(image[None], thresholds)[0], dim=0)
    by_hand = nib.Nifti1Image(everywhere[2].numpy(), np.asarray(image.affine))
    to_source = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(by_hand.affine), nib.orientations.io_orientation(AFFINE)
    )
    assert result.probabilities.dtype == np.float16
    assert result.probabilities.shape == (2, *SHAPE)
    np.testing.assert_allclose(result.probabilities[0], by_hand.as_reoriented(to_source).get_fdata(), atol=1e-3)


def test_the_mask_is_written_with_the_source_s_affine_and_names(tmp_path, source):
    names = ("background", "kidney", "spleen")
    result = predict_labels(image_of(source), thresholds, WINDOW, folder_for_memmap=tmp_path)
    result.write(tmp_path / "a.nii.gz", names)
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), source)
    np.testing.assert_allclose(image.affine, AFFINE)
    assert read_structures(tmp_path / "a.nii.gz") == names


def test_without_geometry_there_are_no_millilitres(tmp_path, source):
    result = predict_labels(image_of(source, has_geometry=False), thresholds, WINDOW, folder_for_memmap=tmp_path)
    np.testing.assert_array_equal(result.labels, source)
    assert result.volumes_ml is None


def test_a_full_disk_is_refused_before_anything_is_mapped(tmp_path, source, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(MedvolError, match="DISK_FULL.*504 bytes"):
        predict_labels(image_of(source), thresholds, WINDOW, folder_for_memmap=tmp_path)


def test_a_folder_that_is_a_file_is_refused(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(MedvolError, match="CANNOT_WRITE"):
        predict_labels(image_of(source), thresholds, WINDOW, folder_for_memmap=tmp_path / "file")


def test_a_structure_that_the_network_lacks_is_refused(tmp_path, source):
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION.*0 to 2"):
        predict_labels(image_of(source), thresholds, WINDOW, folder_for_memmap=tmp_path, structures=[3])


def test_a_mask_that_itk_cannot_open_is_written_with_a_warning(tmp_path, source, caplog):
    facts = Facts(("background", "kidney", "spleen"), ("image",), (4, 4, 4), None, "mr", None, True, False)
    tilted = AFFINE + np.eye(4)[:, [0]] * np.array([0.0, 0.3, 0.0, 0.0])  # x grows along y
    masks = WriteMasks(tmp_path, ["straight", "a", "b"], facts)
    for case, affine in (("straight", AFFINE), ("a", tilted), ("b", tilted)):
        result = predict_labels(image_of(source, affine=affine), thresholds, WINDOW, folder_for_memmap=tmp_path)
        masks(SimpleNamespace(state=SimpleNamespace(output={"case": case, "segmented": result})))
        np.testing.assert_allclose(nib.load(tmp_path / f"{case}.nii.gz").affine, affine, atol=1e-6)
    (told,) = [one.getMessage() for one in caplog.records]
    assert "case a" in told
    assert "ITK" in told
    assert "dicom-seg" in told
    with pytest.raises(RuntimeError, match="orthonormal"):  # the day it can, the warning may go
        SimpleITK.ReadImage(tmp_path / "a.nii.gz")
