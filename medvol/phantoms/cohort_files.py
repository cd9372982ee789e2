"""The files of a study: one per case in the layout asked for, or stacked arrays, and the rows of its case table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.geometry import Volume
from medvol.phantoms.dicom import Identity, write_dicom_series
from medvol.phantoms.scenes import CLASSES, Draw, Scene, VesselNumbers, vessel_truth
from medvol.phantoms.writers import Row, to_bytes, write_nifti, write_npy, write_png, write_stacked

WINDOW_HU = (-200.0, 600.0)
"""What becomes 0..255 in PNG and stacked arrays: soft tissue to contrast medium."""

Cases = tuple[list[Row], dict[str, Any]]
"""Rows of the table and the truth by case."""


def separate_cases(place: Path, draws: Sequence[Draw], scene_of: Callable[[Draw], Scene], layout: str) -> Cases:
    """Write one file or folder per case."""
    rows: list[Row] = []
    truth = {}
    for draw in draws:
        scene = scene_of(draw)
        truth[draw.case] = scene.truth
        if layout == "png":
            rows.append(_row(draw, _write_slice(scene, place, draw), CLASSES[draw.label]))
        else:
            label = CLASSES[draw.label]
            if scene.mask is not None:
                # A DICOM series has its mask beside it as NIfTI: segmentations in DICOM are not this module's matter.
                label = _write(scene.mask, place / "masks", "npy" if layout == "npy" else "nifti", draw)
            rows.append(_row(draw, _write(scene.image, place / "images", layout, draw), label))
    return rows, truth


def stacked_cases(place: Path, draws: Sequence[Draw], scene_of: Callable[[Draw], Scene]) -> Cases:
    """Write stacked arrays; the table refers to their rows as `train_data.npy#12`."""
    data: dict[str, list[npt.NDArray[np.uint8]]] = {}
    labels: dict[str, list[int]] = {}
    rows: list[Row] = []
    truth = {}
    for draw in draws:
        scene = scene_of(draw)
        truth[draw.case] = scene.truth
        part = "test" if draw.split == "test" else "train"
        stack = data.setdefault(part, [])
        rows.append(_row(draw, f"{part}_data.npy#{len(stack)}", CLASSES[draw.label]))
        stack.append(to_bytes(scene.image.array, *WINDOW_HU))
        labels.setdefault(part, []).append(draw.label)
    write_stacked(place, {part: (np.stack(data[part]), np.array(labels[part], dtype=np.uint8)) for part in data})
    return rows, truth


def measured_cases(draws: Sequence[Draw], numbers_of: Callable[[Draw], VesselNumbers]) -> Cases:
    """Return rows of measurements in place of images, the label last: what a table of features looks like.

    The diameter is a strictly growing function of the latent, so the ideal AUC is that of the volumes; the other
    measurements tell nothing, age and sex a little.
    """
    truth = {draw.case: vessel_truth(draw, numbers_of(draw)) for draw in draws}
    rows: list[Row] = []
    for draw in draws:
        known = truth[draw.case]
        rows.append(
            {"case": draw.case, "patient": draw.patient}
            | ({"split": draw.split} if draw.split else {})
            | {"diameter_mm": 2 * known["aneurysm_radius_mm"], "vessel_diameter_mm": 2 * known["vessel_radius_mm"]}
            | {name: known[name] for name in ("tortuosity_mm", "contrast_hu", "noise_hu")}
            | {"age": draw.age, "female": int(draw.sex == "F"), "label": CLASSES[draw.label]}
        )
    return rows, truth


def _write(volume: Volume, folder: Path, layout: str, draw: Draw) -> str:
    """Write a volume in its layout; return the path as the table has it, relative to the folder's parent."""
    folder.mkdir(exist_ok=True)
    if layout == "dicom":
        who = Identity(patient=draw.patient, study=draw.case[-1], description=f"case {draw.case}")
        write_dicom_series(volume, folder / draw.case, identity=who)
        return f"{folder.name}/{draw.case}"
    if layout == "npy":
        return f"{folder.name}/{write_npy(volume.array, folder / f'{draw.case}.npy').name}"
    return f"{folder.name}/{write_nifti(volume, folder / f'{draw.case}.nii.gz').name}"


def _write_slice(scene: Scene, place: Path, draw: Draw) -> str:
    """Write the slice through the middle of the bulge into a folder named after split and class."""
    folder = place / draw.split / CLASSES[draw.label]
    folder.mkdir(parents=True, exist_ok=True)
    middle = np.linalg.solve(scene.image.affine, np.array([*scene.truth["centre_mm"], 1.0]))
    index = round(float(middle[2]))
    path = write_png(scene.image, folder / f"{draw.case}.png", index=index, window=WINDOW_HU)
    return path.relative_to(place).as_posix()


def _row(draw: Draw, image: str, label: str) -> Row:
    split = {"split": draw.split} if draw.split else {}
    where = {"case": draw.case, "patient": draw.patient, "image": image, "label": label}
    return where | split | {"age": draw.age, "sex": draw.sex}
