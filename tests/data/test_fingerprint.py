"""What the training split of a segmentation says, counted by hand on volumes of a few voxels."""

import json

import nibabel as nib
import numpy as np
import pytest

from medvol.data.fingerprint import FOREGROUND_VOXELS, take_fingerprint
from medvol.data.mask_values import value_counts
from medvol.data.sources import open_study
from medvol.data.study import Case, Study
from medvol.errors import MedvolError
from medvol.phantoms.cohort import segmentation_cohort

SHAPE = (7, 8, 9)
# Array axes run S, R, A with spacing 1.0, 1.5, 3.0.
OBLIQUE = np.array([[0, -1.5, 0, 5], [0, 0, 3.0, 6], [1.0, 0, 0, 7], [0, 0, 0, 1]])


def save(path, array, affine=OBLIQUE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def case(name, image, label, split="train"):
    images = (image,) if isinstance(image, str) else tuple(image)
    return Case(case=name, patient=name, image=images, label=label, split=split)


def study(*cases, channels=("image",)):
    return Study(cases=tuple(cases), task="segmentation", channels=channels, source="here")


def mask_with(**voxels_of):
    """Return a mask that holds `v<value>` so many times, from the first voxel on."""
    mask = np.zeros(int(np.prod(SHAPE)), np.uint8)
    start = 0
    for name, count in voxels_of.items():
        mask[start : start + count] = int(name[1:])
        start += count
    return mask.reshape(SHAPE)


def fingerprint(*args, **options):
    return take_fingerprint(study(*args, **options), show_progress=False)


def ct(folder, name="ct.nii.gz"):
    return save(folder / name, np.arange(504).reshape(SHAPE).astype(np.int16) - 200)


def test_masks_are_counted_by_value_case_and_volume(tmp_path):
    first = save(tmp_path / "a.nii.gz", mask_with(v1=10, v7=4))
    second = save(tmp_path / "b.nii.gz", mask_with(v1=6))
    found = fingerprint(case("a", ct(tmp_path), first), case("b", ct(tmp_path), second))
    assert [(one.value, one.voxels, one.cases) for one in found.labels] == [(0, 490 + 498, 2), (1, 16, 2), (7, 4, 1)]
    assert found.labels[1].volume_ml == pytest.approx(16 * 4.5e-3)
    assert found.training_cases == 2
    assert found.has_geometry


def test_size_and_spacing_run_along_right_anterior_superior(tmp_path):
    found = fingerprint(case("a", ct(tmp_path), save(tmp_path / "m.nii.gz", mask_with(v1=3))))
    assert found.sizes.tolist() == [[8, 9, 7]]
    assert found.spacings_mm.tolist() == [[1.5, 3.0, 1.0]]


def test_grey_values_are_taken_inside_all_structures(tmp_path):
    # The first 100 voxels hold -200 to -101 and are structures 1 and 5; the others hold more.
    label = save(tmp_path / "m.nii.gz", mask_with(v1=60, v5=40))
    found = fingerprint(case("a", ct(tmp_path), label))
    assert found.foreground == pytest.approx(np.percentile(np.arange(-200, -100), (0.5, 50, 99.5)))
    assert found.sampled[0].foreground == found.foreground


def test_a_mask_stored_in_another_orientation_meets_the_same_voxels(tmp_path):
    label = nib.Nifti1Image(mask_with(v1=60, v5=40), OBLIQUE)
    nib.save(nib.as_closest_canonical(label), tmp_path / "m.nii.gz")
    found = fingerprint(case("a", ct(tmp_path), str(tmp_path / "m.nii.gz")))
    assert found.foreground == pytest.approx(np.percentile(np.arange(-200, -100), (0.5, 50, 99.5)))


def test_arrays_of_which_one_has_no_geometry_meet_voxel_by_voxel(tmp_path):
    np.save(tmp_path / "m.npy", mask_with(v1=60, v5=40))
    np.save(tmp_path / "ct.npy", np.arange(504).reshape(SHAPE).astype(np.int16) - 200)
    image, mask = ct(tmp_path), save(tmp_path / "m.nii.gz", mask_with(v1=60, v5=40))
    inside = pytest.approx(np.percentile(np.arange(-200, -100), (0.5, 50, 99.5)))
    found = fingerprint(case("a", image, str(tmp_path / "m.npy")))
    assert found.foreground == inside
    assert found.labels[1].volume_ml == pytest.approx(60 * 4.5e-3)
    found = fingerprint(case("a", str(tmp_path / "ct.npy"), mask))
    assert found.foreground == inside
    assert found.labels[1].volume_ml is None


def test_a_large_structure_does_not_outweigh_a_small_case(tmp_path):
    size = (30, 30, 30)
    bright = (
        save(tmp_path / "i1.nii.gz", np.full(size, 100, np.int16)),
        save(tmp_path / "l1.nii.gz", np.ones(size, "u1")),
    )
    dark = save(tmp_path / "i2.nii.gz", np.full(SHAPE, -50, np.int16)), save(tmp_path / "l2.nii.gz", mask_with(v1=100))
    found = fingerprint(case("a", *bright), case("b", *dark))
    # 100 dark voxels are 0.4 % of 27,100, but 1.1 % once the 27,000 are thinned to every third.
    assert 27000 / FOREGROUND_VOXELS > 2
    assert found.foreground == (-50.0, 100.0, 100.0)


def test_a_binary_mask_of_0_and_255_has_these_values(tmp_path):
    label = save(tmp_path / "m.nii.gz", (mask_with(v1=9) * 255).astype(np.uint8))
    assert [one.value for one in fingerprint(case("a", ct(tmp_path), label)).labels] == [0, 255]


def test_arrays_without_geometry_have_no_volumes(tmp_path):
    np.save(tmp_path / "i.npy", np.arange(504, dtype=np.uint8).reshape(SHAPE))
    np.save(tmp_path / "m.npy", mask_with(v2=5))
    found = fingerprint(case("a", str(tmp_path / "i.npy"), str(tmp_path / "m.npy")))
    assert not found.has_geometry
    assert [one.volume_ml for one in found.labels] == [None, None]
    assert found.sizes.tolist() == [list(SHAPE)]


def test_only_the_training_split_is_opened(tmp_path):
    label = save(tmp_path / "m.nii.gz", mask_with(v1=3))
    found = fingerprint(case("a", ct(tmp_path), label), case("t", "absent.nii.gz", "absent.nii.gz", split="test"))
    assert found.training_cases == 1


def test_a_mask_on_another_grid_is_counted_and_noted(tmp_path):
    label = save(tmp_path / "m.nii.gz", np.ones((7, 8, 5), np.uint8))
    found = fingerprint(case("a", ct(tmp_path), label))
    assert found.foreground is None
    note = "1 of 1 sampled masks are on another grid than their image, first in case a: no grey values taken inside"
    assert found.notes == (note,)
    assert found.labels[0].voxels == 280


def test_empty_masks_are_noted_by_themselves_with_the_first_case(tmp_path):
    full, empty = (save(tmp_path / f"{n}.nii.gz", mask_with(v1=n)) for n in (3, 0))
    found = fingerprint(*(case(name, ct(tmp_path), mask) for name, mask in (("a", full), ("b", empty), ("c", empty))))
    assert found.notes == ("2 of 3 sampled masks hold nothing but 0, first in case b: no grey values taken inside",)


def test_channels_are_measured_one_by_one(tmp_path):
    label = save(tmp_path / "m.nii.gz", mask_with(v1=3))
    other = save(tmp_path / "t2.nii.gz", np.full(SHAPE, 7, np.int16))
    found = fingerprint(case("a", [ct(tmp_path), other], label), channels=("t1", "t2"))
    assert [(one.low, one.high) for one in found.volumes] == [(-200.0, 303.0), (7.0, 7.0)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            mask_with(v1=3) * np.float32(0.5),
            r"BAD_LABEL: case a, .*m.nii.gz: a mask with the value 0\.5; 3 voxels hold no",
        ),
        (mask_with(v1=3) * np.float32(1.0012), r"BAD_LABEL: case a, .*: a mask with the value 1\.0012; 3 voxels"),
        (mask_with(v1=3).astype(np.int16) * -1, "BAD_LABEL: case a, .*: a mask with the value -1"),
        (np.arange(504, dtype=np.int16).reshape(SHAPE), "BAD_LABEL: case a: 504 distinct values"),
        (np.zeros(SHAPE, np.uint8), "BAD_LABEL: here: training masks that hold nothing but 0"),
        (np.zeros((*SHAPE, 2), np.uint8), r"WRONG_DIMS: case a.*\(7, 8, 9, 2\)"),
    ],
)
def test_what_is_no_mask_is_refused_with_its_case(tmp_path, label, message):
    path = save(tmp_path / "m.nii.gz", label)
    with pytest.raises(MedvolError, match=message):
        fingerprint(case("a", ct(tmp_path), path))


def test_a_file_that_cannot_be_read_is_named_with_its_case(tmp_path):
    (tmp_path / "m.nii.gz").write_bytes(b"no mask")
    with pytest.raises(MedvolError, match="case a"):
        fingerprint(case("a", ct(tmp_path), str(tmp_path / "m.nii.gz")))


def test_a_study_of_classes_is_refused():
    with pytest.raises(MedvolError, match="WRONG_KIND"):
        take_fingerprint(Study(cases=(Case("a", "a", ("x",), "no", "train"),), task="classification", classes=("no",)))


def test_rounding_errors_of_float_masks_are_taken_off_and_noted(tmp_path):
    voxels = mask_with(v1=3, v2=2).astype(np.float32) + np.float32(1e-6)
    label, good = save(tmp_path / "m.nii.gz", voxels), save(tmp_path / "g.nii.gz", mask_with(v2=4))
    found = fingerprint(case("a", ct(tmp_path), good), case("b", ct(tmp_path), label))
    assert [(one.value, one.voxels) for one in found.labels] == [(0, 500 + 499), (1, 3), (2, 2 + 4)]
    assert found.sampled[1].foreground[2] < -195  # inside are the first five voxels, not all
    assert found.notes == ("1 of 2 masks hold values a little off whole numbers, first in case b: they are rounded",)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_are_counted_as_numpy_counts_them(dtype, order):
    mask = np.asarray(
        np.random.default_rng(0).integers(0, 2, (5, 6, 7)) * (1 if dtype is bool else 90_000), order=order
    )
    mask = mask.astype(dtype) if dtype is not np.uint8 else (mask > 0).astype(np.uint8)
    values, counts = np.unique(mask, return_counts=True)
    assert value_counts(mask, case="a") == dict(zip(values.astype(int).tolist(), counts.tolist(), strict=True))


def test_the_body_phantom_has_its_four_organs(tmp_path):
    table = segmentation_cohort(tmp_path / "cohort", patients=6, size=(28, 26, 30))
    found = take_fingerprint(open_study(str(table)), show_progress=False)
    assert [one.value for one in found.labels] == [0, 1, 2, 3, 4]
    assert json.loads(json.dumps(found.as_dict()))["training_cases"] == found.training_cases
