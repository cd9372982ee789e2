"""The case table as the rest of medvol uses it: checks, items, files, hash."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.data import (
    Case,
    Study,
    assign_splits,
    content_hash,
    items,
    open_study,
    require_task,
    with_classes,
    write_table,
)
from medvol.data.checks import check_study
from medvol.data.table import require_features, require_images
from medvol.errors import MESSAGE_LIMIT, MedvolError


@pytest.fixture
def study(tmp_path: Path) -> Study:
    for name in "abcd":
        (tmp_path / f"{name}.npy").write_bytes(b"x" * (ord(name) - 90))
    cases = tuple(
        Case(name, f"p{name}", (str(tmp_path / f"{name}.npy"),), label, "train", {"age": age, "site": "north"})
        for name, label, age in zip("abcd", ("well", "ill", "well", "ill"), (41.0, 7.5, None, 63.0), strict=True)
    )
    return Study(cases, "classification", ("well", "ill"), source=str(tmp_path / "cases.csv"))


def refused(code: str, study: Study, **options: bool) -> MedvolError:
    with pytest.raises(MedvolError) as caught:
        check_study(study, **options)
    assert caught.value.code == code
    assert len(str(caught.value)) <= MESSAGE_LIMIT
    return caught.value


def with_case(study: Study, index: int, **changes: object) -> Study:
    cases = list(study.cases)
    cases[index] = replace(cases[index], **changes)
    return replace(study, cases=tuple(cases))


def test_a_sound_study_passes(study: Study) -> None:
    check_study(study)


def test_items_hold_the_class_index_in_the_order_of_the_classes(study: Study) -> None:
    first, second, *_ = items(study, "train")
    assert first == {
        "case": "a",
        "patient": "pa",
        "split": "train",
        "image": study.cases[0].image[0],
        "label": 0,
        "label_name": "well",
    }
    assert (second["label"], second["label_name"]) == (1, "ill")


def test_items_of_two_channels_list_two_references(study: Study) -> None:
    two = with_case(study, 0, image=("/x/t1.nii", "/x/t2.nii"))
    assert items(two)[0]["image"] == ["/x/t1.nii", "/x/t2.nii"]


def test_items_have_no_key_that_starts_with_image_underscore(study: Study) -> None:
    assert not [key for item in items(study) for key in item if key.startswith("image_")]


def test_items_without_label_or_image_leave_the_keys_out() -> None:
    bare = Study((Case("a", "a", covariates={"age": 3.0}),), "unlabelled", channels=())
    assert items(bare) == [{"case": "a", "patient": "a", "split": None}]


def test_items_of_a_mistyped_split_offer_the_nearest(study: Study) -> None:
    with pytest.raises(MedvolError, match=r"BAD_SPLIT.*did you mean 'train'"):
        items(study, "trian")


def test_items_of_an_empty_split_name_those_that_are_not(study: Study) -> None:
    with pytest.raises(MedvolError, match=r"EMPTY_SPLIT.*splits with cases: train.*remove the column 'split'"):
        items(study, "val")


def test_an_empty_split_that_medvol_drew_is_told_to_lack_patients(study: Study) -> None:
    unsplit = replace(study, cases=tuple(replace(case, split=None) for case in study.cases[:3]))
    with pytest.raises(
        MedvolError, match=r"EMPTY_SPLIT.*'val': 3 patients, at most 2 of a class.*at least 3"
    ) as caught:
        items(assign_splits(unsplit), "val")
    assert "remove" not in str(caught.value)
    whole = replace(study, cases=tuple(replace(case, label="ill", split=None) for case in study.cases))
    with pytest.raises(MedvolError, match=r"EMPTY_SPLIT.*give it a share"):
        items(assign_splits(whole, fractions=(0.7, 0.3, 0)), "test")


def test_an_empty_split_of_a_source_without_columns_speaks_of_none(study: Study) -> None:
    with pytest.raises(MedvolError, match=r"EMPTY_SPLIT.*the source brings none") as caught:
        items(assign_splits(replace(with_case(study, 0, split="val"), source="/data/set.npz")), "test")
    assert "remove" not in str(caught.value)


def test_a_repeated_case_name_is_refused(study: Study) -> None:
    assert refused("DUPLICATE_CASE", with_case(study, 1, case="a")).case == "a"


def test_case_names_that_differ_in_capitals_only_are_refused(study: Study) -> None:
    assert "capitals" in refused("DUPLICATE_CASE", with_case(study, 1, case="A")).found


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden", "a:b", "x" * 181, "a\n", "a.", "a\\b"])
def test_a_case_name_that_is_no_file_name_is_refused(study: Study, name: str) -> None:
    refused("BAD_CASE_NAME", with_case(study, 1, case=name))


def test_a_missing_file_is_named_with_its_case_and_the_nearest_existing_one(study: Study) -> None:
    path = Path(study.cases[1].image[0]).with_name("bb.npy")
    error = refused("MISSING_FILE", with_case(study, 1, image=(str(path),)))
    assert (error.case, error.file) == ("b", str(path))
    assert "1 of 4" in error.found
    assert "did you mean 'b.npy'" in error.fix
    assert error.details == (f"b: {path}",)


def test_a_missing_mask_is_refused(study: Study, tmp_path: Path) -> None:
    masks = replace(study, task="segmentation", classes=())
    for index in range(4):
        masks = with_case(masks, index, label=str(tmp_path / "a.npy"))
    check_study(masks)
    refused("MISSING_FILE", with_case(masks, 2, label=str(tmp_path / "z.npy")))


def test_a_patient_on_both_sides_of_a_split_is_refused_without_naming_the_patient(study: Study) -> None:
    leaky = with_case(with_case(study, 0, patient="Jane Roe"), 3, patient="Jane Roe", split="test")
    error = refused("SPLIT_LEAK", leaky)
    assert error.details == ("a (train) and d (test)",)
    assert "Jane" not in str(error) + "".join(error.details)


def test_one_image_under_two_patients_is_refused(study: Study) -> None:
    refused("SPLIT_LEAK", with_case(study, 1, image=study.cases[0].image))


def test_another_word_than_train_val_test_is_refused(study: Study) -> None:
    assert "did you mean 'test'" in refused("BAD_SPLIT", with_case(study, 0, split="tests")).fix


def test_a_case_without_label_is_refused_unless_labels_are_optional(study: Study) -> None:
    half = with_case(study, 2, label=None)
    assert refused("NO_LABEL", half).case == "c"
    check_study(half, require_label=False)


def test_a_label_that_is_no_class_offers_the_nearest(study: Study) -> None:
    assert "did you mean 'well'" in refused("UNKNOWN_LABEL", with_case(study, 2, label="wel")).fix


def test_one_class_is_refused_for_training_and_allowed_for_prediction(study: Study) -> None:
    one = replace(study, classes=("well",), cases=(study.cases[0], study.cases[2]))
    refused("ONE_CLASS", one)
    check_study(one, require_label=False)


def test_cases_with_different_numbers_of_images_are_refused(study: Study) -> None:
    refused("CHANNEL_MISMATCH", with_case(study, 1, image=study.cases[1].image * 2))


def test_a_study_without_cases_is_refused(study: Study) -> None:
    refused("EMPTY_DATASET", replace(study, cases=()))


def test_a_number_where_a_mask_is_expected_is_refused(study: Study) -> None:
    refused("BAD_LABEL", with_case(replace(study, task="segmentation"), 0, label=3.0))


def test_a_study_of_another_kind_is_refused(study: Study) -> None:
    with pytest.raises(MedvolError, match=r"WRONG_KIND.*classification.*expected one for segmentation"):
        require_task(study, "segmentation")
    with pytest.raises(MedvolError, match=r"WRONG_KIND.*2 features without images"):
        require_images(with_case(study, 0, image=()))
    with pytest.raises(MedvolError, match=r"WRONG_KIND.*without covariates"):
        require_features(replace(study, cases=tuple(replace(case, covariates={}) for case in study.cases)))
    require_task(study, "classification")
    require_images(study)
    require_features(study)


def test_classes_of_a_model_replace_the_order_of_the_study(study: Study) -> None:
    assert [item["label"] for item in items(with_classes(study, ("other", "ill", "well")))] == [2, 1, 2, 1]
    with pytest.raises(MedvolError, match=r"UNKNOWN_LABEL: case b.*'ill'.*expected one of: well, sick"):
        with_classes(study, ("well", "sick"))


def test_a_written_table_reads_back_with_its_order_of_classes(study: Study, tmp_path: Path) -> None:
    study = replace(study, laterality_matters=False)
    write_table(study, tmp_path / "cases.csv")
    again = open_study(str(tmp_path / "cases.csv"))
    assert again.cases == study.cases
    assert (again.classes, again.task, again.laterality_matters) == (("well", "ill"), "classification", False)
    assert (tmp_path / "cases.csv").read_text().splitlines()[:2] == [
        "case,patient,image,label,split,age,site",
        "a,pa,a.npy,well,train,41,north",
    ]


def test_facts_beside_a_table_are_those_of_its_own_label_column(study: Study, tmp_path: Path) -> None:
    write_table(study, tmp_path / "cases.csv")
    by_site = open_study(str(tmp_path / "cases.csv"), label_column="site", require_label=False)
    assert by_site.classes == ("north",)


def test_a_written_table_moves_with_its_folder(study: Study, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name in "abcd":
        (tmp_path / f"{name}.npy").rename(tmp_path / "one" / f"{name}.npy")
    moved = replace(
        study,
        cases=tuple(replace(case, image=(str(tmp_path / "one" / f"{case.case}.npy"),)) for case in study.cases),
    )
    write_table(moved, tmp_path / "one" / "cases.csv")
    (tmp_path / "one").rename(tmp_path / "two")
    again = open_study(str(tmp_path / "two"))
    assert again.cases[0].image == (str(tmp_path / "two" / "a.npy"),)
    assert content_hash(again) == content_hash(replace(again, source="elsewhere"))


def test_a_covariate_named_like_a_column_of_the_table_survives_writing(study: Study, tmp_path: Path) -> None:
    odd = replace(study, cases=tuple(replace(case, covariates={"label": 3.0}) for case in study.cases))
    write_table(odd, tmp_path / "cases.csv")
    assert open_study(str(tmp_path / "cases.csv")).cases[0].covariates == {"covariate_label": 3.0}


def test_a_failed_write_leaves_the_old_table(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "cases.csv"
    write_table(study, table)
    before = table.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MedvolError):
        write_table(with_case(study, 0, label="ill"), table)
    monkeypatch.undo()
    assert table.read_bytes() == before
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", *[".npy"] * 4]


names = st.text("abcdefgh0123456789_-", min_size=1, max_size=8)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1).map(str.strip).filter(bool)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(names, texts, st.sampled_from(["b, c", "a", 'q"x']), st.none() | st.floats(-1e9, 1e9)),
        min_size=3,
        max_size=8,
        unique_by=lambda row: row[0].casefold(),
    )
)
def test_any_study_reads_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str, float | None]]
) -> None:
    from medvol.data.labels import is_missing

    cases = tuple(
        Case(name, name if is_missing(patient) else patient, label=label, covariates={"dose": dose})
        for name, patient, label, dose in rows
    )
    study = Study(cases, "classification", ("b, c", "a", 'q"x'), channels=())
    path = tmp_path_factory.mktemp("table") / "cases.csv"
    write_table(study, path)
    assert open_study(str(path)).cases == cases


def test_the_hash_ignores_the_order_of_rows_and_sees_every_change(study: Study) -> None:
    digest = content_hash(study)
    assert content_hash(replace(study, cases=study.cases[::-1])) == digest
    changes = [
        with_case(study, 0, label="ill"),
        with_case(study, 0, patient="q"),
        with_case(study, 0, split="test"),
        with_case(study, 0, covariates={"age": 42.0, "site": "north"}),
        with_case(study, 0, image=study.cases[1].image),
    ]
    Path(study.cases[0].image[0]).write_bytes(b"longer than before")
    assert len({content_hash(one) for one in changes} | {digest, content_hash(study)}) == len(changes) + 2


def test_checking_ten_thousand_files_lists_their_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(10_000):
        os.close(os.open(tmp_path / f"{index:05d}.nii", os.O_CREAT | os.O_WRONLY))
    cases = tuple(
        Case(str(index), str(index), (str(tmp_path / f"{index:05d}.nii"),), ("no", "yes")[index % 2])
        for index in range(10_000)
    )
    listed: list[str] = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or real(path))
    monkeypatch.setattr(Path, "exists", lambda path: pytest.fail(f"looked up {path}"))
    start = time.perf_counter()
    check_study(Study(cases, "classification", ("no", "yes")))
    assert listed == [str(tmp_path)]
    assert time.perf_counter() - start < 3  # 0.1 s on two cores; the margin is for a busy machine
