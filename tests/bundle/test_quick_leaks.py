"""The same scan in two splits, found before training from sizes and digests."""

import logging
import shutil

import nibabel as nib
import numpy as np
import pytest

from medvol.bundle import quick_leaks
from medvol.bundle.quick_leaks import require_no_leak
from medvol.bundle.study import classification_study
from medvol.data.study import Case, Study
from medvol.errors import MedvolError

SHAPE = (7, 8, 9)


def study_of(**references):
    """A study with a case of each name `split_number`."""
    return Study(
        tuple(
            Case(name, name, (str(reference),), label="x", split=name.partition("_")[0])
            for name, reference in references.items()
        ),
        "classification",
        classes=("x", "y"),
    )


def save(path, voxels):
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def noise(seed):
    return np.random.default_rng(seed).random(SHAPE, dtype=np.float32)


def test_a_copy_of_a_training_file_in_test_is_refused(tmp_path):
    first = save(tmp_path / "a.nii.gz", noise(0))
    copy = shutil.copy(first, tmp_path / "b.nii.gz")
    with pytest.raises(
        MedvolError, match=r"LEAK: case test_0.*b\.nii\.gz: here in test, the same scan as case train_0"
    ) as caught:
        require_no_leak(study_of(train_0=first, test_0=copy))
    assert "1 such pair" in caught.value.found
    require_no_leak(study_of(train_0=first, train_1=copy, test_0=save(tmp_path / "c.nii.gz", noise(1))))


def test_files_of_one_size_that_differ_only_in_their_middle_are_two_scans(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 200, (64, 64, 64), np.uint8)  # 256 KiB, ends of 64
    other = voxels.copy()
    other[32, 32, 32] += 1
    first, second = save(tmp_path / "a.nii", voxels), save(tmp_path / "b.nii", other)
    require_no_leak(study_of(train_0=first, test_0=second))
    save(second, voxels)
    with pytest.raises(MedvolError, match="LEAK"):
        require_no_leak(study_of(train_0=first, test_0=second))


def test_files_without_contrast_do_not_count(tmp_path):
    first, second = (save(tmp_path / f"{name}.nii", np.full(SHAPE, 3, np.int16)) for name in "ab")
    require_no_leak(study_of(train_0=first, test_0=second))


def test_a_header_that_many_scans_share_is_not_taken_for_the_scan(tmp_path):
    header = (
        "ObjectType = Image\nNDims = 3\nDimSize = 9 8 7\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
        "ElementSpacing = 1 1 1\nElementType = MET_FLOAT\nElementDataFile = scan.raw\n"
    )
    for seed, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scan.mhd").write_text(header)
        (tmp_path / name / "scan.raw").write_bytes(noise(seed // 2).tobytes())  # a and b are one
    a, b, c = (tmp_path / name / "scan.mhd" for name in "abc")
    require_no_leak(study_of(train_0=a, test_0=c))
    with pytest.raises(MedvolError, match="LEAK"):
        require_no_leak(study_of(train_0=a, test_0=b))


@pytest.mark.parametrize("name", ["rows.npy", "rows.npz"])
def test_equal_rows_of_an_array_are_told(name, tmp_path, caplog):
    rows = np.stack([noise(seed) for seed in (0, 1, 0)] + [np.zeros(SHAPE, np.float32)] * 2)
    path = tmp_path / name
    if name.endswith("y"):
        np.save(path, rows)
        row = f"{path}#{{}}".format
    else:
        np.savez(path, x=rows)
        row = f"{path}#x[{{}}]".format
    with caplog.at_level(logging.WARNING):
        require_no_leak(study_of(train_0=row(0), val_0=row(1), train_1=row(3), val_1=row(4)))
        assert not caplog.messages
        require_no_leak(study_of(train_0=row(0), val_0=row(1), test_0=row(2)))
    (told,) = caplog.messages
    assert "case test_0, " in told
    assert "1 such pair" in told


def test_files_of_a_size_of_their_own_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(quick_leaks, "ends_of", lambda path: pytest.fail(f"opened {path}"))
    first, second = (save(tmp_path / f"{seed}.nii", noise(seed)[:, :, : 9 - seed]) for seed in range(2))
    require_no_leak(study_of(train_0=first, test_0=second))


def test_two_arrays_of_one_archive_are_two_scans(tmp_path):
    path = tmp_path / "both.npz"
    np.savez(path, before=noise(0), after=noise(1))
    copy = shutil.copy(path, tmp_path / "copy.npz")
    require_no_leak(study_of(train_0=f"{path}#before", test_0=f"{path}#after"))
    with pytest.raises(MedvolError, match="LEAK"):
        require_no_leak(study_of(train_0=f"{path}#before", test_0=f"{copy}#before"))


def test_rows_of_a_large_array_are_not_compared(tmp_path, monkeypatch, caplog):
    np.save(tmp_path / "rows.npy", np.stack([noise(0)] * 2))
    study = study_of(train_0=f"{tmp_path / 'rows.npy'}#0", test_0=f"{tmp_path / 'rows.npy'}#1")
    monkeypatch.setattr(quick_leaks, "MOST_BYTES", 1000)
    monkeypatch.setattr(quick_leaks, "read_channels", lambda reference: pytest.fail(f"read {reference}"))
    with caplog.at_level(logging.WARNING):
        require_no_leak(study)
    assert not caplog.messages


def test_a_bundle_refuses_its_study(tmp_path):
    rows = ["case,image,label,split"]
    for index, split in enumerate(["train", "train", "val", "test"]):
        save(tmp_path / f"{index}.nii", noise(index % 3))  # the last is the first
        rows.append(f"c{index},{index}.nii,{'xy'[index % 2]},{split}")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    with pytest.raises(MedvolError, match="LEAK: case c3"):
        classification_study(str(tmp_path / "cases.csv"), tmp_path)
