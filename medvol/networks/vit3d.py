"""Transformers for volumes that return logits: a ViT on 3D patches, and the Swin encoder with a pooled head.

Both carry MONAI's names, so that they start from its self-supervised encoders: `vit3d` from `ViTAutoEnc`, `ViT` and
`MaskedAutoEncoderViT`, `swin_classifier` from `SwinUNETR` and its published encoders (`load_swin_unetr_weights`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from medvol.networks.fast_norm import use_fast_norm
from medvol.networks.published import LoadedWeights, load_exactly, read_state
from medvol.networks.swin_unetr import MULTIPLE, FastSwinTransformer, require_feature_size
from medvol.networks.vit_blocks import (
    HEAD,
    POSITIONS,
    VisionTransformer,
    VitLayout,
    fit_positions,
    preset_layout,
    renamed,
    require_patches,
)

PRESETS = {
    # As MONAI's ViTAutoEnc, `base` has no bias in queries, keys and values.
    "compact": VitLayout(patch_size=4, width=96, depth=4, heads=3, mlp_width=192, dropout=0.1, stem=True),
    "base": VitLayout(patch_size=16, width=768, depth=12, heads=12, mlp_width=3072, qkv_bias=False),
}
DECODERS = re.compile(r"conv3d_transpose|decoder_|mask_tokens|blocks\.\d+\.(norm_)?cross_attn\.")
"""What only pre-training needed, and the norms that MONAI's layers have for a cross-attention they do not do."""


def vit3d(
    in_channels: int,
    num_outputs: int,
    *,
    spatial_size: Sequence[int],
    preset: str = "compact",
    patch_size: int | None = None,
    dropout: float | None = None,
    qkv_bias: bool | None = None,
) -> VisionTransformer:
    """Return a vision transformer, (batch, in_channels, *spatial_size) to (batch, num_outputs) logits.

    Args:
        in_channels: Channels of the volumes.
        num_outputs: Logits per volume.
        spatial_size: Voxels along each axis, multiples of the patch; every volume must have exactly this size.
        preset: `compact` (0.5 million parameters, convolutional stem) or `base` (as MONAI's ViTAutoEnc, 88 million).
        patch_size: Edge of a patch; by default 4 for `compact`, which wants 8 from about 28 voxels on, and 16.
        dropout: Probability in all places; by default that of the preset.
        qkv_bias: Whether queries, keys and values have a bias; by default as the preset, to suit weights otherwise.

    Raises:
        MedvolError: `INPUT_SIZE` with the multiple, or `UNKNOWN_OPTION` with the nearest name.
    """
    layout = preset_layout(PRESETS, preset, patch_size=patch_size, dropout=dropout, qkv_bias=qkv_bias)
    return VisionTransformer(f"vit3d ({preset})", in_channels, num_outputs, spatial_size, layout)


def load_monai_vit(network: VisionTransformer, weights: str | Path | Mapping[str, Any]) -> LoadedWeights:
    """Load an encoder in the layout of MONAI's `ViTAutoEnc`, `ViT` or `MaskedAutoEncoderViT` and say what was loaded.

    Args:
        network: From `vit3d` without a stem. Its head, and the class token that ViTAutoEnc lacks, are left at their
            random start; positions for another cube are resized.
        weights: File, or what was read from one. Decoders and unused norms in it are ignored by name.

    Raises:
        MedvolError: `BAD_WEIGHTS`, `OTHER_NETWORK`; the network is unchanged then.
    """
    file = weights if isinstance(weights, str | Path) else ""
    # A head with a tanh behind it is a sequence, and the masked autoencoder's last norm stands among its layers.
    pairs = [(f"{HEAD}.0.", f"{HEAD}."), (f"blocks.{len(network.blocks)}.", "norm.")]
    found = renamed(read_state(weights), pairs)
    ignored = [name for name in found if DECODERS.match(name)]
    state = {name: value for name, value in found.items() if name not in ignored}
    if POSITIONS in state:
        state[POSITIONS] = fit_positions(state[POSITIONS], network.grid)
    return load_exactly(network, state, head=HEAD, file=file, optional=["cls_token"], ignored=ignored)


@final
class SwinClassifier(nn.Module):
    """The encoder of `swin_unetr`, mean over its last stage, dropout, linear head.

    Shapes: (batch, in_channels, x, y, z) to (batch, num_outputs), for all sizes that are multiples of 32.

    Args:
        encoder: Under the name that it has in a Swin UNETR.
        features: Channels of its last stage.
        num_outputs: Logits per volume.
        dropout: Probability before the head.
    """

    def __init__(self, encoder: FastSwinTransformer, features: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.swinViT = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, num_outputs)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return logits, shape (batch, num_outputs).

        Raises:
            MedvolError: `INPUT_SIZE`.
        """
        require_patches("swin_classifier", volumes.shape[2:], MULTIPLE)
        features = self.swinViT(volumes.contiguous(memory_format=torch.channels_last_3d))[-1]
        logits: Tensor = self.head(self.dropout(features.mean(dim=(2, 3, 4))))
        return logits


def swin_classifier(
    in_channels: int,
    num_outputs: int,
    *,
    spatial_size: Sequence[int],
    feature_size: int = 24,
    use_v2: bool = False,
    dropout: float = 0.0,
    dropout_path_rate: float = 0.0,
) -> SwinClassifier:
    """Return the Swin encoder with a pooled head; `load_swin_unetr_weights` starts it from a Swin UNETR.

    Args:
        in_channels: Channels of the volumes.
        num_outputs: Logits per volume.
        spatial_size: Voxels along each axis of the volumes to come, multiples of 32.
        feature_size: Channels of the first stage, a multiple of 12; 48 in the published encoders.
        use_v2: Put a residual convolution block before each Swin stage.
        dropout: Probability before the head.
        dropout_path_rate: Probability with which the last layer is skipped; less for those before it.

    Raises:
        MedvolError: `INPUT_SIZE` with the multiple, or `UNKNOWN_OPTION` for a feature size.
    """
    require_patches("swin_classifier", spatial_size, MULTIPLE)
    require_feature_size(feature_size)
    stock = SwinTransformer(
        in_chans=in_channels,
        embed_dim=feature_size,
        window_size=(7, 7, 7),
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
        drop_path_rate=dropout_path_rate,
        use_v2=use_v2,
    )
    network = SwinClassifier(FastSwinTransformer(use_fast_norm(stock)), 16 * feature_size, num_outputs, dropout)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub lacks it
    return network
