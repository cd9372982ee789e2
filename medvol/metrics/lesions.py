"""Detection of separate lesions: which true ones were found, and which predicted ones are there.

A *lesion* is a 26-connected component. A predicted and a true lesion *match* when their intersection over union is at
least `min_iou`; each lesion matches at most one, and the matching is the one with the most pairs. The default of 0.1
asks for hardly more than a touch, because small lesions of which the place is right often miss the outline; a
prediction that swallows everything still finds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medvol.metrics.masks import Mask, check_pair, components, crop_to_foreground

Sizes = npt.NDArray[np.int64]

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
    (predicted, predicted_sizes), (true, true_sizes) = components(first), components(second)
    matched = _matches(predicted, true, predicted_sizes, true_sizes, min_iou)
    return LesionCounts(matched, len(predicted_sizes) - 1 - matched, len(true_sizes) - 1 - matched)


def _matches(predicted: Mask, true: Mask, predicted_sizes: Sizes, true_sizes: Sizes, min_iou: float) -> int:
    """Return the largest number of one-to-one matches."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    shared = (predicted > 0) & (true > 0)
    if not shared.any():
        return 0
    # Only pairs that touch are looked at: a table of all pairs of specks would not fit into memory.
    pairs = predicted[shared].astype(np.int64) * len(true_sizes) + true[shared]
    keys, overlap = np.unique(pairs, return_counts=True)
    row, column = np.divmod(keys, len(true_sizes))
    union = predicted_sizes[row] + true_sizes[column] - overlap
    match = overlap >= min_iou * union
    lesions = (len(predicted_sizes) - 1, len(true_sizes) - 1)
    graph = csr_array((np.ones(match.sum()), (row[match] - 1, column[match] - 1)), shape=lesions)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
