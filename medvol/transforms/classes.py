"""Logits to class probabilities, in one place for one-logit and many-logit networks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, final

import torch
from monai.transforms import MapTransform
from torch import Tensor


def class_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return probabilities of the classes.

    Args:
        logits: Shape (..., 1) for the positive class of two, or (..., classes).
        temperature: Divides the logits; 1 leaves them.

    Returns:
        Shape (..., 2) or (..., classes), summing to 1.
    """
    scaled = logits.float() / temperature
    if scaled.shape[-1] == 1:
        # A softmax over (0, z) is the sigmoid of z.
        scaled = torch.cat([torch.zeros_like(scaled), scaled], dim=-1)
    return scaled.softmax(dim=-1)


@final
class ClassProbabilitiesd(MapTransform):
    """Replace the logits under `key` by probabilities.

    Args:
        key: Item key of the logits, shape (classes,) or (1,).
        temperature: Fitted on validation; see `medvol.metrics.calibration`.
    """

    def __init__(self, key: Hashable = "pred", temperature: float = 1.0) -> None:
        super().__init__(key)  # MONAI Deploy hands a dictionary to map transforms only
        self.key = key
        self.temperature = temperature

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with probabilities, shape (classes,)."""
        return {**data, self.key: class_probabilities(data[self.key], self.temperature)}
