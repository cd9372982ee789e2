"""The step from a row to the network's input."""

import pickle

import torch

from medvol.data.column_facts import ColumnFacts
from medvol.data.facts import Facts
from medvol.transforms.covariates import EncodeCovariatesd, tabular_preprocessing

COLUMNS = (ColumnFacts("age", "number", 50.0, 10.0, 48.0), ColumnFacts("sex", "category", categories=("f", "m")))


def row(age, sex, case="c"):
    return {"case": case, "covariates": {"sex": sex, "age": age}, "label": 1}


def test_the_numbers_stand_under_image_and_the_row_is_gone():
    facts = Facts(("no", "yes"), (), (), None, "", None, False, False, columns=COLUMNS)
    given = row(60.0, "m")
    item = tabular_preprocessing(facts)(given)
    torch.testing.assert_close(item["image"], torch.tensor([1.0, 0.0, 1.0]))
    assert item["image"].dtype == torch.float32
    assert "covariates" not in item
    assert given["covariates"] == {"sex": "m", "age": 60.0}


def test_an_unknown_category_is_warned_of_once(caplog):
    encode = EncodeCovariatesd(COLUMNS)
    encode(row(50.0, "x", "c1"))
    item = encode(row(50.0, "x", "c2"))
    assert item["covariates"].tolist() == [0.0, 0.0, 0.0]
    assert [record.getMessage() for record in caplog.records] == [
        "Case c1: column 'sex' holds 'x', unknown to training: taken as empty"
    ]


def test_it_goes_to_workers():
    encode = pickle.loads(pickle.dumps(EncodeCovariatesd(COLUMNS)))
    assert encode(row(40.0, "f"))["covariates"].tolist() == [-1.0, 1.0, 0.0]
