"""Where the slices of one DICOM image lie; all from position and orientation, never from numbers of instances.

A volume is returned only if every slice lies on one straight line at even steps. Tolerance of a step: 2 % of the median
step, at least 0.01 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import Affine, affine_from, is_sheared, lps_to_ras
from medvol.io.dicom_header import SliceHeader
from medvol.io.options import ReadOptions

STEP_TOLERANCE = 0.02
STEP_TOLERANCE_MM = 0.01
STEP_TOLERANCE_MOST = 0.1
"""Largest share of a step that the tolerance in millimetres may be: micro-CT has steps of 0.01 mm."""
LINE_TOLERANCE = 0.05
"""Largest distance of a slice from the straight line through first and last, as a share of the step."""
COSINE_TOLERANCE = 1e-3

_Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Arranged:
    """Slices in the order of their positions.

    Args:
        slices: Sorted along the normal of the first slice (row direction x column direction).
        affine: (column, row, slice) index to RAS+ millimetres.
        notes: What was assumed.
        planes: Where the volume's planes lie between the slices, as fractions of their indices; None when each slice is
            a plane.
    """

    slices: tuple[SliceHeader, ...]
    affine: Affine
    notes: tuple[str, ...]
    planes: _Vector | None = None


def sort_slices(slices: Sequence[SliceHeader]) -> tuple[tuple[SliceHeader, ...], _Vector]:
    """Return the slices sorted along the normal and their distances along it in millimetres.

    Raises:
        MedvolError: `NO_GEOMETRY` or `BAD_AFFINE`.
    """
    for one in slices:
        for name, value in (("ImagePositionPatient", one.position), ("ImageOrientationPatient", one.orientation)):
            if value is None:
                raise no_geometry(one, name)
    normal = _normal(slices[0])
    levels = np.array([np.dot(normal, one.position or ()) for one in slices])
    order = np.argsort(levels, kind="stable")
    return tuple(slices[index] for index in order), levels[order]


def arrange(slices: Sequence[SliceHeader], options: ReadOptions) -> Arranged:
    """Return the slices in order with their affine; no two of them may lie at the same level.

    Raises:
        MedvolError: `NO_GEOMETRY`, `BAD_AFFINE`, `MISSING_SLICES` or `UNEVEN_SPACING`.
    """
    first = slices[0]
    if len(slices) == 1 and (first.position is None or first.orientation is None):
        assumed = _assumed(first, options)
        if assumed is not None:
            return Arranged(tuple(slices), affine_from(assumed), ("no position: geometry assumed as asked for",))
    ordered, levels = sort_slices(slices)
    in_plane, notes = _in_plane(ordered, options)
    row, column = _axes(ordered[0])
    start = np.array(ordered[0].position)
    planes = None
    if len(ordered) == 1:
        step, step_notes = _single_step(ordered[0], options)
    elif (uneven := _uneven(ordered, levels)) is None:
        step, step_notes = _common_step(ordered, np.arange(len(ordered), dtype=np.float64)), ()
    elif options.uneven_spacing == "refuse" or (options.uneven_spacing == "fill" and uneven.code != "MISSING_SLICES"):
        raise uneven
    else:
        planes, step, step_notes = _even_planes(ordered, levels, options)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * in_plane[1], column * in_plane[0], step], axis=1)
    affine[:3, 3] = start
    if is_sheared(affine):
        cosine = float(np.dot(step, np.cross(row, column)) / np.linalg.norm(step))
        step_notes += (
            f"gantry tilt or shear of {np.degrees(np.arccos(min(cosine, 1.0))):.1f} degrees kept in the affine",
        )
    return Arranged(ordered, lps_to_ras(affine), notes + step_notes, planes)


def no_geometry(one: SliceHeader, name: str, fix: str = "export the series again with its geometry") -> MedvolError:
    """Return the refusal of a file that lacks an attribute which decides where its voxels are."""
    return MedvolError(
        "NO_GEOMETRY",
        file=one.path,
        found=f"no {name}",
        expected="position, orientation and pixel spacing in every file",
        fix=fix,
    )


def _axes(one: SliceHeader) -> tuple[_Vector, _Vector]:
    cosines = np.array(one.orientation, dtype=np.float64)
    return cosines[:3], cosines[3:]


def _normal(one: SliceHeader) -> _Vector:
    row, column = _axes(one)
    off = max(abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1), abs(np.dot(row, column)))
    if off > COSINE_TOLERANCE:
        raise MedvolError(
            "BAD_AFFINE",
            file=one.path,
            found=f"row and column directions are off unit length or right angle by {off:.2g}",
            expected=f"at most {COSINE_TOLERANCE:g}",
            fix="export the series again",
        )
    return np.cross(row, column)


def _in_plane(slices: Sequence[SliceHeader], options: ReadOptions) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Return row spacing and column spacing."""
    for one in slices:
        if one.spacing is None and _assumed(one, options) != _assumed(slices[0], options):
            raise no_geometry(one, "PixelSpacing, nor the same spacing at the detector as the others")
        if one.spacing is None and _assumed(one, options) is None:
            fix = "export it again, or state it with assume_spacing_mm"
            if one.detector_spacing is not None:
                row, column = one.detector_spacing
                fix += f"; {row:g} x {column:g} mm at the detector (assume=ImagerPixelSpacing) is magnified"
            raise no_geometry(one, "PixelSpacing", fix)
        if one.spacing is not None and min(one.spacing) <= 0:
            raise no_geometry(one, f"usable PixelSpacing ({one.spacing[0]:g}, {one.spacing[1]:g})")
    spacing = slices[0].spacing
    if spacing is not None:
        return spacing, ()
    assumed = _assumed(slices[0], options) or (1.0, 1.0, 1.0)  # never the default: the loop above has refused
    return (assumed[1], assumed[0]), (f"no PixelSpacing: {assumed[0]:g} x {assumed[1]:g} mm assumed as asked for",)


def _assumed(one: SliceHeader, options: ReadOptions) -> tuple[float, ...] | None:
    """Return the spacing along x, y, z that the caller lets a file have which states none."""
    if options.assume_spacing_mm is not None:
        return options.assume_spacing_mm
    if options.assume != "ImagerPixelSpacing" or one.detector_spacing is None or min(one.detector_spacing) <= 0:
        return None
    row, column = one.detector_spacing
    return column, row, one.thickness or 1.0


def _single_step(one: SliceHeader, options: ReadOptions) -> tuple[_Vector, tuple[str, ...]]:
    normal = _normal(one)
    if one.thickness is not None and one.thickness > 0:
        return normal * one.thickness, (f"a single slice: SliceThickness {one.thickness:g} mm taken for its depth",)
    if options.assume_spacing_mm is not None:
        return normal * options.assume_spacing_mm[2], ("a single slice: its depth assumed as asked for",)
    raise no_geometry(one, "SliceThickness in a single slice")


def _uneven(slices: Sequence[SliceHeader], levels: _Vector) -> MedvolError | None:
    """Return the refusal of steps that are not equal, None when they are."""
    gaps = np.diff(levels)
    median = float(np.median(gaps))
    # With an even number of gaps numpy's median may lie between two groups; the lower one is the candidate step.
    step = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    tolerance = _tolerance(STEP_TOLERANCE, median)
    if np.abs(gaps - median).max() <= tolerance:
        return None
    tolerance = _tolerance(STEP_TOLERANCE, step)
    multiples = np.round(gaps / step)
    wide = np.flatnonzero(multiples > 1)
    if len(wide) and (multiples >= 1).all() and (np.abs(gaps - multiples * step) <= tolerance * multiples).all():
        missing, where = int((multiples - 1).sum()), int(wide[0])
        between = [f"{int(multiples[i]) - 1} between {slices[i].name} and {slices[i + 1].name}" for i in wide.tolist()]
        return MedvolError(
            "MISSING_SLICES",
            file=slices[0].path.parent,
            found=f"{missing} missing: gap of {gaps[where]:.4g} mm between {slices[where].name[-50:]} and "
            f"{slices[where + 1].name[-50:]}",
            expected=f"steps of {step:.4g} mm",
            fix="send the series again, or interpolate with uneven_spacing='resample'",
            details=between,
        )
    return MedvolError(
        "UNEVEN_SPACING",
        file=slices[0].path.parent,
        found=f"steps from {gaps.min():.4g} to {gaps.max():.4g} mm, median {median:.4g}",
        expected=f"equal steps within {_tolerance(STEP_TOLERANCE, median):.2g} mm",
        fix="use an evenly spaced reconstruction, or interpolate with uneven_spacing='resample'",
    )


def _tolerance(share: float, step: float) -> float:
    """Return how far a slice may lie from its place, in millimetres."""
    return max(share * step, min(STEP_TOLERANCE_MM, STEP_TOLERANCE_MOST * step))


def place_tolerance(one: SliceHeader) -> float:
    """Return how far apart two slices may lie that are at one place, in millimetres."""
    return min((STEP_TOLERANCE_MM, *(STEP_TOLERANCE_MOST * step for step in one.spacing or () if step > 0)))


def _common_step(slices: Sequence[SliceHeader], at: _Vector) -> _Vector:
    """Return the step of a straight line on which slice `i` lies `at[i]` steps from the first.

    Raises:
        MedvolError: `UNEVEN_SPACING` when one lies elsewhere.
    """
    positions = np.array([one.position for one in slices])
    step: _Vector = (positions[-1] - positions[0]) / at[-1]
    distance = np.linalg.norm(positions - positions[0] - step * at[:, None], axis=1)
    limit = _tolerance(LINE_TOLERANCE, float(np.linalg.norm(step)))
    worst = int(distance.argmax())
    if distance[worst] > limit:
        raise MedvolError(
            "UNEVEN_SPACING",
            file=slices[worst].path,
            found=f"a slice {distance[worst]:.3g} mm off the straight line through first and last",
            expected=f"at most {limit:.2g} mm",
            fix="check for slices of another acquisition",
        )
    return step


def _even_planes(
    slices: Sequence[SliceHeader], levels: _Vector, options: ReadOptions
) -> tuple[_Vector, _Vector, tuple[str, ...]]:
    """Return evenly spaced planes from the first slice on, their step, and a note of what is interpolated."""
    gaps = np.diff(levels)
    width = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    at = (levels - levels[0]) / width
    step = _common_step(slices, at)
    planes = np.interp(np.arange(int(at[-1] + STEP_TOLERANCE) + 1), at, np.arange(len(slices)))
    # A plane within the tolerance of a slice is that slice, as it would be without resampling.
    nearest = np.rint(planes).astype(np.int64)
    planes = np.where(np.abs(at[nearest] - np.arange(len(planes))) <= STEP_TOLERANCE, nearest, planes)
    made = int((planes != np.rint(planes)).sum())
    way = "interpolated" if options.uneven_spacing == "resample" else f"filled with {options.pad_to:g}"
    note = f"steps from {gaps.min():.4g} to {gaps.max():.4g} mm resampled to {width:.4g} mm as asked for: "
    return planes, step, (note + f"{made} of {len(planes)} slices {way}",)
