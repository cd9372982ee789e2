"""Keeping the weights: the state to resume from after every epoch, and the model to ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel

from medvol.errors import require_choice
from medvol.inference.record import ModelRecord, save_model
from medvol.io.atomic import write_atomically

KEEP = ("last", "best")


@final
class SaveModel:
    """Write `models/model.pt` and `model.json` whenever the model to ship changes.

    `last` ships the averaged weights of the last epoch: with a one-cycle schedule they are the annealed ones, and
    nothing is selected on a small validation split. `best` ships the epoch whose key metric on validation was highest,
    for networks that overfit.

    Args:
        averaged: Holds the weights to ship.
        record: What to write beside them.
        model_dir: The bundle's `models` folder.
        validator: Evaluator with the key metric, run before this handler.
        keep: `last` or `best`.

    Raises:
        MedvolError: `UNKNOWN_OPTION`.
    """

    def __init__(
        self,
        averaged: AveragedModel,
        record: ModelRecord,
        model_dir: str | Path,
        validator: Engine,
        *,
        keep: str = "last",
    ) -> None:
        require_choice("keep", keep, KEEP)
        self.averaged = averaged
        self.record = record
        self.model_dir = Path(model_dir)
        self.validator = validator
        self.keep = keep

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each epoch; attach after the ValidationHandler."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save when this epoch's weights are the ones to keep."""
        epoch = engine.state.epoch
        if self.keep == "best" and self.validator.state.best_metric_epoch != epoch:
            return
        metrics = {name: _number(value) for name, value in self.validator.state.metrics.items()}
        training = {**self.record.training, "epoch": epoch, "validation": metrics}
        save_model(self.model_dir, self.averaged.module, replace(self.record, training=training))


@final
class SaveState:
    """Write everything that a resumed run needs to `checkpoint.pt` after every epoch, atomically.

    Args:
        path: File to write.
        parts: Named objects with a `state_dict`, e.g. network, optimizer, scheduler.
    """

    def __init__(self, path: str | Path, parts: dict[str, Any]) -> None:
        self.path = Path(path)
        self.parts = parts

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the state."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        progress = {"epoch": engine.state.epoch, "iteration": engine.state.iteration, "rng": torch.get_rng_state()}
        write_atomically(self.path, lambda stream: torch.save({**state, "progress": progress}, stream))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
