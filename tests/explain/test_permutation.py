"""What a column is worth: nothing when it is not used, all when it alone decides."""

import numpy as np
import pytest
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression

from medvol.explain.permutation import auc_drops

COUNT = 120


def rows(seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(COUNT) % 2
    features = rng.normal(size=(COUNT, 4))
    features[:, 0] += 2.0 * labels
    features[:, 1] += 0.7 * labels
    return features, labels, [f"p{index // 2}" for index in range(COUNT)]


def test_columns_are_ordered_by_what_they_are_worth_and_agree_with_scikit_learn():
    features, labels, patients = rows()
    model = LogisticRegression().fit(features, labels)
    columns = {"strong": [0], "weak": [1], "noise": [2], "other noise": [3]}
    found = auc_drops(model.predict_proba, features, labels, patients, columns)
    assert list(found)[:2] == ["strong", "weak"]
    theirs = permutation_importance(model, features, labels, scoring="roc_auc", n_repeats=50, random_state=0)
    for name, mean in zip(columns, theirs.importances_mean, strict=True):
        assert found[name]["value"] == pytest.approx(mean, abs=0.04)
        low, high = found[name]["ci95"]
        assert low <= found[name]["value"] <= high
    assert found["strong"]["ci95"][0] > 0.1
    assert found["noise"]["ci95"][0] <= 0.01


def test_a_column_that_the_model_does_not_look_at_is_worth_exactly_nothing():
    features, labels, patients = rows()

    def predict(values):
        positive = 1 / (1 + np.exp(-values[:, 0]))
        return np.stack([1 - positive, positive], axis=1)

    found = auc_drops(predict, features, labels, patients, {"seen": [0], "unseen": [1, 2]})
    assert found["unseen"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert found["seen"]["value"] > 0.2


def test_the_features_of_a_category_are_shuffled_together():
    seen = []

    def predict(values):
        seen.append(values)
        return np.full((len(values), 2), 0.5)

    features, labels, patients = rows()
    features[:, 3] = -features[:, 2]
    auc_drops(predict, features, labels, patients, {"pair": [2, 3]})
    assert np.array_equal(seen[1][:, 3], -seen[1][:, 2])
    assert not np.array_equal(seen[1][:COUNT, 2], features[:, 2])


def test_equal_seeds_give_equal_numbers():
    features, labels, patients = rows()
    model = LogisticRegression().fit(features, labels)
    first, second = (auc_drops(model.predict_proba, features, labels, patients, {"a": [0]}) for _ in range(2))
    assert first == second
