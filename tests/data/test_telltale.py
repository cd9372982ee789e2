"""Columns that give the label away, and those that only seem to."""

import numpy as np
import pytest

from medvol.data.covariates import fit_columns, tabular_facts
from medvol.data.study import Case, Study
from medvol.data.telltale import telltale_columns

CLASSES = ("no", "yes")


def study_of(cells, labels):
    rows = zip(cells, labels, strict=True)
    cases = [
        Case(f"c{i}", f"p{i}", label=label, split="train", covariates={"a": cell})
        for i, (cell, label) in enumerate(rows)
    ]
    return Study(tuple(cases), "classification", CLASSES, channels=(), source="t.csv")


def labels_of(count):
    return [CLASSES[i % 2] for i in range(count)]


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([("benign", "malignant")[i % 2] for i in range(40)], True),
        ([(f"b{i % 4}", f"m{i % 4}")[i % 2] for i in range(40)], True),
        ([float(i % 2) for i in range(40)], True),
        ([i / 100 + (i % 2) * 5 for i in range(40)], True),
        ([None if i % 4 == 0 else float(i % 2) for i in range(60)], True),
        # One row is another way round.
        ([("malignant", "benign")[i % 2] if i == 7 else ("benign", "malignant")[i % 2] for i in range(40)], False),
        ([float(i % 2) if i != 7 else 0.0 for i in range(40)], False),
        # Two rows a text part the classes by chance.
        ([f"{(i % 2)} {i // 4}" for i in range(40)], False),
        # Too few rows to say.
        ([float(i % 2) for i in range(18)], False),
    ],
)
def test_a_column_that_parts_the_classes_without_an_error_is_told_of(cells, told):
    study = study_of(cells, labels_of(len(cells)))
    assert telltale_columns(study, fit_columns(study)) == (["a"] if told else [])


def test_a_strong_measurement_and_a_class_of_few_rows_are_not_told_of():
    rng = np.random.default_rng(0)
    strong = study_of((rng.normal(0, 1, 100) + 3 * (np.arange(100) % 2)).tolist(), labels_of(100))
    assert telltale_columns(strong, fit_columns(strong)) == []
    rare = study_of([float(i >= 96) for i in range(100)], ["yes" if i >= 96 else "no" for i in range(100)])
    assert telltale_columns(rare, fit_columns(rare)) == []


def test_training_warns_of_it(caplog):
    tabular_facts(study_of([float(i % 2) for i in range(40)], labels_of(40)))
    assert "LEAK: column 'a' alone tells the class of every training row" in caplog.text
