"""The scores of a segmented case, and what many cases say together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.metrics.masks import (
    check_pair,
    compact_labels,
    crop_to_foreground,
    diagonal_mm,
    grid_steps_mm,
    voxel_volume_ml,
)
from medvol.metrics.overlap import confusion_counts, dice_of_counts, iou_of_counts
from medvol.metrics.statistics import Intervals, bootstrap_means
from medvol.metrics.surface import hd95_of_distances, label_distances, nsd_of_distances

Scores = dict[str, dict[str, float]]

NSD_TOLERANCE_MM = 1.0

EMPTY_MASK_RULES = {
    "both_empty": "dice 1, iou 1, nsd 1, hd95_mm 0",
    "one_empty": "dice 0, iou 0, nsd 0, hd95_mm the diagonal of the image",
}
"""The rules of the BraTS challenge, where the diagonal of the image is 373 mm.

Leaving such cases out (MONAI's nan) hides every missed and every invented structure from the distance. The value that
Metrics Reloaded (Maier-Hein et al., Nat Methods 2024) asks for is the worst one possible, which is the diagonal.
`empty_counts` says how often each rule was used: a structure that is mostly absent has a high Dice for that alone.
"""

SUMMARISED = ("dice", "hd95_mm", "nsd", "iou")
"""The scores that have a mean with an interval, in the order in which they are reported."""


def score_case(
    pred: npt.ArrayLike,
    truth: npt.ArrayLike,
    structures: Mapping[str, int],
    affine_or_spacing: npt.ArrayLike,
    *,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
) -> Scores:
    """Return the scores of each structure of a case.

    Args:
        pred: Label map, shape (x, y, z).
        truth: Label map of the same shape; labels that are no structure count as background in both.
        structures: Name to label, above 0.
        affine_or_spacing: 4x4 affine, or three spacings in millimetres.
        nsd_tolerance_mm: How far surfaces may lie apart and still agree.

    Returns:
        By structure: `dice`, `iou`, `hd95_mm`, `nsd`, `volume_ml`, `true_volume_ml` and `volume_difference_ml`
        (prediction minus truth). `EMPTY_MASK_RULES` says what empty masks give; no score is nan.

    Raises:
        MedvolError: See `medvol.metrics.masks.check_pair`; BAD_ARGUMENT for a bad grid, or labels that are not above 0
            or occur twice.
    """
    values = _checked_labels(structures)
    steps_mm, voxel_ml = grid_steps_mm(affine_or_spacing), voxel_volume_ml(affine_or_spacing)
    maps = check_pair(pred, truth)
    image_diagonal_mm = diagonal_mm(maps[0].shape, affine_or_spacing)
    first, second = (compact_labels(labels, values) for labels in crop_to_foreground(*maps))
    count = len(values) + 1
    counts = confusion_counts(first, second, count)
    distances = label_distances(first, second, labels=count, steps_mm=steps_mm)
    scores: Scores = {}
    for label, name in enumerate(structures, start=1):
        sizes = int(counts[label, label]), int(counts[:, label].sum()), int(counts[label].sum())
        scores[name] = {
            "dice": dice_of_counts(*sizes),
            "iou": iou_of_counts(*sizes),
            "hd95_mm": hd95_of_distances(distances[label - 1], image_diagonal_mm),
            "nsd": nsd_of_distances(distances[label - 1], nsd_tolerance_mm),
            "volume_ml": sizes[1] * voxel_ml,
            "true_volume_ml": sizes[2] * voxel_ml,
            "volume_difference_ml": (sizes[1] - sizes[2]) * voxel_ml,
        }
    return scores


def mean_of_structures(scores: Mapping[str, Mapping[str, float]], name: str) -> float:
    """Return the mean of a score over the structures of a case, each counting the same."""
    return float(np.mean([score[name] for score in scores.values()]))


def summarise(
    scores: Sequence[Mapping[str, Mapping[str, float]]],
    patients: Sequence[Hashable],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Intervals:
    """Return the means over cases with intervals by patient.

    Args:
        scores: Of each case, from `score_case`, all with the same structures.
        patients: The patient of each case.
        resamples: Number of resamples.
        seed: Equal seeds give equal intervals.

    Returns:
        As `medvol.metrics.statistics.bootstrap_means`: `dice`, `hd95_mm`, `nsd` and `iou` are means over structures,
        `dice_<structure>` and so on those of one structure.

    Raises:
        MedvolError: EMPTY_DATASET without a case, BAD_PREDICTIONS when lengths differ.
    """
    if not scores:
        raise MedvolError("EMPTY_DATASET", found="no scored case", expected="at least one", fix="check the split")
    columns = {name: [mean_of_structures(case, name) for case in scores] for name in SUMMARISED}
    for structure in scores[0]:
        columns |= {f"{name}_{structure}": [case[structure][name] for case in scores] for name in SUMMARISED}
    return bootstrap_means(columns, patients, resamples=resamples, seed=seed)


def empty_counts(scores: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, int]]:
    """Return by structure the number of cases that an empty mask decided.

    Returns:
        `both_empty`: absent and not predicted; `missed`: there and not predicted; `invented`: predicted and absent.
    """
    result: dict[str, dict[str, int]] = {}
    for structure in scores[0] if scores else ():
        pairs = [(case[structure]["volume_ml"] > 0, case[structure]["true_volume_ml"] > 0) for case in scores]
        result[structure] = {
            "both_empty": pairs.count((False, False)),
            "missed": pairs.count((False, True)),
            "invented": pairs.count((True, False)),
        }
    return result


def _checked_labels(structures: Mapping[str, int]) -> list[int]:
    values = [int(value) for value in structures.values()]
    if not values or min(values) < 1 or len(set(values)) < len(values):
        raise MedvolError(
            "BAD_ARGUMENT", found=f"structures {dict(structures)}"[:160], expected="different labels above 0"
        )
    return values
