"""Every kind of source that can be opened as a case table, except plain tables (test_sources_tables)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medvol.data import Study, assign_splits, items, open_study, write_table
from medvol.data.array_roles import role
from medvol.data.medmnist import MEDMNIST
from medvol.errors import MESSAGE_LIMIT, MedvolError
from medvol.geometry import Volume
from medvol.io.write_nifti import write_mask, write_probabilities
from medvol.phantoms.dicom import write_dicom_series

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SHAPE = (7, 8, 9)


def real(name: str) -> str:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not in the shared data folder")
    return str(path)


def refused(code: str, source: Path | str, **options: object) -> MedvolError:
    with pytest.raises(MedvolError) as caught:
        open_study(str(source), **options)  # type: ignore[arg-type]
    assert caught.value.code == code, str(caught.value)
    assert len(str(caught.value)) <= MESSAGE_LIMIT
    return caught.value


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def labels(study: Study) -> dict[str, object]:
    return {case.case: case.label for case in study.cases}


def medmnist(path: Path, *, classes: int = 2, per_split: int = 6, **changed: np.ndarray) -> Path:
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((per_split, *SHAPE), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(per_split, dtype=np.uint8) % classes)[:, None]
    np.savez_compressed(path, **(arrays | changed))
    return path


# --- MedMNIST -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MEDMNIST))
@pytest.mark.parametrize("size", ["", "_64"])
def test_a_medmnist_file_gets_its_class_names_and_keeps_its_split(tmp_path: Path, name: str, size: str) -> None:
    count = len(MEDMNIST[name].classes)
    study = open_study(str(medmnist(tmp_path / f"{name}{size}.npz", classes=count, per_split=2 * count)))
    assert study.classes == MEDMNIST[name].classes
    assert [item["label"] for item in items(study, "val")] == list(range(count)) * 2
    assert study.laterality_matters is (name == "organmnist3d")
    assert Counter(case.split for case in study.cases) == dict.fromkeys(("train", "val", "test"), 2 * count)
    assert study.cases[1].image == (f"{tmp_path}/{name}{size}.npz#train_images[1]",)


def test_an_unknown_medmnist_file_has_numbered_classes_and_laterality(tmp_path: Path) -> None:
    study = open_study(str(medmnist(tmp_path / "kidneymnist3d.npz", classes=3)))
    assert (study.classes, study.laterality_matters) == (("0", "1", "2"), True)


def test_eleven_numbered_classes_stand_in_numeric_order(tmp_path: Path) -> None:
    study = open_study(str(medmnist(tmp_path / "other.npz", classes=11, per_split=22)))
    assert study.classes == tuple(str(number) for number in range(11))


def test_a_medmnist_file_with_other_labels_than_its_name_promises_is_numbered(tmp_path: Path) -> None:
    study = open_study(str(medmnist(tmp_path / "adrenalmnist3d.npz", classes=3)))
    assert study.classes == ("0", "1", "2")


def test_multi_label_arrays_are_refused_by_name(tmp_path: Path) -> None:
    many = np.ones((6, 14), np.uint8)
    error = refused("MULTI_LABEL", medmnist(tmp_path / "chestmnist.npz", train_labels=many))
    assert "'train_labels' has 14 labels per case" in error.found


def test_a_cut_npz_is_refused(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "cut.npz")
    path.write_bytes(path.read_bytes()[:-200])
    refused("CORRUPT", path)


def test_pickled_labels_are_refused_and_not_run(tmp_path: Path) -> None:
    refused("UNSAFE_NPY", medmnist(tmp_path / "odd.npz", train_labels=np.array([{}] * 6, dtype=object)))


def test_the_caller_may_say_that_laterality_matters(tmp_path: Path) -> None:
    path = str(medmnist(tmp_path / "vesselmnist3d.npz"))
    assert open_study(path, laterality_matters=True).laterality_matters


def test_a_folder_with_two_npz_files_asks_which(tmp_path: Path) -> None:
    medmnist(tmp_path / "adrenalmnist3d.npz")
    assert len(open_study(str(tmp_path)).cases) == 18
    medmnist(tmp_path / "adrenalmnist3d_64.npz")
    refused("AMBIGUOUS_SOURCE", tmp_path)


# --- stacked npy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_data", ("train", "images")),
        ("x_train", ("train", "images")),
        ("Xtrain", ("train", "images")),
        ("test_labels", ("test", "labels")),
        ("y_val", ("val", "labels")),
        ("validation_images", ("val", "images")),
        ("labels", (None, "labels")),
        ("train_image", ("train", "images")),
        ("image", None),
        ("patient_12", None),
        ("patients", (None, "patients")),
        ("patient", (None, "patients")),
        ("subject_ids", (None, "patients")),
        ("train_patients", ("train", "patients")),
        ("patient_id_test", ("test", "patients")),
        ("train", None),
        ("train_test_data", None),
    ],
)
def test_the_role_of_an_array_follows_from_its_name(name: str, expected: object) -> None:
    assert role(name) == expected


@pytest.mark.parametrize(("data", "label"), [("{}_data", "{}_labels"), ("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_stacked_pairs_are_read_with_their_split(tmp_path: Path, data: str, label: str) -> None:
    for split, count in (("train", 5), ("test", 3)):
        np.save(tmp_path / f"{data.format(split)}.npy", np.zeros((count, *SHAPE), np.float32))
        np.save(tmp_path / f"{label.format(split)}.npy", np.arange(count) % 2)
    study = open_study(str(tmp_path))
    assert labels(study) == {
        **{f"train_{index:04d}": str(index % 2) for index in range(5)},
        **{f"test_{index:04d}": str(index % 2) for index in range(3)},
    }
    assert study.cases[6].image == (f"{tmp_path}/{data.format('test')}.npy#1",)
    assert {case.split for case in assign_splits(study).cases} == {"train", "val", "test"}


def test_one_pair_is_not_split_yet(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.zeros((4, *SHAPE), np.float32))
    np.save(tmp_path / "labels.npy", np.array(["cat", "dog", "cat", "dog"]))
    study = open_study(str(tmp_path / "data.npy"))
    assert labels(study) == {"case_0000": "cat", "case_0001": "dog", "case_0002": "cat", "case_0003": "dog"}
    assert {case.split for case in study.cases} == {None}


def test_one_hot_labels_become_their_class(tmp_path: Path) -> None:
    np.save(tmp_path / "x_train.npy", np.zeros((3, *SHAPE), np.float32))
    np.save(tmp_path / "y_train.npy", np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32))
    assert list(labels(open_study(str(tmp_path), task="classification")).values()) == ["2", "0", "1"]


def test_stacked_masks_make_a_segmentation(tmp_path: Path) -> None:
    np.save(tmp_path / "train_data.npy", np.zeros((3, *SHAPE), np.float32))
    np.save(tmp_path / "train_masks.npy", np.zeros((3, *SHAPE), np.uint8))
    study = open_study(str(tmp_path))
    assert (study.task, study.cases[2].label) == ("segmentation", f"{tmp_path}/train_masks.npy#2")


def test_stacked_numbers_are_regressed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, *SHAPE), np.float32))
    np.save(tmp_path / "y.npy", np.array([0.5, 2.25, 3.0]))
    assert labels(open_study(str(tmp_path))) == {"case_0000": 0.5, "case_0001": 2.25, "case_0002": 3.0}


def test_a_nan_among_stacked_labels_is_a_missing_label(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, *SHAPE), np.float32))
    np.save(tmp_path / "y.npy", np.array([0.5, np.nan, 3.0]))
    assert refused("NO_LABEL", tmp_path).case == "case_0001"


@pytest.mark.parametrize("kind", [int, str, bytes])
def test_patients_beside_stacked_images_group_the_cases(tmp_path: Path, kind: type) -> None:
    who = np.array([7, 7, 8] if kind is int else ["07", "07", "8"]).astype(kind)
    arrays = {"images": np.zeros((3, *SHAPE), np.uint8), "labels": np.arange(3) % 2}
    np.savez(tmp_path / "set.npz", **arrays, patient_ids=who)
    study = open_study(str(tmp_path / "set.npz"))
    assert [case.patient for case in study.cases] == (["7", "7", "8"] if kind is int else ["07", "07", "8"])
    assert "patients read from patient_ids" in study.notes
    alone = open_study(str(tmp_path / "set.npz"), patient_column="")
    assert [case.patient for case in alone.cases] == [case.case for case in alone.cases]


def test_patients_of_each_split_are_read_and_checked(tmp_path: Path) -> None:
    who = {f"{split}_patients": np.arange(6) + 10 * number for number, split in enumerate(("train", "val", "test"))}
    study = open_study(str(medmnist(tmp_path / "a.npz", **who)))
    assert {case.case: case.patient for case in study.cases}["test_0005"] == "25"
    refused("SPLIT_LEAK", medmnist(tmp_path / "b.npz", **who | {"val_patients": np.arange(6)}))
    refused("ROW_MISMATCH", medmnist(tmp_path / "c.npz", **who | {"val_patients": np.arange(5)}))
    refused("AMBIGUOUS_SOURCE", medmnist(tmp_path / "d.npz", patients=np.arange(18)))


def test_an_image_of_a_patient_is_no_list_of_patients(tmp_path: Path) -> None:
    for name, array in (("x", np.zeros((3, *SHAPE))), ("y", np.arange(3) % 2), ("patient", np.zeros(SHAPE))):
        np.save(tmp_path / f"{name}.npy", array)
    study = open_study(str(tmp_path))
    assert [case.patient for case in study.cases] == [case.case for case in study.cases]


def test_labels_of_bytes_are_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.zeros((2, *SHAPE)), y=np.array([b"gut", "böse".encode()]))
    assert open_study(str(tmp_path / "set.npz")).classes == ("böse", "gut")
    np.savez(tmp_path / "set.npz", x=np.zeros((2, *SHAPE)), y=np.array([b"gut", b"b\xf6se"]))
    assert refused("BAD_LABEL", tmp_path / "set.npz").fix == "save it as texts in UTF-8"


def test_more_images_than_labels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, *SHAPE), np.float32))
    np.save(tmp_path / "y.npy", np.arange(2))
    refused("ROW_MISMATCH", tmp_path)


def test_a_table_of_numbers_as_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.float32))
    np.save(tmp_path / "y.npy", np.arange(3))
    refused("WRONG_DIMS", tmp_path)


def test_two_arrays_in_one_role_are_refused(tmp_path: Path) -> None:
    for name in ("x_train", "train_data", "y_train"):
        np.save(tmp_path / f"{name}.npy", np.zeros((3, *SHAPE), np.float32))
    refused("AMBIGUOUS_SOURCE", tmp_path)


def test_an_unsplit_pair_beside_a_split_one_is_refused(tmp_path: Path) -> None:
    for name in ("data", "labels", "test_data", "test_labels"):
        np.save(tmp_path / f"{name}.npy", np.zeros((3, *SHAPE), np.float32))
    refused("AMBIGUOUS_SOURCE", tmp_path)


def test_pickled_npy_labels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, *SHAPE), np.float32))
    np.save(tmp_path / "y.npy", np.array([{}] * 3, dtype=object), allow_pickle=True)
    refused("UNSAFE_NPY", tmp_path)


# --- lists as JSON --------------------------------------------------------------------------------------------------


def decathlon(folder: Path, **extra: object) -> Path:
    touch(
        folder,
        *(f"imagesTr/c{index}.nii.gz" for index in range(4)),
        *(f"labelsTr/c{index}.nii.gz" for index in range(4)),
    )
    document = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
        "training": [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(4)],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(document | extra))
    return folder


@pytest.mark.parametrize("name", ["", "dataset.json"])
def test_a_decathlon_study_is_read_from_its_folder_and_its_file(tmp_path: Path, name: str) -> None:
    study = open_study(str(decathlon(tmp_path) / name))
    assert (study.task, study.classes) == ("segmentation", ("background", "anterior", "posterior"))
    assert study.cases[3].image == (f"{tmp_path}/imagesTr/c3.nii.gz",)
    assert study.cases[3].label == f"{tmp_path}/labelsTr/c3.nii.gz"
    assert {case.split for case in study.cases} == {None}


def test_unlabelled_test_cases_are_left_out_with_a_note(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTs/t0.nii.gz")
    study = open_study(str(decathlon(tmp_path, test=["./imagesTs/t0.nii.gz"])))
    assert len(study.cases) == 4
    assert "1 rows without a label were left out" in study.notes
    assert {case.split for case in study.cases} == {None}


def test_unlabelled_test_cases_are_there_when_labels_are_optional(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTs/t0.nii.gz")
    study = open_study(str(decathlon(tmp_path, test=["./imagesTs/t0.nii.gz"])), require_label=False)
    assert [(case.case, case.split, case.label) for case in study.cases][-1] == ("t0", "test", None)


def test_hidden_files_in_a_list_are_ignored(tmp_path: Path) -> None:
    entries = [
        {"image": f"imagesTr/{dot}c{i}.nii.gz", "label": f"labelsTr/{dot}c{i}.nii.gz"}
        for i in range(4)
        for dot in ("", "._")
    ]
    study = open_study(str(decathlon(tmp_path, training=entries)))
    assert len(study.cases) == 4
    assert "4 entries that name hidden files were left out" in study.notes


def test_names_of_structures_may_also_map_to_values(tmp_path: Path) -> None:
    study = open_study(str(decathlon(tmp_path, labels={"background": 0, "edema": 1, "core": 3})))
    assert (study.classes, study.mask_values) == (("background", "edema", "core"), (0, 1, 3))
    write_table(study, tmp_path / "cases.csv")
    again = open_study(str(tmp_path / "cases.csv"))
    assert (again.classes, again.mask_values) == (study.classes, study.mask_values)
    named = open_study(str(tmp_path / "dataset.json"), classes=("background", "a", "b"))
    assert (named.classes, named.mask_values) == (("background", "a", "b"), ())


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "the region 'whole' of the values 1, 2"),
        ({"background": 0, "core": 1, "ignore": 2}, "the label 'ignore' of value 2"),
        ({"0": "background", "1": "core", "2": "Ignore"}, "the label 'Ignore' of value 2"),
        ({"background": 0, "core": 1.5}, "the label 'core': 1.5"),
        ({"background": 0, "core": -1}, "the label 'core': -1"),
        ({"background": 0, "core": None}, "the label 'core': None"),
        ({"background": 0, "core": 1, "edema": 1}, "the names 'core' and 'edema' of value 1"),
    ],
)
def test_labels_that_are_no_single_structure_are_refused_by_name(
    tmp_path: Path, labels: dict[str, object], found: str
) -> None:
    refusal = refused("BAD_TABLE", decathlon(tmp_path, labels=labels))
    assert refusal.found == found
    assert refusal.file.endswith("dataset.json")
    told: list[MedvolError] = []
    study = open_study(str(tmp_path), report=told.append)
    assert (study.task, study.mask_values) == ("segmentation", ())
    assert [one.code for one in told] == ["BAD_TABLE"]
    assert len(open_study(str(tmp_path), require_label=False).cases) == 4  # to predict, no names are needed


def test_channels_of_a_4d_file_are_named_by_the_source(tmp_path: Path) -> None:
    study = open_study(str(decathlon(tmp_path, modality={"0": "FLAIR", "1": "T1w"})))
    assert (study.channels, len(study.cases[0].image)) == (("FLAIR", "T1w"), 1)


def test_a_description_without_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "numTraining": 4}))
    refused("EMPTY_DATASET", tmp_path)


def test_a_mask_that_is_missing_is_named(tmp_path: Path) -> None:
    decathlon(tmp_path)
    (tmp_path / "labelsTr" / "c2.nii.gz").unlink()
    assert refused("MISSING_FILE", tmp_path).case == "c2"


def test_a_datalist_keeps_folds_splits_and_several_images(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{case}/{name}.nii" for case in "abcd" for name in ("t1", "t2")))
    entries = [
        {"image": [f"{case}/t1.nii", f"{case}/t2.nii"], "label": index % 2, "fold": index}
        for index, case in enumerate("abcd")
    ]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries[:2], "validation": entries[2:]}))
    study = open_study(str(tmp_path / "list.json"))
    assert [case.split for case in study.cases] == ["train", "train", "val", "val"]
    assert [case.covariates["fold"] for case in study.cases] == [0, 1, 2, 3]
    assert study.cases[0].image == (f"{tmp_path}/a/t1.nii", f"{tmp_path}/a/t2.nii")
    assert (study.classes, len(study.channels)) == (("0", "1"), 2)
    assert [case.case for case in study.cases] == ["a_t1", "b_t1", "c_t1", "d_t1"]


@pytest.mark.parametrize(
    ("declared", "given", "classes"),
    [
        ({"1": "benign", "2": "malignant"}, (1, 2), ("benign", "malignant")),
        ({"benign": 1, "malignant": 2}, (1, 2), ("benign", "malignant")),
        ({"0": "no", "1": "yes"}, (0, 1), ("no", "yes")),
        ({"1": "benign", "40000": "other"}, (1, 40000), ("benign", "other")),
        ({"1": "yes"}, (0, 1), ("0", "yes")),
    ],
)
def test_the_classes_of_a_datalist_are_those_that_it_declares_or_holds(
    declared, given, classes, tmp_path: Path
) -> None:
    touch(tmp_path, *(f"{case}.nii" for case in "abcd"))
    entries = [{"image": f"{case}.nii", "label": given[index % 2]} for index, case in enumerate("abcd")]
    (tmp_path / "list.json").write_text(json.dumps({"labels": declared, "training": entries}))
    study = open_study(str(tmp_path / "list.json"))
    assert study.classes == classes
    assert labels(study) == dict(zip("abcd", classes * 2, strict=True))


def test_an_entry_without_image_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"img": "a.nii", "label": 0}]}))
    assert "training[0]" in refused("BAD_TABLE", tmp_path / "list.json").found


# --- folders --------------------------------------------------------------------------------------------------------


def test_class_folders_give_labels_in_sorted_order(tmp_path: Path) -> None:
    touch(tmp_path, "no/1.png", "no/2.png", "yes/3.png", ".cache/x.png", "no/notes.txt")
    study = open_study(str(tmp_path))
    assert labels(study) == {"1": "no", "2": "no", "3": "yes"}
    assert study.classes == ("no", "yes")


def test_numbered_class_folders_stand_in_numeric_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}/{number}.nii.gz" for number in (10, 9, 0)))
    assert open_study(str(tmp_path)).classes == ("0", "9", "10")


def test_equal_file_names_in_two_classes_get_the_class_in_their_name(tmp_path: Path) -> None:
    touch(tmp_path, "no/1.png", "yes/1.png")
    assert labels(open_study(str(tmp_path))) == {"no_1": "no", "yes_1": "yes"}


def test_class_folders_below_splits_keep_the_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/no/1.png", "train/yes/2.png", "Validation/no/3.png", "test/yes/4.png")
    study = open_study(str(tmp_path))
    assert {case.case: case.split for case in study.cases} == {"1": "train", "2": "train", "3": "val", "4": "test"}
    assert {"class 'yes' has no case in val", "class 'no' has no case in test"} <= set(study.notes)


def test_patients_beside_class_folders_group_the_cases(tmp_path: Path) -> None:
    touch(tmp_path, "no/1.png", "no/2.png", "yes/3.png", "yes/4.png")
    (tmp_path / "patients.csv").write_text("image,patient\nno/1.png,007\nno/2.png,007\nyes/3.png,8\nyes/9.png,9\n")
    study = open_study(str(tmp_path))
    assert {case.case: case.patient for case in study.cases} == {"1": "007", "2": "007", "3": "8", "4": "4"}
    assert "patients of 3 of 4 files from patients.csv" in study.notes
    assert "1 images in patients.csv are not there" in study.notes
    assert "1 cases without a patient count as patients of their own" in study.notes


def patients(study: Study) -> dict[str, str]:
    return {case.case: case.patient for case in study.cases}


def test_folders_below_the_classes_are_patients(tmp_path: Path) -> None:
    touch(tmp_path, "ill/P0/t1.nii", "ill/P0/t2.nii", "ill/P1/a/t1.nii", "well/P1/t1.nii", "well/P2/t1.nii")
    study = open_study(str(tmp_path))
    assert labels(study) == dict.fromkeys(("ill_P0_t1", "ill_P0_t2", "ill_P1_a_t1"), "ill") | {
        "well_P1_t1": "well",
        "well_P2_t1": "well",
    }
    assert list(patients(study).values()) == ["P0", "P0", "P1", "P1", "P2"]
    assert "the folders below the classes are patients: 3, of whom 1 have cases of several classes" in study.notes


def test_classes_of_patients_with_the_same_file_name_are_classes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{name[0]}{number}/scan.nii.gz" for name in ("ill", "well") for number in range(3)))
    study = open_study(str(tmp_path))
    assert study.classes == ("ill", "well")
    assert patients(study)["well_w2_scan"] == "w2"


def test_patients_below_splits_and_classes_are_on_one_side(tmp_path: Path) -> None:
    touch(tmp_path, "train/ill/P0/a.nii", "train/ill/P1/a.nii", "train/well/P2/a.nii", "test/ill/P3/a.nii")
    touch(tmp_path, "test/well/P4/a.nii")
    assert list(patients(open_study(str(tmp_path))).values()) == ["P3", "P4", "P0", "P1", "P2"]
    touch(tmp_path, "test/well/P0/a.nii")
    refused("SPLIT_LEAK", tmp_path)


@pytest.mark.parametrize(
    "below",
    [["x"], ["images", "more"], ["train", "test"], ["axial", "coronal", "sagittal"]],
    ids=["one", "what files are", "splits", "planes"],
)
def test_folders_that_all_classes_have_are_no_patients(tmp_path: Path, below: list[str]) -> None:
    touch(tmp_path, *(f"{name}/{one}/{name}{one}1.nii" for name in ("ill", "well") for one in below))
    study = open_study(str(tmp_path))
    assert all(case.patient == case.case for case in study.cases)
    assert any("folders below the classes were not taken for patients" in note for note in study.notes)


def test_a_patients_file_comes_before_the_folders_below_the_classes(tmp_path: Path) -> None:
    touch(tmp_path, "ill/P0/1.nii", "ill/P1/2.nii", "well/P2/3.nii", "well/P3/4.nii")
    rows = "ill/P0/1.nii,7\nill/P1/2.nii,7\nwell/P2/3.nii,8\nwell/P3/4.nii,9\n"
    (tmp_path / "patients.csv").write_text(f"image,patient\n{rows}")
    assert list(patients(open_study(str(tmp_path))).values()) == ["7", "7", "8", "9"]


def test_a_dicom_series_is_a_case_and_the_folder_above_it_the_patient(tmp_path: Path) -> None:
    for number, place in enumerate(("ill/1", "ill/2", "well/3/a", "well/3/b", "well/4/a")):
        volume = Volume(np.full(SHAPE, number), np.diag([1.0, 1.5, 3.0, 1.0]))
        write_dicom_series(volume, tmp_path / place)
    study = open_study(str(tmp_path))
    assert [case.label for case in study.cases] == ["ill", "ill", "well", "well", "well"]
    named = [case.patient if case.patient != case.case else None for case in study.cases]
    assert named == [None, None, "3", "3", "4"]


def test_a_patients_file_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "no/1.png", "yes/3.png")
    (tmp_path / "patients.csv").write_text("image,patient\n1.png,7\n")
    refused("BAD_TABLE", tmp_path)


def test_an_image_under_two_patients_in_the_patients_file_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "no/1.png", "yes/3.png")
    (tmp_path / "patients.csv").write_text("image,patient\nno/1.png,7\nyes/3.png,8\n./no/1.png,7\n")
    assert patients(open_study(str(tmp_path))) == {"1": "7", "3": "8"}
    (tmp_path / "patients.csv").write_text("image,patient\nno/1.png,Smith\nyes/3.png,8\n./no/1.png,Jones\n")
    error = refused("SPLIT_LEAK", tmp_path)
    assert "line 4" in error.found
    assert "Smith" not in str(error)


@pytest.mark.parametrize(
    "names",
    [
        ["p1/t1.nii", "p1/flair.nii", "p2/t1.nii", "p2/flair.nii"],
        ["p1/0/flair.nii", "p1/1/flair.nii", "p2/0/flair.nii", "p2/1/flair.nii"],
        ["p1/2019/flair.nii", "p2/2021/flair.nii", "p3/2022/flair.nii", "p3/2023/flair.nii"],
        [f"p{patient}/{patient}_{scan}.nii" for patient in range(21) for scan in range(4)],
        ["a/1.nii", "b/2.nii", "3.nii"],
    ],
    ids=["same names", "same visits", "other visits", "many with few", "images beside"],
)
def test_folders_of_patients_are_not_classes(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    refused("NO_LABEL", tmp_path)


def test_masks_beside_the_images_of_class_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "no/1.nii.gz", "no/1_mask.nii.gz", "no/2 (1).png", "no/2 (1)_mask_1.png")
    touch(tmp_path, "yes/3_t1.nii", "yes/3-SEG.nii", "yes/4_label.nii", "yes/5/scan.nii", "yes/5/mask.nii")
    touch(tmp_path, "yes/unmask.nii")
    study = open_study(str(tmp_path))
    names = {Path(case.image[0]).name for case in study.cases}
    assert names == {"1.nii.gz", "2 (1).png", "3_t1.nii", "4_label.nii", "scan.nii", "unmask.nii"}
    assert "4 files named mask or seg beside an image of the same name were left out" in study.notes


def test_folders_of_images_and_masks_are_not_classes(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.nii", "labels/1.nii")
    refused("NO_LABEL", tmp_path)


def test_a_third_folder_beside_train_and_test_is_refused_by_name(tmp_path: Path) -> None:
    splits = ("train", "Test", "external_test")
    touch(tmp_path, *(f"{split}/{name}/{split}_{name}.nii" for split in splits for name in ("ill", "well")))
    error = refused("AMBIGUOUS_SOURCE", tmp_path)
    assert "'external_test'" in error.found
    assert "rename it to train, val or test" in error.fix


def test_a_folder_without_images_beside_train_and_test_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{split}/{name}/{split}_{name}.nii" for split in ("train", "test") for name in ("ill", "well")))
    touch(tmp_path, "code/run.py")
    assert Counter(case.split for case in open_study(str(tmp_path)).cases) == {"train": 2, "test": 2}


def test_class_folders_that_are_other_classes_than_the_models_do_not_count_in_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "north/1.png", "south/2.png")
    read: list[Path] = []
    monkeypatch.setattr("medvol.data.sources.read_volumes", lambda path, options: read.append(path) or pytest.skip())
    assert open_study(str(tmp_path), require_label=False).classes == ("north", "south")
    with pytest.raises(pytest.skip.Exception):
        open_study(str(tmp_path), require_label=False, classes=("ill", "well"))
    assert read == [tmp_path]


def test_the_cases_table_of_a_folder_comes_before_its_other_tables(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    (tmp_path / "cases.csv").write_text("image,label\na.nii,x\nb.nii,y\n")
    (tmp_path / "other.csv").write_text("image,label\nb.nii,x\na.nii,y\n")
    assert labels(open_study(str(tmp_path))) == {"a": "x", "b": "y"}


def test_the_only_table_with_images_is_the_case_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    (tmp_path / "scanners.csv").write_text("scanner,tesla\nA,3\n")
    (tmp_path / "study.csv").write_text("image,label\na.nii,x\nb.nii,y\n")
    assert len(open_study(str(tmp_path)).cases) == 2
    shutil.copy(tmp_path / "study.csv", tmp_path / "study2.csv")
    refused("AMBIGUOUS_SOURCE", tmp_path)


def test_a_folder_with_one_table_of_features_is_that_table(tmp_path: Path) -> None:
    (tmp_path / "dataset.csv").write_text("age,label\n3,a\n4,b\n")
    assert open_study(str(tmp_path)).cases[1].covariates == {"age": 4.0}


def test_volumes_without_labels_need_to_be_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    assert "a case table cases.csv" in refused("NO_LABEL", tmp_path).fix
    refused("NO_LABEL", tmp_path / "a.nii")
    study = open_study(str(tmp_path / "a.nii"), require_label=False)
    assert (study.task, study.cases[0].case, study.cases[0].label) == ("unlabelled", "a", None)


def cjdata(path: Path, label: int, patient: str = "P7") -> None:
    """Write a file as those of the figshare brain tumour set, in MATLAB 7.3."""
    import h5py

    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as archive:
        archive["cjdata/image"] = np.zeros((9, 8), np.int16)
        archive["cjdata/label"] = np.array([[float(label)]])
        archive["cjdata/PID"] = np.array([[ord(letter)] for letter in patient], np.uint16)


def test_files_with_label_and_patient_inside_need_no_table(tmp_path: Path) -> None:
    for name, label, patient in (("1", 1, "P1"), ("2", 3, "P2"), ("3", 2, "P2")):
        cjdata(tmp_path / f"{name}.mat", label, patient)
    study = open_study(str(tmp_path))
    assert labels(study) == {"1": "meningioma", "2": "pituitary", "3": "glioma"}
    assert [case.patient for case in study.cases] == ["P1", "P2", "P2"]
    assert study.classes == ("glioma", "meningioma", "pituitary")
    assert not study.laterality_matters
    assert open_study(str(tmp_path), require_label=False).task == "unlabelled"
    cjdata(tmp_path / "4.mat", 4)
    assert refused("UNKNOWN_LABEL", tmp_path).expected == "1, 2 or 3"


def test_a_radiograph_alone_may_be_predicted(tmp_path: Path) -> None:
    from pydicom import dcmread

    from medvol.geometry import Volume
    from medvol.phantoms.dicom import write_dicom_series

    (path,) = write_dicom_series(Volume(np.zeros((8, 9, 1), np.int16)), tmp_path)
    dataset = dcmread(path)
    del dataset.ImagePositionPatient
    dataset.save_as(path)
    assert len(open_study(str(path), require_label=False).cases) == 1


def test_a_file_that_is_no_volume_is_refused_for_prediction_too(tmp_path: Path) -> None:
    touch(tmp_path, "README.md")
    with pytest.raises(MedvolError, match=r"UNKNOWN_FORMAT: .*README\.md"):
        open_study(str(tmp_path / "README.md"), require_label=False)


@pytest.mark.realdata
def test_a_series_that_cannot_be_read_is_announced() -> None:
    study = open_study(real("dicom2nifti_tests/failing"), require_label=False)
    announced = [note for note in study.notes if "will be refused" in note]
    assert announced
    assert len(announced) < len(study.cases) + 1


def test_a_folder_of_volumes_is_read_for_prediction(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        image = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), np.diag([1, 1.5, 3, 1]))
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    study = open_study(str(tmp_path), require_label=False)
    assert sorted(Path(case.image[0]).name for case in study.cases) == ["a.nii.gz", "b.nii.gz"]
    assert study.task == "unlabelled"


@pytest.mark.parametrize("with_hidden", [True, False])
def test_an_empty_folder_is_refused(tmp_path: Path, with_hidden: bool) -> None:
    (tmp_path / "sub").mkdir()
    if with_hidden:
        touch(tmp_path, "sub/.DS_Store")
    refused("EMPTY_DATASET", tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").touch()
    refused("EMPTY_DATASET", tmp_path / "cases.csv")


def test_a_path_that_does_not_exist_offers_the_nearest_name(tmp_path: Path) -> None:
    touch(tmp_path, "hippocampus/dataset.json")
    assert "did you mean 'hippocampus'" in refused("NOT_FOUND", tmp_path / "hipocampus").fix
    error = refused("NOT_FOUND", tmp_path / "hipocampus" / "dataset.json")
    assert "the folder 'hipocampus' does not exist" in error.found
    assert "did you mean 'hippocampus'" in error.fix


def test_a_mistyped_task_offers_the_nearest(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    assert "did you mean 'classification'" in refused("UNKNOWN_OPTION", tmp_path, task="clasification").fix


# --- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["adrenalmnist3d", "adrenalmnist3d_64"])
def test_adrenalmnist3d_keeps_its_published_split(name: str) -> None:
    study = open_study(real(f"adrenalmnist3d/{name}.npz"))
    assert Counter(case.split for case in study.cases) == {"train": 1188, "val": 98, "test": 298}
    assert Counter(case.label for case in study.cases if case.split == "test") == {"normal": 229, "hyperplasia": 69}
    assert assign_splits(study).cases == study.cases


@pytest.mark.realdata
def test_breastmnist_keeps_its_published_split() -> None:
    study = open_study(real("breastmnist"))
    assert Counter(case.split for case in study.cases) == {"train": 546, "val": 78, "test": 156}
    assert study.classes == ("malignant", "normal, benign")


@pytest.mark.realdata
def test_the_decathlon_hippocampus_has_208_pairs() -> None:
    study = open_study(real("msd_hippocampus"))
    assert (len(study.cases), study.task) == (208, "segmentation")
    assert study.classes == ("background", "Anterior", "Posterior")
    assert all(Path(case.image[0]).name == Path(str(case.label)).name for case in study.cases)


@pytest.mark.realdata
def test_brain_tumour_folders_are_split_by_their_patients() -> None:
    study = assign_splits(open_study(real("figshare_brain_tumor_jpg")))
    assert (len(study.cases), len({case.patient for case in study.cases})) == (420, 112)
    counts = Counter((case.label, case.split) for case in study.cases)
    for name in ("glioma", "meningioma", "pituitary"):
        assert abs(counts[name, "train"] - 98) <= 4
        assert abs(counts[name, "test"] - 21) <= 4


@pytest.mark.realdata
def test_brain_tumour_files_bring_label_and_patient_of_the_same_slices() -> None:
    inside = open_study(real("figshare_brain_tumor_mat"))
    folders = open_study(real("figshare_brain_tumor_jpg"))
    assert (len(inside.cases), inside.task, inside.classes) == (31, "classification", folders.classes)
    known = {case.case: (case.label, case.patient) for case in folders.cases}
    shared = [case for case in inside.cases if case.case in known]
    assert shared
    assert all(known[case.case] == (case.label, case.patient) for case in shared)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "rows", "features", "classes"),
    [
        ("exercise_data_physio/exercise_data.csv", 1165, 4, 3),
        ("heart_uci/dataset.csv", 303, 13, 2),
        ("heart_uci", 303, 13, 2),
        ("jbrownlee/pima-indians-diabetes.csv", 768, 8, 2),
        ("jbrownlee/breast-cancer-wisconsin.csv", 699, 9, 2),
        ("jbrownlee/breast-cancer.csv", 286, 9, 2),
        ("jbrownlee/haberman.csv", 306, 3, 2),
        ("jbrownlee/mammography.csv", 11183, 6, 2),
        ("jbrownlee/new-thyroid.csv", 215, 5, 3),
        ("jbrownlee/horse-colic.csv", 300, 27, 2),
        ("seaborn/exercise.csv", 90, 4, 3),
    ],
)
def test_tables_of_features_have_their_known_size(name: str, rows: int, features: int, classes: int) -> None:
    study = open_study(real(f"tabular/{name}"))
    assert (len(study.cases), len(study.cases[0].covariates), len(study.classes)) == (rows, features, classes)
    assert study.channels == ()


@pytest.mark.realdata
def test_a_measured_signal_is_regressed_by_subject() -> None:
    study = assign_splits(open_study(real("tabular/seaborn/fmri.csv")))
    assert (study.task, len({case.patient for case in study.cases})) == ("regression", 14)


@pytest.mark.realdata
def test_stacked_npy_made_of_a_real_npz_reads_like_it(tmp_path: Path) -> None:
    source = real("adrenalmnist3d/adrenalmnist3d.npz")
    with np.load(source) as archive:
        for split in ("train", "val", "test"):
            np.save(tmp_path / f"{split}_data.npy", archive[f"{split}_images"])
            np.save(tmp_path / f"{split}_labels.npy", archive[f"{split}_labels"])
    stacked, original = open_study(str(tmp_path)), open_study(source)
    assert [(case.case, case.split) for case in stacked.cases] == [(case.case, case.split) for case in original.cases]
    assert [item["label"] for item in items(stacked)] == [item["label"] for item in items(original)]


@pytest.mark.realdata
def test_a_dicom_tree_is_a_case_per_series() -> None:
    study = open_study(real("mr_dicom_studies"), require_label=False)
    assert (study.task, len(study.cases)) == ("unlabelled", 5)


def test_a_part_of_a_file_is_one_volume(tmp_path: Path) -> None:
    np.savez(tmp_path / "pair.npz", before=np.zeros(SHAPE), after=np.ones(SHAPE))
    source = f"{tmp_path}/pair.npz#after"
    (case,) = open_study(source, require_label=False).cases
    assert (case.case, case.image) == ("pair", (source,))
    assert refused("NO_LABEL", source).file.endswith("pair.npz")


def test_a_path_with_a_hash_is_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "pair.npz").touch()
    np.save(tmp_path / "pair.npz#after.npy", np.zeros(SHAPE))
    (case,) = open_study(f"{tmp_path}/pair.npz#after.npy", require_label=False).cases
    assert case.image == (f"{tmp_path}/pair.npz#after.npy",)
    with pytest.raises(MedvolError, match=r"NOT_FOUND: .*did you mean 'pair\.npz"):
        open_study(f"{tmp_path}/pear.npz#after", require_label=False)


# --- prediction -----------------------------------------------------------------------------------------------------


def test_what_a_folder_of_volumes_holds_beside_them_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "pair.hdr", "pair.img", "sub/slide.tif", "notes.txt")
    study = open_study(str(tmp_path), require_label=False)
    assert study.notes[:2] == (
        "read as: folder of 1 volumes",
        "2 files, such as pair.hdr, are passed over: no format that is read, or several arrays; convert images to "
        ".nii.gz, name an array as in file.npz#key, fetch what a link stands for",
    )


def test_images_that_the_table_beside_them_does_not_list_are_told_of_a_prediction(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_mask.nii.gz", "b.nii.gz", "sub/c.nii.gz", "dicom/1.dcm", ".hidden.nii.gz")
    write_mask(tmp_path / "out.nii.gz", np.zeros((2, 3, 4), np.uint8), np.eye(4))
    (tmp_path / "ages.csv").write_text("image,age,mask\na.nii.gz,50,a_mask.nii.gz\ndicom#1.2.3,60,\n")
    study = open_study(str(tmp_path), require_label=False, for_prediction=True)
    assert len(study.cases) == 2
    assert "2 files, such as b.nii.gz, are not in the table ages.csv, and not read" in study.notes
    (tmp_path / "sub" / "c.nii.gz").unlink()
    study = open_study(str(tmp_path), require_label=False, for_prediction=True)
    assert "the file b.nii.gz is not in the table ages.csv, and not read" in study.notes
    assert not any("not in the table" in note for note in open_study(str(tmp_path), require_label=False).notes)


def test_masks_that_medvol_wrote_are_no_volumes_beside_others(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    for name in ("b", "a"):
        (tmp_path / "out").mkdir(exist_ok=True)
        write_mask(tmp_path / "out" / f"{name}.nii.gz", np.zeros((2, 3, 4), np.uint8), np.eye(4))
    write_probabilities(tmp_path / "out" / "a.liver.nii.gz", np.zeros((2, 3, 4)), np.eye(4))
    study = open_study(str(tmp_path), require_label=False)
    assert [case.case for case in study.cases] == ["a"]
    assert (
        "3 files, such as out/a.liver.nii.gz, are written by medvol as a mask or probabilities, and not read"
        in study.notes
    )
    (tmp_path / "a.nii.gz").unlink()  # now they must have been meant
    assert len(open_study(str(tmp_path), require_label=False).cases) == 3


def test_links_that_lead_nowhere_do_not_end_the_search(tmp_path: Path) -> None:
    touch(tmp_path, "a/scan.nii.gz", "b/scan.nii.gz")
    for name in ("c.npz", "train_data.npy", "lost.csv", "a/IM1"):
        (tmp_path / name).symlink_to("nowhere")
    study = open_study(str(tmp_path), require_label=False)
    assert [case.case for case in study.cases] == ["a_scan", "b_scan", "c", "train_data"]
    assert any(note.startswith("2 files, such as a/IM1, are passed over") for note in study.notes)


def test_one_image_in_two_rows_is_no_leak_of_a_prediction(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "cases.csv").write_text("case,image,split,patient\nx,a.nii.gz,train,p\ny,a.nii.gz,test,q\n")
    assert refused("SPLIT_LEAK", tmp_path, require_label=False)
    study = open_study(str(tmp_path), require_label=False, for_prediction=True)
    assert [case.case for case in study.cases] == ["x", "y"]


def test_a_missing_file_stops_a_prediction_only_where_all_are_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    table = tmp_path / "cases.csv"
    table.write_text("case,image\nx,a.nii.gz\ny,b.nii.gz\n")
    assert "1 of 2 files" in str(refused("MISSING_FILE", table, require_label=False))
    assert len(open_study(str(table), require_label=False, for_prediction=True).cases) == 2
    table.write_text("case,image,label\nx,b.nii.gz,\ny,c.nii.gz,\n")
    assert "2 of 2 files" in str(refused("MISSING_FILE", table, require_label=False, for_prediction=True))
    table.write_text("case,image,label\nx,a.nii.gz,b.nii.gz\n")  # a mask that nobody reads
    assert len(open_study(str(table), require_label=False, for_prediction=True).cases) == 1
