"""Trained U-Nets of one plan, such as those of five folds, as one model whose answers are their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from medvol.errors import MedvolError
from medvol.inference.record import RECORD_FILE, ModelRecord, load_record, other_plan, read_weights, save_state, union

OPTION = "width"
"""The number of an architecture that may be a list, see `medvol.networks.unet.unet`."""


def join_models(model_dirs: Sequence[str | Path], output: str | Path) -> ModelRecord:
    """Write the mean of several models as one, and return its record.

    Post-processing was chosen for each network alone, so that it is kept only where all chose the same.

    Args:
        model_dirs: `models` folders of `unet_segmentation`, or bundles made from it.
        output: Folder to write `model.pt` and `model.json` to; may be one of those.

    Raises:
        MedvolError: `TOO_FEW` for fewer than two; as `load_record` and `read_weights`; `OTHER_NETWORK` for what is no
            U-Net or of another depth; `OTHER_STUDY` for models of another plan.
    """
    if len(model_dirs) < 2:
        found = f"{len(model_dirs)} models"
        raise MedvolError("TOO_FEW", found=found, expected="two or more", fix="name their `models` folders")
    records = [_record(Path(folder)) for folder in model_dirs]
    for folder, record in zip(model_dirs, records, strict=True):
        _require_same_plan(records[0], record, folder)
    states = [read_weights(folder, record) for folder, record in zip(model_dirs, records, strict=True)]
    widths = [_as_list(record.network[OPTION]) for record in records]
    first = records[0]
    joined = replace(
        first,
        trained_on=union(record.trained_on for record in records),
        fitted_on=union(record.fitted_on for record in records),
        training={"bundle": first.training.get("bundle", ""), "joined": [_origin(record) for record in records]},
        cleaning=first.cleaning if all(record.cleaning == first.cleaning for record in records) else {},
        network={**first.network, OPTION: [one for several in widths for one in several]},
    )
    return save_state(output, _joined(states, [len(several) for several in widths]), joined)


def _record(folder: Path) -> ModelRecord:
    """Return the record of a trained U-Net."""
    if not (folder / RECORD_FILE).is_file():
        found = "no model.json"
        raise MedvolError("NO_WEIGHTS", file=folder, found=found, expected="a `models` folder", fix="train it first")
    record = load_record(folder, {})
    if OPTION not in record.network:
        expected = "models of unet_segmentation"
        raise MedvolError("OTHER_NETWORK", file=folder, found="a network of another kind", expected=expected)
    return record


def _require_same_plan(first: ModelRecord, record: ModelRecord, folder: str | Path) -> None:
    if record.facts != first.facts or record.mirror != first.mirror:
        raise other_plan(folder)
    numbers, others = ({**one.network, OPTION: None} for one in (first, record))
    if numbers != others:
        raise MedvolError(
            "OTHER_NETWORK",
            file=folder,
            found=f"levels {record.network.get('levels')}",
            expected=f"levels {first.network.get('levels')}, as the first",
            fix="train all with the same --levels",
        )


def _joined(states: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]) -> dict[str, Tensor]:
    """Return the tensors of all networks under the names that `MeanOfNetworks` gives them."""
    tensors: dict[str, Tensor] = {}
    places = count()
    for state, size in zip(states, sizes, strict=True):
        own = {str(place): f"networks.{next(places)}." for place in range(size)}
        for name, value in state.items():
            # A mean that is joined again: `networks.1.up...` of the second model is the fourth of all.
            place, rest = name.removeprefix("networks.").split(".", 1) if size > 1 else ("0", name)
            tensors[own[place] + rest] = value
    return tensors


def _origin(record: ModelRecord) -> dict[str, Any]:
    return {OPTION: record.network[OPTION], "weights_sha256": record.weights_sha256, **record.training}


def _as_list(width: int | Sequence[int]) -> list[int]:
    return [width] if isinstance(width, int) else list(width)
