"""Loss and accuracy of an epoch, by hand."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from medvol.training.epoch_log import LogEpochs, training_accuracy, validation_accuracy, validation_loss


def measured(metric, batches):
    """Return a metric over batches of decollated (prediction, label) pairs."""
    engine = Engine(lambda one, batch: batch)
    metric.attach(engine, "it")
    outputs = [[{"pred": torch.tensor(p), "label": torch.tensor(y)} for p, y in batch] for batch in batches]
    return engine.run(outputs).metrics["it"]


def test_accuracy_in_training_is_that_of_the_highest_logit():
    right, wrong = ([2.0, -1.0, 0.0], 0), ([2.0, 5.0, 0.0], 2)
    assert measured(training_accuracy(), [[right, wrong], [right, right]]) == 0.75


def test_a_single_logit_above_zero_is_the_positive_class():
    assert measured(training_accuracy(), [[([0.1], 1), ([0.1], 0)], [([-0.1], 0), ([-3.0], 0)]]) == 0.75


def test_accuracy_in_validation_is_that_of_the_highest_probability():
    assert measured(validation_accuracy(), [[([0.4, 0.6], 1), ([0.4, 0.6], 0)], [([0.9, 0.1], 0)]]) == pytest.approx(
        2 / 3
    )


def test_the_loss_is_the_mean_cross_entropy():
    found = measured(validation_loss(), [[([0.25, 0.75], 1)], [([0.5, 0.5], 0)]])
    assert found == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)


def test_a_line_per_epoch_names_what_was_measured(caplog):
    caplog.set_level(logging.INFO)
    history = SimpleNamespace(rows=[{"epoch": 1, "train_loss": 0.5, "train_accuracy": 0.75, "learning_rate": 0.1}])
    engine = Engine(lambda one, batch: None)
    LogEpochs(history).attach(engine)
    engine.run([0], max_epochs=1)
    assert caplog.messages.count("Epoch 1 of 1: train loss 0.5000, train accuracy 0.7500") == 1
