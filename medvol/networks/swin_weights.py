"""Weights from elsewhere for a Swin UNETR: MONAI's checkpoints and its self-supervised encoders.

Three layouts are known. A whole network has the names of MONAI's `SwinUNETR`. `model_swinvit.pt` (Tang et al., CVPR
2022) holds the encoder alone, without the prefix `swinViT.` and with `fc1` and `fc2` for today's `linear1` and
`linear2`. `ssl_pretrained_weights.pth` (Valanarasu et al., MIDL 2024) holds it below `encoder.`, with one list level
more. Any of them may be wrapped in `state_dict` or `model` and carry the `module.` of data-parallel training.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medvol.networks.published import LoadedWeights, foreign_weights, read_state

logger = logging.getLogger(__name__)

ENCODER = "swinViT."
COMPUTED = ("relative_position_index", "attn_mask")
"""Buffers that follow from the window size: old files carry what new ones leave out, and the other way round."""


def load_swin_unetr_weights(network: nn.Module, weights: str | Path | Mapping[str, Any]) -> LoadedWeights:
    """Load a whole Swin UNETR, or an encoder alone, into `network` and say what was loaded.

    A whole network must fit name by name and shape by shape. Of an encoder's file, heads that only its pre-training
    needed are ignored, and what it does not have (the decoder, the convolutions of version 2) is left as it is.

    Args:
        network: From `swin_unetr`, or MONAI's own.
        weights: File, read without running code from it, or what was read from one.

    Raises:
        MedvolError: `BAD_WEIGHTS` for a file that is no checkpoint, `OTHER_NETWORK` where names or shapes differ;
            the network is unchanged then.
    """
    file = weights if isinstance(weights, str | Path) else ""
    state = {_todays_name(name): value for name, value in read_state(weights).items()}
    own = network.state_dict()
    whole = any(name.startswith("decoder") for name in state if name in own)
    wanted = [name for name in own if _is_weight(name) and (whole or name.startswith(ENCODER))]
    # Version 2 puts a convolution block before each stage, which no published encoder has.
    optional = [] if whole else [name for name in wanted if re.match(r"swinViT\.layers\dc\.", name)]
    taken = {name: value for name, value in state.items() if name in own and (whole or name.startswith(ENCODER))}
    ignored = [name for name in state if name not in taken]
    wrong = [f"{name} is missing" for name in wanted if name not in taken and name not in optional]
    wrong += [
        f"{name} is {_shape(value)}, not {_shape(own[name])}"
        for name, value in taken.items()
        if value.shape != own[name].shape
    ]
    if whole:
        wrong += [f"{name} is unknown" for name in ignored if _is_weight(name)]
    if wrong:
        expected = "swin_unetr" if whole else "the encoder of swin_unetr"
        raise foreign_weights(
            wrong, file, network=expected, fix="compare in_channels, num_outputs, feature_size, use_v2"
        )
    network.load_state_dict(taken, strict=False)
    left = [name for name in own if _is_weight(name) and name not in taken]
    logger.info("Loaded %d tensors; %d left as they were; %d of the file ignored", len(taken), len(left), len(ignored))
    return LoadedWeights(tuple(taken), tuple(left), tuple(ignored))


def start_from(network: nn.Module, weights: str | Path) -> nn.Module:
    """Return the network, with the weights of a file where one is named; for a bundle's `--pretrained`.

    Raises:
        MedvolError: As `load_swin_unetr_weights`.
    """
    if weights:
        load_swin_unetr_weights(network, weights)
    return network


def _todays_name(name: str) -> str:
    name = re.sub(r"^encoder\.(layers\d\.0\.)0\.", rf"{ENCODER}\1", name)
    name = re.sub(r"^(encoder\.)?(?=patch_embed\.|layers\d)", ENCODER, name)
    return name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


def _is_weight(name: str) -> bool:
    return not name.endswith(COMPUTED)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
