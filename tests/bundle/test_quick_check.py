"""What a bundle says of a study before it reads it: headers of every split, no voxel."""

import csv
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medvol.bundle.quick_check import quick_check
from medvol.bundle.study import segmentation_study
from medvol.data.study import Case, Study
from medvol.phantoms.cohort import segmentation_cohort

AFFINE = np.diag([1.0, 1.5, 3.0, 1.0])
SHAPE = (7, 8, 9)


def study_of(image, mask):
    case = Case("a", "a", (str(image),), label=str(mask), split="test")
    return Study((case,), "segmentation", classes=("background", "organ"))


def save(path, shape=SHAPE, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), affine), path)
    return path


@pytest.fixture(params=[".nii", ".nii.gz"])
def image(request, tmp_path):
    return save(tmp_path / f"image{request.param}")


def test_a_mask_on_its_images_grid_is_nothing_to_speak_of(image, tmp_path):
    assert quick_check(study_of(image, save(tmp_path / "mask.nii.gz"))) == ()


def test_a_mask_of_another_size_is_told_with_both(image, tmp_path):
    found = quick_check(study_of(image, save(tmp_path / "mask.nii.gz", shape=(7, 9, 8))))
    assert found == ("case a of test: its mask has 7 x 9 x 8 voxels, its image 7 x 8 x 9",)


def test_a_mask_elsewhere_is_told(image, tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] = 0.5  # mm, half a voxel
    (found,) = quick_check(study_of(image, save(tmp_path / "mask.nii.gz", affine=moved)))
    assert "lies elsewhere" in found


def test_a_file_that_ends_early_is_told_from_its_size(tmp_path):
    image = save(tmp_path / "image.nii")
    image.write_bytes(image.read_bytes()[:-1])
    (found,) = quick_check(study_of(image, save(tmp_path / "mask.nii.gz")))
    assert found.startswith(f"case a of test: {image}: {352 + 7 * 8 * 9 * 2 - 1} bytes, {352 + 7 * 8 * 9 * 2} expected")


@pytest.mark.parametrize("name", ["image.nii.gz", "image.nii", "image.npy"])
def test_a_file_without_a_header_is_told(name, tmp_path):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    (found,) = quick_check(study_of(tmp_path / name, save(tmp_path / "mask.nii.gz")))
    assert found.startswith(f"case a of test: {tmp_path / name}: ")


def test_other_formats_and_rows_of_an_archive_are_not_opened():
    study = study_of(Path("nowhere/study.npz#train_images[3]"), Path("nowhere/seg.dcm#liver"))
    assert quick_check(replace(study, task="segmentation")) == ()


def test_a_bundle_tells_of_the_first_and_counts_the_rest(tmp_path, caplog):
    table = segmentation_cohort(tmp_path / "cohort", patients=6, size=(18, 17, 16))
    with table.open(newline="") as stream:
        masks = [table.parent / row["label"] for row in csv.DictReader(stream)]
    for mask in masks:
        save(mask, shape=(3, 4, 5))
    with caplog.at_level(logging.WARNING):
        segmentation_study(str(table), tmp_path)
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len([one for one in told if "its mask has 3 x 4 x 5 voxels" in one]) == 3
    assert f"and {len(masks) - 3} more" in told[-1]
