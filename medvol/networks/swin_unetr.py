"""Swin UNETR: MONAI's network, name by name, computed several times faster on a processor.

The parameters are those of MONAI 1.6.1's `SwinUNETR`, so its checkpoints load and ours load there. What differs is how
the same numbers are computed: channels-last layout from the first convolution to the last, window attention by mask
class (`window_attention`), instance norm without leaving the layout (`fast_norm`), and the last decoder's transposed
convolution merged into the convolution that follows (`merged_upsampling`).

Source: Hatamizadeh et al., Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images,
https://arxiv.org/abs/2201.01266; SwinUNETR-V2, https://doi.org/10.1007/978-3-031-43901-8_40.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from monai.networks.nets import SwinUNETR
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medvol.errors import MedvolError
from medvol.networks.fast_norm import use_fast_norm
from medvol.networks.merged_upsampling import FastUpBlock
from medvol.networks.window_attention import FastWindowAttention, WindowPlan, window_plan

MULTIPLE = 32
"""Five halvings: the patch embedding and four patch mergings."""


def swin_unetr(
    in_channels: int,
    num_outputs: int,
    *,
    feature_size: int = 24,
    use_v2: bool = False,
    use_checkpoint: bool = False,
    img_size: Sequence[int] | int | None = None,
    **settings: Any,
) -> nn.Module:
    """Return the network, (batch, in_channels, x, y, z) to (batch, num_outputs, x, y, z) logits.

    Args:
        in_channels: Channels of the volumes.
        num_outputs: Logits per voxel.
        feature_size: Channels of the first stage, a multiple of 12; 48 in the published models.
        use_v2: Put a residual convolution block before each Swin stage.
        use_checkpoint: Compute the Swin blocks again in the backward pass instead of storing them.
        img_size: Ignored: MONAI before 1.5 wanted it and old configurations carry it; no weight depends on it.
        settings: Further arguments of MONAI's `SwinUNETR`, e.g. `depths`, `num_heads`, `drop_rate`,
            `dropout_path_rate`, `downsample`. Three dimensions, patches of 2 and no attention dropout.

    Raises:
        MedvolError: `UNKNOWN_OPTION` for a feature size that is not a multiple of 12 or a setting that the fast
            computation does not cover.
    """
    del img_size
    require_feature_size(feature_size)
    for name, needed in (("spatial_dims", 3), ("patch_size", 2), ("attn_drop_rate", 0.0), ("use_hyena", False)):
        if settings.get(name, needed) != needed:
            raise MedvolError(
                "UNKNOWN_OPTION",
                found=f"swin_unetr was given {name} {settings[name]}",
                expected=str(needed),
                fix="use monai.networks.nets.SwinUNETR",
            )
    stock = SwinUNETR(
        in_channels, num_outputs, feature_size=feature_size, use_v2=use_v2, use_checkpoint=use_checkpoint, **settings
    )
    network = FastSwinUnetr(stock)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub lacks it
    return network


def require_feature_size(feature_size: int) -> None:
    """Refuse channels that the attention heads of the four stages do not divide.

    Raises:
        MedvolError: `UNKNOWN_OPTION`.
    """
    if feature_size < 1 or feature_size % 12:
        raise MedvolError("UNKNOWN_OPTION", found=f"feature_size {feature_size}", expected="a multiple of 12")


def require_swin_size(size: Sequence[int]) -> None:
    """Refuse a spatial size that the five halvings do not divide.

    Raises:
        MedvolError: `INPUT_SIZE`, with the smallest size that contains the volume.
    """
    legal = [max(1, -(-length // MULTIPLE)) * MULTIPLE for length in size]
    if max(legal) == MULTIPLE:
        legal[-1] = 2 * MULTIPLE  # a single voxel at the bottom has no variance to normalise by
    if legal != list(size):
        raise MedvolError(
            "INPUT_SIZE",
            found=f"swin_unetr was given volumes of {' x '.join(map(str, size))} voxels",
            expected=f"multiples of {MULTIPLE}, at least {2 * MULTIPLE} along one axis",
            fix=f"pass --spatial_size '{legal}', or pad volumes to that",
        )


@final
class FastSwinUnetr(nn.Module):
    """MONAI's `SwinUNETR` with its parameters by its names.

    Args:
        stock: Network whose parts are taken over.
    """

    encoder1: nn.Module
    encoder2: nn.Module
    encoder3: nn.Module
    encoder4: nn.Module
    encoder10: nn.Module
    decoder5: nn.Module
    decoder4: nn.Module
    decoder3: nn.Module
    decoder2: nn.Module
    decoder1: nn.Module
    out: nn.Module

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.normalize: bool = stock.normalize
        self.swinViT = FastSwinTransformer(stock.swinViT)
        for name, child in use_fast_norm(stock).named_children():
            if name != "swinViT":
                # Only the last decoder has as many channels below as above, where merging pays.
                self.add_module(name, FastUpBlock(child) if name == "decoder1" else child)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the logits of (batch, channel, x, y, z).

        Raises:
            MedvolError: `INPUT_SIZE`.
        """
        require_swin_size(volumes.shape[2:])
        volumes = volumes.contiguous(memory_format=torch.channels_last_3d)
        hidden = self.swinViT(volumes, self.normalize)
        enc0, enc1 = self.encoder1(volumes), self.encoder2(hidden[0])
        enc2, enc3 = self.encoder3(hidden[1]), self.encoder4(hidden[2])
        decoded = self.decoder5(self.encoder10(hidden[4]), hidden[3])
        decoded = self.decoder3(self.decoder4(decoded, enc3), enc2)
        decoded = self.decoder1(self.decoder2(decoded, enc1), enc0)
        logits: Tensor = self.out(decoded)
        return logits


@final
class FastSwinTransformer(nn.Module):
    """MONAI's `SwinTransformer`: five feature volumes, channels last.

    Args:
        stock: Module whose parts are taken over.
    """

    patch_embed: nn.Module
    pos_drop: nn.Module

    def __init__(self, stock: Any) -> None:
        super().__init__()
        for name, child in stock.named_children():
            stages = name.startswith("layers") and not name.endswith("c")
            self.add_module(name, nn.ModuleList(map(FastStage, child)) if stages else child)
        self.use_v2: bool = stock.use_v2

    def forward(self, volumes: Tensor, normalize: bool = True) -> list[Tensor]:
        """Return the features of the patches and of the four stages, each half the size of the one before."""
        features = self.pos_drop(self.patch_embed(volumes)).contiguous(memory_format=torch.channels_last_3d)
        hidden = [_normalised(features) if normalize else features]
        for number in range(1, 5):
            if self.use_v2:
                features = getattr(self, f"layers{number}c")[0](features)
            features = getattr(self, f"layers{number}")[0](features)
            hidden.append(_normalised(features) if normalize else features)
        return hidden


@final
class FastStage(nn.Module):
    """MONAI's `BasicLayer`: blocks with plain and shifted windows in turn, then patch merging.

    Args:
        stock: Module whose parts are taken over.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.window: tuple[int, ...] = tuple(stock.window_size)
        self.blocks = nn.ModuleList(map(FastBlock, stock.blocks))
        self.downsample: nn.Module | None = stock.downsample

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, 2 * channel, x / 2, y / 2, z / 2) of (batch, channel, x, y, z)."""
        tokens = features.permute(0, 2, 3, 4, 1).contiguous()  # a view when channels are last
        # A plan is made for one size: whole numbers also where an exporter would rather follow them.
        shape = torch.Size([int(length) for length in tokens.shape])
        plans = [
            window_plan(shape[0], tuple(shape[1:4]), self.window, shift, tokens.device)
            for shift in ((0, 0, 0), tuple(edge // 2 for edge in self.window))
        ]
        tokens = tokens.view(-1, shape[-1])
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, plans[number % 2], shape)
        tokens = tokens.view(shape)
        if self.downsample is not None:
            tokens = self.downsample(tokens)
        return tokens.permute(0, 4, 1, 2, 3)


@final
class FastBlock(nn.Module):
    """MONAI's `SwinTransformerBlock`.

    Args:
        stock: Module whose parts are taken over.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.use_checkpoint: bool = stock.use_checkpoint
        self.norm1: nn.Module = stock.norm1
        self.attn = FastWindowAttention(stock.attn)
        self.drop_path: nn.Module = stock.drop_path
        self.norm2: nn.Module = stock.norm2
        self.mlp: nn.Module = stock.mlp

    def forward(self, tokens: Tensor, plan: WindowPlan, shape: torch.Size) -> Tensor:
        """Return (batch * tokens, channel) of the same; `shape` is (batch, x, y, z, channel)."""
        if self.use_checkpoint and torch.is_grad_enabled():
            result: Tensor = checkpoint(self._compute, tokens, plan, shape, use_reentrant=False)
            return result
        return self._compute(tokens, plan, shape)

    def _compute(self, tokens: Tensor, plan: WindowPlan, shape: torch.Size) -> Tensor:
        tokens = tokens + self._drop_path(self.attn(self.norm1(tokens), plan), shape)
        return tokens + self._drop_path(self.mlp(self.norm2(tokens)), shape)

    def _drop_path(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        # Whole volumes are dropped, so it has to see the batch axis.
        dropped: Tensor = self.drop_path(tokens.view(shape)).view(tokens.shape)
        return dropped


def _normalised(features: Tensor) -> Tensor:
    tokens = features.permute(0, 2, 3, 4, 1)
    return functional.layer_norm(tokens, tokens.shape[-1:]).permute(0, 4, 1, 2, 3)
