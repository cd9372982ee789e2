"""Labels joined to scans by one kind of word, or refused where words of several kinds name different rows."""

import csv

import pytest

from medvol.bundle.new_labels import write_labelled_table
from medvol.bundle.new_matching import Scan, deciding_kind, find_rows, names_of
from medvol.data.columns import Table
from medvol.data.sources import open_study
from medvol.errors import MedvolError


@pytest.fixture
def joined(tmp_path):
    """Join a table of labels to scans that are there by name only, and return the rows by image, and the notes."""

    def join(scans, header, rows, **options):
        for scan in scans:
            file = tmp_path / "scans" / scan
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        labels, cases = tmp_path / "labels.csv", tmp_path / "cases.csv"
        with labels.open("w", newline="") as stream:
            csv.writer(stream).writerows([header, *rows])
        notes = write_labelled_table(str(tmp_path / "scans"), str(labels), cases, **options)
        with cases.open(newline="") as stream:
            return {row["image"].removeprefix("scans/"): row for row in csv.DictReader(stream)}, notes

    return join


def grid(folders, files):
    return [f"{folder}/{file}.nii.gz" for folder in folders for file in files]


def labels_of(rows):
    return {image: row["label"] for image, row in rows.items()}


def test_folders_that_are_patients_go_before_numbered_files_in_each_of_them(joined):
    rows, notes = joined(grid("123", "12"), ["patient", "label"], [(1, "benign"), (2, "malignant"), (3, "malignant")])
    assert labels_of(rows) == {scan: "benign" if scan.startswith("1/") else "malignant" for scan in grid("123", "12")}
    assert all(row["patient"] == image[0] for image, row in rows.items())
    assert "scans are named by the name at level 1 of the tree" in notes


def test_files_that_are_patients_go_before_the_numbered_folders_of_sites(joined):
    scans = ["1/1.nii.gz", "1/2.nii.gz", "2/3.nii.gz", "2/4.nii.gz"]
    rows, _ = joined(scans, ["id", "label"], [(1, "a"), (2, "b"), (3, "a"), (4, "b")])
    assert labels_of(rows) == dict(zip(scans, "abab", strict=True))


@pytest.mark.parametrize(
    ("folders", "files", "patients"),
    [
        ("12", "12", "12"),
        ("123456", "12", "12"),  # the other patients have no label
        ("12", "123", "123"),  # the third patient has no scan
        ("145", "123", "123"),
    ],
)
def test_folders_and_files_that_may_both_be_meant_are_refused_with_a_scan_and_its_rows(
    joined, folders, files, patients
):
    with pytest.raises(MedvolError, match=r"AMBIGUOUS_LABEL.*scans/\d/\d.nii.gz is named by (line \d|no row).*line \d"):
        joined(grid(folders, files), ["patient", "label"], [(one, "ab"[int(one) % 2]) for one in patients])


def test_a_stray_file_name_labels_no_scan_of_a_patient_without_a_row(joined):
    rows, notes = joined(["1/a.nii.gz", "2/b.nii.gz", "4/1.nii.gz"], ["patient", "label"], [(1, "x"), (2, "y")])
    assert labels_of(rows) == {"1/a.nii.gz": "x", "2/b.nii.gz": "y"}
    assert "1 scans without a label are left out" in notes


def test_paths_name_scans_whose_folders_and_files_repeat(joined):
    scans = grid("12", "12")
    rows, notes = joined(
        scans,
        ["image", "patient", "label"],
        [(f"old/scans/{one}", f"P{at}", "abba"[at]) for at, one in enumerate(scans)],
    )
    assert [(row["patient"], row["label"]) for row in rows.values()] == [
        ("P0", "a"),
        ("P1", "b"),
        ("P2", "b"),
        ("P3", "a"),
    ]
    assert "scans are named by the path" in notes


def test_rows_that_give_one_word_two_patients_are_refused_though_their_labels_agree(joined):
    with pytest.raises(MedvolError, match=r"AMBIGUOUS_LABEL.*line 3 gives another label, patient or split"):
        joined(grid("12", "a"), ["file", "patient", "label"], [("a", "P1", "x"), ("a", "P2", "x")])


def test_folders_of_modalities_do_not_hide_files_that_are_patients(joined):
    scans = ["t1/1.nii.gz", "t2/1.nii.gz", "t1/2.nii.gz", "t2/2.nii.gz"]
    rows, notes = joined(scans, ["id", "label"], [(1, "a"), (2, "b")])
    assert "scans are named by the file name, the same in several folders" in notes
    assert {image: (row["patient"], row["label"]) for image, row in rows.items()} == {
        "t1/1.nii.gz": ("1", "a"),
        "t2/1.nii.gz": ("1", "a"),
        "t1/2.nii.gz": ("2", "b"),
        "t2/2.nii.gz": ("2", "b"),
    }


def test_patients_may_have_a_folder_or_a_single_file_and_lie_at_any_depth(joined):
    rows, _ = joined(["A.nii.gz", "B/x.nii.gz", "C/y/x.nii.gz"], ["id", "label"], zip("ABC", "xyz", strict=True))
    assert labels_of(rows) == {"A.nii.gz": "x", "B/x.nii.gz": "y", "C/y/x.nii.gz": "z"}


def test_a_patient_id_of_the_header_goes_before_the_same_numbers_of_series_folders(tmp_path):
    """Patient 3 has a row and no scan, and every patient has a folder 3."""
    scans = [
        Scan("", "", f"{folder}/{series}", names_of(f"/t/{folder}/{series}", "/t", {"Patient ID": patient}))
        for folder, patient in (("x", "1"), ("y", "2"), ("z", "4"), ("w", "5"))
        for series in ("1", "3")
    ]
    table = Table(("id",), tuple((str(one),) for one in range(1, 6)), tuple("abcde"), tmp_path)
    found = find_rows(list(enumerate(table.column("id"))), scans, lambda one, other: False)
    best = deciding_kind(found, scans, table)
    assert (best.kind, [best.rows[scan] for scan in range(8)]) == (
        "Patient ID",
        [(0,), (0,), (1,), (1,), (3,), (3,), (4,), (4,)],
    )


def test_a_column_of_subjects_groups_the_scans(joined):
    rows, notes = joined(["a.nii.gz", "b.nii.gz"], ["file", "subject_id", "label"], [("a", 7, "x"), ("b", 7, "y")])
    assert [row["patient"] for row in rows.values()] == ["7", "7"]
    assert "column 'subject_id' read as the patient" in notes


@pytest.mark.parametrize("name", ["case", "label", "image:t1", "image"])
def test_columns_with_names_of_the_case_table_become_covariates(joined, tmp_path, name):
    header = ["scan", name, "finding"]
    joined(["a.nii.gz", "b.nii.gz"], header, [("a", "c1", "x"), ("b", "c2", "y")], label_column="finding")
    study = open_study(str(tmp_path / "cases.csv"))
    assert [(case.case, case.label, case.covariates) for case in study.cases] == [
        ("a", "x", {f"covariate_{name}": "c1"}),
        ("b", "y", {f"covariate_{name}": "c2"}),
    ]


def test_columns_that_differ_in_capitals_are_all_kept(joined):
    rows, _ = joined(["a.nii.gz"], ["scan", "Age", "age", "label"], [("a", 1, 2, "x")])
    assert (rows["a.nii.gz"]["Age"], rows["a.nii.gz"]["age"]) == ("1", "2")
