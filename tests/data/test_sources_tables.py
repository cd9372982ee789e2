"""Tables as people save them: CSV in every dialect, JSON rows, features, and the labels in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.data import Study, items, open_study, write_table
from medvol.data.labels import as_number, class_name, is_missing, sorted_classes
from medvol.errors import MESSAGE_LIMIT, MedvolError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdef":
        (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
        (tmp_path / f"{name}_mask.nii.gz").write_bytes(b"x")
    return tmp_path


def table(folder: Path, text: str | bytes, **options: object) -> Study:
    path = folder / "cases.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_study(str(path), **options)  # type: ignore[arg-type]


def refused(code: str, folder: Path, text: str | bytes, **options: object) -> MedvolError:
    with pytest.raises(MedvolError) as caught:
        table(folder, text, **options)
    assert caught.value.code == code, str(caught.value)
    assert len(str(caught.value)) <= MESSAGE_LIMIT
    return caught.value


PLAIN = "case,patient,image,label,split,age\none,007,a.nii.gz,well,train,41.5\ntwo,7,b.nii.gz,ill,test,\n"


def test_a_plain_table_is_read_as_it_stands(folder: Path) -> None:
    study = table(folder, PLAIN)
    first, second = study.cases
    assert (first.case, first.patient, first.label, first.split) == ("one", "007", "well", "train")
    assert (first.image, first.covariates) == ((str(folder / "a.nii.gz"),), {"age": 41.5})
    assert (second.patient, second.covariates) == ("7", {"age": None})
    assert (study.task, study.classes, study.channels) == ("classification", ("ill", "well"), ("image",))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: ("\ufeff" + text).encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.replace(",", " | ").encode(),
        lambda text: text.replace("\n", "\n\n,,,,,\n").encode(),
        lambda text: text.replace("\n", ",,\n").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("well", '"well"').encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: text.replace("a.nii.gz", ".\\a.nii.gz").encode(),
    ],
    ids=["mark", "crlf", "semicolon", "tab", "bar", "blank lines", "trailing", "utf16", "quotes", "no end", "windows"],
)
def test_every_dialect_reads_the_same(folder: Path, change: object) -> None:
    assert table(folder, change(PLAIN)).cases == table(folder, PLAIN).cases  # type: ignore[operator]


def test_a_quoted_comma_belongs_to_its_cell(folder: Path) -> None:
    study = table(folder, 'image,label\na.nii.gz,"normal, benign"\nb.nii.gz,ill\n')
    assert study.classes == ("ill", "normal, benign")


def test_decimal_commas_are_read_between_semicolons_and_only_there(folder: Path) -> None:
    assert table(folder, "age;label\n1,5;a\n2;b\n").cases[0].covariates == {"age": 1.5}
    assert table(folder, 'age,label\n"1,5",a\n2,b\n').cases[0].covariates == {"age": "1,5"}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("DUPLICATE_COLUMN", "image,label,label\na.nii.gz,x,y\n"),
        ("BAD_TABLE", "image,label\na.nii.gz,x,y,z\n"),
        ("BAD_TABLE", "image,label,age\na.nii.gz,x\n"),
        ("BAD_TABLE", 'image,label\na.nii.gz,"x\n'),
        ("BAD_TABLE", "image,label\na.nii.gz,gr\xfcn\n".encode("latin-1")),
        ("BAD_TABLE", b"image,label\na.nii.gz,\x00\xff\n"),
        ("EMPTY_DATASET", "image,label\n"),
        ("EMPTY_DATASET", "\n\n"),
        ("MISSING_FILE", "image,label\na.nii.gz,x\n,y\n"),
        ("BAD_CASE_NAME", "case,image,label\none,a.nii.gz,x\n,b.nii.gz,y\n"),
        ("BAD_CASE_NAME", "case,image,label\none/two,a.nii.gz,x\nthree,b.nii.gz,y\n"),
        ("DUPLICATE_CASE", "case,image,label\none,a.nii.gz,x\none,b.nii.gz,y\n"),
        ("DUPLICATE_CASE", "image,label\na.nii.gz,x\na.nii.gz,y\n"),
        ("SPLIT_LEAK", "patient,image,label,split\n1,a.nii.gz,x,train\n1,b.nii.gz,y,test\n"),
        ("ONE_CLASS", "image,label\na.nii.gz,x\nb.nii.gz,x\n"),
        ("NO_LABEL", "image,label\na.nii.gz,x\nb.nii.gz,\n"),
        ("NO_LABEL", "image,label\na.nii.gz,x\nb.nii.gz,NA\n"),
        ("UNKNOWN_LABEL", "image,label\na.nii.gz,Ill\nb.nii.gz,ill\nc.nii.gz,well\n"),
        ("BAD_LABEL", "image,label\na.nii.gz,a_mask.nii.gz\nb.nii.gz,ill\n"),
        ("AMBIGUOUS_COLUMN", "image,patient id,patient_id,label\na.nii.gz,1,2,x\nb.nii.gz,3,4,y\n"),
    ],
)
def test_a_table_that_would_be_misread_is_refused(folder: Path, code: str, text: str) -> None:
    refused(code, folder, text)


def test_a_missing_file_is_named_with_the_nearest_and_the_count(folder: Path) -> None:
    error = refused("MISSING_FILE", folder, "image,label\na.nii.gz,x\ng_mask.nii.gz,y\nzz.nii.gz,x\n")
    assert (error.case, error.file) == ("g_mask", str(folder / "g_mask.nii.gz"))
    assert error.found.startswith("2 of 3 files")
    assert "_mask.nii.gz'?" in error.fix
    assert len(error.details) == 2


def test_the_only_unlabelled_row_is_named(folder: Path) -> None:
    error = refused("NO_LABEL", folder, "image,label\na.nii.gz,x\nb.nii.gz,y\nc.nii.gz,?\n")
    assert (error.case, error.found) == ("c", "1 of 3 cases have no label, this one '?'")


@pytest.mark.parametrize(
    ("text", "options", "hint"),
    [
        ("image,lable\na.nii.gz,x\nb.nii.gz,y\n", {}, "did you mean 'lable'"),
        ("image,label\na.nii.gz,x\n", {"label_column": "diagnosis"}, "check the name"),
        ("image,Diagnosis\na.nii.gz,x\n", {"label_column": "diagnosis"}, "did you mean 'Diagnosis'"),
        ("image,label,pateint\na.nii.gz,x,1\n", {}, "did you mean 'pateint'"),
        ("image,label,slpit\na.nii.gz,x,train\n", {}, "did you mean 'slpit'"),
        ("imge,label\na.nii.gz,x\n", {}, "did you mean 'imge'"),
        ("scan,label\na.nii.gz,x\n", {}, "rename it to 'image'"),
        ("image,diagnosis\na.nii.gz,x\n", {}, "rename the column to 'label' or name another by --label-column"),
        ("image,label\na.nii.gz,x\n", {"patient_column": "patiant"}, "check the name"),
        ("age,labell,weight\n3,x,4\n", {}, "did you mean 'labell'"),
    ],
)
def test_a_mistyped_column_offers_the_nearest(folder: Path, text: str, options: dict[str, str], hint: str) -> None:
    assert hint in refused("MISSING_COLUMN", folder, text, **options).fix


@pytest.mark.parametrize(
    "name",
    [
        *("Patient", "patient_id", "PatientID", "Patient ID", "patients", "Subject", "subject_id", "subjectid", "MRN"),
        *("PatientNumber", "patient_number", "patient-nr", "patient no", "PatNr", "pat_id", "Participant-ID", "SubjID"),
    ],
)
def test_other_spellings_of_the_patient_column_group_all_the_same(folder: Path, name: str) -> None:
    study = table(folder, f"image,label,{name}\na.nii.gz,x,7\nb.nii.gz,y,7\n")
    assert [case.patient for case in study.cases] == ["7", "7"]
    assert f"column '{name}' read as the patient" in study.notes


def test_a_list_without_a_header_is_told_to_get_one(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "list.csv").write_text("a.nii.gz\nb.nii.gz\nc.nii.gz\n")
    with pytest.raises(MedvolError, match="MISSING_COLUMN.*add a first line that names the columns, this one 'image'"):
        open_study(str(tmp_path / "list.csv"), require_label=False)


def test_a_column_may_be_declared_to_be_none_of_ours(folder: Path) -> None:
    study = table(folder, "image,label,patient\na.nii.gz,x,7\nb.nii.gz,y,7\n", patient_column="")
    assert [case.patient for case in study.cases] == ["a", "b"]
    assert study.cases[0].covariates == {"patient": 7.0}


def test_columns_may_have_other_names(folder: Path) -> None:
    study = table(
        folder,
        "scan,dx,who,part\na.nii.gz,x,7,train\nb.nii.gz,y,8,val\n",
        image_column="scan",
        label_column="dx",
        patient_column="who",
        split_column="part",
    )
    assert [(case.label, case.patient, case.split) for case in study.cases] == [("x", "7", "train"), ("y", "8", "val")]


def test_several_images_of_a_case_are_channels(folder: Path) -> None:
    study = table(folder, "case,image:t1,image:flair,label\none,a.nii.gz,b.nii.gz,x\ntwo,c.nii.gz,d.nii.gz,y\n")
    assert study.channels == ("t1", "flair")
    assert study.cases[1].image == (str(folder / "c.nii.gz"), str(folder / "d.nii.gz"))


def test_a_reference_into_an_array_is_found_by_its_file(folder: Path) -> None:
    (folder / "a#b.npy").write_bytes(b"x")
    study = table(folder, "image,label\na.nii.gz#3,x\na#b.npy,y\n")
    assert [case.image[0] for case in study.cases] == [f"{folder}/a.nii.gz#3", f"{folder}/a#b.npy"]
    assert study.cases[0].case == "a_3"
    refused("MISSING_FILE", folder, "image,label\nzz.npy#3,x\na.nii.gz,y\n")


def test_names_are_the_stems_or_the_paths_where_stems_repeat(folder: Path) -> None:
    for case in ("x", "y"):
        (folder / case).mkdir()
        (folder / case / "t1.nii.gz").write_bytes(b"x")
    study = table(folder, "image,label\nx/t1.nii.gz,0\ny/t1.nii.gz,1\n")
    assert [case.case for case in study.cases] == ["x_t1", "y_t1"]
    assert [case.case for case in table(folder, "image,label\na.nii.gz,0\nb.nii.gz,1\n").cases] == ["a", "b"]


@pytest.mark.parametrize("word", ["valid", "Validation", "VAL", "dev"])
def test_other_words_for_val_are_read_with_a_note(folder: Path, word: str) -> None:
    study = table(folder, f"image,label,split\na.nii.gz,x,train\nb.nii.gz,y,{word}\n")
    assert study.cases[1].split == "val"
    assert f"split '{word}' read as 'val'" in study.notes


def test_an_unknown_split_names_its_case_and_the_nearest(folder: Path) -> None:
    error = refused("BAD_SPLIT", folder, "image,label,split\na.nii.gz,x,train\nb.nii.gz,y,tset\n")
    assert (error.case, error.fix) == ("b", "did you mean 'test'?")


@pytest.mark.parametrize("name", ["subset", "Set", "PARTITION"])
def test_another_name_of_the_split_column_is_read_where_its_cells_are_splits(folder: Path, name: str) -> None:
    text = "image,label,{}\na.nii.gz,x,{}\nb.nii.gz,y,Training\nc.nii.gz,x,\n"
    study = table(folder, text.format(name, "dev"))
    assert [case.split for case in study.cases] == ["val", "train", None]
    assert f"column '{name}' read as the split" in study.notes
    other = table(folder, text.format(name, "north"))
    assert [case.split for case in other.cases] == [None] * 3
    assert other.cases[0].covariates == {name: "north"}


def test_the_column_split_comes_before_other_names_of_it(folder: Path) -> None:
    study = table(folder, "image,label,subset,Split\na.nii.gz,x,test,train\nb.nii.gz,y,train,val\n")
    assert [case.split for case in study.cases] == ["train", "val"]
    assert "column 'subset' holds only words for splits, but was read as a covariate" in study.notes


@pytest.mark.parametrize(
    "text",
    ["image,label,phase\na.nii.gz,x,train\nb.nii.gz,y,test\n", "age,label,phase\n3,x,train\n4,y,\n5,x,Valid\n"],
    ids=["images", "features"],
)
def test_a_column_of_splits_under_a_foreign_name_is_no_covariate(folder: Path, text: str) -> None:
    error = refused("AMBIGUOUS_COLUMN", folder, text)
    assert "'phase'" in error.found
    assert "rename it to 'split'" in error.fix
    study = table(folder, text, split_column="")
    assert "column 'phase' holds only words for splits, but was read as a covariate" in study.notes


def test_a_label_of_train_and_test_is_a_label_where_it_is_named(folder: Path) -> None:
    study = table(folder, "image,phase\na.nii.gz,train\nb.nii.gz,test\n", label_column="phase")
    assert study.classes == ("test", "train")


def test_rows_without_a_split_are_counted(folder: Path) -> None:
    study = table(folder, "image,label,split\na.nii.gz,x,train\nb.nii.gz,y,\n")
    assert "1 of 2 cases have no split yet" in study.notes


# --- labels ---------------------------------------------------------------------------------------------------------


def labelled(folder: Path, *cells: str, **options: object) -> Study:
    rows = "".join(f"{index},{index},{cell}\n" for index, cell in enumerate(cells))
    return table(folder, "case,dose,label\n" + rows, **options)


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        (("x", "y", "x"), "classification", ("x", "y")),
        (("1", "0", "1"), "classification", ("0", "1")),
        (("1.0", "0.0", "1"), "classification", ("0", "1")),
        (("10", "9", "10", "9"), "classification", ("9", "10")),
        (("-1", "1", "-1"), "classification", ("-1", "1")),
        (("0", "1", "2", "0", "1", "2"), "classification", ("0", "1", "2")),
        (("0", "1", "2"), "regression", ()),
        (("41", "7", "63", "12"), "regression", ()),
        (("0.5", "1.5", "0.5"), "regression", ()),
        (tuple(str(number) for number in range(21)) * 3, "regression", ()),
        (("None", "tumour", "None"), "classification", ("None", "tumour")),
        (("True", "False", "True"), "classification", ("False", "True")),
    ],
)
def test_the_task_follows_from_the_labels(folder: Path, cells: tuple[str, ...], task: str, classes: object) -> None:
    study = labelled(folder, *cells)
    assert (study.task, study.classes) == (task, classes)


def test_the_task_may_be_forced(folder: Path) -> None:
    assert labelled(folder, "0", "1", "1", task="regression").cases[1].label == 1.0
    assert labelled(folder, "3", "40", "5", task="classification").classes == ("3", "5", "40")
    assert labelled(folder, "x", "y", task="unlabelled").cases[0].label is None


def test_a_text_among_numbers_to_regress_is_refused(folder: Path) -> None:
    with pytest.raises(MedvolError, match="BAD_LABEL: case 2"):
        labelled(folder, "1.5", "2.5", "high", task="regression")


def test_free_text_is_not_taken_for_classes(folder: Path) -> None:
    with pytest.raises(MedvolError, match=r"BAD_LABEL.*30 different texts in 30 labels"):
        labelled(folder, *(f"report {index}" for index in range(30)))


def test_classes_that_are_given_fix_order_and_set(folder: Path) -> None:
    study = labelled(folder, "ill", "well", "ill", classes=("well", "ill", "other"))
    assert [item["label"] for item in items(study)] == [1, 0, 1]
    with pytest.raises(MedvolError, match=r"UNKNOWN_LABEL: case 1.*did you mean 'well'"):
        labelled(folder, "ill", "wel", classes=("well", "ill"))


def test_paths_of_masks_make_a_segmentation(folder: Path) -> None:
    study = table(folder, "image,label\na.nii.gz,a_mask.nii.gz\nb.nii.gz,b_mask.nii.gz\n")
    assert (study.task, study.cases[0].label) == ("segmentation", str(folder / "a_mask.nii.gz"))
    refused("MISSING_FILE", folder, "image,label\na.nii.gz,a_mask.nii.gz\nb.nii.gz,x_mask.nii.gz\n")


def test_a_class_named_like_a_folder_beside_the_table_is_a_class(folder: Path) -> None:
    (folder / "ill").mkdir()
    (folder / "well").mkdir()
    assert table(folder, "image,label\na.nii.gz,ill\nb.nii.gz,well\n").task == "classification"


def test_prediction_needs_no_label_column(folder: Path) -> None:
    study = table(folder, "image,age\na.nii.gz,3\nb.nii.gz,4\n", require_label=False)
    assert (study.task, study.cases[0].label) == ("unlabelled", None)
    assert table(folder, "age,weight\n3,1\n4,2\n", require_label=False).cases[0].covariates == {"age": 3, "weight": 1}


@given(st.lists(st.integers(-50, 50).map(str), min_size=1))
@settings(max_examples=30, deadline=None)
def test_numeric_class_names_sort_as_numbers(names: list[str]) -> None:
    assert [int(name) for name in sorted_classes(names)] == sorted({int(name) for name in names})


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=50, deadline=None)
def test_a_number_survives_as_text(number: float) -> None:
    assert as_number(repr(number)) == number
    assert float(class_name(number)) == number


@pytest.mark.parametrize("text", ["1_000", "infinity", "0x10", "1e400", "٣", "1,5", "--1", "1 2"])
def test_a_text_that_only_python_takes_for_a_number_is_text(text: str) -> None:
    assert as_number(text) is None


def test_none_is_a_class_and_na_is_nothing() -> None:
    assert [is_missing(cell) for cell in ("", " na ", "?", "NaN", None, float("nan"))] == [True] * 6
    assert not [cell for cell in ("none", "0", 0, False, "no") if is_missing(cell)]


# --- features -------------------------------------------------------------------------------------------------------


def test_a_table_of_features_takes_its_last_column_as_label(folder: Path) -> None:
    study = table(folder, "age,sex,target\n3,m,ill\n4,f,well\n")
    assert (study.channels, study.cases[0].image, study.cases[0].case) == ((), (), "row_0000")
    assert (study.cases[0].covariates, study.cases[0].label) == ({"age": 3.0, "sex": "m"}, "ill")


def test_a_table_without_header_numbers_its_columns(folder: Path) -> None:
    study = table(folder, "1.5,2,x\n3,4,y\n")
    assert [case.covariates for case in study.cases] == [
        {"column_1": 1.5, "column_2": 2},
        {"column_1": 3, "column_2": 4},
    ]


def test_the_numbers_that_pandas_writes_are_a_header(folder: Path) -> None:
    study = table(folder, ",0,1,label\n0,1.5,2,x\n1,3,4,y\n")
    assert [case.covariates for case in study.cases] == [{"0": 1.5, "1": 2}, {"0": 3, "1": 4}]
    assert "a column that only counts the rows was left out" in study.notes


def test_single_quotes_around_whole_columns_are_removed(folder: Path) -> None:
    study = table(folder, "1.5,'ill'\n3,'well'\n")
    assert study.classes == ("ill", "well")


def test_a_repeating_id_is_pointed_out(folder: Path) -> None:
    study = table(folder, "id,pulse,label\n1,60,x\n1,70,y\n2,80,x\n")
    assert "column 'id' repeats: if it names patients, rename it to 'patient'" in study.notes


@pytest.mark.parametrize(("name", "head"), [("cases.xlsx", b"PK\x03\x04"), ("cases.csv", b"\xd0\xcf\x11\xe0")])
def test_a_spreadsheet_is_refused_by_name_with_the_way_out(tmp_path: Path, name: str, head: bytes) -> None:
    (tmp_path / name).write_bytes(head + bytes(40))
    with pytest.raises(MedvolError, match="BAD_TABLE.*a spreadsheet; expected a text table; save it as 'CSV UTF-8'"):
        open_study(str(tmp_path / name))


def test_no_refusal_of_a_table_speaks_of_python_to_the_reader_of_a_command_line(folder: Path) -> None:
    for code, text in (
        ("NO_LABEL", "image,label\na.nii.gz,\nb.nii.gz,x\n"),
        ("MISSING_COLUMN", "image,age\na.nii.gz,3\n"),
        ("AMBIGUOUS_COLUMN", "image,label,patient id,subject\na.nii.gz,x,1,2\n"),
        ("BAD_LABEL", "image,label\na.nii.gz,b.nii.gz\nc.nii.gz,x\n"),
    ):
        assert "=" not in refused(code, folder, text).fix
    assert not any("=" in note for note in table(folder, "image,label\na.nii.gz,1\nb.nii.gz,2\n").notes)


def test_a_list_without_cases_is_not_answered_with_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"training": []}')
    with pytest.raises(MedvolError, match="EMPTY_DATASET.*no list with cases") as refusal:
        open_study(str(tmp_path))
    assert "did you mean" not in refusal.value.fix


def test_a_label_alone_is_no_study(folder: Path) -> None:
    refused("MISSING_COLUMN", folder, "label\nx\ny\n")


# --- JSON -----------------------------------------------------------------------------------------------------------


def json_table(folder: Path, document: object, **options: object) -> Study:
    (folder / "cases.json").write_text(json.dumps(document))
    return open_study(str(folder / "cases.json"), **options)  # type: ignore[arg-type]


ROWS = [
    {"case": "one", "image": "a.nii.gz", "label": 1, "patient": 7, "age": 41.5},
    {"case": "two", "image": "b.nii.gz", "label": 0, "patient": "007", "age": None},
]


def test_json_rows_read_like_a_table(folder: Path) -> None:
    study = json_table(folder, ROWS)
    assert [case.patient for case in study.cases] == ["7", "007"]
    assert [case.covariates for case in study.cases] == [{"age": 41.5}, {"age": None}]
    assert (study.classes, study.cases[0].label) == (("0", "1"), "1")


def test_json_may_state_facts_of_the_study(folder: Path) -> None:
    study = json_table(folder, {"cases": ROWS, "classes": ["1", "0"], "laterality_matters": False})
    assert (study.classes, study.laterality_matters) == (("1", "0"), False)


def test_json_images_may_be_lists_or_named(folder: Path) -> None:
    listed = json_table(folder, [row | {"image": ["a.nii.gz", "b.nii.gz"]} for row in ROWS[:1]], require_label=False)
    assert (listed.channels, len(listed.cases[0].image)) == (("0", "1"), 2)
    named = json_table(folder, [row | {"image": {"t1": "a.nii.gz"}} for row in ROWS[:1]], require_label=False)
    assert named.channels == ("t1",)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("BAD_TABLE", '{"cases": [], "clases": []}'),
        ("BAD_TABLE", '[{"image": "a.nii.gz", "label": {"a": 1}}]'),
        ("BAD_TABLE", '[{"image": "a.nii.gz", "label": 1},]'),
        ("BAD_TABLE", '"text"'),
        ("BAD_TABLE", "[" * 100_000),
        ("BAD_TABLE", '{"cases": [{"image": "a.nii.gz", "label": 1}], "laterality_matters": "no"}'),
        ("BAD_TABLE", '{"cases": [{"image": "a.nii.gz", "label": 1}], "task": "clasification"}'),
        ("EMPTY_DATASET", "[]"),
        ("MISSING_COLUMN", '[{"image": "a.nii.gz", "lable": 1}]'),
    ],
)
def test_json_that_would_be_misread_is_refused(folder: Path, code: str, text: str) -> None:
    path = folder / "cases.json"
    path.write_text(text)
    with pytest.raises(MedvolError) as caught:
        open_study(str(path))
    assert caught.value.code == code, str(caught.value)


def refusal_of(path: Path) -> str:
    try:
        open_study(str(path))
    except MedvolError as error:
        return str(error)
    return ""


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_no_table_raises_anything_but_a_refusal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "cases.csv"
    path.write_bytes(data)
    assert len(refusal_of(path)) <= MESSAGE_LIMIT
    path = path.with_suffix(".json")
    path.write_bytes(data)
    assert refusal_of(path)


@given(st.lists(st.lists(st.sampled_from(["", "1", "a", "image", "label", "x.nii", "0.5", "'", '"', "?"]), min_size=1)))
@settings(max_examples=100, deadline=None)
def test_no_odd_grid_of_cells_raises_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, grid: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "cases.csv"
    path.write_text("\n".join(",".join(row) for row in grid))
    assert len(refusal_of(path)) <= MESSAGE_LIMIT


def test_a_case_may_lack_its_image_where_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("a_t1", "a_t2", "c_t1", "c_t2"):
        (tmp_path / f"{name}.npy").write_bytes(b"x")
    table = tmp_path / "cases.csv"
    rows = ["a,a_t1.npy,a_t2.npy,x,40", "b,,,y,50", "c,c_t1.npy,c_t2.npy,y,60"]
    table.write_text("\n".join(["case,image:t1,image:t2,label,age", *rows]) + "\n")
    with pytest.raises(MedvolError, match="MISSING_FILE.*line 3 names no image"):
        open_study(str(table))
    study = open_study(str(table), require_image=False)
    assert [len(case.image) for case in study.cases] == [2, 0, 2]
    assert study.cases[1].covariates == {"age": 50.0}
    write_table(study, tmp_path / "again.csv")
    assert open_study(str(tmp_path / "again.csv"), require_image=False).cases == study.cases
    # The first case without an image must not make the table one of features.
    turned = replace(study, cases=(study.cases[1], study.cases[0], study.cases[2]))
    write_table(turned, tmp_path / "turned.csv")
    assert open_study(str(tmp_path / "turned.csv"), require_image=False).cases == turned.cases


def test_a_case_that_lacks_one_of_its_images_is_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "v.npy").write_bytes(b"x")
    (tmp_path / "cases.csv").write_text("image:t1,image:t2,label\nv.npy,v.npy,x\nv.npy,,y\n")
    with pytest.raises(MedvolError, match="MISSING_FILE.*line 3 names no image"):
        open_study(str(tmp_path / "cases.csv"), require_image=False)
