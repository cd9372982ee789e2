"""Residual U-Net with deep supervision: the strong default for segmentation.

MONAI's SegResNetDS (Myronenko, "3D MRI brain tumor segmentation using autoencoder regularization", 2018; the network
behind Auto3DSeg's challenge wins): pre-activated residual blocks, additive skip connections, an output per resolution.
Skips that are added instead of concatenated halve the cost of the decoder, which is where a U-Net spends its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import final

from monai.networks.nets import SegResNetDS
from monai.networks.nets.segresnet_ds import scales_for_resolution
from torch import Tensor, nn

from medvol.errors import MedvolError
from medvol.networks.fast_norm import use_fast_norm
from medvol.networks.mean import MeanOfNetworks


@final
class ResidualUNet(SegResNetDS):
    """MONAI's SegResNetDS that names the multiple a size must be of, and pads nothing.

    Shapes: (n, in_channels, x, y, z) to (n, num_outputs, x, y, z); while training a list, the finest first.
    """

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits.

        Raises:
            MedvolError: `BAD_PATCH_SIZE`.
        """
        if not self.is_valid_shape(x):
            factors = [int(factor) for factor in self.shape_factor()]
            better = [-(-size // factor) * factor for size, factor in zip(x.shape[2:], factors, strict=True)]
            raise MedvolError(
                "BAD_PATCH_SIZE",
                found=f"patches of {' x '.join(map(str, x.shape[2:]))} voxels",
                expected=f"multiples of {' x '.join(map(str, factors))}",
                fix=f"pass --spatial_size '{better}'",
            )
        return super().forward(x)


MOST_LEVELS = 5
BOTTOM_VOXELS = 4  # as nnU-Net: fewer voxels at the bottom leave a 3 x 3 x 3 kernel nothing but its padding


def levels_for(spatial_size: Sequence[int], spacing_mm: Sequence[float] | None = None) -> int:
    """Return the number of resolutions of a U-Net for patches of a size, 2 to 5.

    Halved as long as every axis keeps `BOTTOM_VOXELS`; an axis whose spacing is coarse is not halved until the others
    have caught up (see `scales_for_resolution` of MONAI's SegResNetDS).
    """
    for levels in range(MOST_LEVELS, 2, -1):
        steps = scales_for_resolution(tuple(spacing_mm or (1.0, 1.0, 1.0)), n_stages=levels)[: levels - 1]
        factors = [math.prod(step[axis] for step in steps) for axis in range(3)]
        if all(size // factor >= BOTTOM_VOXELS for size, factor in zip(spatial_size, factors, strict=True)):
            return levels
    return 2


def unet(
    in_channels: int,
    num_outputs: int,
    *,
    spatial_size: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
    width: int | Sequence[int] = 16,
    levels: int | None = None,
    supervised: int = 3,
) -> nn.Module:
    """Return the residual U-Net, or the mean of several.

    Args:
        in_channels: Channels of the image.
        num_outputs: Classes, background included.
        spatial_size: Voxels of a training patch along x, y, z; decides the depth. Other sizes work as well.
        spacing_mm: Of the working grid; anisotropic voxels are not halved along their coarse axes until about cubic.
        width: Channels at full resolution; doubled at each level. Several widths give as many networks, averaged.
        levels: Resolutions, 2 to 5; as many as `levels_for` finds when None. Most weights lie in the coarsest.
        supervised: Outputs while training, one per resolution from the finest on.

    Raises:
        MedvolError: `UNKNOWN_OPTION` for another number of levels, or a width that is none.
    """
    if isinstance(width, Sequence):
        _require_widths(width)
        alone = partial(unet, in_channels, num_outputs, spatial_size=spatial_size, spacing_mm=spacing_mm)
        return MeanOfNetworks([alone(width=one, levels=levels, supervised=supervised) for one in width])
    if levels is None:
        levels = levels_for(spatial_size, spacing_mm)
    elif levels not in range(2, MOST_LEVELS + 1):
        raise MedvolError("UNKNOWN_OPTION", found=f"levels {levels}", expected=f"2 to {MOST_LEVELS}, or None")
    network = ResidualUNet(
        spatial_dims=3,
        init_filters=width,
        in_channels=in_channels,
        out_channels=num_outputs,
        norm="INSTANCE",
        blocks_down=(1, *[2] * (levels - 1)),
        dsdepth=min(supervised, levels - 1),
        resolution=None if spacing_mm is None else tuple(spacing_mm),
    )
    use_fast_norm(network)
    return network


def _require_widths(widths: Sequence[int]) -> None:
    if not widths or isinstance(widths, str) or not all(isinstance(one, int) and one > 0 for one in widths):
        found = f"width {widths!r}"[:80]
        raise MedvolError("UNKNOWN_OPTION", found=found, expected="channels, or a list of them such as [16, 16]")
