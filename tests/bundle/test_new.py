"""`medvol new`: a bundle for a study of one's own, with the numbers that training fits, and labels joined to scans."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from pydicom import dcmread

from medvol.bundle.new import NewOptions, make_bundle
from medvol.bundle.new_choice import bundle_takes
from medvol.bundle.new_labels import write_labelled_table
from medvol.bundle.new_numbers import _batch, _epochs
from medvol.bundle.short import bundle_command, shipped_bundles
from medvol.cli import main
from medvol.data.sources import open_study
from medvol.errors import MedvolError
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config

QUICK = NewOptions(measure=False)


def written(path, header, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def numbers_table(path, rows=40, classes=("ill", "healthy")):
    """Two numbers that tell the class apart, an identifier, and a constant."""
    cells = [
        (classes[index % 2], f"remark {index}", 1, index % 2 + index / 97, round(index * 0.37 % 1, 3))
        for index in range(rows)
    ]
    return written(path, ["label", "remark", "site", "a", "b"], cells)


@pytest.fixture
def dicom_tree(tmp_path):
    """A tree of series, and its truth by Patient ID."""
    table = classification_cohort(tmp_path / "tree", patients=9, size=(12, 13, 14), layout="dicom")
    with table.open(newline="") as stream:
        truth = list(csv.DictReader(stream))
    table.unlink()
    for sidecar in table.parent.glob("*.json"):
        sidecar.unlink()
    ids = {}
    for row in truth:
        file = next(one for one in sorted((table.parent / row["image"]).rglob("*")) if one.is_file())
        ids[row["case"]] = str(dcmread(file, stop_before_pixels=True).PatientID)
    return table.parent, truth, ids


def test_a_made_bundle_trains_measures_and_predicts_without_the_path_of_its_study(tmp_path, capsys, monkeypatch):
    numbers_table(tmp_path / "table.csv")
    assert main(["new", "my", "table.csv"]) == 0
    said = capsys.readouterr().out
    assert "mlp_tabular_classification" in said
    assert "binary: healthy (20), ill (20)" in said
    assert "medvol train my_classification" in said
    monkeypatch.chdir("/")
    folder = str(tmp_path / "my_classification")
    quiet = ["--show_progress", "False"]
    assert main(["train", folder, *quiet]) == 0
    assert main(["evaluate", folder, *quiet]) == 0
    metrics = json.loads((tmp_path / "my_classification/eval/metrics.json").read_text())
    assert metrics["metrics"]["auc"]["value"] > 0.9
    assert (tmp_path / "my_classification/models/model.json").is_file()
    predicted = str(tmp_path / "predicted")
    assert main(["predict", folder, str(tmp_path / "table.csv"), "-o", predicted, "--show_progress", "False"]) == 0
    assert len((tmp_path / "predicted/predictions.csv").read_text().splitlines()) == 41


def test_nothing_is_overwritten_and_nothing_is_left_of_a_refusal(tmp_path):
    table = numbers_table(tmp_path / "table.csv")
    made = make_bundle("my_classification", str(table), QUICK)
    before = sorted(path.name for path in tmp_path.iterdir())
    for again in ("my_classification", "my"):
        with pytest.raises(MedvolError, match="FOLDER_IN_USE"):
            make_bundle(again, str(table), QUICK)
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION"):
        make_bundle("another", str(table), NewOptions(exclude_columns=("c",), measure=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert list((made.folder / "models").iterdir()) == []


def test_the_name_holds_the_word_of_the_task(tmp_path):
    table = numbers_table(tmp_path / "table.csv")
    assert make_bundle("deep/er/mine", str(table), QUICK).folder == tmp_path / "deep/er/mine_classification"
    for name, words in (("my_segmentation", "'segmentation' in the name"), ("a b", "the name 'a b'")):
        with pytest.raises(MedvolError, match=words):
            make_bundle(name, str(table), QUICK)


def test_the_study_may_have_the_name_that_the_bundle_takes_before_its_task(tmp_path):
    (tmp_path / "mine").mkdir()
    numbers_table(tmp_path / "mine" / "table.csv")
    assert make_bundle("mine", "mine", QUICK).folder == tmp_path / "mine_classification"


def test_a_column_to_exclude_that_is_not_there_is_refused_where_there_are_no_covariates(tmp_path):
    table = classification_cohort(tmp_path / "cohort", patients=9, size=(12, 13, 14), layout="png")
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION.*exclude-columns.*'site'"):
        make_bundle("mine", str(table), NewOptions(exclude_columns=("site",), measure=False))


def test_a_study_without_a_validation_split_is_refused_and_one_without_a_test_split_is_told(tmp_path):
    each = written(tmp_path / "each.csv", ["a", "label"], [(index, f"k{index}") for index in range(8)])
    with pytest.raises(MedvolError, match="EMPTY_SPLIT.*'val'"):
        make_bundle("mine", str(each), QUICK)
    rows = [(index, index * 7 % 5, "xy"[index % 2], ("train", "val")[index % 4 // 2]) for index in range(40)]
    table = written(tmp_path / "two.csv", ["a", "b", "label", "split"], rows)
    assert any("no case in test" in note for note in make_bundle("mine", str(table), QUICK).notes)


def test_what_to_predict_is_called_what_it_is(tmp_path, capsys):
    numbers_table(tmp_path / "table.csv")
    assert main(["new", "my", "table.csv"]) == 0
    assert "predict my_classification NEW_TABLE" in capsys.readouterr().out
    table = classification_cohort(tmp_path / "cohort", patients=9, size=(12, 13, 14), layout="png")
    assert main(["new", "pictures", str(table)]) == 0
    said = capsys.readouterr().out
    assert "predict pictures_classification NEW_IMAGES" in said
    assert "red, green, blue; grey images are repeated" in said


def test_labels_to_regress_and_a_single_class_are_refused_with_the_way_out(tmp_path):
    ages = written(tmp_path / "ages.csv", ["a", "label"], [(index % 7, 20 + index * 1.5) for index in range(30)])
    with pytest.raises(MedvolError, match=r"30 different numbers as labels: a quantity to regress.*put classes"):
        make_bundle("ages", str(ages), QUICK)
    one = written(tmp_path / "one.csv", ["a", "label"], [(index % 7, "ill") for index in range(30)])
    with pytest.raises(MedvolError, match="ONE_CLASS"):
        make_bundle("one", str(one), QUICK)
    assert not list(tmp_path.glob("*classification"))


def test_of_two_classes_the_healthy_one_comes_first_unless_the_order_is_stated(tmp_path):
    for classes, stated, expected in (
        (("ill", "healthy"), (), ["healthy", "ill"]),
        (("abnormal", "normal"), (), ["normal", "abnormal"]),
        (("b", "a"), (), ["a", "b"]),
        (("abnormal", "normal"), ("abnormal", "normal"), ["abnormal", "normal"]),
    ):
        name = "_".join((*expected, *stated))
        table = numbers_table(tmp_path / f"{name}.csv", classes=classes)
        folder = make_bundle(name, str(table), NewOptions(classes=stated, measure=False)).folder
        assert json.loads((folder / "configs/train.json").read_text())["classes"] == expected
        metadata = json.loads((folder / "configs/metadata.json").read_text())
        shown = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        assert list(shown.values()) == expected


def test_columns_that_tell_nothing_are_left_out_and_named_and_a_slip_among_numbers_is_refused(tmp_path):
    table = numbers_table(tmp_path / "table.csv", rows=120)
    made = make_bundle("my", str(table), QUICK)
    assert "columns that are left out: remark, site" in made.notes
    train = json.loads((made.folder / "configs/train.json").read_text())
    assert train["exclude_columns"] == ["remark", "site"]
    rows = [(index % 7 if index != 3 else "three", "ab"[index % 2]) for index in range(30)]
    slip = written(tmp_path / "slip.csv", ["a", "label"], rows)
    with pytest.raises(MedvolError, match="three"):
        make_bundle("slip", str(slip), QUICK)


@pytest.mark.parametrize("copied", ["resnet3d_classification", "vit3d_classification", "unet_segmentation"])
def test_a_training_fits_the_very_facts_that_the_bundle_was_made_with(tmp_path, copied):
    segments = copied == "unet_segmentation"
    make = segmentation_cohort if segments else classification_cohort
    table = make(tmp_path / "c", patients=9, size=(16, 18, 20))
    made = make_bundle("mine", str(table), NewOptions(bundle=copied, measure=False))
    config = json.loads((made.folder / "configs/train.json").read_text())
    config.update(bundle_root=str(made.folder), output_dir=str(tmp_path / "o"))
    facts = ConfigParser(config).get_parsed_content("facts")
    shipped = json.loads((made.folder / "configs/inference.json").read_text())["record"]["shipped"]
    found = json.loads(json.dumps(facts.as_dict()))
    assert {name: found[name] for name in shipped} == shipped
    assert list(map(str, facts.spatial_size)) == dict(row[:2] for row in made.numbers)["spatial_size"].split()


def test_bundle_and_study_move_together_when_one_is_named_relative_to_the_other(tmp_path):
    (tmp_path / "here").mkdir()
    numbers_table(tmp_path / "here/it's important, #1.csv")
    made = make_bundle("here/mine", "here/it's important, #1.csv", NewOptions(relative=True, measure=False))
    shutil.move(tmp_path / "here", tmp_path / "there")
    config = json.loads((tmp_path / "there" / made.folder.name / "configs/train.json").read_text())
    config.update(bundle_root=str(tmp_path / "there" / made.folder.name), output_dir=str(tmp_path / "o"))
    assert len(ConfigParser(config).get_parsed_content("study").cases) == 40


def test_a_study_may_lie_where_monai_would_read_another_path(tmp_path):
    (tmp_path / "$Study #1").mkdir()
    numbers_table(tmp_path / "$Study #1" / "table.csv")
    made = make_bundle("mine", "$Study #1/table.csv", NewOptions(measure=False))
    config = json.loads((made.folder / "configs/train.json").read_text())
    config.update(bundle_root=str(made.folder), output_dir=str(tmp_path / "o"))
    assert len(ConfigParser(config).get_parsed_content("study").cases) == 40


def test_a_dicom_tree_takes_its_labels_by_patient_and_the_table_forgets_the_patient_id(tmp_path, dicom_tree):
    tree, truth, ids = dicom_tree
    by_id = {ids[row["case"]]: row["label"] for row in truth}
    labels = written(tmp_path / "l.csv", ["Patient ID", "label", "age"], [(*one, 50) for one in by_id.items()])
    notes = write_labelled_table(str(tree), str(labels), tmp_path / "cases.csv")
    assert f"labels of l.csv: column 'Patient ID' names {len(truth)} of {len(truth)} scans" in notes
    study = open_study(str(tmp_path / "cases.csv"))
    assert len(study.cases) == len(truth)
    assert len({case.patient for case in study.cases}) == len(set(ids.values()))
    assert not any(one in case.case + case.patient for one in by_id for case in study.cases)
    label_of = {Path(case.image[0].split("#")[0]).name: case.label for case in study.cases}
    assert label_of == {Path(row["image"]).name: row["label"] for row in truth}
    assert study.cases[0].covariates == {"age": 50.0}


def test_the_table_forgets_patient_ids_that_stand_beside_the_names_of_scans(tmp_path, dicom_tree):
    tree, truth, ids = dicom_tree
    rows = [(Path(row["image"]).name, f"of {ids[row['case']]}", ids[row["case"]], row["label"]) for row in truth]
    labels = written(tmp_path / "l.csv", ["scan", "patient", "MRN", "label"], rows)
    write_labelled_table(str(tree), str(labels), tmp_path / "cases.csv")
    text = (tmp_path / "cases.csv").read_text()
    assert {name for name in ("of ", "MRN") if name in text} == set(), text.splitlines()[:2]


def test_scans_are_named_by_folder_or_case_too_and_those_without_a_label_are_counted(tmp_path, dicom_tree):
    tree, truth, _ = dicom_tree
    rows = [(Path(row["image"]).name, row["label"]) for row in truth[2:]] + [("nobody", "vessel")]
    labels = written(tmp_path / "l.csv", ["scan", "label"], rows)
    notes = write_labelled_table(str(tree), str(labels), tmp_path / "cases.csv")
    assert f"labels of l.csv: column 'scan' names {len(truth) - 2} of {len(truth)} scans" in notes
    assert "2 scans without a label are left out" in notes
    assert "1 rows of l.csv name no scan of this folder" in notes


def test_labels_that_contradict_or_name_nothing_are_refused(tmp_path, dicom_tree):
    tree, truth, _ = dicom_tree
    name = Path(truth[0]["image"]).name
    twice = written(tmp_path / "twice.csv", ["scan", "label"], [(name, "vessel"), (name, "aneurysm")])
    with pytest.raises(MedvolError, match=r"AMBIGUOUS_LABEL.*line 3"):
        write_labelled_table(str(tree), str(twice), tmp_path / "cases.csv")
    nobody = written(tmp_path / "nobody.csv", ["scan", "label"], [("x", "vessel")])
    with pytest.raises(MedvolError, match="NO_MATCH"):
        make_bundle("mine", str(tree), NewOptions(labels=str(nobody)))
    with pytest.raises(MedvolError, match=r"NO_LABEL.*pass --labels"):
        make_bundle("mine", str(tree))
    known = written(tmp_path / "known.csv", ["scan", "label"], [(name, "vessel")])
    with pytest.raises(MedvolError, match="NO_VOLUMES"):
        make_bundle("mine", str(tree), NewOptions(labels=str(known), series="t2 flair"))
    with pytest.raises(MedvolError, match="ONE_CLASS"):
        make_bundle("mine", str(tree), NewOptions(labels=str(known)))
    assert not (tmp_path / "mine_cases.csv").exists()


def test_a_table_of_labels_that_is_not_there_or_is_a_folder_is_refused(tmp_path):
    (tmp_path / "scans").mkdir()
    for name, words in (("lables.csv", "NOT_FOUND"), ("scans", "BAD_TABLE.*a folder")):
        with pytest.raises(MedvolError, match=words):
            make_bundle("my", str(tmp_path / "scans"), NewOptions(labels=name, measure=False))


def test_files_of_a_folder_take_labels_and_patients_by_their_names(tmp_path):
    table = classification_cohort(tmp_path / "c", patients=9, size=(12, 13, 14), layout="npy")
    with table.open(newline="") as stream:
        truth = list(csv.DictReader(stream))
    scans = tmp_path / "scans"
    scans.mkdir()
    for row in truth:
        shutil.copy(table.parent / row["image"], scans / f"{row['case']}.npy")
    rows = [(f"scans/{row['case']}.npy", row["patient"], row["label"]) for row in truth]
    labels = written(tmp_path / "l.csv", ["image", "patient", "finding"], rows)
    write_labelled_table(str(scans), str(labels), tmp_path / "cases.csv", label_column="finding")
    study = open_study(str(tmp_path / "cases.csv"))
    found = {(case.case, case.patient, case.label) for case in study.cases}
    assert found == {(row["case"], row["patient"], row["label"]) for row in truth}


def test_a_small_study_gets_smaller_batches_and_enough_steps_and_minutes_shorten_it():
    assert [_batch(16, cases)[0] for cases in (1188, 128, 127, 40, 5)] == [16, 16, 8, 4, 4]
    assert _batch(2, 5)[0] == 2
    assert _epochs(60, 9, None, None) == (60, "the bundle's, 9 steps each")
    assert _epochs(10, 3, None, None)[0] == 50  # 150 steps
    assert _epochs(60, 10, 1.0, 5)[0] == 24  # 240 of 300 seconds, 10 a epoch
    assert _epochs(60, 10, 0.1, 5) == (60, "the bundle's, 10 steps each; fits into 5 minutes")
    assert _epochs(60, 10, 0.01, 1)[1].endswith("fits into 1 minute")
    assert "less than the 150 steps" in _epochs(60, 10, 10.0, 5)[1]


def test_every_shipped_bundle_says_what_it_takes_and_one_for_other_data_is_refused(tmp_path):
    taken = {folder.name: bundle_takes(folder) for folder in shipped_bundles()}
    assert taken["vit2d_classification"] == ("classification", "images")
    assert taken["fusion_classification"] == ("classification", "volumes and covariates")
    assert all(name.endswith(f"_{task}") and kind for name, (task, kind) in taken.items())
    table = numbers_table(tmp_path / "table.csv")
    with pytest.raises(MedvolError, match=r"WRONG_KIND.*name one of mlp_tabular_classification"):
        make_bundle("mine", str(table), NewOptions(bundle="unet_segmentation"))


def test_a_shipped_bundle_is_not_trained_in_its_place():
    with pytest.raises(MedvolError, match="MISSING_OPTION"):
        bundle_command("train", "unet_segmentation", "study", "")
