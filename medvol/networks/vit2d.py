"""Vision transformers for images, with timm's published weights.

`base` is ViT-B/16 and `tiny` is ViT-Ti/16, both in timm's layout: 86,567,656 and 5,717,416 parameters at 224 x 224 with
1000 classes there, 768 and 192 fewer here, where the class token's position is part of the token. `compact` is for
studies of some hundred images without published weights. timm is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvol.networks.published import LoadedWeights, load_exactly, read_state
from medvol.networks.vit_blocks import (
    HEAD,
    POSITIONS,
    VisionTransformer,
    VitLayout,
    fit_positions,
    preset_layout,
    renamed,
)

PRESETS = {
    # timm's layer norms have an epsilon of 1e-6.
    "base": VitLayout(patch_size=16, width=768, depth=12, heads=12, mlp_width=3072, epsilon=1e-6),
    "tiny": VitLayout(patch_size=16, width=192, depth=12, heads=3, mlp_width=768, epsilon=1e-6),
    "compact": VitLayout(patch_size=4, width=128, depth=4, heads=4, mlp_width=256, dropout=0.1, stem=True),
}
TIMM_NAMES = (
    ("patch_embed.proj.", "patch_embedding.patch_embeddings."),
    (".attn.proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.linear1."),
    (".mlp.fc2.", ".mlp.linear2."),
    ("head.", f"{HEAD}."),
)
"""Of timm and of the network; all other layers have the same name in both."""


def vit2d(
    in_channels: int,
    num_outputs: int,
    *,
    spatial_size: Sequence[int] = (224, 224),
    preset: str = "base",
    patch_size: int | None = None,
    dropout: float | None = None,
) -> VisionTransformer:
    """Return a vision transformer, (batch, in_channels, *spatial_size) to (batch, num_outputs) logits.

    Args:
        in_channels: Channels of the images; 3 for published weights, a grey image repeated.
        num_outputs: Logits per image.
        spatial_size: Pixels along each axis, multiples of the patch; every image must have exactly this size.
        preset: `base` (86 million parameters), `tiny` (5.5 million) or `compact` (0.6 million, convolutional stem).
        patch_size: Edge of a patch; by default 16, and for `compact` 4, doubled until a side has at most 12.
        dropout: Probability in all places; by default that of the preset.

    Raises:
        MedvolError: `INPUT_SIZE` with the multiple, or `UNKNOWN_OPTION` with the nearest name.
    """
    if patch_size is None and preset == "compact":
        patch_size = _patch_of(max(spatial_size))
    layout = preset_layout(PRESETS, preset, patch_size=patch_size, dropout=dropout)
    return VisionTransformer(f"vit2d ({preset})", in_channels, num_outputs, spatial_size, layout)


def _patch_of(side: int) -> int:
    """Return 4, doubled until a side has at most 12 patches: attention grows with the fourth power of their number."""
    patch = PRESETS["compact"].patch_size
    while side > 12 * patch:
        patch *= 2
    return patch


def load_timm_vit(network: VisionTransformer, weights: str | Path | Mapping[str, Any]) -> LoadedWeights:
    """Load weights in the layout of timm's `vit_base_patch16_224` and say what was loaded.

    Images must then be scaled to [0, 1] and normalised as the file's training did: timm's own files by `half`, DeiT's
    by `imagenet` of `medvol.data.image_facts.NORMALISATIONS`.

    Args:
        network: From `vit2d`, `base` or `tiny`; a head for other classes than the file's is left at its random start,
            positions for another size are resized.
        weights: File (`.safetensors` or of `torch.save`), or what was read from one.

    Raises:
        MedvolError: `BAD_WEIGHTS`, `OTHER_NETWORK`; the network is unchanged then.
    """
    file = weights if isinstance(weights, str | Path) else ""
    state = renamed(read_state(weights), TIMM_NAMES)
    if "cls_token" in state and "pos_embed" in state:
        positions = state.pop("pos_embed")
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state[POSITIONS] = fit_positions(positions[:, 1:], network.grid)
    return load_exactly(network, state, head=HEAD, file=file)


def timm_state(network: VisionTransformer) -> dict[str, Tensor]:
    """Return the weights by timm's names, for its `load_state_dict`; the class token's position is 0."""
    state = renamed(network.state_dict(), [(new, old) for old, new in TIMM_NAMES])
    positions = state.pop(POSITIONS)
    state["pos_embed"] = torch.cat((torch.zeros_like(positions[:, :1]), positions), dim=1)
    return state
