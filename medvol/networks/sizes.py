"""The check that every architecture makes of its input size."""

from __future__ import annotations

from collections.abc import Sequence

from medvol.errors import MedvolError


def require_size(network: str, size: Sequence[int], smallest: int) -> None:
    """Refuse a spatial size that is below what the pooling of a network needs.

    Args:
        network: Name for the message.
        size: Voxels along each spatial axis.
        smallest: Fewest voxels along any axis that the network can take.

    Raises:
        MedvolError: `INPUT_TOO_SMALL`, with the smallest legal size.
    """
    if min(size) < smallest:
        raise MedvolError(
            "INPUT_TOO_SMALL",
            found=f"{network} was given volumes of {' x '.join(map(str, size))} voxels",
            expected=f"at least {smallest} along every axis",
            fix=f"pass --spatial_size '[{', '.join([str(max(smallest, 32))] * len(size))}]' or use resnet3d",
        )
