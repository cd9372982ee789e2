"""Training that starts from published weights, as a whole or with everything but the head frozen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from monai.inferers import Inferer
from torch import Tensor, nn

from medvol.errors import MedvolError
from medvol.inference.runtime import Runtime, RuntimeInferer
from medvol.io.files import existing
from medvol.networks.published import LoadedWeights
from medvol.networks.resnet2d import HEAD as RESNET_HEAD
from medvol.networks.resnet2d import load_torchvision_resnet50
from medvol.networks.vit2d import load_timm_vit
from medvol.networks.vit_blocks import HEAD as VIT_HEAD
from medvol.networks.vit_blocks import VisionTransformer

logger = logging.getLogger(__name__)

HUB = "hub"


def start_resnet50(
    network: nn.Module, pretrained: str = "", *, freeze_encoder: bool = False, normalisation: str = "imagenet"
) -> nn.Module:
    """Return ResNet-50 with torchvision's weights, its head for other classes at its random start.

    Args:
        network: From `resnet50_2d`.
        pretrained: File; `hub` for the one in torch's hub cache, nothing is downloaded; empty leaves the random start.
        freeze_encoder: Whether only the head is to learn.
        normalisation: Of the images, see `medvol.data.image_facts`; published weights without theirs are warned of.

    Raises:
        MedvolError: `NOT_FOUND`, or as `load_torchvision_resnet50` and `freeze_all_but`.
    """

    def load(file: Path | None) -> LoadedWeights:
        return load_torchvision_resnet50(network, file)

    _warn_of(normalisation, pretrained)
    return _started(network, load, pretrained, RESNET_HEAD if freeze_encoder else "")


def start_vit(
    network: VisionTransformer, pretrained: str = "", *, freeze_encoder: bool = False, normalisation: str = "imagenet"
) -> nn.Module:
    """Return a vision transformer with timm's weights, its head for other classes at its random start.

    Args:
        network: From `vit2d`.
        pretrained: File; empty leaves the random start.
        freeze_encoder: Whether only the head is to learn.
        normalisation: Of the images, see `medvol.data.image_facts`; published weights without theirs are warned of.

    Raises:
        MedvolError: `NOT_FOUND`, or as `load_timm_vit` and `freeze_all_but`.
    """

    def load(file: Path | None) -> LoadedWeights:
        if file is None:
            raise MedvolError(
                "NO_WEIGHTS", found="--pretrained hub", expected="a file in timm's layout", fix="name the file"
            )
        return load_timm_vit(network, file)

    _warn_of(normalisation, pretrained)
    return _started(network, load, pretrained, VIT_HEAD if freeze_encoder else "")


def freeze_all_but(network: nn.Module, head: str) -> nn.Module:
    """Return the network with gradients for one layer only."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(f"{head}."))
    return network


def training_inferer(runtime: Runtime | None = None, *, frozen: bool = False) -> Inferer:
    """Return how the training step runs the network; of a frozen one all but the learning layers stay in evaluation."""
    inferer = RuntimeInferer(runtime)
    return FrozenInferer(inferer) if frozen else inferer


@final
class FrozenInferer(Inferer):
    """Run a network whose encoder is frozen: its batch norms keep their published statistics, its dropout is off.

    MONAI's trainer puts the whole network into training mode before every step, so this undoes it at every step. Layers
    without a parameter of their own, as dropout, count with the encoder.
    """

    def __init__(self, inferer: Inferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return what the inferer returns."""
        network.eval()
        for module in network.modules():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                module.training = True
        return self.inferer(inputs, network, *args, **kwargs)


def _warn_of(normalisation: str, pretrained: str) -> None:
    if pretrained and normalisation == "zero_one":
        logger.warning("Published weights have seen images normalised by imagenet or half, these are not")


def _started(
    network: nn.Module, load: Callable[[Path | None], LoadedWeights], pretrained: str, frozen_but: str
) -> nn.Module:
    if pretrained:
        load(None if pretrained == HUB else existing(Path(pretrained)))
    if not frozen_but:
        return network
    if not pretrained:
        raise MedvolError(
            "NO_WEIGHTS",
            found="--freeze_encoder True with an encoder of random weights",
            expected="published weights",
            fix="pass --pretrained FILE",
        )
    return freeze_all_but(network, frozen_but)
