"""ResNet-50 for images, with torchvision's published weights.

MONAI's ResNet without a bias in its shortcuts is torchvision's ResNet-50 v1.5, tensor by tensor and name by name: stem
of stride 2, stride in the 3x3 convolution of a bottleneck, 25,557,032 parameters with 3 channels and 1000 classes. So
the map of names is the identity, and what is left to do is to check that a file has these names and shapes and no
others. torchvision is not needed.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import nn

from medvol.errors import MedvolError
from medvol.networks.published import LoadedWeights, load_exactly, read_state

HEAD = "fc"
COUNTERS = ("num_batches_tracked",)
"""Batches seen by a batch norm: files from before 2018 lack them, and no output depends on them."""


def resnet50_2d(in_channels: int, num_outputs: int) -> nn.Module:
    """Return ResNet-50, (batch, in_channels, x, y) to (batch, num_outputs) logits, for images of any size.

    Args:
        in_channels: Channels of the images; 3 for published weights, a grey image repeated.
        num_outputs: Logits per image.
    """
    return ResNet(
        block="bottleneck",
        layers=[3, 4, 6, 3],
        block_inplanes=[64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=in_channels,
        conv1_t_size=7,
        conv1_t_stride=2,
        num_classes=num_outputs,
        bias_downsample=False,
    )


def load_torchvision_resnet50(
    network: nn.Module, weights: str | Path | Mapping[str, Any] | None = None
) -> LoadedWeights:
    """Load torchvision's published ResNet-50 and say what was loaded.

    Images must then be scaled to [0, 1] and normalised by the mean and deviation of ImageNet, `imagenet` in
    `medvol.data.image_facts.NORMALISATIONS`.

    Args:
        network: From `resnet50_2d`; a head for other classes than the file's is left at its random start.
        weights: File, or what was read from one; without it, the one in torch's hub cache. Nothing is downloaded.

    Raises:
        MedvolError: `NO_WEIGHTS`, `BAD_WEIGHTS`, `OTHER_NETWORK`; the network is unchanged then.
    """
    source = cached_resnet50() if weights is None else weights
    file = source if isinstance(source, str | Path) else ""
    return load_exactly(network, read_state(source), head=HEAD, file=file, optional=COUNTERS)


def cached_resnet50() -> Path:
    """Return the ResNet-50 file in torch's hub cache, after checking its content against its name.

    torchvision puts the beginning of the file's SHA-256 into its name.

    Raises:
        MedvolError: `NO_WEIGHTS` when there is none or more than one, `BAD_WEIGHTS` when the content does not belong
            to the name.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(folder.glob("resnet50-*.pth"))
    if len(found) != 1:
        raise MedvolError(
            "NO_WEIGHTS",
            file=folder,
            found=", ".join(path.name for path in found) or "no resnet50-*.pth",
            expected="one file of ResNet-50",
            fix="name the file to load",
        )
    named = found[0].stem.removeprefix("resnet50-")
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if not digest.startswith(named):
        raise MedvolError(
            "BAD_WEIGHTS",
            file=found[0],
            found=f"its SHA-256 begins with {digest[: len(named)]}",
            expected=named,
            fix="delete the file and fetch it again",
        )
    return found[0]
