"""Overlap of masks: counts for all structures in one pass, and Dice, IoU and volumes from them.

What holds for empty masks stands in `medvol.metrics.segmentation.EMPTY_MASK_RULES`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medvol.metrics.masks import Mask, check_pair, voxel_volume_ml

Counts = npt.NDArray[np.int64]

_SLAB_VOXELS = 2**20  # the pairs of labels of a slab take 8 MB, whatever the size of the volume


def confusion_counts(pred: Mask, truth: Mask, labels: int) -> Counts:
    """Return how many voxels have each pair of labels, shape (labels, labels): row = truth, column = prediction.

    One pass over the voxels, however many structures there are.

    Args:
        pred: Label map, shape (x, y, z), values 0 to labels - 1.
        truth: The same of the truth.
        labels: Number of labels, background included.
    """
    counts = np.zeros(labels * labels, dtype=np.int64)
    rows = max(1, _SLAB_VOXELS // max(1, pred[:1].size))
    for start in range(0, len(pred), rows):
        pairs = truth[start : start + rows].astype(np.intp)
        pairs *= labels
        pairs += pred[start : start + rows]
        counts += np.bincount(pairs.ravel(), minlength=labels * labels)
    return counts.reshape(labels, labels)


def dice_of_counts(shared: float, predicted: float, true: float) -> float:
    """Return 2 shared / (predicted + true) from voxel counts; 1 when both masks are empty."""
    return 2.0 * shared / (predicted + true) if predicted + true > 0 else 1.0


def iou_of_counts(shared: float, predicted: float, true: float) -> float:
    """Return shared / (predicted + true - shared) from voxel counts; 1 when both masks are empty."""
    return shared / (predicted + true - shared) if predicted + true > 0 else 1.0


def dice(pred: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Return the Dice coefficient of two masks, shape (x, y, z); whatever is not 0 is inside.

    Both empty: 1. One empty: 0.

    Raises:
        MedvolError: See `medvol.metrics.masks.check_pair`.
    """
    return dice_of_counts(*_sizes(pred, truth))


def iou(pred: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Return the intersection over union (Jaccard index) of two masks, shape (x, y, z); not 0 is inside.

    Both empty: 1. One empty: 0.

    Raises:
        MedvolError: See `medvol.metrics.masks.check_pair`.
    """
    return iou_of_counts(*_sizes(pred, truth))


def volume_ml(mask: npt.ArrayLike, affine_or_spacing: npt.ArrayLike) -> float:
    """Return the volume of a mask in millilitres: number of voxels times volume of a voxel.

    Args:
        mask: Whatever is not 0 is inside.
        affine_or_spacing: 4x4 affine, or three spacings in millimetres.
    """
    return int(np.count_nonzero(mask)) * voxel_volume_ml(affine_or_spacing)


def _sizes(pred: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[int, int, int]:
    first, second = (values != 0 for values in check_pair(pred, truth))
    return int(np.count_nonzero(first & second)), int(np.count_nonzero(first)), int(np.count_nonzero(second))
