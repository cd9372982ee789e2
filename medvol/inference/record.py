"""`models/model.json`: what training learnt beside the weights, and the check that the two belong together."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medvol.data.facts import Facts
from medvol.errors import MedvolError
from medvol.io.atomic import write_atomically, write_text
from medvol.networks.published import read_state
from medvol.transforms.components import Cleaning

WEIGHTS_FILE = "model.pt"
RECORD_FILE = "model.json"
FORMAT = 1
UNTOLD = "./models"
"""What `model_dir` is where nobody told the bundle its folder."""


@dataclass(frozen=True)
class ModelRecord:
    """What evaluation and inference need to know of a trained model.

    Args:
        facts: The study as the network sees it.
        temperature: Divides the logits before the softmax; fitted on validation (Guo et al., ICML 2017).
        weights_sha256: Digest of the weights file; empty while nothing is trained.
        trained_on: Digests of the patients in the training and validation split, so that a test on them is refused.
        fitted_on: Digests of those of the training split, so that they do not pass for validation; empty in records
            of before it was kept.
        training: Seeds, epochs, data hash and whatever else documents the run.
        cleaning: Segmentation: post-processing of each structure that helped on validation, by class name.
        network: Numbers that decide the architecture and that a user may change, such as `width`.
        mirror: Segmentation: whether training was asked to average over mirror images, so that evaluation and inference
            do as validation did.
        class_counts: Classification: training cases of each class, for the baseline of an evaluation elsewhere; empty
            in records of before it was kept.
    """

    facts: Facts
    temperature: float = 1.0
    weights_sha256: str = ""
    trained_on: tuple[str, ...] = ()
    fitted_on: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    cleaning: dict[str, dict[str, Any]] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    mirror: bool = False
    class_counts: dict[str, int] = field(default_factory=dict)

    @property
    def cleanings(self) -> dict[int, Cleaning]:
        """Post-processing by label."""
        return {self.facts.classes.index(name): Cleaning.from_dict(steps) for name, steps in self.cleaning.items()}


def load_record(
    model_dir: str | Path,
    shipped: Mapping[str, Any],
    shipped_network: Mapping[str, Any] | None = None,
    *,
    require_weights: bool = False,
) -> ModelRecord:
    """Return the record in `model_dir`, or the one that the bundle ships with when nothing was trained yet.

    MONAI Deploy does not tell a bundle where it lies, but puts its folder on the path of modules, as MONAI does; a
    record that is not in `./models` is looked for there.

    Args:
        model_dir: The bundle's `models` folder.
        shipped: Facts to start from where there is no record, as in the bundle's metadata.
        shipped_network: The architecture's numbers to start from.
        require_weights: Whether weights must be there. An evaluation says so before it reads the study, whose labels
            it would otherwise compare with the classes of the shipped facts.

    Raises:
        MedvolError: `BAD_RECORD` for a file that is not a record; `NO_WEIGHTS`.
    """
    if require_weights:
        weights_in(model_dir)
    path = Path(model_dir) / RECORD_FILE
    if not path.is_file() and str(model_dir) == UNTOLD:
        path = _on_module_path(shipped) or path
    if not path.is_file():
        return ModelRecord(facts=Facts.from_dict(dict(shipped)), network=dict(shipped_network or {}))
    try:
        return record_of(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise MedvolError(
            "BAD_RECORD",
            file=path,
            found=f"{type(error).__name__}: {error}",
            expected="a record written by training",
            fix="train again",
        ) from error


def record_of(values: Mapping[str, Any]) -> ModelRecord:
    """Return the record with the fields that `record_fields` gave; files that hold no `models` folder hold them."""
    return ModelRecord(
        facts=Facts.from_dict(values["facts"]),
        temperature=float(values["temperature"]),
        weights_sha256=values["weights_sha256"],
        trained_on=tuple(values["trained_on"]),
        fitted_on=tuple(values.get("fitted_on", ())),
        training=values["training"],
        cleaning=values.get("cleaning", {}),
        network=values.get("network", {}),
        mirror=bool(values.get("mirror", False)),
        class_counts=values.get("class_counts", {}),
    )


def record_fields(record: ModelRecord) -> dict[str, Any]:
    """Return a record as JSON-ready fields."""
    return {
        "facts": record.facts.as_dict(),
        "temperature": record.temperature,
        "weights_sha256": record.weights_sha256,
        "trained_on": list(record.trained_on),
        "fitted_on": list(record.fitted_on),
        "training": record.training,
        "cleaning": record.cleaning,
        "network": record.network,
        "mirror": record.mirror,
        "class_counts": record.class_counts,
    }


def _on_module_path(shipped: Mapping[str, Any]) -> Path | None:
    """Return the record of the bundle on the path of modules whose configuration ships these facts."""
    for folder in map(Path, sys.path):
        config = folder / "configs" / "inference.json"
        try:
            values = json.loads(config.read_text())
        except (OSError, ValueError):
            continue
        record = values.get("record") if isinstance(values, dict) else None
        if isinstance(record, dict) and record.get("shipped") == shipped:
            return folder / "models" / RECORD_FILE
    return None


def save_model(
    model_dir: str | Path, network: nn.Module, record: ModelRecord, *, dtype: torch.dtype | None = None
) -> ModelRecord:
    """Write weights and record atomically, the weights first, and return the record with the weights' digest.

    Args:
        model_dir: The bundle's `models` folder.
        network: Whose weights are written.
        record: What is written beside them.
        dtype: Type of the weights on disk; float16 halves the file and moves logits by a thousandth.
    """
    return save_state(model_dir, {name: _stored(value, dtype) for name, value in network.state_dict().items()}, record)


def save_state(model_dir: str | Path, weights: Mapping[str, torch.Tensor], record: ModelRecord) -> ModelRecord:
    """Write tensors by name as `save_model` does, as they are."""
    folder = Path(model_dir)
    write_atomically(folder / WEIGHTS_FILE, lambda stream: torch.save(dict(weights), stream))
    return write_record(folder, replace(record, weights_sha256=file_sha256(folder / WEIGHTS_FILE)))


def write_record(model_dir: str | Path, record: ModelRecord) -> ModelRecord:
    """Write the record atomically beside weights that are there already, and return it as it will be read."""
    values = {"format": FORMAT, **record_fields(record)}
    write_text(Path(model_dir) / RECORD_FILE, json.dumps(values, indent=4))
    return load_record(model_dir, {})


def load_weights(network: nn.Module, model_dir: str | Path, record: ModelRecord) -> nn.Module:
    """Load the weights that belong to `record` and return the network.

    Raises:
        MedvolError: As `read_weights`; `OTHER_NETWORK` with the first layers that differ.
    """
    weights = read_weights(model_dir, record)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise MedvolError(
            "OTHER_NETWORK",
            file=Path(model_dir) / WEIGHTS_FILE,
            found=f"{len(differing)} layers differ, first {name}: {found.get(name, 'absent')}",
            expected=f"{expected.get(name, 'absent')}",
            fix="use the network and study of the training; `medvol join` ensembles U-Nets of several widths",
            details=differing,
        )
    network.load_state_dict(weights)
    return network


def weights_in(model_dir: str | Path) -> Path:
    """Return the file of a folder's weights.

    Raises:
        MedvolError: `NO_WEIGHTS`.
    """
    path = Path(model_dir) / WEIGHTS_FILE
    if not path.is_file():
        raise MedvolError("NO_WEIGHTS", file=path, found="no trained weights", fix="train the bundle first")
    return path


def read_weights(model_dir: str | Path, record: ModelRecord) -> dict[str, torch.Tensor]:
    """Return the weights that belong to `record` by name.

    Raises:
        MedvolError: `NO_WEIGHTS`, `WEIGHTS_MISMATCH` when file and record do not belong together, `BAD_WEIGHTS` for a
            damaged or foreign file.
    """
    path = weights_in(model_dir)
    if record.weights_sha256 and file_sha256(path) != record.weights_sha256:
        raise MedvolError(
            "WEIGHTS_MISMATCH",
            file=path,
            found="weights other than those model.json was written with",
            expected=f"sha256 {record.weights_sha256[:12]}...",
            fix="restore the pair model.pt and model.json, or train again",
        )
    return read_state(path)


def load_networks(network: nn.Module, model_dirs: Sequence[str | Path], facts: Facts) -> nn.Module:
    """Return the network with the weights of one folder, or copies of it with those of several, as of several folds.

    Args:
        network: Of the architecture that all were trained with.
        model_dirs: `models` folders.
        facts: What the run works with; every record must agree with it.

    Raises:
        MedvolError: As `load_weights`; `OTHER_STUDY` for folds that were trained on another plan.
    """
    loaded = []
    for folder in model_dirs:
        record = load_record(folder, facts.as_dict())
        if record.facts != facts:
            raise other_plan(folder)
        loaded.append(load_weights(copy.deepcopy(network) if len(model_dirs) > 1 else network, folder, record))
    return loaded[0] if len(loaded) == 1 else nn.ModuleList(loaded)


def other_plan(folder: str | Path) -> MedvolError:
    """Return the refusal of a model that cannot answer together with another."""
    return MedvolError(
        "OTHER_STUDY",
        file=folder,
        found="a model whose classes, patch, spacing, intensities or mirrored axes differ from the first one's",
        expected="models of one study and plan",
        fix="train all with the same options",
    )


def _stored(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    kept = value.detach().cpu().contiguous()
    return kept.to(dtype) if dtype is not None and kept.is_floating_point() else kept


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 digest of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def patient_digest(patient: str) -> str:
    """Return a digest under which a patient is remembered without the name, 16 hexadecimal digits."""
    return hashlib.sha256(patient.encode()).hexdigest()[:16]


def union(digests: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return every digest of several records once, sorted."""
    return tuple(sorted(set().union(*digests)))
