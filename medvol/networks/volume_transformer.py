"""A transformer for volumes with a switch, ViT on 3D patches or Swin encoder, either from a pretrained start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from medvol.errors import MedvolError, require_choice
from medvol.networks.published import read_state
from medvol.networks.swin_unetr import MULTIPLE
from medvol.networks.swin_weights import load_swin_unetr_weights
from medvol.networks.vit3d import PRESETS, load_monai_vit, swin_classifier, vit3d
from medvol.networks.vit_blocks import VisionTransformer

ARCHITECTURES = ("vit", "swin")
COARSE_FROM = 28  # voxels; patches of 4 then make over 300 tokens, and a step costs six times that of patches of 8


def volume_transformer(
    in_channels: int,
    num_outputs: int,
    *,
    spatial_size: Sequence[int],
    architecture: str = "vit",
    preset: str = "compact",
    patch_size: int | None = None,
    feature_size: int = 24,
) -> nn.Module:
    """Return the network, (batch, in_channels, *spatial_size) to (batch, num_outputs) logits.

    Args:
        in_channels: Channels of the volumes.
        num_outputs: Logits per volume.
        spatial_size: Voxels along x, y, z, multiples of what `size_multiple` says.
        architecture: `vit` or `swin`.
        preset: Of the ViT: `compact` or `base`.
        patch_size: Of the ViT; None for `patch_edge`.
        feature_size: Of the Swin encoder.

    Raises:
        MedvolError: `INPUT_SIZE`, or `UNKNOWN_OPTION` with the nearest name.
    """
    require_choice("architecture", architecture, ARCHITECTURES)
    if architecture == "swin":
        return swin_classifier(in_channels, num_outputs, spatial_size=spatial_size, feature_size=feature_size)
    patch = patch_edge(spatial_size, preset=preset, patch_size=patch_size)
    return vit3d(in_channels, num_outputs, spatial_size=spatial_size, preset=preset, patch_size=patch)


def patch_edge(spatial_size: Sequence[int], *, preset: str = "compact", patch_size: int | None = None) -> int:
    """Return the edge of the ViT's patches in voxels: as given, else the preset's, doubled for large compact ones.

    Raises:
        MedvolError: `UNKNOWN_OPTION`.
    """
    require_choice("preset", preset, PRESETS)
    if patch_size is not None:
        return patch_size
    return PRESETS[preset].patch_size * (2 if preset == "compact" and max(spatial_size) >= COARSE_FROM else 1)


def size_multiple(
    spatial_size: Sequence[int], *, architecture: str = "vit", preset: str = "compact", patch_size: int | None = None
) -> int:
    """Return the number that every axis of the network's input must be a multiple of.

    Raises:
        MedvolError: `UNKNOWN_OPTION`.
    """
    require_choice("architecture", architecture, ARCHITECTURES)
    return MULTIPLE if architecture == "swin" else patch_edge(spatial_size, preset=preset, patch_size=patch_size)


def start_from(network: nn.Module, weights: str | Path) -> nn.Module:
    """Return the network, its encoder from a file where one is named; for a bundle's `--pretrained`.

    Args:
        network: From `volume_transformer`.
        weights: For a ViT a file of MONAI's `ViTAutoEnc`, `ViT` or `MaskedAutoEncoderViT`; for Swin one of `SwinUNETR`
            or of its published encoders; for both one of medvol's pretraining. Empty for a random start.

    Raises:
        MedvolError: `BAD_WEIGHTS`, `OTHER_NETWORK`.
    """
    if weights and isinstance(network, VisionTransformer):
        require_architecture(weights, "vit")
        load_monai_vit(network, weights)
    elif weights:
        require_architecture(weights, "swin")
        load_swin_unetr_weights(network, weights)
    return network


def require_architecture(weights: str | Path, architecture: str) -> None:
    """Refuse a file of the other architecture by its name, not by the hundred layers that differ.

    Raises:
        MedvolError: `BAD_WEIGHTS`, `OTHER_NETWORK`.
    """
    state = read_state(weights)
    signs = {"vit": "patch_embedding.", "swin": "patch_embed."}
    found = [name for name, sign in signs.items() if any(sign in layer for layer in state)]
    if found and architecture not in found:
        raise MedvolError(
            "OTHER_NETWORK",
            file=weights,
            found=f"an encoder of the architecture {found[0]}",
            expected=architecture,
            fix=f"pass --architecture {found[0]}, or a file of a {architecture} encoder",
        )
