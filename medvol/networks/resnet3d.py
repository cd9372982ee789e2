"""Compact residual 3D network: the default for studies of some hundred volumes.

Basic blocks (He et al., "Deep Residual Learning", CVPR 2016) behind a stem of stride 2, so that most of the arithmetic
runs on an eighth of the voxels. A wide network at full resolution costs more and, with this little data, gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from torch import Tensor, nn

from medvol.networks.pooling import MeanOfPairs


@final
class ResNet3D(nn.Module):
    """Stem of stride 2, one residual block per width, global mean, dropout, linear head.

    Shapes: (batch, in_channels, x, y, z) to (batch, num_outputs). Any size from 1 voxel on works, because every
    reduction rounds up.

    Args:
        in_channels: Channels of the volumes.
        num_outputs: Logits per volume.
        widths: Channels of the residual stages; each stage after the first halves the resolution.
        dropout: Probability before the linear head.
    """

    def __init__(self, in_channels: int, num_outputs: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, widths[0], kernel_size=5, stride=2, padding=2, bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.ReLU(inplace=True),
        )
        stages = [ResidualBlock(widths[0], widths[0], halve=False)]
        stages += [ResidualBlock(before, after, halve=True) for before, after in pairwise(widths)]
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, num_outputs)."""
        x = self.stages(self.stem(x))  # (batch, widths[-1], x/8, y/8, z/8)
        x = x.mean(dim=(2, 3, 4))  # (batch, widths[-1])
        return self.head(self.dropout(x))


@final
class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with batch normalisation, added to their input.

    Where the resolution is halved the shortcut averages before it projects, so that no voxel is skipped
    (He et al., "Bag of Tricks for Image Classification", CVPR 2019).
    """

    def __init__(self, in_channels: int, out_channels: int, *, halve: bool) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=2 if halve else 1, padding=1, bias=False),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm3d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if halve or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                MeanOfPairs(round_up=True) if halve else nn.Identity(),
                nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False),
                nn.BatchNorm3d(out_channels),
            )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return features, of half the size (rounded up) where the block halves."""
        return self.activation(self.convolutions(x) + self.shortcut(x))


def resnet3d(
    in_channels: int,
    num_outputs: int,
    *,
    widths: Sequence[int] = (32, 64, 128),
    dropout: float = 0.2,
) -> nn.Module:
    """Return the compact residual network: 0.9 million parameters with the default widths."""
    return ResNet3D(in_channels, num_outputs, widths, dropout)
