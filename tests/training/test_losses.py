"""Losses by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from medvol.errors import MedvolError
from medvol.training.losses import DeepDiceCeLoss, classification_loss


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


def dice_and_cross_entropy(logits, labels):
    """The same by hand with NumPy: soft Dice per structure over the batch, cross-entropy over all voxels."""
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    classes = logits.shape[1]
    truth = np.stack([labels[:, 0] == index for index in range(classes)], axis=1)
    axes = (0, 2, 3, 4)
    shared, total = (scores * truth).sum(axis=axes), (scores + truth).sum(axis=axes)
    dice = 1 - (2 * shared + 1e-5) / (total + 1e-5)
    return dice[1:].mean() - np.log(scores[truth]).mean()


def test_segmentation_loss_is_dice_plus_cross_entropy_of_every_resolution():
    rng = np.random.default_rng(0)
    fine, coarse = rng.normal(size=(2, 3, 8, 6, 4)), rng.normal(size=(2, 3, 4, 3, 2))
    labels = rng.integers(0, 3, (2, 1, 8, 6, 4))
    outputs = [torch.tensor(fine), torch.tensor(coarse)]
    found = DeepDiceCeLoss()(outputs, torch.tensor(labels, dtype=torch.uint8))
    small = labels[:, :, ::2, ::2, ::2]
    expected = (dice_and_cross_entropy(fine, labels) + 0.5 * dice_and_cross_entropy(coarse, small)) / 1.5
    assert found.item() == pytest.approx(expected, abs=1e-4)
    alone = DeepDiceCeLoss()(outputs[0], torch.tensor(labels))
    assert alone.item() == pytest.approx(dice_and_cross_entropy(fine, labels), abs=1e-4)


def test_segmentation_loss_of_a_certain_and_right_answer_is_nothing():
    labels = torch.randint(0, 3, (1, 1, 4, 5, 6))
    logits = 40.0 * torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()
    assert DeepDiceCeLoss()(logits, labels).item() == pytest.approx(0, abs=1e-4)
