"""What every number about masks starts from: two masks of one shape, their grid, no empty margin, and components.

A *label map* holds whole numbers, shape (x, y, z), 0 for background. A *grid* is given as three spacings in millimetres
or as a 4x4 affine (voxel index to RAS+ millimetres); an affine may be oblique and even sheared, because distances are
measured between positions, not along axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import voxel_ml

Mask = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def check_pair(pred: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[Mask, Mask]:
    """Return two label maps as arrays of bool or integers, shape (x, y, z).

    Raises:
        MedvolError: WRONG_DIMS without three axes, SHAPE_MISMATCH for unequal shapes, BAD_DTYPE for values that are not
            whole numbers (probabilities).
    """
    first, second = (_whole(np.asarray(values), name) for values, name in ((pred, "prediction"), (truth, "truth")))
    if first.shape != second.shape:
        raise MedvolError(
            "SHAPE_MISMATCH",
            found=f"a prediction of shape {first.shape} and a truth of shape {second.shape}",
            expected="the same grid",
            fix="resample the prediction to the grid of the truth with nearest neighbour",
        )
    return first, second


def grid_steps_mm(affine_or_spacing: npt.ArrayLike) -> Floats:
    """Return the 3x3 matrix that takes a step in voxels to a step in millimetres.

    Args:
        affine_or_spacing: Three spacings in millimetres, or a 4x4 affine.

    Raises:
        MedvolError: BAD_ARGUMENT for anything else, or voxels without a volume.
    """
    grid = np.asarray(affine_or_spacing, dtype=np.float64)
    steps = np.diag(grid) if grid.shape == (3,) else grid[:3, :3] if grid.shape == (4, 4) else np.zeros((3, 3))
    if not (np.isfinite(steps).all() and abs(np.linalg.det(steps)) > 0):
        raise MedvolError(
            "BAD_ARGUMENT",
            found=f"a grid given as {np.array2string(grid, precision=4)[:120]}",
            expected="three spacings above 0 mm or an invertible 4x4 affine",
        )
    return np.asarray(steps)


def voxel_volume_ml(affine_or_spacing: npt.ArrayLike) -> float:
    """Return the volume of a voxel in millilitres."""
    return voxel_ml(grid_steps_mm(affine_or_spacing))


def diagonal_mm(shape: Sequence[int], affine_or_spacing: npt.ArrayLike) -> float:
    """Return the longest diagonal of a grid in millimetres, from outer edge to outer edge."""
    steps = grid_steps_mm(affine_or_spacing)
    signs = np.array([(1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1)])
    return float(np.linalg.norm((signs * np.asarray(shape[:3])) @ steps.T, axis=1).max())


def compact_labels(labels: Mask, values: Sequence[int]) -> Mask:
    """Return the labels renumbered: 1, 2, ... for `values` in their order, 0 for everything else."""
    in_order = list(values) == list(range(1, len(values) + 1))
    if in_order and labels.dtype == np.uint8 and labels.max(initial=0) <= len(values):
        return labels
    narrow = np.uint8 if len(values) < 256 else np.uint16
    # Clipped look-ups send whatever is below 0 or above the largest value to the background at either end.
    table = np.zeros(max(values, default=0) + 2, dtype=narrow)
    table[list(values)] = np.arange(1, len(values) + 1)
    return np.take(table, labels.astype(np.intp, copy=False), mode="clip")


def crop_to_foreground(pred: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Return views on the smallest box around everything that is not 0 in either; empty arrays when all is 0."""
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(np.any(pred, axis=others) | np.any(truth, axis=others))
        low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        box = tuple(slice(low, high) if other == axis else slice(None) for other in range(3))
        pred, truth = pred[box], truth[box]
    return pred, truth


def components(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the component number of each voxel, 0 outside, and the voxels of each number, entry 0 being the outside.

    A component is 26-connected: voxels that touch at a corner are one piece.

    Args:
        mask: Shape (x, y, z), bool.
    """
    from scipy import ndimage

    numbers, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return numbers, np.bincount(numbers.ravel(), minlength=count + 1)


def _whole(values: Mask, name: str) -> Mask:
    if values.ndim != 3:
        raise MedvolError("WRONG_DIMS", found=f"a {name} of shape {values.shape}", expected="three axes x y z")
    if np.issubdtype(values.dtype, np.floating):
        whole = values.astype(np.int32)
        if not np.array_equal(whole, values):
            raise MedvolError(
                "BAD_DTYPE", found=f"a {name} with fractions", expected="labels", fix="threshold or argmax it first"
            )
        return whole
    if values.dtype != np.bool_ and not np.issubdtype(values.dtype, np.integer):
        raise MedvolError("BAD_DTYPE", found=f"a {name} of type {values.dtype}", expected="bool or integers")
    return values
