"""The cases that a classification's report shows: which ones, their slices, and what the network looked at."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.engines import SupervisedEvaluator
from torch import Tensor

from medvol.data.facts import Facts
from medvol.data.image_facts import NORMALISATIONS
from medvol.data.loading import collate_cases, without_metadata
from medvol.explain.heat_maps import HeatMap, heat_map
from medvol.explain.permutation import auc_drops
from medvol.inference.collect import CollectPredictions, Predictions
from medvol.inference.record import ModelRecord
from medvol.report.html_pictures import CasePicture
from medvol.report.views import LETTERS, PLANES, WINDOW_PERCENT, View, upright
from medvol.transforms.classes import class_probabilities

logger = logging.getLogger(__name__)

REPORT_CASES = 6
MAP_SECONDS = 8.0
"""After this long no further heat map is begun; the cases that are left are shown without."""


@dataclass(frozen=True)
class Evaluated:
    """A split that a classifier was run over.

    Args:
        evaluator: After its run.
        collected: Its predictions, or what collected them.
        report_cases: Cases to show in the report; 0 shows none and asks for no explanation.
    """

    evaluator: SupervisedEvaluator
    collected: CollectPredictions | Predictions
    report_cases: int = REPORT_CASES

    @property
    def predictions(self) -> Predictions:
        """Predictions of the split."""
        return self.collected.result() if isinstance(self.collected, CollectPredictions) else self.collected

    def items(self, cases: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield cases as the network is given them."""
        dataset: Any = self.evaluator.data_loader.dataset
        place = {item["case"]: index for index, item in enumerate(dataset.data)}
        for case in cases:
            yield dataset[place[case]]


def case_pictures(evaluated: Evaluated, record: ModelRecord) -> list[CasePicture]:
    """Return the best, the most uncertain and the worst cases with their slices and heat maps.

    Args:
        evaluated: A split with labels.
        record: Of the model.
    """
    predictions, facts = evaluated.predictions, record.facts
    if not facts.spatial_size or predictions.labels is None:
        return []
    pictures, began = [], time.perf_counter()
    chosen = telling_cases(predictions.probabilities, predictions.labels, evaluated.report_cases)
    items = evaluated.items([predictions.cases[index] for _, index in chosen])
    for (kind, index), item in zip(chosen, items, strict=True):
        if float(item.get("has_image", 1)) == 0:
            continue
        label = int(predictions.probabilities[index].argmax())
        seen = None
        if time.perf_counter() - began < MAP_SECONDS:
            seen = _explained(evaluated.evaluator, item, label)
        says = _says(predictions, index, facts)
        pictures.append(_picture(kind, predictions.cases[index], says, item["image"], seen, facts))
    logger.info("Looked at %d cases for the report in %.1f s", len(pictures), time.perf_counter() - began)
    return pictures


def column_importances(evaluated: Evaluated, record: ModelRecord) -> dict[str, dict[str, Any]]:
    """Return by column of a table what it is worth to a network of rows; nothing for a network of images."""
    predictions, facts = evaluated.predictions, record.facts
    if facts.spatial_size or predictions.labels is None or not evaluated.report_cases:
        return {}
    evaluator = evaluated.evaluator
    network = evaluator.network.eval()

    @torch.no_grad()
    def predict(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        logits = network(torch.as_tensor(rows, dtype=torch.float32, device=evaluator.state.device))
        return np.asarray(class_probabilities(logits, record.temperature).double().cpu())

    places, start = dict[str, Sequence[int]](), 0
    for column in facts.columns:
        places[column.name] = range(start, start := start + len(column.features))
    rows = np.stack([np.asarray(item["image"], dtype=np.float32) for item in evaluated.items(predictions.cases)])
    return auc_drops(predict, rows, predictions.labels, predictions.patients, places)


def telling_cases(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], count: int
) -> list[tuple[str, int]]:
    """Return kind and index of up to `count` cases: a third each of the best, the most uncertain and the worst.

    Best are right answers of the highest probability, worst are wrong ones that gave the true class the lowest, and
    uncertain those whose two likeliest classes are nearest to each other. No case is shown twice.
    """
    each = -(-count // 3)
    of_truth = probabilities[np.arange(len(labels)), labels]
    right = probabilities.argmax(axis=1) == labels
    ordered = np.sort(probabilities, axis=1)
    orders = {
        "worst": [index for index in np.argsort(of_truth, kind="stable").tolist() if not right[index]],
        "best": [index for index in np.argsort(-of_truth, kind="stable").tolist() if right[index]],
        "uncertain": np.argsort(ordered[:, -1] - ordered[:, -2], kind="stable").tolist(),
    }
    taken: dict[int, str] = {}
    for kind, order in orders.items():
        for index in [index for index in order if index not in taken][:each]:
            taken[index] = kind
    kinds: Sequence[str] = ("best", "uncertain", "worst")
    return [(kind, index) for kind in kinds for index in taken if taken[index] == kind][:count]


def _explained(evaluator: SupervisedEvaluator, item: dict[str, Any], label: int) -> HeatMap:
    """Return where the image of an item speaks for a class, with everything else that the network is given held."""
    prepared = evaluator.prepare_batch(collate_cases([item]), evaluator.state.device, False)
    further = [without_metadata(one) for one in (prepared[2] if len(prepared) == 4 else ())]
    return heat_map(evaluator.network, without_metadata(prepared[0])[0], label, further=further)


def _says(predictions: Predictions, index: int, facts: Facts) -> str:
    row = predictions.probabilities[index]
    predicted, labels = int(row.argmax()), predictions.labels
    said = f"Predicted {facts.classes[predicted]} with probability {row[predicted]:.3f}"
    if labels is None or labels[index] == predicted:
        return f"{said}, which is right."
    truth = int(labels[index])
    return f"{said}; true is {facts.classes[truth]}, which got {row[truth]:.3f}."


def _picture(kind: str, case: str, says: str, image: Tensor, seen: HeatMap | None, facts: Facts) -> CasePicture:
    values = np.asarray(without_metadata(image).float().cpu())
    heat = None if seen is None else np.asarray(seen.values.cpu())
    peak = 0.0 if heat is None else float(heat.max())
    about = _about(seen, peak)
    if values.ndim == 3:
        view = View("image", _grey(values, facts), *_nothing(values.shape[1:]), 1.0, 1.0, "")
        heats = () if heat is None or peak == 0 else (heat / peak,)
        return CasePicture(kind, case, says, (view,), heats, about)
    if len(values) > 1:
        about = f"Shown: {facts.channels[0]}, the first of {len(values)} channels. {about}"
    place = [side // 2 for side in values.shape[1:]]
    if heat is not None and peak > 0:
        place = [int(index) for index in np.unravel_index(heat.argmax(), heat.shape)]
    low, high = np.percentile(values[0], WINDOW_PERCENT)
    grey = np.clip((values[0] - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    steps = facts.spacing_mm or (1.0, 1.0, 1.0)
    views, heats_of = [], []
    for plane, axis in PLANES.items():
        across, down = (other for other in range(3) if other != axis)
        cut = upright(grey, axis, place[axis])
        name = plane if facts.has_geometry else f"across axis {axis + 1}"
        shown = LETTERS[plane] if facts.has_geometry else ""
        views.append(View(name, cut, *_nothing(cut.shape), steps[down], steps[across], shown))
        if heat is not None and peak > 0:
            heats_of.append(upright(heat, axis, place[axis]) / peak)
    if not facts.has_geometry:
        about = f"The files have no geometry: left and right are unknown. {about}"
    return CasePicture(kind, case, says, tuple(views), tuple(heats_of), about)


def _about(seen: HeatMap | None, peak: float) -> str:
    if seen is None:
        return "No heat map: the time for them was used up by the other cases."
    if peak == 0:
        return f"{seen.method} found nothing in the image that speaks for the predicted class."
    lost = f" Hidden, the hottest place costs {peak:.2f} of the probability." if seen.method == "occlusion" else ""
    return f"Slices through the hottest place of the heat map ({seen.method}), relative to its maximum.{lost}"


def _grey(values: npt.NDArray[Any], facts: Facts) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image from 0 to 255: (row, column), or (row, column, 3) for colours."""
    mean, deviation = (np.asarray(one)[:, None, None] for one in NORMALISATIONS[facts.intensity])
    pixels = np.clip(255 * (values * deviation + mean), 0, 255).round().astype(np.uint8)
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]


def _nothing(shape: Sequence[int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    return np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
