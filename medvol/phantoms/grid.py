"""Grids to draw on, and how much of each voxel a shape fills.

A shape is a *distance function*: it takes RAS+ points, shape (..., 3) in millimetres, to values of shape (...) that are
at most 0 inside, above 0 outside, and never larger in size than the distance to the surface. Far from the surface one
evaluation per voxel is then enough, and only the voxels that the surface may cross are divided finer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import Affine, Volume, affine_from, apply_affine, spacing_mm, voxel_ml

Floats = npt.NDArray[np.float64]
Distance = Callable[[Floats], Floats]

ODD_SPACING_MM = (1.0, 1.5, 3.0)
"""Different along every axis, so that code which mixes axes up cannot pass a test."""

_LONGEST_SIDE = 4  # times as many points as along the shortest; thick slices would else take minutes
_CHUNK_POINTS = 500_000  # 12 MB of coordinates, whatever the size of the grid


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a phantom lie.

    Args:
        shape: Voxels along x, y, z.
        affine: Voxel index to RAS+ millimetres.
    """

    shape: tuple[int, int, int]
    affine: Affine

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1 or self.affine.shape != (4, 4):
            raise bad_argument(
                f"shape {self.shape}, affine of shape {self.affine.shape}", "three sizes and a 4x4 matrix"
            )
        if not abs(self.voxel_ml) > 0:
            raise bad_argument("an affine whose voxels have no volume", "an invertible affine")

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return voxel_ml(self.affine)


@dataclass(frozen=True)
class Phantom:
    """A synthetic volume and what is true about it.

    Args:
        image: Intensities, float32 unless stated otherwise.
        mask: Labels on the same grid, uint8; a voxel belongs to what fills half of it or more. None without structures.
        answer: Known numbers by name, with the unit in the name. Volumes are closed forms, not voxel counts.
    """

    image: Volume
    mask: Volume | None
    answer: dict[str, Any]


def oblique_affine(
    shape: Sequence[int] | None = None,
    *,
    spacing: Sequence[float] = ODD_SPACING_MM,
    angles_deg: Sequence[float] = (20.0, -10.0, 5.0),
    flip: Sequence[bool] = (True, False, False),
    centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> Affine:
    """Return an affine that is rotated, flipped and anisotropic: the hard case by default.

    Args:
        shape: Voxels along x, y, z; with it `centre_mm` is the centre of the grid, without it that of voxel (0, 0, 0).
        spacing: Millimetres per voxel along x, y, z.
        angles_deg: Rotation about the world's x, then y, then z axis.
        flip: Voxel axes that run against the world axis; one or three of them make the affine left-handed.
        centre_mm: RAS+ position.
    """
    rotation = np.eye(3)
    for axis, angle_deg in enumerate(angles_deg):
        rotation = _rotation(axis, math.radians(angle_deg)) @ rotation
    affine = affine_from(spacing, rotation * np.where(flip, -1.0, 1.0), centre_mm)
    if shape is not None:
        affine[:3, 3] -= affine[:3, :3] @ ((np.asarray(shape, dtype=np.float64) - 1) / 2)
    return affine


def centred_grid(
    shape: tuple[int, int, int],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    angles_deg: Sequence[float] = (0.0, 0.0, 0.0),
    flip: Sequence[bool] = (False, False, False),
) -> Grid:
    """Return a grid around the world's origin, along the world axes unless turned."""
    return Grid(shape, oblique_affine(shape, spacing=spacing, angles_deg=angles_deg, flip=flip))


def oblique_grid(shape: tuple[int, int, int] = (36, 24, 14)) -> Grid:
    """Return the default grid of the shapes: oblique, flipped, spacing (1.0, 1.5, 3.0), centred on the origin."""
    return Grid(shape, oblique_affine(shape))


def coverage(distance: Distance, grid: Grid, *, samples: int = 4) -> Floats:
    """Return the share of each voxel inside the shape, 0 to 1, shape (x, y, z).

    Args:
        distance: The shape, see the module's docstring.
        grid: Where to draw it.
        samples: Points along the shortest side of a voxel that the surface may cross; more along longer sides, so that
            the points lie about equally dense. 1 on cubic voxels gives a plain mask.
    """
    if samples < 1:
        raise bad_argument(f"samples={samples}", "at least 1")
    half = grid.affine[:3, :3] / 2
    reach = max(float(np.linalg.norm(half @ np.array(corner))) for corner in product((-1, 1), repeat=3))
    offsets = _points_in_a_voxel(samples, grid.affine)
    nx, ny, nz = grid.shape
    share = np.empty((nx, ny * nz))
    slab = max(1, _CHUNK_POINTS // (ny * nz))
    for start in range(0, nx, slab):
        rows = np.arange(start, min(start + slab, nx))
        points = apply_affine(grid.affine, _lattice(rows, np.arange(ny), np.arange(nz)))
        share[start : start + slab] = _share(distance, points, offsets, reach).reshape(-1, ny * nz)
    return share.reshape(grid.shape)


def require_inside(share: Floats, what: str) -> None:
    """Refuse a shape that reaches the outermost voxels: its true volume would not be in the image.

    Raises:
        MedvolError: PHANTOM_CLIPPED.
    """
    faces = [np.take(share, edge, axis=axis).max() for axis in range(3) for edge in (0, -1)]
    if max(faces) > 0 or not share.any():
        raise MedvolError(
            "PHANTOM_CLIPPED",
            found=f"the {what} reaches the edge of the grid of {share.shape} voxels, or misses it",
            expected="one free voxel around it",
            fix="make it smaller, move it to the middle, or pass a larger grid",
        )


def bad_argument(found: str, expected: str, fix: str = "") -> MedvolError:
    """Return the refusal of an argument that describes no phantom."""
    return MedvolError("BAD_ARGUMENT", found=found, expected=expected, fix=fix)


def _share(distance: Distance, points: Floats, offsets: Floats, reach: float) -> Floats:
    value = distance(points)  # shape (n,)
    share = (value <= 0).astype(np.float64)
    near: npt.NDArray[np.intp] = np.flatnonzero(np.abs(value) <= reach)
    step = max(1, _CHUNK_POINTS // len(offsets))
    for start in range(0, len(near), step):
        crossed = near[start : start + step]
        fine = points[crossed][:, None, :] + offsets[None]
        share[crossed] = (distance(fine) <= 0).mean(axis=1)
    return share


def _points_in_a_voxel(samples: int, affine: Affine) -> Floats:
    """Return millimetre offsets from a voxel's centre, shape (points, 3)."""
    sides = spacing_mm(affine)
    counts = np.minimum(np.rint(samples * sides / sides.min()), samples * _LONGEST_SIDE).astype(int)
    steps = [(np.arange(count) + 0.5) / count - 0.5 for count in counts]
    return np.asarray(_lattice(*steps) @ affine[:3, :3].T)


def _lattice(*axes: npt.ArrayLike) -> Floats:
    """Return every combination of the coordinates, shape (points, 3), the last axis running fastest."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float64)


def _rotation(axis: int, angle: float) -> Floats:
    matrix = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    matrix[[first, second], [first, second]] = math.cos(angle)
    # About y the cyclic order is z, x, hence the other sign.
    sine = math.sin(angle) if axis != 1 else -math.sin(angle)
    matrix[second, first], matrix[first, second] = sine, -sine
    return matrix
