"""A small asymmetric body: what a left/right mix-up, a wrong window or a wrong unit looks like.

The patient's right is at positive x (RAS+: x grows to the right). The liver is there; heart, spleen and a gas bubble
are on the left, the spine is behind. Everything is an ellipsoid, so each volume is 4/3 pi a b c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medvol.geometry import Volume, apply_affine
from medvol.phantoms.grid import Distance, Floats, Grid, Phantom, bad_argument, centred_grid, coverage, require_inside
from medvol.phantoms.shapes import ellipsoid_distance

AIR_HU, FAT_HU, WATER_HU, BONE_HU = -1000.0, -100.0, 0.0, 700.0


@dataclass(frozen=True)
class Part:
    """An ellipsoid in units of half the body's width.

    Args:
        name: What it is called.
        label: Value in the mask; 0 for what is not labelled.
        hu: CT value.
        centre: Along x (left to right), y (back to front), z (feet to head).
        semi_axes: Along x, y, z.
    """

    name: str
    label: int
    hu: float
    centre: tuple[float, float, float]
    semi_axes: tuple[float, float, float]


TORSO = (
    Part("skin", 0, FAT_HU, (0.0, 0.0, 0.0), (1.0, 0.72, 0.95)),
    Part("inside", 0, WATER_HU, (0.0, 0.0, 0.0), (0.9, 0.62, 0.85)),
)
"""Fat around water, drawn before the organs."""

ORGANS = (
    Part("liver", 1, 60.0, (0.43, 0.06, -0.13), (0.34, 0.34, 0.32)),
    Part("spleen", 2, 50.0, (-0.54, -0.16, -0.22), (0.17, 0.21, 0.23)),
    Part("heart", 3, 40.0, (-0.17, 0.13, 0.40), (0.23, 0.22, 0.21)),
    Part("spine", 4, BONE_HU, (0.0, -0.42, 0.0), (0.10, 0.09, 0.48)),
    Part("gas", 0, AIR_HU, (-0.44, 0.24, -0.04), (0.14, 0.11, 0.12)),
)
"""They touch neither each other nor the fat, also after `varied_organs`; a test keeps it so."""

STRUCTURES = {part.name: part.label for part in ORGANS if part.label}
"""Name to label of what `body` has a mask for."""


def body(
    width_mm: float = 60.0, *, grid: Grid | None = None, organs: Sequence[Part] = ORGANS, samples: int = 3
) -> Phantom:
    """Return the body in Hounsfield units with a mask of its organs.

    Answer, each by structure: `volume_ml`, `side` of the patient ("left", "right", "middle"), `hu`, `centre_mm`,
    `label`.

    Args:
        width_mm: From side to side; everything scales with it.
        grid: Where to draw it; one that fits closely, along the world axes, when None.
        organs: What is inside; see `varied_organs`.
        samples: Fineness at the surfaces, see `coverage`.

    Raises:
        MedvolError: BAD_ARGUMENT for a width that is not positive, PHANTOM_CLIPPED when it does not fit.
    """
    if not (math.isfinite(width_mm) and width_mm > 0):
        raise bad_argument(f"width_mm={width_mm}", "more than 0 mm")
    half_mm = width_mm / 2
    # The voxel is a 34th of the width across, less fine along z, as CT is.
    place = centred_grid((38, 29, 24), (width_mm / 34, width_mm / 33, width_mm / 20)) if grid is None else grid
    image = np.full(place.shape, AIR_HU)
    mask = np.zeros(place.shape, dtype=np.uint8)
    for part in (*TORSO, *organs):
        share = coverage(_distance(part, half_mm), place, samples=samples)
        if part.name == TORSO[0].name:
            require_inside(share, "body")
        image += share * (part.hu - image)
        if part.label:
            mask[share >= 0.5] = part.label
    labelled = [part for part in organs if part.label]
    answer = {
        "shape": "body",
        "volume_ml": {part.name: 4 / 3 * math.pi * math.prod(part.semi_axes) * half_mm**3 / 1000 for part in labelled},
        "side": {part.name: _side(part.centre[0], 0.05) for part in labelled},
        "hu": {part.name: part.hu for part in labelled},
        "centre_mm": {part.name: tuple(half_mm * x for x in part.centre) for part in labelled},
        "label": {part.name: part.label for part in labelled},
        "width_mm": width_mm,
    }
    return Phantom(Volume(image.astype(np.float32), place.affine), Volume(mask, place.affine), answer)


def varied_organs(rng: np.random.Generator, *, amount: float = 1.0) -> tuple[Part, ...]:
    """Return the organs of another person: sizes by up to 10 %, places by up to a fiftieth of half the width.

    Args:
        rng: Where the numbers come from.
        amount: 0 gives `ORGANS`, 1 the full variation.
    """
    if not 0 <= amount <= 1:
        raise bad_argument(f"amount={amount}", "0 to 1", "organs would grow into each other")
    varied = []
    for part in ORGANS:
        scale = 1 - amount * rng.uniform(0.0, 0.1, 3)
        shift = amount * rng.uniform(-0.02, 0.02, 3)
        x, y, z = (float(value) for value in np.asarray(part.centre) + shift)
        a, b, c = (float(value) for value in np.asarray(part.semi_axes) * scale)
        varied.append(replace(part, centre=(x, y, z), semi_axes=(a, b, c)))
    return tuple(varied)


def centroid_mm(mask: Volume, label: int) -> Floats:
    """Return the RAS+ centre of mass, shape (3,), of a label.

    Raises:
        MedvolError: BAD_ARGUMENT when no voxel has it.
    """
    voxels = np.argwhere(mask.array == label)
    if not len(voxels):
        raise bad_argument(f"no voxel of label {label}", f"one of {np.unique(mask.array)[:10].tolist()}")
    return np.asarray(apply_affine(mask.affine, voxels).mean(axis=0))


def side_of(mask: Volume, label: int, *, midline_mm: float = 0.0, tolerance_mm: float = 2.0) -> str:
    """Return the side of the patient on which a label lies: the left/right test.

    Args:
        mask: Labels with a trustworthy affine.
        label: Which.
        midline_mm: RAS+ x of the body's middle.
        tolerance_mm: A centre this close to the midline is in the "middle".
    """
    offset_mm = float(centroid_mm(mask, label)[0]) - midline_mm
    return _side(offset_mm, tolerance_mm)


def _side(x: float, tolerance: float) -> str:
    if abs(x) <= tolerance:
        return "middle"
    return "right" if x > 0 else "left"


def _distance(part: Part, half_mm: float) -> Distance:
    return ellipsoid_distance([half_mm * x for x in part.centre], [half_mm * a for a in part.semi_axes])
