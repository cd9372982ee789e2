"""A tortuous vessel, with or without an aneurysm, whose volume is known exactly.

A tube of radius r around a centre line of length L holds pi r^2 L as long as the line nowhere bends tighter than r
(Weyl's tube formula). A ball of radius R on a straight stretch adds the napkin ring, 4/3 pi (R^2 - r^2)^(3/2). So the
centre line is straight where the aneurysm sits, and winds on both sides of it in two planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from medvol.phantoms.grid import Distance, Floats, Grid, Phantom, bad_argument, coverage, oblique_grid, require_inside
from medvol.phantoms.shapes import blend, half_filled

_STEP_MM = 0.2  # between points of the centre line; distances are then right to 2 micrometres


@dataclass(frozen=True)
class VesselShape:
    """A tube that winds about a straight axis, flat at both ends, with an optional ball in its middle.

    Args:
        radius_mm: Radius of the tube.
        length_mm: Length of the centre line.
        aneurysm_radius_mm: Radius of the ball; 0 for none.
        tortuosity_mm: How far the centre line swings away from the axis; 0 for a straight tube.
        period_mm: Distance along the axis from swing to swing.
        direction: Of the axis, RAS+, any length.
        centre_mm: Middle of the vessel and centre of the aneurysm, RAS+.
    """

    radius_mm: float = 2.5
    length_mm: float = 24.0
    aneurysm_radius_mm: float = 0.0
    tortuosity_mm: float = 2.0
    period_mm: float = 20.0
    direction: tuple[float, float, float] = (0.9, 0.3, 0.2)
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        positive = self.radius_mm > 0 and self.length_mm > 0 and self.period_mm > 0 and self.tortuosity_mm >= 0
        if not (positive and self.curvature * self.radius_mm < 1):
            raise bad_argument(
                f"radius {self.radius_mm} mm, length {self.length_mm} mm, tortuosity {self.tortuosity_mm} mm over "
                f"{self.period_mm} mm",
                "positive lengths and bends wider than the radius",
                "lower tortuosity_mm or raise period_mm",
            )
        if self.has_aneurysm and self.length_mm < 2 * self.aneurysm_radius_mm:
            raise bad_argument(
                f"length {self.length_mm} mm, aneurysm of radius {self.aneurysm_radius_mm} mm",
                "a vessel longer than its aneurysm is wide",
            )
        if not np.linalg.norm(self.direction) > 0:
            raise bad_argument(f"direction {self.direction}", "a vector other than zero")

    @property
    def curvature(self) -> float:
        """Greatest curvature of the centre line, per millimetre."""
        return self.tortuosity_mm / 2 * (2 * math.pi / self.period_mm) ** 2

    @property
    def has_aneurysm(self) -> bool:
        """Whether the ball is wider than the tube, so that there is something to see."""
        return self.aneurysm_radius_mm > self.radius_mm

    @property
    def volume_ml(self) -> float:
        """Exact volume of tube and ball together."""
        ring = max(0.0, self.aneurysm_radius_mm**2 - self.radius_mm**2) ** 1.5
        return (math.pi * self.radius_mm**2 * self.length_mm + 4 / 3 * math.pi * ring) / 1000


@dataclass(frozen=True)
class CentreLine:
    """Points along the middle of a vessel.

    Args:
        points_mm: Shape (points, 3), RAS+.
        tangents: Unit vectors, shape (points, 3).
        along_mm: Length of the line from its middle to each point, negative before it, shape (points,).
    """

    points_mm: Floats
    tangents: Floats
    along_mm: Floats


def vessel(
    shape: VesselShape | None = None,
    *,
    grid: Grid | None = None,
    values: tuple[float, float] = (1.0, 0.0),
    samples: int = 4,
) -> Phantom:
    """Return a vessel. Answer: `volume_ml`, `length_mm`, `chord_mm`, `radius_mm`, `aneurysm`, `aneurysm_radius_mm`, ...

    Args:
        shape: What to draw; a winding vessel without an aneurysm when None.
        grid: Where to draw it; `oblique_grid()` when None.
        values: Intensity inside and outside.
        samples: Fineness at the surface, see `coverage`.

    Raises:
        MedvolError: PHANTOM_CLIPPED when it does not fit.
    """
    tube = VesselShape() if shape is None else shape
    place = oblique_grid() if grid is None else grid
    share = coverage(vessel_distance(tube), place, samples=samples)
    require_inside(share, "vessel")
    ends = centre_line(tube).points_mm[[0, -1]]
    answer: dict[str, Any] = {
        "shape": "vessel",
        "volume_ml": tube.volume_ml,
        "length_mm": tube.length_mm,
        "chord_mm": float(np.linalg.norm(ends[1] - ends[0])),
        "radius_mm": tube.radius_mm,
        "aneurysm": tube.has_aneurysm,
        "aneurysm_radius_mm": tube.aneurysm_radius_mm if tube.has_aneurysm else 0.0,
        "centre_mm": tube.centre_mm,
    }
    return Phantom(blend(share, values, place), half_filled(share, place), answer)


def centre_line(shape: VesselShape) -> CentreLine:
    """Return the middle of the vessel from end to end, a point every fifth of a millimetre."""
    axis = np.asarray(shape.direction, dtype=np.float64)
    axis = axis / np.linalg.norm(axis)
    # Any fixed vector off the axis will do to span the two planes in which the vessel winds.
    helper = np.eye(3)[int(np.abs(axis).argmin())]
    first = np.cross(axis, helper)
    first /= np.linalg.norm(first)
    second = np.cross(axis, first)

    straight = shape.aneurysm_radius_mm if shape.has_aneurysm else 0.0
    wave = 2 * math.pi / shape.period_mm
    # The axis is never longer than the line, so this reaches far enough.
    reach = np.linspace(0.0, shape.length_mm / 2, 4 + math.ceil(shape.length_mm / 2 / _STEP_MM) * 4)
    past = np.maximum(reach - straight, 0.0)
    slope = shape.tortuosity_mm / 2 * wave * np.sin(wave * past)
    speed = np.sqrt(1 + slope**2)
    length = np.concatenate(([0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(reach))))
    count = 1 + math.ceil(shape.length_mm / 2 / _STEP_MM)
    along = np.linspace(0.0, shape.length_mm / 2, count)
    t = np.interp(along, length, reach)
    bent = np.maximum(t - straight, 0.0)
    swing = shape.tortuosity_mm / 2 * (1 - np.cos(wave * bent))
    slope = shape.tortuosity_mm / 2 * wave * np.sin(wave * bent)

    ahead = t[:, None] * axis + swing[:, None] * first
    behind = -t[:, None] * axis + swing[:, None] * second
    tangent_ahead = axis + slope[:, None] * first
    tangent_behind = axis - slope[:, None] * second
    points = np.concatenate([behind[:0:-1], ahead]) + np.asarray(shape.centre_mm)
    tangents = np.concatenate([tangent_behind[:0:-1], tangent_ahead])
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    return CentreLine(points, tangents, np.concatenate([-along[:0:-1], along]))


def vessel_distance(shape: VesselShape) -> Distance:
    """Return the distance function of the vessel."""
    from scipy.spatial import cKDTree

    line = centre_line(shape)
    tree = cKDTree(line.points_mm)
    centre = np.asarray(shape.centre_mm, dtype=np.float64)
    far_mm = shape.radius_mm + 2.0

    def distance(points: Floats) -> Floats:
        # Beyond `far_mm` the tree stops searching, which is most of a volume and most of the time.
        gap, nearest = tree.query(points, distance_upper_bound=far_mm)
        close = np.isfinite(gap)
        value = np.full(gap.shape, far_mm - shape.radius_mm)
        index = nearest[close]
        offset = points[close] - line.points_mm[index]
        forward = (offset * line.tangents[index]).sum(axis=-1)
        sideways = np.sqrt(np.maximum((offset**2).sum(axis=-1) - forward**2, 0.0))
        past_end = np.abs(line.along_mm[index] + forward) - shape.length_mm / 2
        # On the inner side of a bend the end is nearer than the length along the centre line says.
        to_end = np.where(past_end < 0, past_end * (1 - shape.curvature * shape.radius_mm), past_end)
        value[close] = np.maximum(sideways - shape.radius_mm, to_end)
        if shape.has_aneurysm:
            to_centre = np.sqrt(((points - centre) ** 2).sum(axis=-1))
            value = np.minimum(value, to_centre - shape.aneurysm_radius_mm)
        return value

    return distance
