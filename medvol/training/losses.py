"""Classification losses for one-logit and many-logit networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import final

import torch
import torch.nn.functional as F  # noqa: N812
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import Tensor, nn

from medvol.errors import require_choice

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
    """Dice plus cross-entropy at every output of a network with deep supervision.

    MONAI's DiceCELoss inside its DeepSupervisionLoss: soft Dice over the batch as one volume, as nnU-Net takes it where
    a structure may be absent from a patch, without the background; outputs of lower resolution weigh half of the one
    before (Isensee et al., Nature Methods 2021) and meet targets taken by nearest neighbour.

    Args:
        background: Whether the background counts in the Dice term.
    """

    def __init__(self, *, background: bool = False) -> None:
        super().__init__()
        self.loss = DeepSupervisionLoss(
            DiceCELoss(to_onehot_y=True, softmax=True, include_background=background, batch=True), weight_mode="exp"
        )

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return the loss, a weighted mean over the outputs.

        Args:
            logits: Shape (n, classes, x, y, z), or one such tensor per resolution, the finest first.
            labels: Class indices, (n, 1, x, y, z).
        """
        outputs = [logits] if isinstance(logits, Tensor) else list(logits)
        total = self.loss([output.float() for output in outputs], labels.float())
        return total / sum(0.5**level for level in range(len(outputs)))
