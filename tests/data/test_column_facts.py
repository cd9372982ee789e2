"""Columns to numbers: by hand, against scikit-learn, and whatever the order of the columns."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.data.column_facts import ColumnFacts, encode_row, oddities
from medvol.data.covariates import check_columns, fit_columns, items_with_covariates, tabular_facts, with_columns
from medvol.data.facts import Facts
from medvol.data.study import Case, Study
from medvol.errors import MESSAGE_LIMIT, MedvolError


def study_of(rows, splits=None):
    splits = splits or ["train"] * len(rows)
    cases = tuple(
        Case(f"c{i}", f"p{i}", label=("no", "yes")[i % 2], split=split, covariates=dict(row))
        for i, (row, split) in enumerate(zip(rows, splits, strict=True))
    )
    return Study(cases, "classification", ("no", "yes"), channels=(), source="here.csv")


def numbers(values, name="age"):
    return study_of([{name: value} for value in values])


def test_a_number_becomes_its_distance_from_the_mean_in_standard_deviations():
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5.
    (column,) = fit_columns(numbers([1.0, 3.0, 5.0, 7.0]))
    assert (column.mean, column.sd, column.fill, column.has_gaps) == (4.0, pytest.approx(5**0.5), 4.0, False)
    np.testing.assert_allclose(encode_row((column,), {"age": 9.0}, "c"), [5 / 5**0.5], rtol=1e-6)


def test_an_empty_cell_is_the_median_and_says_so_where_training_had_gaps():
    (column,) = fit_columns(numbers([0.0, 0.0, None, 9.0]))
    assert (column.mean, column.fill, column.has_gaps) == (3.0, 0.0, True)
    assert column.features == ("age", "age is empty")
    np.testing.assert_allclose(encode_row((column,), {"age": None}, "c"), [-3 / 18**0.5, 1], rtol=1e-6)
    np.testing.assert_allclose(encode_row((column,), {"age": 3.0}, "c"), [0, 0], atol=1e-6)


def test_a_category_becomes_a_one_among_zeros_and_an_empty_cell_zeros():
    (column,) = fit_columns(study_of([{"sex": sex} for sex in ("f", "m", "f", None, "x")]))
    assert column.features == ("sex=f", "sex=m", "sex=x")
    for cell, expected in (("m", [0, 1, 0]), (None, [0, 0, 0]), ("?", [0, 0, 0]), ("new", [0, 0, 0])):
        assert encode_row((column,), {"sex": cell}, "c").tolist() == expected


def test_it_equals_the_pipeline_of_scikit_learn():
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(0)
    table = np.empty((60, 3), dtype=object)
    table[:, 0] = rng.normal(50, 12, 60)
    table[:, 1] = np.where(rng.random(60) < 0.2, np.nan, rng.exponential(3, 60))
    table[:, 2] = rng.choice(["left", "right", "both"], 60)
    rows = [dict(zip("abc", row, strict=True)) for row in table]
    columns = fit_columns(study_of(rows, ["train"] * 40 + ["test"] * 20))
    expected = ColumnTransformer(
        [
            ("a", StandardScaler(), [0]),
            ("b", make_pipeline(StandardScaler(), SimpleImputer(strategy="median", add_indicator=True)), [1]),
            ("c", OneHotEncoder(sparse_output=False), [2]),
        ]
    ).fit(table[:40])
    found = np.stack([encode_row(columns, row, "c") for row in rows])
    np.testing.assert_allclose(found, expected.transform(table).astype(float), rtol=1e-5, atol=1e-6)


@given(st.data())
def test_the_order_of_columns_and_further_columns_change_nothing(data):
    names = ["x", "y", "kind"]
    size = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
    row = st.fixed_dictionaries({"x": size, "y": st.one_of(st.none(), size), "kind": st.sampled_from("abc")})
    rows = data.draw(st.lists(row, min_size=4, max_size=8))
    rows += [{"x": 0.0, "y": 1.0, "kind": "a"}, {"x": 1.0, "y": 2.0, "kind": "b"}]
    order = data.draw(st.permutations(names))
    turned = [{"further": 5.0, **{name: one[name] for name in order}} for one in rows]
    columns = fit_columns(study_of(rows))
    assert fit_columns(study_of(turned)) == columns
    for one, other in zip(rows, turned, strict=True):
        assert encode_row(columns, one, "c").tolist() == encode_row(columns, other, "c").tolist()


def test_rows_of_other_splits_change_nothing_not_even_the_kind_of_a_column():
    rows = [{"age": 1.0, "sex": "f"}, {"age": 2.0, "sex": "m"}, {"age": 4.0, "sex": "f"}]
    alone = fit_columns(study_of(rows))
    # A table with one text in a column of numbers is read as text throughout.
    as_text = [{"age": str(row["age"]), "sex": row["sex"]} for row in rows]
    others = [{"age": "unknown", "sex": "other"}, {"age": "1e9", "sex": None}]
    assert fit_columns(study_of([*as_text, *others], ["train"] * 3 + ["test", "val"])) == alone


def test_text_in_a_column_of_numbers_is_refused_with_its_row():
    (column,) = fit_columns(numbers([1.0, 2.0]))
    with pytest.raises(MedvolError, match=r"BAD_VALUE: case c7: column 'age' holds 'abc'; expected a number"):
        encode_row((column,), {"age": "abc"}, "c7")
    with pytest.raises(MedvolError, match=r"BAD_VALUE: case c1: column 'age' holds 'l2'; 3 of 4 cells are numbers"):
        fit_columns(numbers(["1", "l2", "3", "4"]))


def test_a_number_that_float32_cannot_hold_is_refused_with_its_row():
    # Standardised, 1e300 was infinite in float32, and the answer nan for every class.
    (column,) = fit_columns(numbers([1.0, 2.0]))
    with pytest.raises(MedvolError, match=r"BAD_VALUE: case c7: column 'age' holds 1e\+300, too large for a network"):
        encode_row((column,), {"age": 1e300}, "c7")
    # Its square is infinite: the column was left out as one that never varies.
    with pytest.raises(MedvolError, match=r"BAD_VALUE: case c2: column 'age' holds -1e\+308, too large"):
        fit_columns(numbers([1.0, 2.0, -1e308, 3.0]))


def test_a_missing_column_is_named_with_the_nearest_one_that_is_there():
    columns = fit_columns(study_of([{"age_years": 1.0, "bmi": 2.0}, {"age_years": 2.0, "bmi": 1.0}]))
    with pytest.raises(MedvolError, match=r"MISSING_COLUMN: .*no column 'age_years' among 2.*did you mean 'age_year'"):
        check_columns(study_of([{"age_year": 1.0, "bmi": 2.0}]), columns)
    with pytest.raises(MedvolError, match=r"MISSING_COLUMN: case c3: no column 'bmi'"):
        encode_row(columns, {"age_years": 1.0}, "c3")


def test_columns_that_the_model_does_not_know_are_named_and_ignored(caplog):
    caplog.set_level("INFO")
    columns = fit_columns(study_of([{"age": 1.0}, {"age": 2.0}]))
    check_columns(study_of([{"age": 1.0, "shoe": 40.0}]), columns)
    assert "1 columns are not known to the model and not looked at: shoe" in caplog.text


def test_what_tells_nothing_is_left_out(caplog):
    caplog.set_level("INFO")
    rows = [{"age": float(i % 3), "same": 1.0, "name": f"n{i}", "word": "w", "none": None} for i in range(6)]
    assert [column.name for column in fit_columns(study_of(rows))] == ["age"]
    assert "name, none, same, word" in caplog.text


def test_a_constant_column_with_gaps_tells_by_its_gaps_alone():
    (column,) = fit_columns(numbers([2.0, None, 2.0]))
    assert column.features == ("age is empty",)
    assert encode_row((column,), {"age": 1e9}, "c").tolist() == [0.0]


def test_codes_may_be_declared_categories_and_columns_left_out():
    study = study_of([{"code": float(i % 3), "id": float(i)} for i in range(6)])
    (column,) = fit_columns(study, categorical_columns=["code"], exclude_columns=["id"])
    assert column.categories == ("0", "1", "2")
    assert encode_row((column,), {"code": 1.0}, "c").tolist() == encode_row((column,), {"code": "1"}, "c").tolist()


@pytest.mark.parametrize("unit", ["%", " %", " mg", " ml/min"])
def test_quantities_with_a_unit_are_refused_and_a_few_doses_are_categories(unit):
    values = [f"{number / 7:.2f}{unit}" for number in range(30)]
    with pytest.raises(MedvolError, match=rf"BAD_VALUE: column 'age' holds '0.00{unit}'; 30 of 30 cells are numbers"):
        fit_columns(numbers(values))
    (column,) = fit_columns(numbers([f"{number % 3}{unit}" for number in range(30)]))
    assert column.categories == tuple(f"{dose}{unit}" for dose in range(3))
    with pytest.raises(MedvolError, match="NO_FEATURES"):  # names that begin with a number
        fit_columns(numbers([f"{number}ab" for number in range(30)]))


def test_quantities_with_a_comma_are_refused_for_what_they_are():
    # 0,00 to 4,14: 30 categories, without a word; from 51 texts on the advice was to group them.
    found = r"BAD_VALUE: column 'age' holds '0,00'; 30 of 30 cells are numbers with a comma; .* write 1\.5 for 1,5"
    with pytest.raises(MedvolError, match=found):
        fit_columns(numbers([f"{number / 7:.2f}".replace(".", ",") for number in range(30)]))


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([1.0, 2.0], {"exclude_columns": ["agee"]}, "UNKNOWN_OPTION.*exclude_columns names 'agee'.*'age'"),
        ([1.0, 2.0], {"categorical_columns": ["x"]}, "UNKNOWN_OPTION.*categorical_columns"),
        ([1.0, 2.0], {"exclude_columns": ["age"]}, "NO_FEATURES"),
        ([f"t{i // 2}" for i in range(120)], {}, "TOO_MANY_CATEGORIES.*60 different texts"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(values, options, expected):
    with pytest.raises(MedvolError, match=expected) as refusal:
        fit_columns(numbers(values), **options)
    assert len(str(refusal.value)) <= MESSAGE_LIMIT


def test_only_a_declared_kind_of_column_is_accepted():
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION.*'number'"):
        ColumnFacts("age", "numbr")


def test_what_training_knew_nothing_like_is_said():
    columns = fit_columns(study_of([{"age": 1.0, "sex": "f"}, {"age": 3.0, "sex": "m"}]))
    assert list(oddities(columns, {"age": 2.0, "sex": "m"})) == []
    assert list(oddities(columns, {"age": None, "sex": "x"})) == [
        "column 'age' has gaps, training had none: filled with its median 2",
        "column 'sex' holds 'x', unknown to training: taken as empty",
    ]


def test_facts_with_columns_survive_json():
    facts = tabular_facts(study_of([{"age": 0.1 + i / 3, "sex": "fm"[i % 2]} for i in range(5)]))
    assert Facts.from_dict(json.loads(json.dumps(facts.as_dict()))) == facts
    assert (facts.in_features, facts.in_channels, facts.num_logits) == (3, 0, 1)


def test_facts_of_images_take_columns_and_stay_what_they_are():
    facts = Facts(("no", "yes"), ("image",), (7, 8, 9), None, "mr", None, False, True)
    more = with_columns(facts, numbers([1.0, 2.0]))
    assert (more.spatial_size, more.in_features, facts.in_features) == ((7, 8, 9), 1, 0)


def test_items_carry_their_row():
    items = items_with_covariates(study_of([{"age": 1.0}, {"age": 2.0}], ["train", "test"]), "test")
    assert items == [
        {"case": "c1", "patient": "p1", "split": "test", "label": 1, "label_name": "yes", "covariates": {"age": 2.0}}
    ]
