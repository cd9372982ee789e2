"""Patients are known again by name; numbers that medvol gives to rows are no names, but the same source is known."""

import csv
import random
from dataclasses import replace

import numpy as np
import pytest

from medvol.bundle.finish import new_record, require_unseen
from medvol.data.facts import Facts
from medvol.data.sources import open_study
from medvol.data.splits import assign_splits
from medvol.data.table import write_table
from medvol.errors import MedvolError
from medvol.inference.record import ModelRecord, patient_digest

FACTS = Facts(("a", "b"), (), (), None, "", None, False, False)
NUMBERS = "patients have no names but numbers of rows"


def table(path, seed, rows=20, names=None):
    """Two features and a class; `names` is a column and its cells."""
    numbers = random.Random(seed)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["age", "sex", "label", *([names[0]] if names else [])])
        for row in range(rows):
            cells = [numbers.random() * 90, "fm"[row % 3 // 2], "ab"[row % 2]]
            writer.writerow([*cells, *([names[1][row]] if names else [])])
    return path


def arrays(folder, seed):
    folder.mkdir()
    for split in ("train", "test"):
        images = np.random.default_rng([seed, len(split)]).integers(0, 255, (6, 5, 5), dtype=np.uint8)
        np.save(folder / f"{split}_images.npy", images)
        np.save(folder / f"{split}_labels.npy", np.arange(6) % 2)
    return folder


def study_of(path, seed=0):
    return assign_splits(open_study(str(path)), seed=seed)


def trained_on(study):
    return new_record(study, FACTS, bundle="x", seeds={})


def all_in(study, split):
    return replace(study, cases=tuple(replace(case, split=split) for case in study.cases))


def test_unnamed_rows_of_another_table_are_other_patients_and_it_is_said_that_nobody_can_tell(tmp_path, caplog):
    record = trained_on(study_of(table(tmp_path / "a.csv", 1)))
    require_unseen(all_in(study_of(table(tmp_path / "b.csv", 2)), "test"), record, "test")
    assert f"20 of 20 test {NUMBERS}" in caplog.text


def test_unnamed_rows_of_the_very_table_are_known_under_another_split_and_from_the_table_of_a_run(tmp_path, caplog):
    path = table(tmp_path / "a.csv", 1)
    study = study_of(path)
    record = trained_on(study)
    require_unseen(study, record, "test")
    assert NUMBERS not in caplog.text
    write_table(study, tmp_path / "cases.csv")
    for same in (study_of(path, seed=5), all_in(open_study(str(tmp_path / "cases.csv")), "test")):
        with pytest.raises(MedvolError, match="LEAK"):
            require_unseen(same, record, "test")
    require_unseen(open_study(str(tmp_path / "cases.csv")), record, "test")


def test_rows_of_another_array_are_other_patients_and_those_of_the_very_array_are_known(tmp_path, caplog):
    folder = arrays(tmp_path / "a", 1)
    study = study_of(folder)
    record = trained_on(study)
    require_unseen(study, record, "test")
    require_unseen(all_in(study, "train"), record, "test")
    with pytest.raises(MedvolError, match=r"LEAK.*6 of 12 test patients"):
        require_unseen(all_in(study, "test"), record, "test")
    assert NUMBERS not in caplog.text
    (tmp_path / "moved").mkdir()
    folder.rename(tmp_path / "moved" / "a")
    with pytest.raises(MedvolError, match=r"LEAK.*6 of 12 test patients"):
        require_unseen(all_in(study_of(tmp_path / "moved" / "a"), "test"), record, "test")
    other = all_in(study_of(arrays(tmp_path / "b", 2)), "test")
    require_unseen(other, record, "test")
    assert f"12 of 12 test {NUMBERS}" in caplog.text


@pytest.mark.parametrize("column", ["patient", "case"])
def test_a_name_that_the_source_gives_is_evidence_in_any_study(tmp_path, column):
    names = (column, [f"P{row}" for row in range(20)])
    record = trained_on(study_of(table(tmp_path / "a.csv", 1, names=names)))
    with pytest.raises(MedvolError, match=r"LEAK.*'patient'"):
        require_unseen(all_in(study_of(table(tmp_path / "b.csv", 2, names=names)), "test"), record, "test")


def test_names_of_files_are_evidence_as_in_records_of_before(tmp_path):
    for name in ("hippocampus_001", "hippocampus_003"):
        (tmp_path / f"{name}.nii.gz").touch()
    with (tmp_path / "cases.csv").open("w", newline="") as stream:
        rows = [(f"hippocampus_00{number}.nii.gz", label, "test") for number, label in ((1, "a"), (3, "b"))]
        csv.writer(stream).writerows([("image", "label", "split"), *rows])
    record = ModelRecord(FACTS, trained_on=(patient_digest("hippocampus_003"),))
    with pytest.raises(MedvolError, match="LEAK.*1 of 2 test patients"):
        require_unseen(open_study(str(tmp_path / "cases.csv")), record, "test")


def test_numbers_in_records_of_before_are_no_evidence(tmp_path, caplog):
    record = ModelRecord(FACTS, trained_on=tuple(patient_digest(f"row_{row:04d}") for row in range(20)))
    require_unseen(all_in(study_of(table(tmp_path / "a.csv", 1)), "test"), record, "test")
    assert NUMBERS in caplog.text
