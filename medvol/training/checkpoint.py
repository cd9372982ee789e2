"""Keeping the weights: the state to resume from after every epoch, and the model to ship."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel

from medvol.data.processes import gathered, is_first, process_count, process_rank
from medvol.errors import MedvolError, require_choice
from medvol.inference.record import RECORD_FILE, WEIGHTS_FILE, ModelRecord, save_model
from medvol.io.atomic import write_atomically
from medvol.training.earlier import EarlierFiles
from medvol.training.folder_lock import lock_folder, unlock_folder

logger = logging.getLogger(__name__)

KEEP = ("last", "best")
WEIGHTS_DTYPES = {"float32": None, "float16": torch.float16}


@final
class SaveModel:
    """Write `models/model.pt` and `model.json` whenever the model to ship changes.

    `last` ships the averaged weights of the last epoch: with a one-cycle schedule they are the annealed ones, and
    nothing is selected on a small validation split. `best` ships the epoch whose key metric on validation was highest,
    for networks that overfit. A model of an earlier training is moved aside.

    Args:
        averaged: Holds the weights to ship.
        record: What to write beside them.
        model_dir: The bundle's `models` folder.
        validator: Evaluator with the key metric, run before this handler.
        keep: `last` or `best`.
        weights_dtype: `float32`, or `float16` for a file of half the size.

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
        weights_dtype: str = "float32",
    ) -> None:
        require_choice("keep", keep, KEEP)
        require_choice("weights_dtype", weights_dtype, WEIGHTS_DTYPES)
        self.averaged = averaged
        self.record = record
        self.model_dir = Path(model_dir)
        self.validator = validator
        self.keep = keep
        self.dtype = WEIGHTS_DTYPES[weights_dtype]
        self._earlier = EarlierFiles(self.model_dir / WEIGHTS_FILE, self.model_dir / RECORD_FILE)

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each epoch; attach after `ResumeState` and the ValidationHandler."""
        self._earlier.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save when this epoch's weights are the ones to keep."""
        epoch = engine.state.epoch
        if not is_first():
            return
        if self.keep == "best" and self.validator.state.best_metric_epoch != epoch:
            return
        metrics = {name: _number(value) for name, value in self.validator.state.metrics.items()}
        training = {**self.record.training, "epoch": epoch, "validation": metrics}
        record = replace(self.record, training=training)
        self._earlier.set_aside()
        save_model(self.model_dir, self.averaged.module, record, dtype=self.dtype)


@final
class SaveState:
    """Write everything that a resumed run needs to `checkpoint.pt` after every epoch, atomically.

    That of an earlier training is moved aside where it was not finished.

    Args:
        path: File to write.
        parts: Named objects with a `state_dict`, e.g. network, optimizer, scheduler.
    """

    def __init__(self, path: str | Path, parts: dict[str, Any]) -> None:
        self.path = Path(path)
        self.parts = parts
        self._earlier = EarlierFiles(self.path, worth=lambda: bool(_unfinished(self.path)))

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each epoch; attach after `ResumeState`."""
        self._earlier.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the state."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        rng = torch.stack(gathered(torch.get_rng_state()))  # a row for each process
        progress = {
            "epoch": engine.state.epoch,
            "max_epochs": engine.state.max_epochs,
            "iteration": engine.state.iteration,
            "rng": rng,
        }
        if torch.cuda.is_initialized():
            progress["cuda_rng"] = torch.stack(gathered(torch.cuda.get_rng_state()))
        if not is_first():
            return
        self._earlier.set_aside()
        write_atomically(self.path, lambda stream: torch.save({**state, "progress": progress}, stream))


@final
class ResumeState:
    """Continue from the `checkpoint.pt` of an interrupted run, so that both together equal one run.

    Without a checkpoint the run begins at the beginning; with one of another network, schedule or number of batches it
    is refused. A run that was complete is only finished again. The folder is locked for the run.

    Args:
        path: File that `SaveState` writes.
        parts: The same named objects.
        resume: Whether to look for it at all.

    Raises:
        MedvolError: `OTHER_RUN` for a checkpoint that does not fit; `BUSY` where another training writes it.
    """

    def __init__(self, path: str | Path, parts: dict[str, Any], *, resume: bool) -> None:
        self.path = Path(path)
        self.parts = parts
        self.resume = resume
        self._lock: int | None = None

    def attach(self, engine: Engine) -> None:
        """Hook into the start and the end of the run."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.COMPLETED, self._unlock)

    def _unlock(self, engine: Engine) -> None:
        unlock_folder(self.path.parent, self._lock)
        self._lock = None

    def __call__(self, engine: Engine) -> None:
        """Load the state and set the engine's counters."""
        if is_first():
            self._lock = lock_folder(self.path.parent)
        if not self.resume:
            self._tell_of_unfinished()
        if not self.resume or not self.path.is_file():
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            progress = state["progress"]
            _require_same_length(progress, engine)
            rng = progress["rng"].reshape(-1, progress["rng"].shape[-1])
            if len(rng) != process_count():
                raise ValueError(f"a run in {len(rng)} processes, now {process_count()}")
            for name, part in self.parts.items():
                _require_same_schedule(state[name], part)
                part.load_state_dict(state[name])
        except Exception as error:
            raise MedvolError(
                "OTHER_RUN",
                file=self.path,
                found=" ".join(str(error).split())[:120],
                expected="the checkpoint of a run with the same options",
                fix="repeat the options of the first run, or pass --resume False",
            ) from error
        torch.set_rng_state(rng[process_rank()])
        if torch.cuda.is_initialized() and "cuda_rng" in progress:
            torch.cuda.set_rng_state(progress["cuda_rng"][process_rank()])
        engine.state.epoch, engine.state.iteration = progress["epoch"], progress["iteration"]
        logger.info("Resumed after epoch %d of %d", engine.state.epoch, engine.state.max_epochs or 0)

    def _tell_of_unfinished(self) -> None:
        state = _unfinished(self.path)
        if state and is_first():
            logger.warning(
                "%s is of an unfinished training (%s), which --resume True would go on with", self.path, state
            )


@final
class BestEpoch:
    """The part of a state that makes a resumed run know its best epoch, for `keep: best` and for stopping early.

    Args:
        validator: Evaluator with the key metric.
    """

    def __init__(self, validator: Engine) -> None:
        self.validator = validator

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch, its key metric and the metrics of the last validation."""
        state = self.validator.state
        metrics = {name: float(value) for name, value in state.metrics.items() if isinstance(value, (int, float))}
        return {"epoch": state.best_metric_epoch, "metric": float(state.best_metric), "metrics": metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self.validator.state.best_metric_epoch = state["epoch"]
        self.validator.state.best_metric = state["metric"]
        self.validator.state.metrics.update(state["metrics"])


def _unfinished(path: Path) -> str:
    """Return how far a training got that has more epochs to go, as its checkpoint says; else nothing."""
    if not path.is_file():
        return ""
    try:
        progress = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["progress"]
        epoch, epochs = progress["epoch"], progress["max_epochs"]
    except Exception:  # whatever torch says of a file that is no checkpoint, or is of an earlier version
        return "epoch unknown"
    return f"epoch {epoch} of {epochs}" if epoch < epochs else ""


def _require_same_length(progress: dict[str, Any], engine: Engine) -> None:
    batches = progress["iteration"] // max(1, progress["epoch"])
    if batches != engine.state.epoch_length:
        raise ValueError(f"epochs of {batches} batches, now {engine.state.epoch_length}")


def _require_same_schedule(state: dict[str, Any], part: Any) -> None:
    """Refuse another number of steps: loading it would silently replace the schedule of this run."""
    planned = getattr(part, "total_steps", None)
    if planned is not None and state["total_steps"] != planned:
        raise ValueError(f"a schedule of {state['total_steps']} steps, now {planned}")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
