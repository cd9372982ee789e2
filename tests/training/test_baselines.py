"""Logistic regression and gradient boosting beside a network."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medvol.data.column_facts import ColumnFacts
from medvol.training.baselines import GRADIENT_BOOSTING, LOGISTIC_REGRESSION, covariate_baselines

COLUMNS = (ColumnFacts("x", "number", 0.0, 2.0), ColumnFacts("y", "number", 1.0, 1.0))


def rows(count, seed, classes=2):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return [
        {"case": f"c{i}", "label": int(label), "covariates": {"x": rng.normal() + 1.5 * label, "y": rng.normal()}}
        for i, label in enumerate(labels)
    ]


def test_the_regression_is_the_one_of_scikit_learn_on_the_encoded_training_rows():
    train, test = rows(80, 0), rows(40, 1)
    found = covariate_baselines(COLUMNS, train, test, 2)
    encoded = [np.array([[i["covariates"]["x"] / 2, i["covariates"]["y"] - 1] for i in part]) for part in (train, test)]
    expected = LogisticRegression(max_iter=5000).fit(encoded[0], [item["label"] for item in train])
    np.testing.assert_allclose(found[LOGISTIC_REGRESSION], expected.predict_proba(encoded[1]), atol=1e-5)


@pytest.mark.parametrize("name", [LOGISTIC_REGRESSION, GRADIENT_BOOSTING])
def test_both_learn_what_is_there_and_repeat_themselves(name):
    train, test = rows(90, 0, 3), rows(60, 1, 3)
    found, again = (covariate_baselines(COLUMNS, train, test, 3)[name] for _ in range(2))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_array_equal(found, again)
    assert roc_auc_score([item["label"] for item in test], found, multi_class="ovr") > 0.75


def test_a_class_without_a_training_row_has_probability_0():
    found = covariate_baselines(COLUMNS, [row for row in rows(60, 0, 3) if row["label"] != 1], rows(9, 1, 3), 3)
    for probabilities in found.values():
        assert probabilities.shape == (9, 3)
        assert (probabilities[:, 1] == 0).all()
        assert (probabilities[:, 2] > 0).all()


def test_one_class_in_training_gives_no_baseline_and_says_so(caplog):
    assert covariate_baselines(COLUMNS, rows(9, 0, 1), rows(9, 1), 2) == {}
    assert "one class only" in caplog.text
