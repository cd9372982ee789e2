"""Losses: of classes, for one-logit and many-logit networks; of structures, over all outputs of a deep supervision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from medvol.errors import require_choice
from medvol.networks.mean import as_outputs
from medvol.training.dice_ce import dice_ce

CLASS_WEIGHTS = ("none", "balanced")


@final
class ClassificationLoss(nn.Module):
    """Cross-entropy over class logits; a single logit is taken as that of the positive class of two.

    Args:
        weights: Weight of each class, shape (classes,); None weighs them alike.
        label_smoothing: Probability moved from the true class to all (Szegedy et al., CVPR 2016).
    """

    def __init__(self, weights: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weights: Tensor | None
        self.register_buffer("weights", weights)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss.

        Args:
            logits: Shape (n, classes) or (n, 1).
            labels: Class indices, shape (n,).
        """
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        weights = None if self.weights is None else self.weights.to(logits)
        return F.cross_entropy(logits, labels.long(), weight=weights, label_smoothing=self.label_smoothing)


def classification_loss(
    labels: Iterable[int], num_classes: int, *, class_weights: str = "none", label_smoothing: float = 0.0
) -> ClassificationLoss:
    """Return the loss for a training split.

    Args:
        labels: Class index of every training case.
        num_classes: Number of classes.
        class_weights: `none`, or `balanced` for weights inverse to the class frequency with mean 1 over the cases.
        label_smoothing: See `ClassificationLoss`.

    Raises:
        MedvolError: `UNKNOWN_OPTION`.
    """
    require_choice("class_weights", class_weights, CLASS_WEIGHTS)
    if class_weights == "none":
        return ClassificationLoss(None, label_smoothing)
    counts = Counter(labels)
    total = sum(counts.values())
    weights = [total / (num_classes * counts[index]) if counts[index] else 0.0 for index in range(num_classes)]
    return ClassificationLoss(torch.tensor(weights), label_smoothing)


@final
class DeepDiceCeLoss(nn.Module):
    """Dice plus cross-entropy (`dice_ce`) at every output of a network with deep supervision.

    Soft Dice takes the batch as one volume, as nnU-Net does where a structure may be absent from a patch, and leaves
    out the background. An output of half the resolution weighs half (Isensee et al., Nature Methods 2021); networks
    that learn side by side give several of one resolution, which weigh alike. MONAI's own DeepSupervisionLoss takes
    coarse targets half a voxel off: voxel i of a convolution of stride 2 is centred on voxel 2i of the finer grid, not
    on 2i + 1.
    """

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return the loss, a weighted mean over the outputs.

        Args:
            logits: Shape (n, classes, x, y, z), or one such tensor or more per resolution, the finest first.
            labels: Class indices, (n, 1, x, y, z).
        """
        outputs = as_outputs(logits)
        resolutions = list(dict.fromkeys(output.shape[2:] for output in outputs))
        weights = [0.5 ** resolutions.index(output.shape[2:]) for output in outputs]
        losses = [dice_ce(output.float(), _nearest(labels, output.shape[2:])) for output in outputs]
        return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)


def _nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    same = labels.shape[2:] == tuple(size)
    return labels if same else F.interpolate(labels.float(), size=tuple(size), mode="nearest")
