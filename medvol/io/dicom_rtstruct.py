"""A DICOM structure set (RTSTRUCT) as a label map on an image's grid.

A contour belongs to the slice that it meets within half a step. On a slice a structure is what lies inside an odd
number of its contours (XOR: holes as contours of their own, or keyholes), by the centres of voxels. Contours that leave
out every second slice, or lie closer than slices, were drawn for another series: refused, or taken by the nearest
contour plane on request. Points and open lines enclose nothing and are left out with a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvol.errors import MedvolError
from medvol.geometry import apply_affine, spacing_mm
from medvol.io.dicom_target import Referenced, Target, require_same_frame
from medvol.io.label_canvas import Canvas
from medvol.io.polygons import Points, fill_even_odd

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Structure:
    """The closed contours of one region of interest.

    Args:
        number: 1 for the first of the file, and so on; numbers of the file itself start anywhere.
        name: As the file names it.
        contours: Corners in RAS+ millimetres, (corner, 3) each.
        frame_uid: Frame of reference that the structure states.
        instance_uids: Slices that its contours reference.
        left_out: Number of points, open lines and outlines of less than three corners.
    """

    number: int
    name: str
    contours: tuple[Points, ...]
    frame_uid: str
    instance_uids: frozenset[str]
    left_out: int


@dataclass(frozen=True)
class Sheaf:
    """The contours of a structure by the planes they lie in.

    Args:
        levels: Index of each plane along the slice axis, ascending, not rounded.
        polygons: The contours of each plane in indices of the other two axes.
    """

    levels: tuple[float, ...]
    polygons: tuple[tuple[Points, ...], ...]

    @property
    def step(self) -> float:
        """Smallest distance of two planes in slices; 1 for a single plane."""
        return float(np.diff(self.levels).min()) if len(self.levels) > 1 else 1.0


def structures_of(dataset: Any) -> tuple[Structure, ...]:
    """Return the structures in the order of the file."""
    contours = {int(one.ReferencedROINumber): one for one in dataset.get("ROIContourSequence") or ()}
    listed = dataset.get("StructureSetROISequence") or ()
    return tuple(
        _structure(position, one, contours.get(int(one.ROINumber))) for position, one in enumerate(listed, start=1)
    )


def references_of(dataset: Any, structures: Sequence[Structure]) -> Referenced:
    """Return what a structure set says about the image it was drawn on."""
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or ()
    stated = {str(one.get("FrameOfReferenceUID") or "") for one in frames} | {one.frame_uid for one in structures}
    series = {
        str(item.get("SeriesInstanceUID") or "")
        for one in frames
        for study in one.get("RTReferencedStudySequence") or ()
        for item in study.get("RTReferencedSeriesSequence") or ()
    }
    instances = {uid for one in structures for uid in one.instance_uids}
    return Referenced(frozenset(stated - {""}), frozenset(series - {""}), frozenset(instances - {""}))


def paint_structures(
    dataset: Any, path: Path, target: Target, values: Mapping[int, int], *, resample: bool, separate: bool = False
) -> tuple[Canvas, tuple[str, ...]]:
    """Return the chosen structures on the image's grid, and notes.

    Args:
        dataset: The file as pydicom read it.
        path: For messages.
        target: The image.
        values: Value of each wanted structure by its number, see `Structure`.
        resample: Take the nearest contour plane where the planes are not the image's slices.
        separate: Paint each value into a channel of its own.

    Raises:
        MedvolError: `FRAME_MISMATCH`, `GEOMETRY_MISMATCH`, or `BAD_LABEL` where nothing is drawn in the image.
    """
    chosen = [one for one in structures_of(dataset) if one.number in values]
    notes = _require_image(references_of(dataset, chosen), target, path)
    canvas = Canvas(target.shape, list(values.values()), separate=separate)
    axis = _slice_axis(chosen, target)
    painted, drawn = 0, 0
    for one in chosen:
        sheaf, more = _sheaf(one, target, axis, path)
        slices = _nearest_planes(sheaf, target.shape[axis]) if resample else _own_slices(one, sheaf, target, axis, path)
        for place, polygons in slices.items():
            index: list[int | slice] = [slice(None)] * 3
            index[axis] = place
            mask = fill_even_odd(polygons, [length for other, length in enumerate(target.shape) if other != axis])
            canvas.paint(tuple(index), mask, values[one.number])
        painted, drawn = painted + len(slices), drawn + len(sheaf.levels)
        notes += more
    if drawn and not painted:
        raise MedvolError(
            "GEOMETRY_MISMATCH",
            file=path,
            found=f"{drawn} contour planes, none within the image",
            expected="contours inside the image's slices",
            fix="name the series that they were drawn on",
        )
    return canvas, notes


def _require_image(referenced: Referenced, target: Target, path: Path) -> tuple[str, ...]:
    """Return notes on how a structure set and an image belong together.

    Some writers (rt-utils before 1.2) invent a frame of reference. Contours that all name slices of this very image as
    those they were drawn on need none.

    Raises:
        MedvolError: `FRAME_MISMATCH`.
    """
    is_drawn_here = bool(referenced.instance_uids) and referenced.instance_uids <= target.instance_uids
    if is_drawn_here and target.frame_uid not in referenced.frame_uids:
        return ("no common frame of reference, but every contour names a slice of this image",)
    return require_same_frame(target, referenced, path)


def _structure(position: int, listed: Any, drawn: Any) -> Structure:
    items = (drawn.get("ContourSequence") or ()) if drawn is not None else ()
    contours: list[Points] = []
    instances: set[str] = set()
    left_out = 0
    for one in items:
        data = np.asarray(one.get("ContourData") or (), dtype=np.float64)
        if len(data) % 3 or not np.isfinite(data).all():
            raise ValueError("contour data that are no triples of numbers")
        if str(one.get("ContourGeometricType") or "") not in CLOSED or len(data) < 9:
            left_out += 1
            continue
        contours.append(data.reshape(-1, 3) * _LPS_TO_RAS)
        instances |= {str(item.get("ReferencedSOPInstanceUID") or "") for item in one.get("ContourImageSequence") or ()}
    frame_uid = str(listed.get("ReferencedFrameOfReferenceUID") or "")
    name = str(listed.get("ROIName") or "")
    return Structure(position, name, tuple(contours), frame_uid, frozenset(instances), left_out)


def _slice_axis(structures: Sequence[Structure], target: Target) -> int:
    """Return the image axis that contours are flattest along; the last where there are none."""
    inverse = np.asarray(np.linalg.inv(target.affine), dtype=np.float64)
    spreads = [np.ptp(apply_affine(inverse, points), axis=0) for one in structures for points in one.contours]
    return 2 - int(np.argmin(np.median(spreads, axis=0)[::-1])) if spreads else 2


def _sheaf(one: Structure, target: Target, axis: int, path: Path) -> tuple[Sheaf, tuple[str, ...]]:
    """Return a structure's contours by plane, and notes.

    Raises:
        MedvolError: `GEOMETRY_MISMATCH` for a contour that crosses slices.
    """
    inverse = np.asarray(np.linalg.inv(target.affine), dtype=np.float64)
    step_mm = float(spacing_mm(target.affine)[axis])
    planes: list[tuple[float, list[Points]]] = []
    notes: tuple[str, ...] = (f"'{one.name}': {one.left_out} points or open lines left out",) if one.left_out else ()
    notes += () if one.contours else (f"'{one.name}': no closed contour",)
    placed = [apply_affine(inverse, points) for points in one.contours]
    for points in sorted(placed, key=lambda points: float(points[:, axis].mean())):
        level, spread = float(points[:, axis].mean()), float(np.ptp(points[:, axis]))
        if spread > 0.5:
            found = f"'{one.name[:32]}': a contour that spans {spread * step_mm:.3g} mm across the slices"
            raise _mismatch(path, found, "contours parallel to the image's slices", "draw it on this series")
        if not planes or level - planes[-1][0] > 0.1:
            planes.append((level, []))
        planes[-1][1].append(np.delete(points, axis, axis=1))
    sheaf = Sheaf(tuple(level for level, _ in planes), tuple(tuple(polygons) for _, polygons in planes))
    outside = [level for level in sheaf.levels if not -0.5 <= level <= target.shape[axis] - 0.5]
    if outside:
        notes += (f"'{one.name}': {len(outside)} of {len(planes)} contour planes lie outside the image",)
    off_mm = max((abs(level - round(level)) for level in sheaf.levels), default=0.0) * step_mm
    if off_mm > target.tolerance_mm:
        notes += (f"'{one.name}': contours up to {off_mm:.3g} mm off the slices they were given to",)
    return sheaf, notes


def _own_slices(one: Structure, sheaf: Sheaf, target: Target, axis: int, path: Path) -> dict[int, tuple[Points, ...]]:
    """Return the contours of each slice, where every plane is a slice of the image.

    Raises:
        MedvolError: `GEOMETRY_MISMATCH` for planes that are closer than slices or further apart.
    """
    slices = [round(level) for level in sheaf.levels]
    # Two planes alone may be two small lesions, if something says that they were drawn on this very image.
    is_drawn_here = bool(one.instance_uids) and one.instance_uids <= target.instance_uids
    is_sparse = sheaf.step > 1.5 and (len(slices) > 2 or not is_drawn_here)
    gaps = np.diff(sheaf.levels)
    is_uneven = bool((np.abs(gaps - np.maximum(np.rint(gaps), 1)) > 0.1).any()) or len(set(slices)) < len(slices)
    if is_sparse or is_uneven:
        step_mm = float(spacing_mm(target.affine)[axis])
        found = f"'{one.name[:32]}': contour planes {sheaf.step * step_mm:.3g} mm apart at the closest"
        raise _mismatch(path, found, f"the image's step, {step_mm:.3g} mm")
    inside = zip(slices, sheaf.polygons, strict=True)
    return {place: polygons for place, polygons in inside if 0 <= place < target.shape[axis]}


def _nearest_planes(sheaf: Sheaf, count: int) -> dict[int, tuple[Points, ...]]:
    """Return for each slice the contours of the nearest plane within half a step of planes or of slices."""
    if not sheaf.levels:
        return {}
    levels = np.array(sheaf.levels)
    nearest = np.abs(levels[:, None] - np.arange(count)).argmin(axis=0)
    reach = max(sheaf.step, 1.0) / 2
    return {
        place: sheaf.polygons[plane]
        for place, plane in enumerate(nearest.tolist())
        if abs(levels[plane] - place) <= reach + 1e-6
    }


def _mismatch(path: Path, found: str, expected: str, fix: str = "") -> MedvolError:
    fix = fix or "pass --resample_labels True (nearest contour plane), or name the image that it was drawn on"
    return MedvolError("GEOMETRY_MISMATCH", file=path, found=found, expected=expected, fix=fix)
