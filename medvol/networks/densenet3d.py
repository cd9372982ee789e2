"""DenseNet in 3D (Huang et al., "Densely Connected Convolutional Networks", CVPR 2017), on MONAI's implementation.

MONAI's DenseNet fails inside a pooling layer when a volume is too small for it, 28 cubed with the 121 layout. Here the
smallest legal size is known beforehand and a preset keeps enough resolution for such volumes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, final

import torch
from monai.networks.nets import DenseNet
from torch import Tensor, nn

from medvol.errors import require_choice
from medvol.networks.pooling import MeanOfPairs
from medvol.networks.sizes import require_size

PRESETS: dict[str, dict[str, Any]] = {
    # The stem's max pooling is left out: at 28 cubed the first dense block then sees 14 cubed, not 7.
    "compact": {"init_features": 32, "growth_rate": 16, "block_config": (4, 6, 6), "pool_stem": False},
    "121": {"init_features": 64, "growth_rate": 32, "block_config": (6, 12, 24, 16), "pool_stem": True},
}


@final
class DenseNet3D(DenseNet):
    """MONAI's DenseNet that names the smallest legal size instead of failing in a pooling layer.

    Shapes: (batch, in_channels, x, y, z) to (batch, num_outputs).
    """

    def __init__(self, in_channels: int, num_outputs: int, dropout: float, preset: dict[str, Any]) -> None:
        layout = {name: value for name, value in preset.items() if name != "pool_stem"}
        super().__init__(
            spatial_dims=3, in_channels=in_channels, out_channels=num_outputs, dropout_prob=dropout, **layout
        )
        # The same convolution of a volume that was padded before: of one that pads itself, oneDNN leaves a part of the
        # weight's gradient unset when the first axis is as long as the kernel (torch 2.13).
        stages: dict[str, Any] = dict(self.get_submodule("features").named_children())
        pad = nn.ConstantPad3d(stages["conv0"].padding[0], 0.0)
        stages["conv0"].padding = (0, 0, 0)
        if not preset["pool_stem"]:
            stages["pool0"] = nn.Identity()
        for index in range(1, len(preset["block_config"])):
            stages[f"transition{index}"].pool = MeanOfPairs(round_up=False)
        self.features = nn.Sequential(OrderedDict(pad0=pad, **stages))
        self.smallest = smallest_size(len(preset["block_config"]), pool_stem=preset["pool_stem"])

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, num_outputs)."""
        if not torch.jit.is_scripting():
            self.refuse_small(x)
        x = self.features(x)
        return self.class_layers(x)

    @torch.jit.unused
    def refuse_small(self, x: Tensor) -> None:
        """Raise `INPUT_TOO_SMALL` for a batch whose volumes the pooling would reduce to nothing."""
        require_size("densenet3d", tuple(x.shape[2:]), self.smallest)


def smallest_size(blocks: int, *, pool_stem: bool) -> int:
    """Return the fewest voxels along an axis that leave one voxel before the head.

    Each of the `blocks - 1` transitions halves rounding down; the stem's convolution and pooling halve rounding up.
    """
    size = 2 ** (blocks - 1)
    for _ in range(2 if pool_stem else 1):
        size = 2 * size - 1
    return size


def densenet3d(
    in_channels: int,
    num_outputs: int,
    *,
    spatial_size: Sequence[int],
    preset: str = "compact",
    dropout: float = 0.0,
) -> nn.Module:
    """Return a 3D DenseNet.

    Args:
        in_channels: Channels of the volumes.
        num_outputs: Logits per volume.
        spatial_size: Voxels along each axis of the volumes to come.
        preset: `compact` (0.4 million parameters, from 7 voxels on) or `121` (11 million, from 29 voxels on).
        dropout: Probability after each dense layer.

    Raises:
        MedvolError: `INPUT_TOO_SMALL`, or `UNKNOWN_OPTION` with the nearest name.
    """
    require_choice("preset", preset, PRESETS)
    network = DenseNet3D(in_channels, num_outputs, dropout, PRESETS[preset])
    require_size(f"densenet3d ({preset})", spatial_size, network.smallest)
    return network
