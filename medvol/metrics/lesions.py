"""Detection of separate lesions: which true ones were found, and which predicted ones are there.

A *lesion* is a 26-connected component. A predicted and a true lesion *match* when their intersection over union is at
least `min_iou`; each lesion matches at most one, and the matching is the one with the most pairs. The default of 0.1
asks for hardly more than a touch, because small lesions of which the place is right often miss the outline; a
prediction that swallows everything still finds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.metrics.masks import Mask, check_pair, crop_to_foreground

MIN_IOU = 0.1


@dataclass(frozen=True)
class LesionCounts:
    """How many lesions were found, invented and missed.

    Args:
        true_positives: Pairs of a predicted and a true lesion.
        false_positives: Predicted lesions without a true one.
        false_negatives: True lesions without a predicted one.
    """

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def sensitivity(self) -> float:
        """Share of true lesions that were found; nan without a true lesion."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def precision(self) -> float:
        """Share of predicted lesions that are there; nan without a predicted lesion."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), the Dice of the lists of lesions; 1 when both are empty, as for Dice."""
        lesions = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / lesions if lesions else 1.0


def count_lesions(pred: npt.ArrayLike, truth: npt.ArrayLike, *, min_iou: float = MIN_IOU) -> LesionCounts:
    """Match the lesions of two masks and count.

    Args:
        pred: Shape (x, y, z); whatever is not 0 is lesion.
        truth: Same shape.
        min_iou: Least intersection over union of a match, above 0.

    Raises:
        MedvolError: See `medvol.metrics.masks.check_pair`.
        ValueError: When `min_iou` is not above 0 and at most 1.
    """
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou must be above 0 and at most 1, got {min_iou}")
    first, second = crop_to_foreground(*(values != 0 for values in check_pair(pred, truth)))
    (predicted, predicted_count), (true, true_count) = _components(first), _components(second)
    matched = _matches(predicted, true, (predicted_count, true_count), min_iou)
    return LesionCounts(matched, predicted_count - matched, true_count - matched)


def _matches(predicted: Mask, true: Mask, counts: tuple[int, int], min_iou: float) -> int:
    """Return the largest number of one-to-one matches."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    shared = (predicted > 0) & (true > 0)
    if not shared.any():
        return 0
    # Only pairs that touch are looked at: a table of all pairs of specks would not fit into memory.
    pairs = predicted[shared].astype(np.int64) * (counts[1] + 1) + true[shared]
    keys, overlap = np.unique(pairs, return_counts=True)
    row, column = keys // (counts[1] + 1), keys % (counts[1] + 1)
    union = np.bincount(predicted.ravel())[row] + np.bincount(true.ravel())[column] - overlap
    match = overlap >= min_iou * union
    graph = csr_array((np.ones(match.sum()), (row[match] - 1, column[match] - 1)), shape=counts)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def _components(mask: Mask) -> tuple[Any, int]:
    from scipy import ndimage

    if not mask.size:
        return np.zeros(mask.shape, dtype=np.int32), 0
    numbers, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return numbers, int(count)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
