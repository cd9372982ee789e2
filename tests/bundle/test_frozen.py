"""The head of a frozen encoder: logistic regression, its strength chosen without dividing a patient."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from medvol.bundle.frozen import NEVER, STRENGTHS, case_features, fit_head
from medvol.data.facts import Facts
from medvol.data.study import Case, Study
from medvol.errors import MedvolError


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(5, 2, (60, 4)) + labels[:, None] * [3, 0, 0, 1]
    return features, labels.tolist(), [f"p{index // 2}" for index in range(60)]


def probabilities(head, features):
    return torch.softmax(torch.as_tensor(features @ head.weight.T + head.bias), dim=1).numpy()


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_layer_is_scikit_learns_regression_on_standardised_features(problem, classes):
    features, labels, patients = problem
    keep = np.array(labels) < classes
    features, labels = features[keep], np.array(labels)[keep]
    patients = np.array(patients)[keep]
    head = fit_head(features, labels.tolist(), patients.tolist(), classes, class_weights="balanced", seed=0)
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=head.strength, max_iter=5000, class_weight="balanced")
    expected = model.fit(scaler.transform(features), labels).predict_proba(scaler.transform(features))
    np.testing.assert_allclose(probabilities(head, features), expected, atol=1e-6)


def test_the_strength_is_that_of_the_least_log_loss_over_folds_that_divide_no_patient(problem):
    features, labels, patients = problem
    head = fit_head(features, labels, patients, 3, class_weights="none", seed=4)
    truth, losses = np.array(labels), {}
    for strength in STRENGTHS:
        found = np.zeros((60, 3))
        for train, rest in StratifiedGroupKFold(5, shuffle=True, random_state=4).split(features, truth, patients):
            assert not {patients[index] for index in train} & {patients[index] for index in rest}
            scaler = StandardScaler().fit(features[train])
            model = LogisticRegression(C=strength, max_iter=5000).fit(scaler.transform(features[train]), truth[train])
            found[rest] = model.predict_proba(scaler.transform(features[rest]))
        losses[strength] = -np.log(found[np.arange(60), truth]).mean()
    assert head.strength == min(losses, key=losses.get)
    assert STRENGTHS[0] < head.strength < STRENGTHS[-1]
    assert head.log_loss == pytest.approx(losses[head.strength])


def test_a_class_without_a_training_case_is_never_predicted(problem):
    features, labels, patients = problem
    keep = [index for index, label in enumerate(labels) if label != 1]
    chosen = features[keep], [labels[index] for index in keep], [patients[index] for index in keep]
    head = fit_head(*chosen, 3, class_weights="none", seed=0)
    assert head.bias[1] == NEVER
    assert (probabilities(head, features)[:, 1] == 0).all()
    assert set(probabilities(head, features).argmax(1)) == {0, 2}


def test_with_one_patient_in_a_class_nothing_is_chosen(caplog):
    features = np.array([[0.0], [1.0], [5.0], [6.0]])
    head = fit_head(features, [0, 0, 1, 1], ["a", "b", "c", "c"], 2, class_weights="none", seed=0)
    assert (head.strength, head.log_loss) == (1.0, None)
    assert "single training patient" in caplog.text


def test_one_class_and_an_unknown_weighting_are_refused(problem):
    features, labels, patients = problem
    with pytest.raises(MedvolError, match="ONE_CLASS"):
        fit_head(features, [1] * 60, patients, 2, class_weights="none", seed=0)
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION.*'balanced'"):
        fit_head(features, labels, patients, 3, class_weights="balance", seed=0)


class MeanOfVoxels(torch.nn.Module):
    """A network whose features are easy to know."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 2)

    def forward(self, volumes):
        return self.head(volumes.flatten(1).mean(1, keepdim=True))


@pytest.fixture
def features_of(tmp_path):
    """Return the features of volumes in an order, kept in one folder."""
    facts = Facts(("a", "b"), ("image",), (4, 4, 4), None, "mr", None, False, True)
    network = MeanOfVoxels()

    def run(*names):
        cases = [Case(name, name, (f"{tmp_path / name}.npy",), label="a", split="train") for name in names]
        study = Study(tuple(cases), "classification", classes=("a", "b"))
        loader = [{"image": torch.from_numpy(np.stack([np.load(case.image[0])[None] for case in cases]))}]
        found = case_features(
            network, loader, lambda volumes, net: net(volumes), study, facts, tmp_path, show_progress=False
        )
        return found.ravel().tolist()

    for value, name in enumerate(["zero", "one", "two"]):
        np.save(tmp_path / name, np.full((4, 4, 4), value, np.float32))
    return run


def test_kept_features_are_those_of_their_case_whatever_the_order(features_of, caplog):
    assert features_of("zero", "one", "two") == [0, 1, 2]
    with caplog.at_level("INFO"):
        assert features_of("zero", "one", "two") == [0, 1, 2]
    assert "Features of 3 cases taken from" in caplog.text
    assert features_of("two", "zero", "one") == [2, 0, 1]


def test_features_of_a_file_that_was_changed_are_computed_again(features_of, tmp_path):
    assert features_of("zero", "one") == [0, 1]
    np.save(tmp_path / "zero", np.full((4, 4, 4), 7, np.float32))
    assert features_of("zero", "one") == [7, 1]
