"""The vision transformer behind `vit2d` and `vit3d`: MONAI's `ViT`, name by name, that returns logits.

MONAI's returns a tuple and puts a tanh on its logits, keeps the tokens of every layer, carries two norms per layer for
a cross-attention that it does not do (18,432 numbers in ViT-B), and wants einops for permutations. Patches, positions
and the layers' dense parts are MONAI's; attention is torch's fused kernel under MONAI's names. Its class token has no
position of its own: a position added to a constant is a constant, so a published one is added to the token.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from monai.networks.blocks import MLPBlock, PatchEmbeddingBlock
from torch import Tensor, nn
from torch.nn import functional

from medvol.errors import MedvolError, require_choice

POSITIONS = "patch_embedding.position_embeddings"
HEAD = "classification_head"


@dataclass(frozen=True)
class VitLayout:
    """What a preset fixes.

    Args:
        patch_size: Edge of a patch, and the multiple that every axis must be of.
        width: Numbers per token.
        depth: Layers.
        heads: Attention heads; they divide the width.
        mlp_width: Hidden units of a layer's dense part.
        qkv_bias: Whether queries, keys and values have a bias.
        epsilon: Added to the variance by the layer norms.
        dropout: Probability after positions, the attention's projection and dense layers.
        stem: Cut patches by convolutions of stride 2, not by one of stride `patch_size`.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    qkv_bias: bool = True
    epsilon: float = 1e-5
    dropout: float = 0.0
    stem: bool = False


@final
class VisionTransformer(nn.Module):
    """Patches with positions and a class token, layers, norm, and a linear head on the class token.

    Shapes: (batch, in_channels, *spatial_size) to (batch, num_outputs).

    Args:
        name: For refusals.
        in_channels: Channels of the images or volumes.
        num_outputs: Logits.
        spatial_size: Pixels or voxels along each axis, multiples of the patch.
        layout: The rest.
    """

    def __init__(
        self, name: str, in_channels: int, num_outputs: int, spatial_size: Sequence[int], layout: VitLayout
    ) -> None:
        super().__init__()
        require_patches(name, spatial_size, layout.patch_size)
        self.name = name
        self.spatial_size = tuple(spatial_size)
        self.grid = tuple(size // layout.patch_size for size in spatial_size)
        self.patch_embedding = PatchEmbeddingBlock(
            in_channels=in_channels,
            img_size=self.spatial_size,
            patch_size=layout.patch_size,
            hidden_size=layout.width,
            num_heads=layout.heads,
            dropout_rate=layout.dropout,
            spatial_dims=len(self.spatial_size),
        )
        if layout.stem:
            self.patch_embedding.patch_embeddings = stem(in_channels, len(self.spatial_size), layout)
        self.blocks = nn.ModuleList(Layer(layout) for _ in range(layout.depth))
        self.norm = nn.LayerNorm(layout.width, eps=layout.epsilon)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, layout.width))
        self.classification_head = nn.Linear(layout.width, num_outputs)
        # Deviation 0.02 everywhere, as in the paper's code and timm; torch's own start is not made for this depth.
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, num_outputs).

        Raises:
            MedvolError: `INPUT_SIZE`.
        """
        if not torch.jit.is_scripting():
            self.refuse_other_size(x)
        tokens = self.patch_embedding(x)  # (batch, patches, width)
        tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.classification_head(self.norm(tokens[:, 0]))

    @torch.jit.unused
    def refuse_other_size(self, x: Tensor) -> None:
        """Raise `INPUT_SIZE` for a batch of a size that the positions were not made for."""
        if tuple(x.shape[2:]) != self.spatial_size:
            raise MedvolError(
                "INPUT_SIZE",
                found=f"{self.name} was given {_size(x.shape[2:])}",
                expected=_size(self.spatial_size),
                fix="resize them or build the network for that size",
            )


@final
class Layer(nn.Module):
    """Attention between tokens, then two dense layers on each; each normalised before and added to its input."""

    def __init__(self, layout: VitLayout) -> None:
        super().__init__()
        self.mlp = MLPBlock(layout.width, layout.mlp_width, layout.dropout)
        self.norm1 = nn.LayerNorm(layout.width, eps=layout.epsilon)
        self.attn = Attention(layout)
        self.norm2 = nn.LayerNorm(layout.width, eps=layout.epsilon)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (batch, tokens, width) of the same."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


@final
class Attention(nn.Module):
    """MONAI's `SABlock` by its names, on torch's fused kernel."""

    def __init__(self, layout: VitLayout) -> None:
        super().__init__()
        self.heads = layout.heads
        self.scale = (layout.width // layout.heads) ** -0.5
        # On a processor torch's fused kernel takes twice as long in bfloat16 as plain products, which hold all weights.
        self.plain_up_to = 1024
        self.out_proj = nn.Linear(layout.width, layout.width)
        self.qkv = nn.Linear(layout.width, 3 * layout.width, bias=layout.qkv_bias)
        self.drop_output = nn.Dropout(layout.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (batch, tokens, width) of the same."""
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        # No dropout of attention weights, as in the paper's code: it would also cost torch its fused kernel.
        if query.dtype == torch.bfloat16 and not query.is_cuda and count <= self.plain_up_to:
            weights = (query @ key.transpose(2, 3) * self.scale).softmax(dim=3)
            mixed = weights @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.drop_output(self.out_proj(mixed.transpose(1, 2).reshape(batch, count, width)))


def preset_layout(presets: Mapping[str, VitLayout], preset: str, **given: Any) -> VitLayout:
    """Return the layout of a preset with the fields that are given; None leaves a field as the preset has it.

    Raises:
        MedvolError: `UNKNOWN_OPTION` with the nearest name.
    """
    require_choice("preset", preset, presets)
    return replace(presets[preset], **{name: value for name, value in given.items() if value is not None})


def stem(in_channels: int, dimensions: int, layout: VitLayout) -> nn.Module:
    """Return convolutions of stride 2 that together cut patches of `patch_size`, then one of 1 to the width.

    They see across the borders of patches and need less data than one convolution as large as a patch (Xiao et al.,
    "Early Convolutions Help Transformers See Better", NeurIPS 2021).

    Raises:
        MedvolError: `UNKNOWN_OPTION` for a patch that halvings do not reach.
    """
    halvings = int(math.log2(layout.patch_size))
    if layout.patch_size < 2 or 2**halvings != layout.patch_size:
        raise MedvolError(
            "UNKNOWN_OPTION", found=f"patch_size {layout.patch_size}", expected="a power of 2 with a stem"
        )
    convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if dimensions == 2 else (nn.Conv3d, nn.BatchNorm3d)
    parts: list[nn.Module] = []
    before = in_channels
    for left in reversed(range(halvings)):
        after = layout.width // 2**left
        parts += [convolution(before, after, kernel_size=3, stride=2, padding=1, bias=False), norm(after), nn.ReLU()]
        before = after
    return nn.Sequential(*parts, convolution(before, layout.width, kernel_size=1))


def require_patches(name: str, size: Sequence[int], multiple: int) -> None:
    """Refuse a spatial size that is no multiple of the patch.

    Raises:
        MedvolError: `INPUT_SIZE`, with the next legal size.
    """
    legal = [max(1, math.ceil(length / multiple)) * multiple for length in size]
    if legal != list(size):
        raise MedvolError(
            "INPUT_SIZE",
            found=f"{name} was given {_size(size)}",
            expected=f"multiples of {multiple}",
            fix=f"pass --spatial_size '{legal}'",
        )


def fit_positions(positions: Tensor, grid: Sequence[int]) -> Tensor:
    """Return position embeddings resized from a square or cubic grid to another one; unchanged if they fit.

    Bicubic with antialiasing in two dimensions, as timm resizes them; trilinear in three.

    Args:
        positions: (1, patches, width).
        grid: Patches along each axis.

    Raises:
        MedvolError: `OTHER_NETWORK` for a number of patches that is no square or cube.
    """
    count, dimensions = positions.shape[1], len(grid)
    if count == math.prod(grid):
        return positions
    edge = round(count ** (1 / dimensions))
    if edge**dimensions != count:
        raise MedvolError(
            "OTHER_NETWORK",
            found=f"positions of {count} patches",
            expected=f"{math.prod(grid)}, or as many as a {'square' if dimensions == 2 else 'cube'} has",
            fix="build the network for the size that the weights were trained on",
        )
    old = positions.transpose(1, 2).unflatten(2, [edge] * dimensions)
    if dimensions == 2:
        new = functional.interpolate(old, size=list(grid), mode="bicubic", antialias=True)
    else:
        new = functional.interpolate(old, size=list(grid), mode="trilinear", align_corners=False)
    return new.flatten(2).transpose(1, 2)


def renamed(state: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the tensors with the first part of each pair replaced by the second: at the start, or after a dot."""
    result = {}
    for name, value in state.items():
        for old, new in pairs:
            if name.startswith(old) or (old.startswith(".") and old in name):
                name = name.replace(old, new, 1)  # noqa: PLW2901 - the name is what changes
                break
        result[name] = value
    return result


def _size(size: Sequence[int]) -> str:
    return f"{' x '.join(map(str, size))} {'pixels' if len(size) == 2 else 'voxels'}"
