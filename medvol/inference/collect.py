"""Gathering what an evaluator predicts, case by case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines.utils import IterationEvents

from medvol.data.processes import gathered
from medvol.metrics.classification import auc


@dataclass(frozen=True)
class Predictions:
    """Predictions of n cases.

    Args:
        cases: Case names.
        patients: Patient of each case.
        logits: Network outputs before temperature and softmax, (n, logits).
        probabilities: Shape (n, classes).
        labels: Class indices, (n,), or None for unlabelled cases.
    """

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    logits: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64] | None


@final
class CollectPredictions:
    """Keep logits and postprocessed probabilities of every case of an evaluator's run."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, Any]] = []
        self._logits: list[npt.NDArray[np.float64]] = []
        self._probabilities: list[npt.NDArray[np.float64]] = []

    def attach(self, engine: Engine) -> None:
        """Hook into the network's output before postprocessing, and into the end of the iteration."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.clear)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.add_logits)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_probabilities)

    def clear(self, engine: Engine) -> None:
        """Forget an earlier run."""
        self._rows.clear()
        self._logits.clear()
        self._probabilities.clear()

    def add_logits(self, engine: Engine) -> None:
        """Take the raw output of a batch."""
        logits = engine.state.output["pred"].detach().float().cpu()
        self._logits.append(torch.as_tensor(logits).numpy().astype(np.float64))

    def add_probabilities(self, engine: Engine) -> None:
        """Take names, labels and probabilities of a batch, decollated by MONAI."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            label = output.get("label")
            self._rows.append((item["case"], item["patient"], None if label is None else int(label)))
            self._probabilities.append(torch.as_tensor(output["pred"]).float().cpu().numpy().astype(np.float64))

    def absorb(self, others: Sequence[CollectPredictions]) -> None:
        """Add what the collectors of other processes have, after the own."""
        for other in others:
            self._rows += other._rows
            self._logits += other._logits
            self._probabilities += other._probabilities

    def result(self) -> Predictions:
        """Return everything collected in the last run."""
        labels = [label for _, _, label in self._rows]
        known = bool(labels) and all(label is not None for label in labels)
        return Predictions(
            cases=tuple(case for case, _, _ in self._rows),
            patients=tuple(patient for _, patient, _ in self._rows),
            logits=np.concatenate(self._logits) if self._logits else np.empty((0, 0)),
            probabilities=np.stack(self._probabilities) if self._probabilities else np.empty((0, 0)),
            labels=np.asarray(labels, dtype=np.int64) if known else None,
        )


@final
class CaseMetric(Metric):
    """An ignite metric of all cases together, with their probabilities (n, classes) and labels (n,).

    ignite's EpochMetric expects equally many cases in every process; here each process brings what it has.

    Args:
        compute_of_all: The number, of probabilities and labels.
    """

    def __init__(self, compute_of_all: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
        self._compute_of_all = compute_of_all
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        super().__init__(output_transform=_stack_outputs)

    def reset(self) -> None:
        """Forget an earlier run."""
        self._parts = []

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Take the cases of a batch."""
        self._parts.append(output)

    def compute(self) -> float:
        """Return the metric, the same in every process."""
        parts = [part for parts in gathered(self._parts) for part in parts]
        probabilities, labels = (torch.cat(list(one)) for one in zip(*parts, strict=True))
        return self._compute_of_all(probabilities, labels)


def validation_auc() -> CaseMetric:
    """Return the ignite metric `auc` (macro one-vs-rest when multi-class) over decollated outputs."""

    def compute(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
        return float(auc(labels.numpy().astype(int), probabilities.numpy().astype(float)))

    return CaseMetric(compute)


def validation_log_likelihood() -> CaseMetric:
    """Return the ignite metric of the mean log-likelihood of the true class: higher is better."""
    return CaseMetric(mean_log_likelihood)


def mean_log_likelihood(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean logarithm of the probability, (n, classes), of the true class, (n,)."""
    chosen = probabilities.gather(1, labels.long()[:, None])
    return float(chosen.clamp_min(1e-7).log().mean())


def _stack_outputs(outputs: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities = torch.stack([torch.as_tensor(output["pred"]).float().cpu() for output in outputs])
    labels = torch.stack([torch.as_tensor(output["label"]).cpu() for output in outputs])
    return probabilities, labels
