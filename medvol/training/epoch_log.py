"""Loss and accuracy of every epoch, as metrics of trainer and validator and as one line in the log.

Accuracy in training is that of the batches as they were trained on, augmented and before their step: what a training
loop sums up as it goes. The averaged network on clean images is usually better.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, final

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from medvol.inference.collect import CaseMetric, mean_log_likelihood
from medvol.training.handlers import TrainingHistory
from medvol.transforms.classes import class_probabilities

logger = logging.getLogger(__name__)

SHOWN = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def training_accuracy() -> Accuracy:
    """Return the ignite metric of the share of training cases whose true class has the highest logit."""

    def probabilities(outputs: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        logits, labels = _stacked(outputs)
        return class_probabilities(logits), labels

    return Accuracy(output_transform=probabilities)


def validation_accuracy() -> Accuracy:
    """Return the ignite metric of the share of cases whose true class has the highest probability."""
    return Accuracy(output_transform=_stacked)


def validation_loss() -> CaseMetric:
    """Return the ignite metric of the mean cross-entropy of the postprocessed probabilities."""
    return CaseMetric(lambda probabilities, labels: -mean_log_likelihood(probabilities, labels))


@final
class LogEpochs:
    """Log a line per epoch from the rows of a `TrainingHistory`, which stands before it in the list."""

    def __init__(self, history: TrainingHistory) -> None:
        self.history = history

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Log the last row."""
        row = self.history.rows[-1]
        numbers = ", ".join(f"{name.replace('_', ' ')} {row[name]:.4f}" for name in SHOWN if name in row)
        with logging_redirect_tqdm():  # a line of its own above the progress bar
            logger.info("Epoch %d of %d: %s", engine.state.epoch, engine.state.max_epochs or 0, numbers)


def _stacked(outputs: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Return what decollated outputs hold: predictions (n, classes), labels (n,)."""
    predictions = torch.stack([torch.as_tensor(output["pred"]).detach().float().cpu() for output in outputs])
    return predictions, torch.stack([torch.as_tensor(output["label"]).long().cpu() for output in outputs])
