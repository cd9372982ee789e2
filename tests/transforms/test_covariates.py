"""The step from a row to the network's input."""

import pickle

import numpy as np
import pytest
import torch

from medvol.data.cache import CachedVolumes
from medvol.data.column_facts import ColumnFacts
from medvol.data.facts import Facts
from medvol.data.loading import collate_cases
from medvol.errors import find_refusal
from medvol.transforms.covariates import EncodeCovariatesd, fusion_preprocessing, tabular_preprocessing

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


FUSION = Facts(("no", "yes"), ("image",), (7, 8, 9), None, "scaled", (0.0, 255.0), False, True, columns=COLUMNS)


def test_a_case_without_an_image_gets_zeros_of_the_networks_size_and_says_so(tmp_path):
    np.save(tmp_path / "v.npy", np.full((14, 16, 18), 51, np.uint8))
    chain = fusion_preprocessing(FUSION)
    item = chain({**row(60.0, "f"), "image": str(tmp_path / "v.npy")})
    torch.testing.assert_close(item["image"].as_tensor(), torch.full((1, 7, 8, 9), 0.2))
    assert (item["has_image"], item["covariates"].tolist()) == (1, [1.0, 1.0, 0.0])
    item = chain(row(60.0, "f"))
    assert (item["image"].shape, item["image"].abs().sum(), item["has_image"]) == ((1, 7, 8, 9), 0, 0)


def test_a_row_of_which_nothing_is_known_is_nan_and_a_gap_alone_the_median(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((7, 8, 9), np.uint8))
    chain = fusion_preprocessing(FUSION)
    for covariates in ({}, {"age": None, "sex": ""}, {"other": 1.0}):
        item = chain({"case": "c", "covariates": covariates, "image": str(tmp_path / "v.npy")})
        assert item["covariates"].isnan().all()
        assert item["covariates"].shape == (3,)
    item = chain({"case": "c", "covariates": {"age": None, "sex": "f"}, "image": str(tmp_path / "v.npy")})
    torch.testing.assert_close(item["covariates"], torch.tensor([-0.2, 1.0, 0.0]))


def test_a_case_of_nothing_at_all_is_refused():
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps what a step raises
        fusion_preprocessing(FUSION)({"case": "c7", "covariates": {}})
    assert str(find_refusal(wrapped.value)).startswith("EMPTY_CASE: case c7")


def test_the_cache_gives_cases_with_and_without_an_image_as_the_chain_does(tmp_path):
    np.save(tmp_path / "v.npy", np.arange(7 * 8 * 9, dtype=np.uint8).reshape(7, 8, 9))
    cases = [{**row(60.0, "f", "a"), "image": str(tmp_path / "v.npy")}, row(None, "m", "b")]
    chain = fusion_preprocessing(FUSION)
    for _ in range(2):
        cached = CachedVolumes(cases, chain, cache_dir=tmp_path / "cache", progress=False)
        cached.fill()
        batch = collate_cases([cached[0], cached[1]])
        plain = collate_cases([chain(dict(case)) for case in cases])
        for key in ("image", "covariates", "has_image", "label"):
            torch.testing.assert_close(batch[key], plain[key])
    assert cached.cached_steps == len(chain.transforms) - 3  # normalisation, row and filling run on each access
