"""The two studies, drawn: who the patients are, and one CT-like volume per case.

Numbers are drawn first and applied second. Every case has a generator of its own, so it does not depend on how many
were drawn before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.geometry import Volume, apply_affine
from medvol.phantoms.body import body, varied_organs
from medvol.phantoms.grid import Floats, Grid, bad_argument, coverage, oblique_affine
from medvol.phantoms.vessel import VesselShape, vessel_distance

CLASSES = ("vessel", "aneurysm")  # the last of two classes is the positive one

PREVALENCE = 0.4
LATENT_CORRELATION = 0.5
"""Between two cases of one patient: enough that resampling cases instead of patients gives too narrow intervals."""

AGE_GAP_YEARS, AGE_SPREAD_YEARS = 3.0, 10.0  # d' = 0.3: an AUC of 0.58 from age alone
SHARE_FEMALE = (0.45, 0.60)  # by class

BODY_NOISE_HU = 20.0  # a third of the contrast of liver to water

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Draw:
    """One case before it is drawn.

    Args:
        case: Unique name.
        patient: Name of the patient.
        label: Index into `CLASSES`; 0 in the segmentation study.
        split: "train", "val", "test", or "" without a split.
        age: In years.
        sex: "F" or "M".
        latent: What decides how large the bulge is; unit normal around 0 or around the separation.
        seed: Of the case's own generator.
        patient_seed: Of the patient's anatomy.
    """

    case: str
    patient: str
    label: int
    split: str
    age: int
    sex: str
    latent: float
    seed: tuple[int, ...]
    patient_seed: tuple[int, ...]


@dataclass(frozen=True)
class VesselNumbers:
    """What a vessel case looks like before it is drawn: the vessel, its contrast, the noise."""

    shape: VesselShape
    contrast_hu: float
    noise_hu: float


@dataclass(frozen=True)
class Scene:
    """A drawn case: int16 Hounsfield units, a mask where the study has one, and what is true about it."""

    image: Volume
    mask: Volume | None
    truth: dict[str, Any]


def draw_patients(
    patients: int, *, seed: int, separation: float = 0.0, splits: Sequence[float] | None = None
) -> tuple[Draw, ...]:
    """Return the cases of a study; every third patient has two.

    All cases of a patient have the same label, so a pair of unlike cases is always a pair of patients, and the latents
    of such a pair are independent: that makes the area under the latent's ROC curve exactly Phi(separation / sqrt 2).

    Args:
        patients: Number of patients.
        seed: Equal seeds give equal studies.
        separation: Distance of the classes' mean latents in standard deviations; 0 for a study without classes.
        splits: Shares of train, val and test, by patient and stratified by label; None for no split.
    """
    rng = np.random.default_rng([seed, 0])
    positives = max(3, round(PREVALENCE * patients)) if separation else 0
    labels = rng.permutation(np.arange(patients) < positives).astype(int)
    split_of = _split(labels, splits, rng)
    draws = []
    width = max(3, len(str(patients)))
    for index, label in enumerate(labels.tolist()):
        age = int(np.clip(rng.normal(58.0 + AGE_GAP_YEARS * label, AGE_SPREAD_YEARS), 18, 95))
        sex = "F" if rng.random() < SHARE_FEMALE[label] else "M"
        shared = rng.normal()
        for number in range(1, 3 if index % 3 == 0 else 2):
            own = rng.normal()
            noise = math.sqrt(LATENT_CORRELATION) * shared + math.sqrt(1 - LATENT_CORRELATION) * own
            patient = f"p{index + 1:0{width}d}"
            draws.append(
                Draw(
                    case=f"{patient}_{number}",
                    patient=patient,
                    label=label,
                    split=split_of[index],
                    age=age,
                    sex=sex,
                    latent=separation * label + noise,
                    seed=(seed, 1, index, number),
                    patient_seed=(seed, 2, index),
                )
            )
    return tuple(draws)


def bulge_radius_mm(latent: float, separation: float) -> float:
    """Return the radius, at a volume 26 mm wide, that a latent stands for.

    It grows strictly with the latent, so an observer who reads the radius without error knows the latent. Beyond the
    vessel it is log-normal, as sizes of real aneurysms are.
    """
    return 2.4 + 1.7 * math.exp(0.3 * (latent - separation / 2))


def vessel_numbers(draw: Draw, size: Size, *, separation: float) -> VesselNumbers:
    """Return what is drawn in a vessel case; of all these numbers the latent decides the aneurysm's radius alone."""
    rng = np.random.default_rng([*draw.seed, 0])
    scale = min(size) / 26
    radius = bulge_radius_mm(draw.latent, separation)
    direction = rng.normal(size=3)
    centre = rng.uniform(-3.5, 3.5, 3) * scale  # in the volume up to a radius of 9.5 mm, one aneurysm in a thousand
    shape = VesselShape(
        radius_mm=rng.uniform(2.0, 2.6) * scale,
        length_mm=3.0 * max(size),  # through the whole volume in any direction
        aneurysm_radius_mm=radius * scale,
        tortuosity_mm=rng.uniform(0.5, 2.5) * scale,
        period_mm=rng.uniform(16.0, 24.0) * scale,
        direction=(float(direction[0]), float(direction[1]), float(direction[2])),
        centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
    )
    return VesselNumbers(shape, float(rng.uniform(200.0, 420.0)), float(rng.uniform(25.0, 55.0)))


def vessel_truth(draw: Draw, numbers: VesselNumbers) -> dict[str, Any]:
    """Return what is true about a case of the classification study."""
    return {
        "latent": draw.latent,
        "aneurysm_radius_mm": numbers.shape.aneurysm_radius_mm,
        "vessel_radius_mm": numbers.shape.radius_mm,
        "tortuosity_mm": numbers.shape.tortuosity_mm,
        "contrast_hu": numbers.contrast_hu,
        "noise_hu": numbers.noise_hu,
        "centre_mm": numbers.shape.centre_mm,
    }


def vessel_scene(draw: Draw, size: Size, *, separation: float, geometry: bool) -> Scene:
    """Return a vessel in soft tissue beside a plate of bone.

    Place, direction, winding, calibre, contrast, background and its slope, bone and noise differ from case to case and
    tell nothing about the label; the bone alone changes the mean of the volume more than any aneurysm does.

    Args:
        draw: The case.
        size: Voxels along x, y, z.
        separation: As in `draw_patients`.
        geometry: Whether the format keeps an affine. Without one, voxels are 1 mm cubes along the world axes, since a
            spacing that gets lost would blur the sizes.
    """
    numbers = vessel_numbers(draw, size, separation=separation)
    rng = np.random.default_rng([*draw.seed, 1])
    grid = _grid(size, rng, spacing=(1.0, 1.0, 1.0), turn_deg=8.0, geometry=geometry)
    image = _surroundings(grid, rng, min(size) / 26)
    image += coverage(vessel_distance(numbers.shape), grid, samples=2) * numbers.contrast_hu
    image += rng.normal(0.0, numbers.noise_hu, size)
    volume = Volume(_hounsfield(image), grid.affine, has_geometry=geometry)
    return Scene(volume, None, vessel_truth(draw, numbers))


def body_scene(draw: Draw, size: Size, *, geometry: bool) -> Scene:
    """Return a body with organs of the patient's own sizes, and the mask of the organs.

    Args:
        draw: The case; cases of a patient share the organs, not the place, the width or the noise.
        size: Voxels along x, y, z.
        geometry: Whether the format keeps an affine; without one the body lies straight.
    """
    rng = np.random.default_rng(draw.seed)
    organs = varied_organs(np.random.default_rng(draw.patient_seed))
    grid = _grid(size, rng, spacing=(2.0, 2.0, 2.4), turn_deg=5.0, geometry=geometry)
    room = np.abs(grid.affine[:3, :3]) @ (np.asarray(size, dtype=np.float64) - 4)
    # A turned box is wider than the body in it may be: 0.8 leaves room for that.
    turned = 0.8 if geometry else 0.95
    width_mm = float((room / np.array([1.0, 0.72, 0.95])).min()) * turned * rng.uniform(0.9, 1.0)
    phantom = body(width_mm, grid=grid, organs=organs, samples=3)
    image = phantom.image.array.astype(np.float64) + rng.normal(0.0, BODY_NOISE_HU, size)
    truth = {"volume_ml": phantom.answer["volume_ml"], "width_mm": width_mm, "noise_hu": BODY_NOISE_HU}
    mask = None if phantom.mask is None else Volume(phantom.mask.array, grid.affine, has_geometry=geometry)
    return Scene(Volume(_hounsfield(image), grid.affine, has_geometry=geometry), mask, truth)


def _split(labels: npt.NDArray[np.int_], splits: Sequence[float] | None, rng: np.random.Generator) -> list[str]:
    """Return the split of each patient, every split with every class."""
    if splits is None:
        return [""] * len(labels)
    if len(splits) != 3 or min(splits) <= 0 or abs(sum(splits) - 1) > 1e-6:
        raise bad_argument(f"splits={tuple(splits)}", "three shares above 0 that sum to 1, for train, val and test")
    names = np.full(len(labels), "train", dtype=object)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        val, test = (max(1, round(share * len(members))) for share in splits[1:])
        names[members[:val]] = "val"
        names[members[val : val + test]] = "test"
    return [str(name) for name in names]


def _grid(size: Size, rng: np.random.Generator, *, spacing: Sequence[float], turn_deg: float, geometry: bool) -> Grid:
    """Return a grid around the world's origin: slightly anisotropic, turned, in one of two voxel orders."""
    stretch, angles_deg = rng.uniform(0.93, 1.07, 3), rng.uniform(-turn_deg, turn_deg, 3).tolist()
    lps = bool(rng.random() < 0.5)
    if not geometry:
        return Grid(size, oblique_affine(size, spacing=spacing, angles_deg=(0.0, 0.0, 0.0), flip=(False,) * 3))
    flip = (lps, lps, False)
    return Grid(size, oblique_affine(size, spacing=(stretch * spacing).tolist(), angles_deg=angles_deg, flip=flip))


def _surroundings(grid: Grid, rng: np.random.Generator, scale: float) -> Floats:
    """Return soft tissue with a slope in brightness and a plate of bone along one face, shape (x, y, z)."""
    nx, ny, nz = grid.shape
    voxels = np.stack(np.meshgrid(np.arange(nx), np.arange(ny), np.arange(nz), indexing="ij"), axis=-1)
    points = apply_affine(grid.affine, voxels)
    slope_hu = rng.uniform(-30.0, 30.0, 3) / (13.0 * scale)
    tissue = rng.uniform(0.0, 80.0) + points @ slope_hu
    axis, side = int(rng.integers(3)), int(rng.integers(2))
    # Measured in voxels from the face, so that the plate is whole whatever the grid's orientation.
    depth = voxels[..., axis] if side == 0 else grid.shape[axis] - 1 - voxels[..., axis]
    plate = np.clip(rng.uniform(0.0, 2.5) * scale - depth, 0.0, 1.0)
    return np.asarray(tissue + plate * rng.uniform(200.0, 500.0))


def _hounsfield(image: Floats) -> npt.NDArray[np.int16]:
    return np.rint(np.clip(image, -1024, 3071)).astype(np.int16)
