"""Raw folders of nnU-Net: channels and masks by the names of files."""

import json

import nibabel as nib
import numpy as np
import pytest

from medvol.cli import main
from medvol.data import open_study
from medvol.errors import MedvolError


@pytest.fixture
def raw(tmp_path):
    """A raw folder of three cases with two channels; the second is named first."""
    document = {
        "channel_names": {"1": "T2", "0": "T1"},
        "labels": {"background": 0, "core": 1, "edema": 3},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    touch(tmp_path, *(f"imagesTr/c_{case}_000{number}" for case in range(3) for number in range(2)))
    touch(tmp_path, *(f"labelsTr/c_{case}" for case in range(3)))
    return tmp_path


def touch(folder, *names):
    for name in names:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")


def refused(folder):
    with pytest.raises(MedvolError) as caught:
        open_study(str(folder))
    return caught.value


@pytest.mark.parametrize("name", ["", "dataset.json"])
def test_channels_stand_in_the_order_of_their_number_and_names_with_their_value(raw, name):
    touch(raw, "imagesTr/._c_0_0000")  # left by macOS
    study = open_study(str(raw / name))
    assert (study.task, study.channels) == ("segmentation", ("T1", "T2"))
    assert (study.classes, study.mask_values) == (("background", "core", "edema"), (0, 1, 3))
    assert [case.case for case in study.cases] == ["c_0", "c_1", "c_2"]
    assert study.cases[1].image == (f"{raw}/imagesTr/c_1_0000.nii.gz", f"{raw}/imagesTr/c_1_0001.nii.gz")
    assert study.cases[1].label == f"{raw}/labelsTr/c_1.nii.gz"
    assert {case.split for case in study.cases} == {None}
    assert study.notes[0] == "read as: nnU-Net raw folder with imagesTr (3); channels T1, T2"


def test_test_cases_count_where_they_have_masks(raw):
    touch(raw, "imagesTs/t_0000", "imagesTs/t_0001")
    study = open_study(str(raw))
    assert len(study.cases) == 3
    assert "1 rows without a label were left out" in study.notes
    to_predict = open_study(str(raw), require_label=False)
    assert [(case.case, case.label) for case in to_predict.cases][-1] == ("t", None)
    touch(raw, "labelsTs/t")
    study = open_study(str(raw))
    assert [(case.case, case.split) for case in study.cases] == [
        ("c_0", None),
        ("c_1", None),
        ("c_2", None),
        ("t", "test"),
    ]


@pytest.mark.parametrize("name", ["imagesTr/c_1_0000.nii.gz", "imagesTr/c_1_0001.nii.gz", "labelsTr/c_1.nii.gz"])
def test_a_missing_channel_or_mask_is_named_with_its_case(raw, name):
    (raw / name).unlink()
    refusal = refused(raw)
    assert (refusal.code, refusal.case, refusal.file) == ("MISSING_FILE", "c_1", str(raw / name))


@pytest.mark.parametrize("name", ["imagesTr/c_1_0002", "imagesTr/c_9"])
def test_an_image_of_no_known_channel_is_refused(raw, name):
    touch(raw, name)
    assert (refused(raw).code, refused(raw).file) == ("BAD_TABLE", f"{raw}/{name}.nii.gz")


def test_other_promises_of_the_description_are_told(raw):
    document = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(document | {"numTraining": 5}))
    assert "numTraining is 5, imagesTr holds 3 cases" in open_study(str(raw)).notes
    (raw / "dataset.json").write_text(json.dumps(document | {"file_ending": ".nrrd"}))
    assert refused(raw).code == "EMPTY_DATASET"


def test_the_commands_take_such_a_folder(raw, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for path in sorted(raw.glob("*/*.nii.gz")):
        voxels = rng.normal(size=(9, 8, 7)) if "images" in path.parent.name else np.ones((9, 8, 7), np.uint8) * 3
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), path)
    assert main(["check", str(raw)]) == 0
    assert "3 cases of 3 patients" in capsys.readouterr().out
    assert main(["table", str(raw), "-o", str(tmp_path / "cases.csv")]) == 0
    study = open_study(str(tmp_path / "cases.csv"))
    assert (study.channels, study.mask_values) == (("T1", "T2"), (0, 1, 3))
