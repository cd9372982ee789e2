"""Ignite handlers of a training run: each does one thing and is one line in train.json.

Each hooks into the event it needs. Handlers of one event run in the order of the list: whatever uses the metrics of an
epoch, as `SaveModel` and `TrainingHistory` do, stands after MONAI's ValidationHandler.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, final

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from medvol.data.loading import EpochShuffle
from medvol.data.patches import ClassPatches
from medvol.data.processes import is_first, process_count, process_rank
from medvol.errors import MedvolError
from medvol.io.atomic import write_text
from medvol.training.distributed import average_buffers, mean_over_processes
from medvol.transforms.augment import (
    AugmentDraw,
    AugmentRanges,
    apply_augmentation,
    apply_to_labels,
    draw_augmentation,
)

logger = logging.getLogger(__name__)


@final
class AugmentBatch:
    """Change each training batch as a whole, on the device, before the network sees it; masks move with their images.

    The draw depends on seed and iteration alone: the same for any number of workers, and after a resume. Of several
    processes each draws for the batches of all and takes its part; the field of the noise is its own.

    Args:
        ranges: How far each property may change.
        extent_mm: Field of view along x, y, z.
        seed: Seed of the run.
        mirror_pairs: Classes of a mask that are exchanged where left and right are mirrored.
    """

    def __init__(
        self,
        ranges: AugmentRanges,
        extent_mm: Sequence[float],
        seed: int,
        mirror_pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.ranges = ranges
        self.extent_mm = tuple(extent_mm)
        self.seed = seed
        self.mirror_pairs = tuple(mirror_pairs)

    def attach(self, engine: Engine) -> None:
        """Hook into the start of each iteration."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Replace the image of the current batch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + engine.state.iteration)
        batch, device = engine.state.batch, engine.state.device
        count, *rest = batch["image"].shape
        draw = draw_augmentation((count * process_count(), *rest), self.ranges, self.extent_mm, generator)
        draw = _own_rows(draw, count)
        batch["image"] = apply_augmentation(batch["image"].to(device), draw)
        if "label" in batch and batch["label"].dim() == batch["image"].dim():
            batch["label"] = apply_to_labels(batch["label"].to(device), draw, self.mirror_pairs)


def _own_rows(draw: AugmentDraw, count: int) -> AugmentDraw:
    """Return what was drawn for the cases of this process."""
    if process_count() == 1:
        return draw
    rows = slice(process_rank() * count, (process_rank() + 1) * count)
    values = {one.name: getattr(draw, one.name) for one in fields(draw)}
    own = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
    return replace(draw, **own, noise_seed=draw.noise_seed + process_rank())


@final
class ShuffleByEpoch:
    """Tell the sampler of the training loader, and patches that are drawn anew, which epoch begins."""

    def __init__(self, sampler: EpochShuffle, patches: ClassPatches | None = None) -> None:
        self.sampler = sampler
        self.patches = patches

    def attach(self, engine: Engine) -> None:
        """Hook into the start of each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Pass the epoch on."""
        self.sampler.epoch = engine.state.epoch
        if self.patches is not None:
            self.patches.set_epoch(engine.state.epoch)


@final
class ClipGradients:
    """Scale the gradients of a step down to a largest norm (Pascanu et al., ICML 2013); refuse `NAN_GRADIENT`."""

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Hook in between backward pass and optimiser step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip in place."""
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        if not torch.isfinite(norm):
            found = f"norm {float(norm)} in epoch {engine.state.epoch}, iteration {engine.state.iteration}"
            fix = "lower --learning_rate or pass --precision float32"
            raise MedvolError("NAN_GRADIENT", found=found, expected="finite gradients", fix=fix)


@final
class RefuseNan:
    """Stop before the optimiser step when the loss is not finite; the last checkpoint stays as it was.

    Raises:
        MedvolError: `NAN_LOSS`, naming epoch, iteration and the cases of the batch.
    """

    def attach(self, engine: Engine) -> None:
        """Hook in between loss and backward pass."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the loss of the current batch."""
        loss = engine.state.output["loss"].detach()
        if torch.isfinite(loss):
            return
        bad = ~torch.isfinite(engine.state.batch["image"]).flatten(1).all(dim=1)
        cases = engine.state.batch.get("case", [])
        named = [case for case, is_bad in zip(cases, bad.tolist(), strict=False) if is_bad]
        raise MedvolError(
            "NAN_LOSS",
            case=named[0] if named else "",
            found=f"loss {float(loss)} in epoch {engine.state.epoch}, iteration {engine.state.iteration}",
            expected="a finite loss",
            fix="check that case's voxels" if named else "lower --learning_rate or pass --precision float32",
            details=named or cases,
        )


def averaged_weights(network: nn.Module, *, decay: float = 0.998) -> AveragedModel:
    """Return a shadow of the network that holds the exponential moving average of its weights and buffers.

    The decay starts low, `(1 + steps) / (10 + steps)`, so that the random start is forgotten (as in TensorFlow's
    ExponentialMovingAverage).
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], steps: Tensor | int) -> None:
        count = int(steps)
        keep = min(decay, (1 + count) / (10 + count))
        if averages[0].is_floating_point():  # torch hands over tensors of one type and device
            get_ema_multi_avg_fn(keep)(averages, values, steps)
            return
        for average, value in zip(averages, values, strict=True):
            average.copy_(value)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


@final
class AverageWeights:
    """Update the moving average after each step."""

    def __init__(self, averaged: AveragedModel, network: nn.Module) -> None:
        self.averaged = averaged
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each iteration, and of each epoch for the statistics of several processes."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.share_statistics)

    def __call__(self, engine: Engine) -> None:
        """Move the average towards the current weights."""
        self.averaged.update_parameters(self.network)

    def share_statistics(self, engine: Engine) -> None:
        """Take the mean of the running statistics over the processes; the weights are equal in all."""
        average_buffers(self.network, self.averaged.module)


@final
class StopEarly:
    """End the training when validation has not improved for a number of epochs; use it with `keep: best`.

    Args:
        validator: Evaluator with the key metric, run before this handler.
        patience: Epochs without a better key metric; None never stops.
    """

    def __init__(self, validator: Engine, patience: int | None) -> None:
        self.validator = validator
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare this epoch with the best one."""
        best = self.validator.state.best_metric_epoch
        if self.patience is not None and best > 0 and engine.state.epoch - best >= self.patience:
            logger.info("No better epoch than %d for %d epochs: stopping", best, self.patience)
            engine.terminate()


@final
class TrainingHistory:
    """Record the loss of every epoch and the metrics of trainer and validator, and show both in a progress bar.

    Args:
        optimizer: Its learning rate is recorded.
        validator: Evaluator whose metrics are recorded.
        show_progress: Whether to draw the bar.
        path: CSV file that is written after every epoch, so that a run can be watched and an interrupted one has its
            curve; None writes none. A resumed run goes on with the rows that it finds there.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        validator: Engine,
        *,
        show_progress: bool = True,
        path: str | Path | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.validator = validator
        self.show_progress = show_progress
        self.path = None if path is None else Path(path)
        self.rows: list[dict[str, float]] = []
        self._losses: list[float] = []
        self._bar: Any = None

    def attach(self, engine: Engine) -> None:
        """Hook into the iterations and the end of each epoch."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.add_row)
        engine.add_event_handler(Events.COMPLETED, self.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.close_and_raise)

    def start(self, engine: Engine) -> None:
        """Open the bar at the epoch training starts from."""
        if self.path is not None and engine.state.epoch > 0 and self.path.is_file():
            self.rows = [row for row in read_history(self.path) if row["epoch"] <= engine.state.epoch]
        self._bar = tqdm(
            total=engine.state.max_epochs,
            initial=engine.state.epoch,
            desc="Training",
            unit="epoch",
            disable=not self.show_progress or not is_first(),
        )

    def add_loss(self, engine: Engine) -> None:
        """Take the loss of one iteration."""
        # MONAI decollates the output: one dictionary per case, each with the batch's loss.
        output = engine.state.output
        loss = (output[0] if isinstance(output, list) else output)["loss"]
        self._losses.append(float(loss.detach() if isinstance(loss, Tensor) else loss))

    def add_row(self, engine: Engine) -> None:
        """Close an epoch."""
        loss = mean_over_processes(sum(self._losses) / max(1, len(self._losses)))
        self._losses.clear()
        # With validation every n-th epoch the metrics in between are those of an earlier one.
        validated = self.validator.state.metrics if self.validator.state.epoch == engine.state.epoch else {}
        metrics = {
            name: float(value)
            for name, value in (*engine.state.metrics.items(), *validated.items())
            if isinstance(value, (int, float))
        }
        rate = self.optimizer.param_groups[0]["lr"]
        self.rows.append({"epoch": engine.state.epoch, "train_loss": loss, "learning_rate": rate, **metrics})
        self._bar.set_postfix({"loss": f"{loss:.3f}", **{name: f"{value:.3f}" for name, value in metrics.items()}})
        self._bar.update()
        if self.path is not None and is_first():
            write_history(self.path, self.rows)

    def close(self, engine: Engine) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def close_and_raise(self, engine: Engine, error: BaseException) -> None:
        """Close the bar and let the error go on."""
        self.close(engine)
        raise error


def write_history(path: str | Path, rows: Sequence[dict[str, float]]) -> None:
    """Write the rows of a `TrainingHistory` as CSV, atomically; empty cells where an epoch had no validation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_history(path: str | Path) -> list[dict[str, float]]:
    """Return the rows that `write_history` wrote."""
    with Path(path).open(newline="") as stream:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(stream)]
