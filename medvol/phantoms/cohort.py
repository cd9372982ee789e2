"""Studies on disk, learnable and of known difficulty: what a bundle trains on when it is given no data.

*Classification*: a vessel with or without an aneurysm. A latent number, normal with unit variance around 0 for `vessel`
and around `separation` for `aneurysm`, decides the radius of the bulge. An observer who reads that radius without error
has an area under the ROC curve of Phi(separation / sqrt 2); noise and a finite training set can only take from it.

*Segmentation*: four organs of a body, with the exact volume of each, at a stated contrast to noise.

Both write `cases.csv`, the case table, and `cohort.json`, the known numbers and the truth by case. The truth is kept
out of the table, where a model could read it as a covariate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from medvol.errors import nearest
from medvol.phantoms.body import ORGANS, STRUCTURES
from medvol.phantoms.cohort_files import measured_cases, separate_cases, stacked_cases
from medvol.phantoms.folders import TABLE, made_once
from medvol.phantoms.grid import bad_argument
from medvol.phantoms.scenes import (
    AGE_GAP_YEARS,
    AGE_SPREAD_YEARS,
    BODY_NOISE_HU,
    CLASSES,
    Size,
    body_scene,
    draw_patients,
    vessel_numbers,
    vessel_scene,
)
from medvol.phantoms.writers import write_rows

SEPARATION = 2.2
"""Ideal AUC 0.940: above what a small network reaches on 240 cases, below what hides its mistakes."""

SPLITS = (0.6, 0.15, 0.25)

LAYOUTS = ("nifti", "npy", "stacked", "png", "csv", "dicom")
SEGMENTATION_LAYOUTS = ("nifti", "npy", "dicom")

_WITH_GEOMETRY = ("nifti", "dicom")


def ideal_auc(separation: float = SEPARATION) -> float:
    """Return the AUC of the observer who knows the latent: Phi(separation / sqrt 2)."""
    return 0.5 * (1.0 + math.erf(separation / 2.0))


def classification_cohort(
    folder: str | PathLike[str],
    *,
    patients: int = 180,
    seed: int = 0,
    size: Sequence[int] = (28, 30, 26),
    layout: str = "nifti",
    separation: float = SEPARATION,
    splits: Sequence[float] | None = SPLITS,
) -> Path:
    """Write the vessel study and return its case table; the same call again returns the folder that is there.

    Layouts: `nifti`, `npy` and `dicom` have a volume (a series) per case; `png` the slice through the middle of the
    bulge, in folders by split and class; `stacked` holds `train_data.npy`, `train_labels.npy`, ... as uint8 and 0/1,
    validation cases in `train`; `csv` has measurements instead of images. Only `nifti` and `dicom` keep an affine.

    Args:
        folder: Absent, empty, or made by the same call before.
        patients: At least 6; every third has two cases, so 180 patients give 240 cases.
        seed: Equal seeds give equal files.
        size: Voxels along x, y, z, at least 12; the scene grows with the shortest.
        layout: One of `LAYOUTS`.
        separation: Difficulty, see the module's docstring.
        splits: Shares of train, val and test; None leaves the column out.

    Returns:
        Path of `cases.csv`: case, patient, image, label, split, age, sex.

    Raises:
        MedvolError: BAD_ARGUMENT, or FOLDER_IN_USE when the folder holds something else.
    """
    shape = _checked(patients, size, layout, LAYOUTS, smallest=12)
    _require_seed(seed)
    if not 0 < separation <= 6:
        raise bad_argument(f"separation={separation}", "above 0, at most 6")
    arguments = {
        "study": "vessel",
        "patients": patients,
        "seed": seed,
        "size": list(shape),
        "layout": layout,
        "separation": separation,
        "splits": None if splits is None else list(splits),
    }

    def build(place: Path) -> Mapping[str, Any]:
        draws = draw_patients(patients, seed=seed, separation=separation, splits=splits)
        numbers_of = partial(vessel_numbers, size=shape, separation=separation)
        scene_of = partial(vessel_scene, size=shape, separation=separation, geometry=layout in _WITH_GEOMETRY)
        if layout == "csv":
            rows, truth = measured_cases(draws, numbers_of)
        elif layout == "stacked":
            rows, truth = stacked_cases(place, draws, scene_of)
        else:
            rows, truth = separate_cases(place, draws, scene_of, layout)
        write_rows(rows, place / TABLE)
        age_separation = AGE_GAP_YEARS / AGE_SPREAD_YEARS
        return {
            "classes": list(CLASSES),
            "positive": CLASSES[1],
            "ideal_auc": ideal_auc(separation),
            "ideal_auc_of_age": ideal_auc(age_separation),
            "truth": truth,
        }

    return made_once(folder, arguments, build)


def segmentation_cohort(
    folder: str | PathLike[str],
    *,
    patients: int = 24,
    seed: int = 0,
    size: Sequence[int] = (36, 30, 34),
    layout: str = "nifti",
    splits: Sequence[float] | None = SPLITS,
) -> Path:
    """Write the body study and return its case table; the same call again returns the folder that is there.

    Args:
        folder: Absent, empty, or made by the same call before.
        patients: At least 6; every third has two cases.
        seed: Equal seeds give equal files.
        size: Voxels along x, y, z, at least 16.
        layout: `nifti`, `npy` (image and mask), or `dicom` (series and NIfTI mask).
        splits: Shares of train, val and test; None leaves the column out.

    Returns:
        Path of `cases.csv`: case, patient, image, label (path of the mask), split, age, sex.

    Raises:
        MedvolError: BAD_ARGUMENT, or FOLDER_IN_USE when the folder holds something else.
    """
    shape = _checked(patients, size, layout, SEGMENTATION_LAYOUTS, smallest=16)
    _require_seed(seed)
    arguments = {
        "study": "body",
        "patients": patients,
        "seed": seed,
        "size": list(shape),
        "layout": layout,
        "splits": None if splits is None else list(splits),
    }

    def build(place: Path) -> Mapping[str, Any]:
        draws = draw_patients(patients, seed=seed, splits=splits)
        scene_of = partial(body_scene, size=shape, geometry=layout in _WITH_GEOMETRY)
        rows, truth = separate_cases(place, draws, scene_of, layout)
        write_rows(rows, place / TABLE)
        # What a case table cannot say stands beside it; `medvol.data` reads it there.
        names = ["background", *sorted(STRUCTURES, key=STRUCTURES.__getitem__)]
        facts = {"task": "segmentation", "classes": names, "laterality_matters": True}
        (place / TABLE).with_suffix(".study.json").write_text(json.dumps(facts, indent=4) + "\n")
        contrast = {part.name: abs(part.hu) / BODY_NOISE_HU for part in ORGANS if part.label}
        return {"structures": STRUCTURES, "contrast_to_noise": contrast, "truth": truth}

    return made_once(folder, arguments, build)


def _require_seed(seed: int) -> None:
    if seed < 0:  # NumPy takes none
        raise bad_argument(f"seed {seed}", "0 or more")


def _checked(patients: int, size: Sequence[int], layout: str, layouts: Sequence[str], *, smallest: int) -> Size:
    if layout not in layouts:
        raise bad_argument(f"layout '{layout}'", f"one of {', '.join(layouts)}", nearest(layout, layouts))
    if patients < 6:
        raise bad_argument(f"patients={patients}", "at least 6, so that every split can have every class")
    if len(size) != 3 or min(size) < smallest:
        raise bad_argument(f"size {tuple(size)}", f"three numbers of voxels, at least {smallest} each")
    return int(size[0]), int(size[1]), int(size[2])
