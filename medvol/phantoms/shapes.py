"""Balls, boxes and shells with exact volume and surface.

Intensities are anti-aliased: a voxel half filled has half the intensity, so sums over the image converge to the closed
form much faster than voxel counts do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medvol.geometry import Volume
from medvol.phantoms.grid import Distance, Floats, Grid, Phantom, bad_argument, coverage, oblique_grid, require_inside

Values = tuple[float, float]
Point = Sequence[float]

ORIGIN = (0.0, 0.0, 0.0)


def ball(
    radius_mm: float = 9.0,
    *,
    centre_mm: Point = ORIGIN,
    grid: Grid | None = None,
    values: Values = (1.0, 0.0),
    samples: int = 4,
) -> Phantom:
    """Return a ball. Answer: `volume_ml`, `surface_mm2`, `radius_mm`, `centre_mm`.

    Args:
        radius_mm: Radius.
        centre_mm: RAS+ position.
        grid: Where to draw it; `oblique_grid()` when None.
        values: Intensity inside and outside.
        samples: Fineness at the surface, see `coverage`.

    Raises:
        MedvolError: BAD_ARGUMENT for a radius that is not positive, PHANTOM_CLIPPED when it does not fit.
    """
    _require_positive(radius_mm=radius_mm)
    answer = {
        "volume_ml": _ball_ml(radius_mm),
        "surface_mm2": 4 * math.pi * radius_mm**2,
        "radius_mm": radius_mm,
        "centre_mm": tuple(centre_mm),
    }
    return _draw(ball_distance(centre_mm, radius_mm), grid, values, samples, answer | {"shape": "ball"})


def box(
    size_mm: Point = (14.0, 10.0, 16.0),
    *,
    centre_mm: Point = ORIGIN,
    grid: Grid | None = None,
    values: Values = (1.0, 0.0),
    samples: int = 4,
) -> Phantom:
    """Return a box along the world axes. Answer: `volume_ml`, `surface_mm2`, `size_mm`, `centre_mm`.

    Args:
        size_mm: Edge lengths along the world's x, y and z.
        centre_mm: RAS+ position.
        grid: Where to draw it; `oblique_grid()` when None.
        values: Intensity inside and outside.
        samples: Fineness at the surface, see `coverage`.

    Raises:
        MedvolError: BAD_ARGUMENT for an edge that is not positive, PHANTOM_CLIPPED when it does not fit.
    """
    a, b, c = (float(edge) for edge in size_mm)
    _require_positive(size_mm=min(a, b, c))
    centre, half = np.asarray(centre_mm, dtype=np.float64), np.array([a, b, c]) / 2

    def distance(points: Floats) -> Floats:
        # Outside, beyond an edge, this is less than the distance: allowed, and cheaper.
        return np.asarray((np.abs(points - centre) - half).max(axis=-1))

    answer = {
        "volume_ml": a * b * c / 1000,
        "surface_mm2": 2 * (a * b + b * c + c * a),
        "size_mm": (a, b, c),
        "centre_mm": tuple(centre_mm),
    }
    return _draw(distance, grid, values, samples, answer | {"shape": "box"})


def shell(
    outer_radius_mm: float = 12.0,
    inner_radius_mm: float = 8.0,
    *,
    centre_mm: Point = ORIGIN,
    grid: Grid | None = None,
    values: Values = (1.0, 0.0),
    samples: int = 4,
) -> Phantom:
    """Return a hollow ball. Answer: `volume_ml`, `surface_mm2` (both sides), `thickness_mm`, radii, `centre_mm`.

    Args:
        outer_radius_mm: Radius of the outer surface.
        inner_radius_mm: Radius of the cavity.
        centre_mm: RAS+ position.
        grid: Where to draw it; `oblique_grid()` when None.
        values: Intensity inside the wall, and outside it (the cavity included).
        samples: Fineness at the surfaces, see `coverage`.

    Raises:
        MedvolError: BAD_ARGUMENT when the radii leave no wall, PHANTOM_CLIPPED when it does not fit.
    """
    _require_positive(inner_radius_mm=inner_radius_mm, thickness_mm=outer_radius_mm - inner_radius_mm)
    middle, half = (outer_radius_mm + inner_radius_mm) / 2, (outer_radius_mm - inner_radius_mm) / 2
    to_middle = ball_distance(centre_mm, middle)

    def distance(points: Floats) -> Floats:
        return np.asarray(np.abs(to_middle(points)) - half)

    answer = {
        "volume_ml": _ball_ml(outer_radius_mm) - _ball_ml(inner_radius_mm),
        "surface_mm2": 4 * math.pi * (outer_radius_mm**2 + inner_radius_mm**2),
        "thickness_mm": outer_radius_mm - inner_radius_mm,
        "outer_radius_mm": outer_radius_mm,
        "inner_radius_mm": inner_radius_mm,
        "centre_mm": tuple(centre_mm),
    }
    return _draw(distance, grid, values, samples, answer | {"shape": "shell"})


def ball_distance(centre_mm: Point, radius_mm: float) -> Distance:
    """Return the distance function of a ball."""
    centre = np.asarray(centre_mm, dtype=np.float64)

    def distance(points: Floats) -> Floats:
        return np.asarray(np.sqrt(((points - centre) ** 2).sum(axis=-1)) - radius_mm)

    return distance


def ellipsoid_distance(centre_mm: Point, semi_axes_mm: Point) -> Distance:
    """Return a distance function of an ellipsoid along the world axes; off the surface it is less than the distance."""
    centre, axes = np.asarray(centre_mm, dtype=np.float64), np.asarray(semi_axes_mm, dtype=np.float64)
    smallest = float(axes.min())

    def distance(points: Floats) -> Floats:
        # The scaled radius grows by at most 1 / smallest per millimetre.
        return np.asarray((np.sqrt((((points - centre) / axes) ** 2).sum(axis=-1)) - 1) * smallest)

    return distance


def blend(share: Floats, values: Values, grid: Grid) -> Volume:
    """Return the float32 image of one shape: inside, outside, and the mixture where a voxel holds both."""
    inside, outside = values
    return Volume((outside + (inside - outside) * share).astype(np.float32), grid.affine)


def half_filled(share: Floats, grid: Grid) -> Volume:
    """Return the uint8 mask of the voxels of which at least half is inside."""
    return Volume((share >= 0.5).astype(np.uint8), grid.affine)


def _draw(distance: Distance, grid: Grid | None, values: Values, samples: int, answer: dict[str, Any]) -> Phantom:
    place = oblique_grid() if grid is None else grid
    share = coverage(distance, place, samples=samples)
    require_inside(share, answer["shape"])
    return Phantom(blend(share, values, place), half_filled(share, place), answer)


def _ball_ml(radius_mm: float) -> float:
    return 4 / 3 * math.pi * radius_mm**3 / 1000


def _require_positive(**lengths_mm: float) -> None:
    for name, value in lengths_mm.items():
        if not (math.isfinite(value) and value > 0):
            raise bad_argument(f"{name}={value}", "more than 0 mm")
