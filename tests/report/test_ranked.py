"""The likeliest classes of a case, by hand."""

import csv

import numpy as np

from medvol.inference.collect import Predictions
from medvol.report.ranked import ranked, ranked_table, write_ranked

CLASSES = ("a", "b", "c", "d", "e", "f", "g")


def predictions(*rows):
    probabilities = np.array(rows)
    names = tuple(f"case{index}" for index in range(len(rows)))
    return Predictions(names, names, np.log(probabilities), probabilities, None)


def test_the_five_likeliest_come_first_to_last_with_percentages(tmp_path):
    found = predictions([0.05, 0.4, 0.3, 0.01, 0.1, 0.08, 0.06])
    assert [name for name, _ in ranked(found, CLASSES)[0]] == ["b", "c", "e", "f", "g"]
    path = write_ranked(tmp_path / "top5.csv", found, CLASSES)
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert (row["case"], row["class_1"], row["percent_1"], row["class_5"], row["percent_5"]) == (
        *("case0", "b", "40.00"),
        *("g", "6.00"),
    )
    assert ranked_table(found, CLASSES, top=2) == ["  case0: b 40.0 %, c 30.0 %"]


def test_fewer_classes_are_all_listed_and_equal_ones_keep_their_order(tmp_path):
    found = predictions([0.5, 0.5], [0.2, 0.8])
    assert ranked(found, ("a", "b")) == [[("a", 50.0), ("b", 50.0)], [("b", 80.0), ("a", 20.0)]]
    header = write_ranked(tmp_path / "top5.csv", found, ("a", "b")).read_text().splitlines()[0]
    assert header == "case,class_1,percent_1,class_2,percent_2"


def test_a_long_list_is_cut_in_the_log_alone():
    found = predictions(*[[0.5, 0.5]] * 23)
    lines = ranked_table(found, ("a", "b"))
    assert (len(lines), lines[-1]) == (21, "  and 3 more")
