"""A volume and a row of covariates together, either of which may be missing.

The volume goes through the body of `resnet3d`, the covariates through one dense layer; both are joined before a linear
head (late fusion). What is missing is replaced by a vector that is learnt: in training now and then one of the two is
withheld, so that both vectors are (Neverova et al., "ModDrop", IEEE TPAMI 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from medvol.errors import MedvolError
from medvol.networks.resnet3d import resnet3d


@final
class FusionNet(nn.Module):
    """Encoder, dense layer, learnt stand-ins for what is missing, dropout, linear head.

    Args:
        encoder: Volume (batch, channel, x, y, z) to features (batch, image_features).
        image_features: Features of a volume.
        in_features: Numbers of a row.
        num_outputs: Logits per case.
        hidden: Units of the covariates' dense layer.
        dropout: Probability before the head.
        drop_modality: Probability, in training, of withholding the image of a case; and, as high, its covariates.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        image_features: int,
        in_features: int,
        num_outputs: int,
        hidden: int,
        dropout: float,
        drop_modality: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.covariates = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(inplace=True))
        self.no_image = nn.Parameter(torch.zeros(image_features))
        self.no_covariates = nn.Parameter(torch.zeros(hidden))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(image_features + hidden, num_outputs)
        self.drop_modality = drop_modality

    def forward(self, image: Tensor, covariates: Tensor | None = None, has_image: Tensor | None = None) -> Tensor:
        """Return logits, shape (batch, num_outputs).

        Args:
            image: Shape (batch, channel, x, y, z); whatever stands where `has_image` is 0 is not looked at.
            covariates: Shape (batch, in_features); a row with nan is not known. None: no row is.
            has_image: Shape (batch,), 0 where a case has no image. None: all have one.
        """
        batch = image.shape[0]
        seen = (
            torch.ones(batch, dtype=torch.bool, device=image.device) if has_image is None else has_image.to(torch.bool)
        )
        known = torch.zeros_like(seen) if covariates is None else ~covariates.isnan().any(dim=1)
        features = self.encoder(image) if has_image is None else self._image_features(image, seen)
        row = self.no_covariates.expand(batch, -1)
        if covariates is not None:
            row = self.covariates(torch.where(known[:, None], covariates, 0.0))
        if self.training and self.drop_modality > 0:
            # One draw for both: only a case that has both loses one, and none loses both.
            draw, both = torch.rand(batch, device=image.device), seen & known
            seen = seen & ~(both & (draw < self.drop_modality))
            known = known & ~(both & (draw > 1 - self.drop_modality))
        features = torch.where(seen[:, None], features, self.no_image.to(features.dtype))
        row = torch.where(known[:, None], row, self.no_covariates.to(row.dtype))
        return self.head(self.dropout(torch.cat([features, row.to(features.dtype)], dim=1)))

    def _image_features(self, image: Tensor, seen: Tensor) -> Tensor:
        """Encode the images that are there; placeholders must not enter the statistics of the normalisations."""
        if bool(seen.all()):
            return self.encoder(image)
        if not bool(seen.any()):
            return self.no_image.expand(len(image), -1)
        found = self.encoder(image[seen])
        return found.new_zeros(len(image), found.shape[1]).index_copy(0, seen.nonzero()[:, 0], found)


def fusion_network(
    in_channels: int,
    in_features: int,
    num_outputs: int,
    *,
    widths: Sequence[int] = (32, 64, 128),
    hidden: int = 32,
    dropout: float = 0.2,
    drop_modality: float = 0.1,
) -> nn.Module:
    """Return the fusion of `resnet3d`'s body with a row of covariates: see `FusionNet`.

    Args:
        in_channels: Channels of the volumes.
        in_features: Numbers of a row, after categories have become columns.
        num_outputs: Logits per case.
        widths: Channels of the residual stages.
        hidden: Units of the covariates' dense layer.
        dropout: Probability before the head.
        drop_modality: Probability of withholding one modality of a case in training.

    Raises:
        MedvolError: `INPUT_TOO_SMALL` without a covariate.
    """
    if in_features < 1:
        raise MedvolError(
            "INPUT_TOO_SMALL",
            found=f"fusion_network was given {in_features} covariates",
            expected="at least 1",
            fix="add columns to the case table, or use resnet3d_classification",
        )
    encoder = resnet3d(in_channels, num_outputs, widths=widths, dropout=0.0)
    encoder.head = nn.Identity()
    return FusionNet(
        encoder,
        image_features=widths[-1],
        in_features=in_features,
        num_outputs=num_outputs,
        hidden=hidden,
        dropout=dropout,
        drop_modality=drop_modality,
    )
