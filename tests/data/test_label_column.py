"""Which column of a table is the label."""

import pytest

from medvol.data.sources import open_study


@pytest.mark.parametrize(("header", "label", "feature"), [("a,label,Label", "l", "Label"), ("a,b,Label", "L", "b")])
def test_a_column_of_the_very_name_goes_before_a_last_one_of_a_similar_name(tmp_path, header, label, feature):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *(f"{i},l{i % 2},L{i % 2}" for i in range(8))]) + "\n")
    study = open_study(str(path), require_image=False)
    assert study.classes == (f"{label}0", f"{label}1")
    assert feature in study.cases[0].covariates
