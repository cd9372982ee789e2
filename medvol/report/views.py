"""Three slices through a segmented case, cut out and turned so that they can be shown later.

A *view* is a slice as a radiologist expects it: rows downwards, the patient's right at the left edge of axial and
coronal views, anterior at the left edge of sagittal ones, head and front up. Volumes of any orientation are turned to
the nearest one; an oblique volume is shown along its own axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.geometry import Affine, spacing_mm

Array = npt.NDArray[Any]

MARGIN_MM = 12.0
"""Least surroundings of the structures that are shown."""

WINDOW_PERCENT = (1.0, 99.0)
WINDOW_SPREADS = 4.0
NEARBY_PIXELS = 5

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Plane to the axis that it lies across: x to the patient's right, y to the front, z to the head."""

LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
"""Of the left, right, upper and lower edge."""

_BAR_LENGTHS_MM = (1, 2, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class View:
    """One slice, rows downwards.

    Args:
        plane: `axial`, `coronal` or `sagittal`; that of the array axis when there is no geometry.
        grey: Shape (rows, columns), uint8 within the window of the case.
        pred: Predicted labels, same shape.
        truth: True labels, same shape.
        row_mm: Distance between rows.
        column_mm: Distance between columns.
        letters: Of the left, right, upper and lower edge; empty when there is no geometry.
    """

    plane: str
    grey: Array
    pred: Array
    truth: Array
    row_mm: float
    column_mm: float
    letters: str


@dataclass(frozen=True)
class CaseViews:
    """What is kept of a case to be shown.

    Args:
        case: Name.
        window: Grey values shown as black and as white.
        views: Axial, coronal and sagittal.
    """

    case: str
    window: tuple[float, float]
    views: tuple[View, View, View]


def cut_views(
    case: str, image: Array, pred: Array, truth: Array, affine: Affine | None, structures: Mapping[str, int]
) -> CaseViews:
    """Return the three slices through the middle of the largest structure, cropped to the structures and a margin.

    The largest true structure counts, the largest predicted one where there is no true one. The window holds what is
    usual in the structures and what is usual right around them, within the 1st and 99th percentile of the slices:
    percentiles alone would spend nearly all of a CT's greys on air.

    Args:
        case: Name.
        image: Shape (x, y, z).
        pred: Label map, same shape.
        truth: Label map, same shape.
        affine: Voxel index to RAS+ millimetres; None for volumes without a geometry.
        structures: Name to label.
    """
    arrays = [turned(np.asarray(array), affine) for array in (image, pred, truth)]
    steps_mm = turned_steps_mm(affine)
    box = _box(arrays[1], arrays[2], steps_mm)
    grey, predicted, true = (array[box] for array in arrays)
    place = _middle(true, structures) or _middle(predicted, structures) or tuple(side // 2 for side in grey.shape)
    labelled = (predicted != 0) | (true != 0)
    slices = {plane: upright(grey, axis, place[axis]).astype(np.float32) for plane, axis in PLANES.items()}
    marked = (upright(labelled, axis, place[axis]) for axis in PLANES.values())
    low, high = _window(list(zip(slices.values(), marked, strict=True)))
    views = []
    for plane, axis in PLANES.items():
        across, down = (other for other in range(3) if other != axis)
        scaled = np.nan_to_num((slices[plane] - low) * (255.0 / (high - low)))
        views.append(
            View(
                plane=plane,
                grey=scaled.clip(0, 255).astype(np.uint8),
                pred=upright(predicted, axis, place[axis]),
                truth=upright(true, axis, place[axis]),
                row_mm=steps_mm[down],
                column_mm=steps_mm[across],
                letters="" if affine is None else LETTERS[plane],
            )
        )
    return CaseViews(case, (low, high), (views[0], views[1], views[2]))


def turned(array: Array, affine: Affine | None) -> Array:
    """Return a view with axes that run to the right, to the front and to the head; the array without an affine."""
    if affine is None:
        return array
    from nibabel.orientations import apply_orientation, io_orientation

    return np.asarray(apply_orientation(array, io_orientation(affine)))


def turned_steps_mm(affine: Affine | None) -> tuple[float, float, float]:
    """Return the spacing along the axes of `turned`, in millimetres; 1 without an affine."""
    if affine is None:
        return (1.0, 1.0, 1.0)
    from nibabel.orientations import io_orientation

    steps = np.empty(3)
    steps[io_orientation(affine)[:, 0].astype(int)] = spacing_mm(affine)
    return float(steps[0]), float(steps[1]), float(steps[2])


def upright(array: Array, axis: int, index: int) -> Array:
    """Return a copy of a slice of a turned array with rows downwards: both remaining axes run against the world's.

    A view would keep the whole volume alive; `np.take` copies.
    """
    return np.asarray(np.take(array, index, axis=axis)[::-1, ::-1].T)


def bar_length_mm(width_mm: float) -> int:
    """Return the length of a scale bar: the longest round one within a third of the width of a picture, or 1."""
    return max((length for length in _BAR_LENGTHS_MM if length <= width_mm / 3), default=_BAR_LENGTHS_MM[0])


def _box(pred: Array, truth: Array, steps_mm: tuple[float, float, float]) -> tuple[slice, ...]:
    """Return the box of everything labelled with a margin of `MARGIN_MM` or a quarter of it; all when nothing is."""
    used = (pred != 0) | (truth != 0)
    if not used.any():
        return (slice(None),) * 3
    sides = []
    for axis in range(3):
        along = np.flatnonzero(used.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = int(along[0]), int(along[-1]) + 1
        margin = round(max(MARGIN_MM / steps_mm[axis], (high - low) / 4))
        sides.append(slice(max(0, low - margin), high + margin))
    return tuple(sides)


def _middle(labels: Array, structures: Mapping[str, int]) -> tuple[int, ...] | None:
    """Return the voxel of the largest structure that is nearest to its centre of mass, None without a structure."""
    counts = np.bincount(labels.ravel().astype(np.int64))
    known = [label for label in structures.values() if label < len(counts) and counts[label] > 0]
    if not known:
        return None
    voxels = np.argwhere(labels == max(known, key=lambda label: int(counts[label])))
    nearest = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return tuple(int(index) for index in nearest)


def _window(slices: Sequence[tuple[Array, Array]]) -> tuple[float, float]:
    """Return the window of slices, given as grey values and whether something is labelled there."""
    from scipy import ndimage

    values = np.concatenate([grey.ravel() for grey, _ in slices])
    labelled = np.concatenate([marked.ravel() for _, marked in slices])
    nearby = np.concatenate([ndimage.binary_dilation(marked, iterations=NEARBY_PIXELS).ravel() for _, marked in slices])
    finite = np.isfinite(values)
    spans = [_span(values[finite & chosen]) for chosen in (labelled, nearby & ~labelled) if (finite & chosen).any()]
    shown = values[finite & (values > values[finite].min())] if finite.any() else values[finite]
    if not shown.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(shown, WINDOW_PERCENT))
    if spans:
        inner = max(low, min(span[0] for span in spans)), min(high, max(span[1] for span in spans))
        low, high = inner if inner[1] > inner[0] else (low, high)
    return low, high if high > low else low + 1.0


def _span(values: Array) -> tuple[float, float]:
    """Return the median and `WINDOW_SPREADS` robust standard deviations to either side."""
    first, middle, third = (float(value) for value in np.percentile(values, (25, 50, 75)))
    reach = WINDOW_SPREADS * (third - first) / 1.349  # the interquartile range of a unit normal
    return middle - reach, middle + reach
