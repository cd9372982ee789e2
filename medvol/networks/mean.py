"""Several networks as one, whose answers are averaged: what one of them takes for a structure by chance, others do not.

Networks that start from other random weights err on other voxels, so that their mean is as a rule better than each
(Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017).
How much better is to be measured: two of one kind may gain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, final

import torch
from torch import Tensor, nn


@final
class MeanOfNetworks(nn.Module):
    """Networks for one task, each of which learns as if it were alone.

    Shapes: (n, channels, x, y, z) to the mean of the logits, (n, classes, x, y, z); while training the outputs of all
    networks as a list, those of the finest resolution first.

    Args:
        networks: Of the same input, output and resolutions; widths may differ.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the mean of the logits, or while training what every network answers."""
        outputs = [network(x) for network in self.networks]
        if not self.training:
            return torch.stack(outputs).mean(dim=0)
        resolutions = zip(*map(as_outputs, outputs), strict=True)
        return [output for outputs_of_one in resolutions for output in outputs_of_one]

    def shape_factor(self) -> Sequence[int]:
        """Return what a size must be a multiple of along each axis, as MONAI's SegResNetDS says it."""
        return cast("Sequence[int]", self.networks[0].shape_factor())  # type: ignore[operator]


def as_outputs(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs of a network, of which one with deep supervision gives several while it trains."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
