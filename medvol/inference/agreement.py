"""How much the chosen runtime changes a network's answer."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medvol.inference.runtime import Runtime, RuntimeInferer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelAgreement:
    """A runtime's answer against float32's.

    Args:
        max_difference: Largest absolute difference of a logit.
        changed: Fraction of labels (voxels, or volumes for a classifier) that differ.
        labels: Number of labels compared.
    """

    max_difference: float
    changed: float
    labels: int

    def __str__(self) -> str:
        return f"logits within {self.max_difference:.2g}, {self.changed:.4%} of {self.labels} labels changed"


def agreement(network: nn.Module, image: Tensor, runtime: Runtime) -> LabelAgreement:
    """Return how far the network's answer in `runtime` is from its float32 answer, and log it in one line.

    Args:
        network: Network on the image's device; evaluated without gradients, its mode is restored.
        image: (batch, channel, ...).
        runtime: What is compared with float32 in the default layout.
    """
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            exact, found = (RuntimeInferer(how)(image, network) for how in (Runtime(runtime.device_type), runtime))
    finally:
        network.train(training)
    if not isinstance(exact, Tensor):  # one tensor per resolution, the finest first
        exact, found = exact[0], found[0]
    changed = _labels(exact) != _labels(found)
    result = LabelAgreement((exact - found).abs().max().item(), changed.float().mean().item(), changed.numel())
    logger.info("%s against float32: %s", runtime, result)
    return result


def _labels(logits: Tensor) -> Tensor:
    return logits.argmax(1) if logits.shape[1] > 1 else logits > 0
