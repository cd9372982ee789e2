"""Training that starts from a model of another class list: everything but the head is taken, and told.

The head is what depends on the classes. Its layers stand in a bundle's finetune.json, and every other tensor of file
and network must agree in name and shape: weights of which half fit are a network that forgot half of what it knew.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medvol.errors import MedvolError
from medvol.inference.record import RECORD_FILE, WEIGHTS_FILE, ModelRecord, file_sha256, load_record
from medvol.io.files import existing
from medvol.networks.published import read_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """What a network took from a model.

    Args:
        taken: Names of the tensors that came from the file.
        left: Names of the tensors of the head, at their random start.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]


def start_from_model(
    network: nn.Module,
    pretrained: str | Path,
    *,
    head_layers: Sequence[str],
    classes: Sequence[str] = (),
    freeze_encoder: bool = False,
) -> nn.Module:
    """Return the network with the weights of a trained model, its head at its random start.

    The head is taken too where the model's record, beside its weights, names the same classes in the same order, as
    when a model is trained further on the cases of another hospital.

    Args:
        network: Of the new training.
        pretrained: A `model.pt`, or the `models` folder that holds one.
        head_layers: Names of the layers that depend on the classes; `*` stands for any part of a name.
        classes: Of the new training.
        freeze_encoder: Whether only the head is to learn.

    Raises:
        MedvolError: As `weights_file`, `read_state` and `take_weights`.
    """
    file = weights_file(pretrained)
    record = record_beside(file)
    same = record is not None and bool(classes) and tuple(record.facts.classes) == tuple(classes)
    started = take_weights(network, read_state(file), head_layers=head_layers, keep_head=same, file=file)
    logger.info(
        "Started from %s: %d tensors taken, %d of the head left at their random start",
        file,
        len(started.taken),
        len(started.left),
    )
    if freeze_encoder:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(_in_head(name, head_layers))
    return network


def take_weights(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    head_layers: Sequence[str],
    keep_head: bool = False,
    file: str | Path = "",
) -> Started:
    """Load tensors by name into a network, all but its head.

    Args:
        network: Network to load into; unchanged when the weights are refused.
        state: Tensors by the network's names.
        head_layers: Names of the layers that depend on the classes.
        keep_head: Whether the head is taken as well.
        file: For messages.

    Raises:
        MedvolError: `OTHER_NETWORK` with how many tensors fit, are of another shape, missing or unknown.
    """
    own = network.state_dict()
    left = [] if keep_head else [name for name in own if _in_head(name, head_layers)]
    wanted = [name for name in own if name not in left]
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in own and not _in_head(name, head_layers)]
    other = [name for name in wanted if name in state and state[name].shape != own[name].shape]
    if missing or unknown or other:
        shapes = [f"{name} is {_shape(state[name])}, not {_shape(own[name])}" for name in other]
        details = [
            *shapes,
            *(f"{name} is missing" for name in missing),
            *(f"{name} is unknown" for name in unknown),
        ]
        fit = len(wanted) - len(missing) - len(other)
        raise MedvolError(
            "OTHER_NETWORK",
            file=file,
            found=f"{fit} of {len(wanted)} tensors fit, {len(other)} of another shape, {len(missing)} missing, "
            f"{len(unknown)} unknown; {details[0]}",
            expected="all but the head",
            fix="use bundle, size, channels and width of those weights",
            details=details,
        )
    network.load_state_dict({name: state[name] for name in wanted}, strict=False)
    return Started(tuple(wanted), tuple(left))


def tuned_parameters(
    network: nn.Module, *, head_layers: Sequence[str], learning_rate: float, encoder_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Return an optimiser's groups: the head with the learning rate, everything else with a fraction of it.

    A new head sends random gradients into an encoder that knows something already (Howard and Ruder, ACL 2018).

    Args:
        network: With the parameters; those that do not learn are left out.
        head_layers: Names of the layers of the head.
        learning_rate: Of the head.
        encoder_factor: Of the others, as a fraction of it.
    """
    learning = [(name, one) for name, one in network.named_parameters() if one.requires_grad]
    head = [one for name, one in learning if _in_head(name, head_layers)]
    encoder = [one for name, one in learning if not _in_head(name, head_layers)]
    groups = [{"params": head, "lr": learning_rate}, {"params": encoder, "lr": learning_rate * encoder_factor}]
    return [group for group in groups if group["params"]]


def weights_file(pretrained: str | Path) -> Path:
    """Return the file of weights that `--pretrained` names.

    Raises:
        MedvolError: `NO_WEIGHTS` for an empty name, `NOT_FOUND`.
    """
    if not str(pretrained):
        raise MedvolError(
            "NO_WEIGHTS", found="no --pretrained", expected="the model to start from", fix="pass --pretrained FILE"
        )
    path = Path(pretrained)
    return existing(path / WEIGHTS_FILE if path.is_dir() else path)


def record_beside(file: Path) -> ModelRecord | None:
    """Return the record beside weights if it is theirs.

    Raises:
        MedvolError: `BAD_RECORD` for a damaged one.
    """
    if not (file.parent / RECORD_FILE).is_file():
        return None
    record = load_record(file.parent, {})
    return record if record.weights_sha256 == file_sha256(file) else None


def _in_head(name: str, head_layers: Sequence[str]) -> bool:
    return any(fnmatchcase(name, f"{layer}.*") for layer in head_layers)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
