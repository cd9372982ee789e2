"""Masked-volume modelling: an encoder learns to fill in what is hidden from it, and needs no label for that.

A share of the cells (the patches of a ViT, cubes for a Swin encoder) is drawn and covered; a small decoder, which
nobody keeps, predicts the voxels. The encoders are those of `volume_transformer` and `swin_unetr`, by name, so that
`start_from` takes what was learnt here.

* ViT, after He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, and MONAI's
  `MaskedAutoEncoderViT`: the encoder sees the tokens of visible patches only, a quarter of them.
* Swin, after Xie et al., "SimMIM", CVPR 2022, and MONAI's `SSLHead`: windows need the whole grid, so covered cubes take
  part with a learnt grey value.

Voxels are covered before anything looks at them: the convolutional stem of the compact ViT sees across the borders of
patches and would else read the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from medvol.errors import MedvolError, require_choice
from medvol.networks.swin_unetr import MULTIPLE, FastSwinTransformer
from medvol.networks.swin_weights import ENCODER, load_swin_unetr_weights
from medvol.networks.vit3d import PRESETS, swin_classifier
from medvol.networks.vit_blocks import HEAD, Layer, VisionTransformer, VitLayout, preset_layout, require_patches
from medvol.networks.volume_transformer import ARCHITECTURES, patch_edge, require_architecture
from medvol.networks.volume_transformer import start_from as start_classifier

VALIDATION_SEED = 0
"""Of the cells that are covered in evaluation mode: the same ones in every epoch, so that its losses compare."""


@final
class MaskedVit(nn.Module):
    """A `vit3d` on the visible patches, and layers half as wide that predict the others.

    Shapes: (batch, channel, *spatial_size) to (batch, channel + 1, *spatial_size): the prediction of every voxel, and
    in the last channel 1 where a voxel was hidden.

    Args:
        encoder: Its head is not used and learns nothing.
        layout: Of the encoder.
        in_channels: Channels of the volumes.
        mask_ratio: Share of the patches that are hidden.
    """

    def __init__(self, encoder: VisionTransformer, layout: VitLayout, in_channels: int, mask_ratio: float) -> None:
        super().__init__()
        require_ratio(mask_ratio)
        self.encoder = encoder
        self.patch = layout.patch_size
        self.mask_ratio = mask_ratio
        small = decoder_layout(layout)
        self.fill = nn.Parameter(torch.zeros(1, in_channels, 1, 1, 1))
        self.embed = nn.Linear(layout.width, small.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, small.width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + math.prod(encoder.grid), small.width))
        self.layers = nn.Sequential(*(Layer(small) for _ in range(small.depth)), nn.LayerNorm(small.width))
        self.predict = nn.Linear(small.width, in_channels * self.patch**3)
        for parameter in (self.mask_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return prediction and mask.

        Raises:
            MedvolError: `INPUT_SIZE`.
        """
        self.encoder.refuse_other_size(volumes)
        hidden = masks_for(self, volumes, self.encoder.grid, self.mask_ratio)
        covered = enlarged(hidden, self.patch)
        tokens = self.encoder.patch_embedding(torch.where(covered, self.fill, volumes))
        order = hidden.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)
        visible = order[:, : len(order[0]) - int(hidden[0].sum())].unsqueeze(2)
        tokens = tokens.gather(1, visible.expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat((self.encoder.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        for block in self.encoder.blocks:
            tokens = block(tokens)
        tokens = self.embed(self.encoder.norm(tokens))

        whole = self.mask_token.to(tokens.dtype).expand(len(tokens), order.shape[1], -1)
        whole = whole.scatter(1, visible.expand(-1, -1, tokens.shape[2]), tokens[:, 1:])
        tokens = self.layers(torch.cat((tokens[:, :1], whole), dim=1) + self.positions)
        patches = self.predict(tokens[:, 1:]).unflatten(2, (volumes.shape[1], *[self.patch] * 3))
        patches = patches.unflatten(1, self.encoder.grid).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return torch.cat((patches.reshape(volumes.shape), covered.to(patches.dtype)), dim=1)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's tensors by the names of `vit3d`, without the head."""
        return {name: value for name, value in self.encoder.state_dict().items() if not name.startswith(f"{HEAD}.")}


@final
class MaskedSwin(nn.Module):
    """The encoder of `swin_unetr` on volumes with covered cubes, and five doublings from its last stage.

    A head that sees no more than a voxel of the last stage is enough (Xie et al.); here it is factorised, since one
    step from 384 features to 32 cubed voxels would have more parameters than the encoder. Shapes as in `MaskedVit`, for
    all sizes that are multiples of 32.

    Args:
        encoder: Under the name that it has in a Swin UNETR.
        features: Channels of its last stage.
        in_channels: Channels of the volumes.
        cube: Edge of the cubes in voxels; None for `cube_edge`.
        mask_ratio: Share of the cubes that are hidden.
    """

    def __init__(
        self, encoder: FastSwinTransformer, features: int, in_channels: int, cube: int | None, mask_ratio: float
    ) -> None:
        super().__init__()
        require_ratio(mask_ratio)
        if cube is not None and (cube < 2 or MULTIPLE % cube):
            raise MedvolError("UNKNOWN_OPTION", found=f"mask_cube {cube}", expected="2, 4, 8, 16 or 32 voxels")
        self.swinViT = encoder
        self.cube = cube
        self.mask_ratio = mask_ratio
        self.fill = nn.Parameter(torch.zeros(1, in_channels, 1, 1, 1))
        parts: list[nn.Module] = []
        for channels in (features // 2**step for step in range(4)):
            # One group: a volume of 32 cubed has a single voxel here, which has no variance of its own.
            parts += [
                nn.ConvTranspose3d(channels, channels // 2, kernel_size=2, stride=2),
                nn.GroupNorm(1, channels // 2),
                nn.GELU(),
            ]
        self.rebuild = nn.Sequential(*parts, nn.ConvTranspose3d(features // 16, in_channels, kernel_size=2, stride=2))

    def forward(self, volumes: Tensor) -> Tensor:
        """Return prediction and mask.

        Raises:
            MedvolError: `INPUT_SIZE`.
        """
        require_patches("the masked Swin encoder", volumes.shape[2:], MULTIPLE)
        cube = self.cube or cube_edge(volumes.shape[2:])
        covered = enlarged(
            masks_for(self, volumes, [side // cube for side in volumes.shape[2:]], self.mask_ratio), cube
        )
        seen = torch.where(covered, self.fill, volumes).contiguous(memory_format=torch.channels_last_3d)
        predicted: Tensor = self.rebuild(self.swinViT(seen)[-1])
        return torch.cat((predicted, covered.to(predicted.dtype)), dim=1)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's tensors by the names of `swin_unetr`."""
        return {f"{ENCODER}{name}": value for name, value in self.swinViT.state_dict().items()}


def masked_transformer(  # noqa: PLR0913 - one keyword per number that a user may state
    in_channels: int,
    *,
    spatial_size: Sequence[int],
    architecture: str = "vit",
    preset: str = "compact",
    patch_size: int | None = None,
    feature_size: int = 24,
    mask_ratio: float = 0.75,
    mask_cube: int | None = None,
) -> MaskedVit | MaskedSwin:
    """Return the network that learns an encoder without labels.

    Args:
        in_channels: Channels of the volumes.
        spatial_size: Voxels along x, y, z, as for `volume_transformer`.
        architecture: `vit` or `swin`.
        preset: Of the ViT; without its dropout, since hiding most of the volume is noise enough (He et al.).
        patch_size: Of the ViT; None for `patch_edge`.
        feature_size: Of the Swin encoder.
        mask_ratio: Share of the patches, or cubes, that are hidden.
        mask_cube: Of the Swin encoder: edge of the hidden cubes in voxels; None for `cube_edge`.

    Raises:
        MedvolError: `INPUT_SIZE`, or `UNKNOWN_OPTION`.
    """
    require_choice("architecture", architecture, ARCHITECTURES)
    if architecture == "swin":
        whole = swin_classifier(in_channels, 1, spatial_size=spatial_size, feature_size=feature_size)
        network = MaskedSwin(whole.swinViT, 16 * feature_size, in_channels, mask_cube, mask_ratio)
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub lacks it
        return network
    if mask_cube is not None:
        raise MedvolError(
            "UNKNOWN_OPTION", found="mask_cube with a vit", expected="None: it hides patches", fix="use --patch_size"
        )
    edge = patch_edge(spatial_size, preset=preset, patch_size=patch_size)
    layout = preset_layout(PRESETS, preset, patch_size=edge, dropout=0.0)
    encoder = VisionTransformer(f"vit3d ({preset})", in_channels, 1, spatial_size, layout)
    return MaskedVit(encoder, layout, in_channels, mask_ratio)


def start_from(network: nn.Module, weights: str | Path) -> nn.Module:
    """Return the network, its encoder from a file where one is named, to go on from published weights.

    Args:
        network: From `masked_transformer`.
        weights: As for `medvol.networks.volume_transformer.start_from`; empty for a random start.

    Raises:
        MedvolError: `BAD_WEIGHTS`, `OTHER_NETWORK`.
    """
    if weights and isinstance(network, MaskedVit):
        start_classifier(network.encoder, weights)
    elif weights:
        require_architecture(weights, "swin")
        load_swin_unetr_weights(network, weights)
    return network


def settle_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the batch norms of a ViT's stem on whole volumes, as whoever uses the encoder will show it.

    In pretraining most of what they saw was covered. After 12 epochs on AdrenalMNIST3D a logistic regression on the
    frozen class token gained 0.01 in AUC by it (1188 cases, five folds). A network without batch norms stays as it is.

    Args:
        network: From `masked_transformer`.
        batches: Volumes, (n, channel, *spatial_size), on the network's device.
    """
    if isinstance(network, MaskedVit):
        was_training = network.encoder.training
        update_bn(batches, network.encoder)
        network.encoder.train(was_training)


def decoder_layout(layout: VitLayout) -> VitLayout:
    """Return layers half as wide and a third as many as the encoder's, two at least, without dropout.

    MONAI's and the paper's proportions (384 to 768 and 4 to 12; 512 to 1024 and 8 to 24).
    """
    return replace(
        layout,
        width=layout.width // 2,
        mlp_width=layout.mlp_width // 2,
        depth=max(2, layout.depth // 3),
        dropout=0.0,
    )


def cube_edge(spatial_size: Sequence[int]) -> int:
    """Return the edge of the hidden cubes in voxels: 16, or 8 where an axis is shorter than 64.

    A sixth of an axis, as in SimMIM; halved, a volume of 32 cubed still has 64 cubes.
    """
    return 8 if min(spatial_size) < 64 else 16


def draw_masks(count: int, grid: Sequence[int], mask_ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Return which cells of each volume are hidden, bool (count, *grid).

    Equally many in every volume: the share, rounded, but one at least, and one at least stays visible.

    Args:
        count: Volumes.
        grid: Cells along each axis.
        mask_ratio: Share that is hidden.
        generator: Source of the random numbers; torch's own when None, as for dropout.
    """
    cells = math.prod(grid)
    hidden = min(max(1, round(mask_ratio * cells)), cells - 1)
    ranks = torch.rand(count, cells, generator=generator, device="cpu").argsort(dim=1)
    return (ranks < hidden).view(count, *grid)


def masks_for(network: nn.Module, volumes: Tensor, grid: Sequence[int], mask_ratio: float) -> Tensor:
    """Return masks on the volumes' device: new ones in training, in evaluation the same ones every time."""
    generator = None if network.training else torch.Generator().manual_seed(VALIDATION_SEED)
    return draw_masks(len(volumes), grid, mask_ratio, generator).to(volumes.device)


def enlarged(cells: Tensor, edge: int) -> Tensor:
    """Return cells as voxels, (batch, x, y, z) to (batch, 1, edge * x, edge * y, edge * z)."""
    for axis in (1, 2, 3):
        cells = cells.repeat_interleave(edge, dim=axis)
    return cells.unsqueeze(1)


def require_ratio(mask_ratio: float) -> None:
    """Refuse a share that hides nothing or everything.

    Raises:
        MedvolError: `BAD_VALUE`.
    """
    if not 0 < mask_ratio < 1:
        raise MedvolError("BAD_VALUE", found=f"mask_ratio {mask_ratio}", expected="between 0 and 1", fix="try 0.75")
