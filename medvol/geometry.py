"""Voxel grids in patient space.

A *volume* is an array with axes x y z (and optionally a trailing channel axis) together with an *affine*: the 4x4
matrix, float64, that takes a voxel index to RAS+ millimetres. *Spacing* is the distance in millimetres between
neighbouring voxel centres along each axis. DICOM's LPS+ convention is converted in `medvol.io` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]

SHEAR_TOLERANCE = 1e-3
"""Largest cosine between two axes that still counts as a right angle (0.06 degrees)."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Volume:
    """Voxels and where they are.

    Args:
        array: Shape (x, y, z) or (x, y, z, channel); 2D images have z = 1 only where their format says so, else (x, y).
        affine: Voxel index to RAS+ millimetres, 4x4. Identity when `has_geometry` is false.
        has_geometry: False for formats without one (npy, npz, png): the volume lives in voxel space.
        source: The reference it was read from.
        channel_axis: Index of the channel axis in `array`, or None.
        notes: What a reader assumed or dropped, one sentence each.
    """

    array: npt.NDArray[np.generic]
    affine: Affine = field(default_factory=lambda: np.eye(4))
    has_geometry: bool = True
    source: str = ""
    channel_axis: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ValueError(f"affine must be a finite 4x4 matrix, got {self.affine!r}")

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between voxel centres along x, y, z in millimetres."""
        return tuple(float(step) for step in spacing_mm(self.affine))


def share_geometry(mask: Volume, image: Volume) -> Volume:
    """Return a mask with the geometry of its image where one of both has none, as an npy array beside a NIfTI volume.

    Arrays of one shape are then taken voxel by voxel, in the order in which they are stored; others are left alone.
    """
    axes = [length for axis, length in enumerate(image.array.shape) if axis != image.channel_axis]
    if mask.has_geometry == image.has_geometry or list(mask.array.shape) != axes:
        return mask
    return replace(mask, affine=image.affine, has_geometry=image.has_geometry)


def spacing_mm(affine: Affine) -> npt.NDArray[np.float64]:
    """Return the length in millimetres of one voxel step along each axis, shape (3,)."""
    return np.asarray(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))


def voxel_ml(affine: Affine) -> float:
    """Return the volume of a voxel in millilitres: the determinant, so right for sheared grids too."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0


def lps_to_ras(affine: Affine) -> Affine:
    """Return the affine with its world axes flipped between LPS+ and RAS+; applied twice it gives the original."""
    return _LPS_TO_RAS @ affine


def affine_from(
    spacing: Sequence[float], direction: npt.ArrayLike | None = None, origin: Sequence[float] = (0.0, 0.0, 0.0)
) -> Affine:
    """Return the affine of a grid.

    Args:
        spacing: Millimetres per voxel along x, y, z.
        direction: 3x3, column i is the unit vector of array axis i in RAS+; identity when None.
        origin: RAS+ position in millimetres of the centre of voxel (0, 0, 0).
    """
    affine = np.eye(4)
    axes = np.eye(3) if direction is None else np.asarray(direction, dtype=np.float64)
    affine[:3, :3] = axes * np.asarray(spacing, dtype=np.float64)
    affine[:3, 3] = origin
    return affine


def is_sheared(affine: Affine) -> bool:
    """Tell whether two voxel axes are not at a right angle, as after a gantry tilt."""
    axes = affine[:3, :3] / spacing_mm(affine)
    cosines = axes.T @ axes
    return bool(np.abs(cosines - np.eye(3)).max() > SHEAR_TOLERANCE)


def apply_affine(affine: Affine, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the world positions, shape (..., 3) in millimetres, of voxel indices of shape (..., 3)."""
    return np.asarray(points, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3]


def same_grid(first: Affine, second: Affine, shape: Sequence[int], *, tolerance_voxels: float = 0.1) -> bool:
    """Tell whether two affines put every corner of a grid within `tolerance_voxels` of the same place."""
    last = np.asarray(shape[:3], dtype=np.float64) - 1
    corners = np.array(np.meshgrid(*[(0.0, edge) for edge in last])).reshape(3, -1).T
    distance_mm = np.linalg.norm(apply_affine(first, corners) - apply_affine(second, corners), axis=1)
    return bool(distance_mm.max() <= tolerance_voxels * spacing_mm(first).min())
