"""The command `medvol table`: what it writes, and over what it does not write."""

import re

import pytest

from medvol.cli import main
from medvol.data.sources import open_study
from medvol.phantoms.cohort import classification_cohort


@pytest.fixture
def table(tmp_path):
    return classification_cohort(tmp_path / "study", patients=12, size=(14, 13, 12))


def test_it_writes_what_can_be_read_again(table, tmp_path, capsys):
    assert main(["table", str(table), "-o", str(tmp_path / "new.csv")]) == 0
    assert "cases of 12 patients, classification" in capsys.readouterr().out
    assert {case.case for case in open_study(str(tmp_path / "new.csv")).cases} == {
        case.case for case in open_study(str(table)).cases
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cases.csv", "the source itself.*pass another -o"),
        ("link.csv", "the source itself"),
        ("new.json", r"ends in '\.json'; expected a CSV file; pass -o .*new\.csv"),
        ("", r"a folder; expected a CSV file; pass -o .*cases\.csv"),
    ],
)
def test_it_writes_over_no_source_and_under_no_name_of_another_format(table, name, words, capsys):
    (table.parent / "link.csv").symlink_to(table)
    before = table.read_text()
    assert main(["table", str(table), "-o", str(table.parent / name)]) == 1
    assert table.read_text() == before
    assert re.search(f"BAD_VALUE: .*{words}", capsys.readouterr().err)
