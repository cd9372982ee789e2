"""Losses by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from medvol.errors import MedvolError
from medvol.training.losses import classification_loss


def test_one_logit_is_binary_cross_entropy():
    loss = classification_loss([0, 1], 2)
    logits, labels = torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1])
    by_hand = (math.log(2) + math.log(1 + math.exp(-2))) / 2
    assert loss(logits, labels).item() == pytest.approx(by_hand)


def test_one_logit_and_two_logits_of_the_same_odds_give_the_same_loss():
    loss = classification_loss([0, 1], 2, label_smoothing=0.1)
    labels = torch.tensor([0, 1, 1])
    one = torch.tensor([[0.3], [-1.0], [2.5]])
    two = torch.cat([torch.full_like(one, 0.7), one + 0.7], dim=1)
    assert loss(one, labels).item() == pytest.approx(loss(two, labels).item(), rel=1e-6)


def test_many_logits_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 4)), rng.integers(0, 4, 20)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = classification_loss(labels.tolist(), 4)
    expected = log_loss(labels, probabilities, labels=range(4))
    assert loss(torch.from_numpy(logits), torch.from_numpy(labels)).item() == pytest.approx(expected)


def test_balanced_weights_are_those_of_scikit_learn_and_an_absent_class_weighs_nothing():
    labels = [0] * 6 + [1] * 3 + [2]
    loss = classification_loss(labels, 3, class_weights="balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(loss.weights.numpy(), expected, rtol=1e-6)
    assert classification_loss([0, 0, 2], 3, class_weights="balanced").weights[1] == 0


def test_unknown_class_weights_are_refused_with_the_nearest_name():
    with pytest.raises(MedvolError, match="balanced"):
        classification_loss([0, 1], 2, class_weights="balancd")
