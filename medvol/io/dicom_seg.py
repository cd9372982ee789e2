"""A DICOM segmentation as a label map on an image's grid, placed by the position of every frame and never by index.

Frames may come in any order, be turned or flipped against the image, and leave out planes where nothing is. Planes that
do not lie on the image's voxels are refused with the distance, or resampled to the nearest voxel on request. So are
planes that lie on every second slice of the image alone, as of a segmentation of a coarser series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import Affine, apply_affine, spacing_mm
from medvol.io.dicom_geometry import COSINE_TOLERANCE, STEP_TOLERANCE
from medvol.io.dicom_seg_file import Frame, frames_of, iterate_masks, references_of
from medvol.io.dicom_target import GRID_TOLERANCE, Target, require_same_frame
from medvol.io.label_canvas import Canvas, Index
from medvol.io.options import ReadOptions
from medvol.io.voxels import require_size

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Placement:
    """Where a frame lies in a grid.

    Args:
        axes: Grid axis of the frame's columns, of its rows, and of its normal.
        signs: 1 or -1: whether columns and rows run with the grid's axis or against it.
        start: Grid index of the frame's first pixel.
        off_mm: Largest distance of a corner pixel from the nearest voxel.
    """

    axes: tuple[int, int, int]
    signs: tuple[int, int]
    start: tuple[int, ...]
    off_mm: float

    @property
    def level(self) -> int:
        """Index along the normal."""
        return self.start[self.axes[2]]


def paint_segmentation(
    dataset: Any, path: Path, target: Target, values: Mapping[int, int], *, resample: bool, separate: bool = False
) -> tuple[Canvas, tuple[str, ...]]:
    """Return the chosen segments on the image's grid, and notes.

    Args:
        dataset: The file as pydicom read it.
        path: For messages.
        target: The image.
        values: Value of each wanted segment by its number.
        resample: Take the nearest voxel where planes do not lie on the image's.
        separate: Paint each value into a channel of its own.

    Raises:
        MedvolError: `FRAME_MISMATCH`, `GEOMETRY_MISMATCH` with the distance, and what reading frames finds.
    """
    frames = frames_of(dataset, path)
    notes = require_same_frame(target, references_of(dataset, frames), path)
    size = int(dataset.Columns), int(dataset.Rows)
    places = [place_frame(frame.affine, size, target.affine) for frame in frames]
    problem = _off_grid(frames, places, size, target, path) or _coarse(frames, places, target, path)
    if problem is None:
        canvas = Canvas(target.shape, list(values.values()), separate=separate)
        lost = _paint(dataset, path, frames, places, canvas, values)
        _require_inside(canvas, lost, path)
        return canvas, notes + ((f"{lost} labelled voxels lie outside the image",) if lost else ())
    if not resample:
        raise problem
    affine, count = own_grid(frames, path)
    require_size(2 * count * size[0] * size[1], path, ReadOptions())
    own = Canvas((*size, count), list(values.values()), separate=separate)
    _paint(dataset, path, frames, [place_frame(frame.affine, size, affine) for frame in frames], own, values)
    there = int(np.count_nonzero(own.labels))
    own.labels = _nearest(own.labels, affine, target)
    _require_inside(own, there, path)
    return own, (*notes, "resampled to the image's nearest voxels as asked for")


def place_frame(affine: Affine, size: Sequence[int], grid: Affine) -> Placement:
    """Return where a frame lies in a grid, to the nearest voxel.

    Args:
        affine: Frame index to millimetres, see `Frame`.
        size: Columns and rows.
        grid: Grid index to the same millimetres.
    """
    matrix = np.linalg.inv(grid) @ affine
    first = int(np.argmax(np.abs(matrix[:3, 0])))
    rest = [axis for axis in range(3) if axis != first]
    second = rest[int(np.argmax(np.abs(matrix[rest, 1])))]
    signs = tuple(-1 if matrix[axis, column] < 0 else 1 for column, axis in enumerate((first, second)))
    start = np.rint(matrix[:3, 3])
    corners = np.array([(i, j, 0.0) for i in (0, size[0] - 1) for j in (0, size[1] - 1)])
    exact = np.tile(start, (4, 1))
    exact[:, first] += signs[0] * corners[:, 0]
    exact[:, second] += signs[1] * corners[:, 1]
    off = (apply_affine(matrix, corners) - exact) @ grid[:3, :3].T
    axes = first, second, 3 - first - second
    return Placement(
        axes, (signs[0], signs[1]), tuple(start.astype(int).tolist()), float(np.linalg.norm(off, axis=1).max())
    )


def own_grid(frames: Sequence[Frame], path: Path) -> tuple[Affine, int]:
    """Return the affine of the segmentation's own grid and its number of planes; planes may be absent in between.

    Raises:
        MedvolError: `GEOMETRY_MISMATCH` for planes that are not parallel, not on one line, or at uneven steps.
    """
    first = frames[0].affine
    normal = first[:3, 2]
    origins = np.array([frame.affine[:3, 3] for frame in frames])
    turned = max(float(np.abs(frame.affine[:3, :3] - first[:3, :3]).max()) for frame in frames)
    levels = (origins - origins[0]) @ normal
    order = np.argsort(levels)
    gaps = np.diff(levels[order])
    gaps = gaps[gaps > 0.01]  # planes of several segments at one place
    step = float(gaps.min()) if len(gaps) else float(frames[0].between_mm or 0)
    lowest, highest = origins[order[0]], origins[order[-1]]
    count = round((levels.max() - levels.min()) / step) + 1 if step else 1
    vector = (highest - lowest) / (count - 1) if count > 1 else normal * (step or 1.0)
    index = np.rint((levels - levels.min()) / step) if step else levels * 0
    off = np.linalg.norm(lowest + index[:, None] * vector - origins, axis=1).max()
    if turned > COSINE_TOLERANCE or off > GRID_TOLERANCE * np.linalg.norm(vector) or not step:
        found = f"planes that are turned by {turned:.2g}, {off:.2g} mm off even steps of {step:.3g} mm"
        raise _mismatch(path, found, "parallel planes at even steps", "resample the segmentation by other means")
    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2], affine[:3, 3] = first[:3, :2], vector, lowest
    return affine, count


def _paint(
    dataset: Any,
    path: Path,
    frames: Sequence[Frame],
    places: Sequence[Placement],
    canvas: Canvas,
    values: Mapping[int, int],
) -> int:
    """Paint every frame; return how many voxels of wanted segments lie outside the canvas."""
    lost = 0
    for frame, place, pixels in zip(frames, places, iterate_masks(dataset, path), strict=True):
        if frame.segment and frame.segment not in values:
            continue
        index, inside = _aligned(pixels, place, canvas.labels.shape)
        wanted = [frame.segment] if frame.segment else [one for one in np.unique(pixels).tolist() if one in values]
        for segment in wanted:
            mask = pixels if frame.segment else pixels == segment
            kept = (inside if frame.segment else inside == segment) if index else np.zeros((0, 0), dtype=bool)
            lost += int(np.count_nonzero(mask)) - int(np.count_nonzero(kept))
            if index:
                canvas.paint(index, kept, values[segment])
    return lost


def _require_inside(canvas: Canvas, labelled: int, path: Path) -> None:
    """Raise `GEOMETRY_MISMATCH` when structures were drawn and none of their voxels lies in the image."""
    if labelled and not canvas.labels.any():
        found = f"{labelled} labelled voxels, all outside the image"
        raise _mismatch(path, found, "structures within the image", "name the image that it was drawn on")


def _aligned(pixels: _Array, place: Placement, shape: Sequence[int]) -> tuple[Index, _Array]:
    """Return the index of a plane of the grid and the pixels that lie in it; an empty index outside."""
    first, second, normal = place.axes
    if not 0 <= place.level < shape[normal]:
        return (), pixels[:0, :0]
    index: list[int | slice] = [place.level] * 3
    for position, (axis, sign) in enumerate(zip((first, second), place.signs, strict=True)):
        length = pixels.shape[position]
        pixels = np.flip(pixels, position) if sign < 0 else pixels
        low = place.start[axis] - (length - 1 if sign < 0 else 0)
        begin, end = max(low, 0), min(low + length, shape[axis])
        if begin >= end:
            return (), pixels[:0, :0]
        index[axis] = slice(begin, end)
        pixels = np.take(pixels, np.arange(begin - low, end - low), axis=position)
    return tuple(index), pixels if first < second else pixels.T


def _off_grid(
    frames: Sequence[Frame], places: Sequence[Placement], size: Sequence[int], target: Target, path: Path
) -> MedvolError | None:
    """Return the refusal of planes whose pixels are not the image's voxels."""
    worst = max(range(len(places)), key=lambda one: places[one].off_mm)
    if places[worst].off_mm <= target.tolerance_mm:
        return None
    pixel = spacing_mm(frames[worst].affine)[:2]
    found = (
        f"{size[0]} x {size[1]} pixels of {pixel[0]:.4g} x {pixel[1]:.4g} mm up to {places[worst].off_mm:.3g} mm off"
    )
    return _mismatch(path, found, f"the image's voxels within {target.tolerance_mm:.2g} mm")


def _coarse(frames: Sequence[Frame], places: Sequence[Placement], target: Target, path: Path) -> MedvolError | None:
    """Return the refusal of planes on the image's slices that seem to be those of a coarser series.

    Two neighbouring planes anywhere in the file prove the step; so do a stated distance, and a reference of every frame
    to slices of the image.
    """
    normal = places[0].axes[2]
    gaps = np.diff(np.unique([place.level for place in places]))
    step = float(spacing_mm(target.affine)[normal])
    stated = next((frame.between_mm for frame in frames if frame.between_mm), None)
    is_stated = stated is not None and abs(stated / step - 1) <= STEP_TOLERANCE
    is_drawn_here = all(frame.sources and frame.sources <= target.instance_uids for frame in frames)
    if (len(gaps) and gaps.min() == 1) or is_stated or is_drawn_here or (not len(gaps) and stated is None):
        return None
    width = stated if stated is not None else float(gaps.min()) * step
    return _mismatch(path, f"planes {width:.4g} mm apart", f"the image's step, {step:.4g} mm")


def _nearest(labels: _Array, affine: Affine, target: Target) -> _Array:
    """Return labels on the image's grid by the nearest voxel; nothing outside their own."""
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(affine) @ target.affine
    result = np.zeros((*target.shape, *labels.shape[3:]), dtype=labels.dtype, order="F")
    for channel in np.ndindex(labels.shape[3:]):
        options = {"output_shape": target.shape, "order": 0, "mode": "grid-constant", "cval": 0}
        result[(..., *channel)] = affine_transform(labels[(..., *channel)], matrix[:3, :3], matrix[:3, 3], **options)
    return result


def _mismatch(path: Path, found: str, expected: str, fix: str = "") -> MedvolError:
    fix = fix or "pass --resample_labels True (nearest voxel), or name the image that it was drawn on"
    return MedvolError("GEOMETRY_MISMATCH", file=path, found=found, expected=expected, fix=fix)
