"""Weights published elsewhere: read without running code from the file, loaded name by name or not at all.

A loader renames what a file holds into the network's own names (`resnet2d`, `vit2d`, `vit3d`); here every name and
every shape is then compared. Only a head for other classes may differ: it stays at its random start and is named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvol.errors import MedvolError

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model")
NAMED_CHARACTERS = 100  # of layers in a refusal, one at least; all of them stand in its details
SAFE_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class LoadedWeights:
    """What a file gave to a network, by name.

    Args:
        loaded: Taken from the file.
        left: As they were before, at their random start.
        ignored: In the file, without a place in the network.
    """

    loaded: tuple[str, ...]
    left: tuple[str, ...]
    ignored: tuple[str, ...]


def read_state(weights: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, out of `state_dict` or `model` and without `module.`.

    Args:
        weights: File of `torch.save` or a `.safetensors` file; or what was read from one.

    Raises:
        MedvolError: `BAD_WEIGHTS`.
    """
    file = weights if isinstance(weights, str | Path) else ""
    found: Any = weights
    if not isinstance(weights, Mapping):
        try:
            safe = Path(weights).suffix == ".safetensors"
            found = _safetensors(weights) if safe else torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader raises whatever a torn file leads it to
            raise _unreadable(f"{type(error).__name__}: {error}"[:120], file) from error
    while isinstance(found, Mapping):
        inner = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not found:
        raise _unreadable(f"{type(found).__name__} without tensors", file)
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise _unreadable(f"'{name}' is of type {type(value).__name__}"[:120], file)
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def load_exactly(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    head: str,
    file: str | Path = "",
    optional: Collection[str] = (),
    ignored: Collection[str] = (),
) -> LoadedWeights:
    """Load tensors that carry the network's names; all of both sides must fit, but for the head.

    Args:
        network: Network to load into; unchanged when the weights are refused.
        state: Tensors by the network's names.
        head: Name of the last layer: where it is absent or has another number of outputs it is left as it is.
        file: For messages.
        optional: Endings of the network's names that the file may lack.
        ignored: Names of the file that were set aside on purpose; passed through to the result.

    Raises:
        MedvolError: `OTHER_NETWORK`, with the layers that differ.
    """
    own = network.state_dict()
    parts = [name for name in own if name.startswith(f"{head}.")]
    left = parts if any(name not in state or state[name].shape != own[name].shape for name in parts) else []
    wrong = []
    for name in [name for name in own if name in state]:
        # Another number of outputs is another study; another number of inputs to the head is another network.
        first = 1 if name in left else 0
        if state[name].shape[first:] != own[name].shape[first:]:
            wrong.append(f"{name} is {_shape(state[name])}, not {_shape(own[name])}")
    left = left + [name for name in own if name not in state and name.endswith(tuple(optional)) and name not in left]
    wrong += [f"{name} is missing" for name in own if name not in state and name not in left]
    wrong += [f"{name} is unknown" for name in state if name not in own]
    if wrong:
        raise foreign_weights(wrong, file, network="the network", fix="compare architecture, preset and in_channels")
    taken = {name: value for name, value in state.items() if name not in left}
    network.load_state_dict(taken, strict=False)
    logger.info("Loaded %d tensors; at their random start: %s", len(taken), ", ".join(left) or "none")
    return LoadedWeights(tuple(taken), tuple(left), (*ignored, *(name for name in left if name in state)))


def _safetensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file: a length, a JSON table, and the numbers, little-endian.

    Format: https://github.com/huggingface/safetensors#format
    """
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:start])
    table.pop("__metadata__", None)
    return {
        name: torch.frombuffer(
            bytearray(content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]),
            dtype=SAFE_TYPES[entry["dtype"]],
        ).view(entry["shape"])
        for name, entry in table.items()
    }


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _unreadable(found: str, file: str | Path) -> MedvolError:
    return MedvolError("BAD_WEIGHTS", file=file, found=found, expected="a state dict of tensors")


def foreign_weights(wrong: Sequence[str], file: str | Path, *, network: str, fix: str) -> MedvolError:
    """Return the refusal of weights whose layers differ, naming as many of them as a short message holds.

    Args:
        wrong: A few words on each layer.
        file: For the message.
        network: Whose layers were expected.
        fix: What to compare.
    """
    named = list(wrong[:1])
    while len(named) < len(wrong) and len("; ".join([*named, wrong[len(named)]])) <= NAMED_CHARACTERS:
        named.append(wrong[len(named)])
    more = f" and {len(wrong) - len(named)} more" if len(wrong) > len(named) else ""
    return MedvolError(
        "OTHER_NETWORK",
        file=file,
        found="; ".join(named) + more,
        expected=f"the layers of {network}",
        fix=fix,
        details=wrong,
    )
