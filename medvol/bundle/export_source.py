"""The network that is exported, the facts around it, and how far another program's answers lie from its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from medvol.bundle.short import find_bundle
from medvol.errors import find_refusal
from medvol.inference.record import ModelRecord, load_weights

TRIALS = 3

Tensors = tuple[Tensor, ...]
Answer = Callable[[Tensors], Tensor]


@dataclass(frozen=True)
class Source:
    """What is exported.

    Args:
        folder: The bundle's.
        model_dir: Where its weights lie.
        network: With weights, in evaluation mode.
        record: What was learnt beside them.
        names: Of the inputs.
        shapes: Of the inputs without the batch.
    """

    folder: Path
    model_dir: Path
    network: nn.Module
    record: ModelRecord
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def draw(self, batch: int, seed: int) -> Tensors:
        """Return random inputs, normal as after normalisation."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in self.shapes)

    @property
    def is_segmentation(self) -> bool:
        """Whether the network answers with a logit per voxel."""
        return bool(self.record.facts.label_values)

    @property
    def facts(self) -> str:
        """What a program needs beside the network, as JSON."""
        values = {
            "facts": self.record.facts.as_dict(),
            "temperature": self.record.temperature,
            "weights_sha256": self.record.weights_sha256,
            "inputs": dict(zip(self.names, self.shapes, strict=True)),
            "output": "logits",
            "intended_use": "Research only. Not for clinical use.",
        }
        return json.dumps(values)


def load_source(bundle: str, model_dir: str = "") -> Source:
    """Return a bundle's network with its weights, as inference builds it.

    Raises:
        MedvolError: `NO_BUNDLE`, or what loading weights finds.
    """
    folder = find_bundle(bundle).resolve()
    models = Path(model_dir).resolve() if model_dir else folder / "models"
    config = json.loads((folder / "configs" / "inference.json").read_text())
    config.update(bundle_root=str(folder), model_dir=str(models))
    parser = ConfigParser(config)
    try:
        record: ModelRecord = parser.get_parsed_content("record")
        network: nn.Module = parser.get_parsed_content("network_def")
    except RuntimeError as error:  # what MONAI wraps refusals in
        raise find_refusal(error) or error from error
    load_weights(network, models, record)
    facts = record.facts
    image = (facts.in_channels, *facts.spatial_size) if facts.spatial_size else (facts.in_features,)
    with_row = bool(facts.spatial_size and facts.columns)
    return Source(
        folder=folder,
        model_dir=models,
        network=network.cpu().float().eval(),
        record=record,
        names=("image", "covariates") if with_row else ("image",),
        shapes=(image, (facts.in_features,)) if with_row else (image,),
    )


def compare(source: Source, answer: Answer, batches: Sequence[int] = (1,)) -> tuple[float, float | None]:
    """Return how far answers lie from the network's on random inputs: largest difference, agreement of labels.

    Args:
        source: The network.
        answer: Takes inputs and returns logits.
        batches: Sizes to try.
    """
    difference, agreement = 0.0, 1.0
    for batch in batches:
        for seed in range(TRIALS if batch == batches[0] else 1):
            inputs = source.draw(batch, seed)
            with torch.no_grad():
                expected, found = source.network(*inputs), answer(inputs)
            if found.shape != expected.shape or not bool(found.isfinite().all()):
                return float("inf"), 0.0 if source.is_segmentation else None
            scale = max(1.0, float(expected.abs().max()))
            difference = max(difference, float((found - expected).abs().max()) / scale)
            if source.is_segmentation:
                same = found.argmax(dim=1) == expected.argmax(dim=1)
                agreement = min(agreement, float(same.float().mean()))
    return difference, agreement if source.is_segmentation else None
