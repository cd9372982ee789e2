"""Where a NIfTI file says that its voxels are.

A file may hold two matrices. The rule, which is the NIfTI standard's and nibabel's: the sform counts where its code is
positive, else the qform where its code is; with both codes 0 there is no geometry, and none is invented. A matrix that
is chosen and cannot be used is a refusal, never a reason to take the other one in silence.
"""

from __future__ import annotations

import math
from os import PathLike
from typing import Any

import numpy as np

from medvol.errors import MedvolError
from medvol.geometry import Affine, apply_affine, spacing_mm
from medvol.io.options import ReadOptions, assumed_affine

AGREE_MM = 0.1
"""Largest distance between a voxel's places by qform and sform that still counts as agreement."""

AGREE_DEGREES = 0.1
"""Largest angle between the voxel axes of qform and sform that still counts as agreement."""

CONFLICT = "qform and sform disagree"
"""Start of the note on a file whose two matrices put voxels into different places."""

_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAMES = {1: "metres", 3: "microns"}


def nifti_affine(header: Any, file: str | PathLike[str], options: ReadOptions) -> tuple[Affine, tuple[str, ...]]:
    """Return the affine in millimetres and notes on how it was chosen.

    Args:
        header: A nibabel NIfTI header.
        file: For the message.
        options: The choice of matrix and the spacing to assume where there is none.

    Raises:
        MedvolError: `NO_GEOMETRY`, `BAD_AFFINE` or `BAD_HEADER`.
    """
    codes = {"sform": int(header["sform_code"]), "qform": int(header["qform_code"])}
    chosen = options.affine if options.affine != "auto" else next((name for name in codes if codes[name] > 0), "")
    if not chosen or codes[chosen] <= 0:
        return _assumed(file, options, f"{chosen}_code is 0" if chosen else "qform_code and sform_code are 0")
    steps = [float(step) for step in header["pixdim"][1:4]]
    if chosen == "qform" and not all(math.isfinite(step) and step > 0 for step in steps):
        return _assumed(file, options, f"pixdim is {', '.join(f'{step:g}' for step in steps)}")
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        raise MedvolError(
            "BAD_HEADER", file=file, found=f"xyzt_units {unit}", expected="0 to 3", fix="write the file again"
        )
    scale = _MM_PER_UNIT[unit]
    affine = _matrix(header, chosen, file) * np.array([[scale]] * 3 + [[1.0]])
    notes: tuple[str, ...] = (
        (f"positions stored in {_UNIT_NAMES[unit]}, converted to millimetres",) if unit in _UNIT_NAMES else ()
    )
    other = "qform" if chosen == "sform" else "sform"
    if codes[other] > 0:
        distance, angle = _disagreement(header, scale)
        if not (distance <= AGREE_MM and angle <= AGREE_DEGREES):
            notes += (f"{CONFLICT} by {distance:.3g} mm and {angle:.3g} degrees; the {chosen} was used",)
    return affine, notes


def _assumed(file: str | PathLike[str], options: ReadOptions, why: str) -> tuple[Affine, tuple[str, ...]]:
    if options.assume_spacing_mm is None:
        raise MedvolError(
            "NO_GEOMETRY",
            file=file,
            found=why,
            expected="a spacing and an orientation",
            fix="write them into the header, or say assume_spacing_mm=(x, y, z)",
        )
    affine, note = assumed_affine(options.assume_spacing_mm)
    return affine, (f"{why}: {note}",)


def _matrix(header: Any, chosen: str, file: str | PathLike[str]) -> Affine:
    """Return the chosen matrix as stored."""
    matrix = _stored(header, chosen)
    problem = _problem(matrix)
    if problem:
        other = "qform" if chosen == "sform" else "sform"
        way_out = f"say affine='{other}' to use the other matrix" if int(header[f"{other}_code"]) > 0 else "repair it"
        raise MedvolError(
            "BAD_AFFINE", file=file, found=f"the {chosen} {problem}", expected="a regular finite matrix", fix=way_out
        )
    return matrix


def _stored(header: Any, name: str) -> Affine:
    """Return qform or sform; NaN where it cannot be formed."""
    from nibabel.spatialimages import HeaderDataError

    if name == "sform":
        rows = np.stack([header["srow_x"], header["srow_y"], header["srow_z"]]).astype(np.float64)
        return np.vstack([rows, [0.0, 0.0, 0.0, 1.0]])
    try:
        with np.errstate(all="ignore"):
            return np.asarray(header.get_qform(coded=False), dtype=np.float64)
    except (HeaderDataError, ValueError, ArithmeticError):
        return np.full((4, 4), np.nan)


def _problem(matrix: Affine) -> str:
    if not np.isfinite(matrix).all():
        return "holds NaN or infinity"
    steps = spacing_mm(matrix)
    if not np.isfinite(steps).all() or (steps < 1e-9).any() or (steps > 1e9).any():
        return f"has steps of {', '.join(f'{step:.3g}' for step in steps)}"
    volume = abs(float(np.linalg.det(matrix[:3, :3] / steps)))
    return f"is singular (its axes span {volume:.2g} of a box)" if volume < 1e-3 else ""


def _disagreement(header: Any, scale: float) -> tuple[float, float]:
    """Return the largest distance in millimetres over the grid's corners and the largest angle in degrees."""
    first, second = _stored(header, "qform"), _stored(header, "sform")
    if _problem(first) or _problem(second):
        return float("inf"), float("inf")
    last = [max(int(length), 1) - 1 for length in header["dim"][1:4]]
    corners = np.array(np.meshgrid(*[(0, edge) for edge in last])).reshape(3, -1).T
    distance = np.linalg.norm(apply_affine(first, corners) - apply_affine(second, corners), axis=1).max() * scale
    cosines = (first[:3, :3] / spacing_mm(first) * (second[:3, :3] / spacing_mm(second))).sum(axis=0)
    return float(distance), float(np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).max())
