"""Phantoms as files: NIfTI, npy, PNG, stacked npy and CSV. `medvol.phantoms.dicom` writes DICOM series.

The same volume always gives the same bytes: no time stamps, no random identifiers.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import Volume, is_sheared
from medvol.phantoms.grid import bad_argument

Row = Mapping[str, str | int | float | None]

_GZIP_LEVEL = 1  # noise does not compress; level 9 takes five times as long for 2 % fewer bytes


def write_nifti(volume: Volume, path: str | PathLike[str]) -> Path:
    """Write a volume as `.nii` or `.nii.gz`, sform and qform equal and both with code 1, millimetres.

    Args:
        volume: Shape (x, y, z) with an affine; any type that NIfTI holds, booleans become uint8.
        path: Its suffix decides about compression.

    Returns:
        The path.

    Raises:
        MedvolError: SHEARED for an affine that the qform cannot hold, BAD_ARGUMENT for another suffix.
    """
    import nibabel

    target = Path(path)
    if not target.name.endswith((".nii", ".nii.gz")):
        raise bad_argument(f"file name {target.name}", "a name that ends in .nii or .nii.gz")
    if is_sheared(volume.affine):
        raise MedvolError(
            "SHEARED",
            file=target,
            found="two voxel axes are not at a right angle",
            expected="a rotation times spacings, all that a qform holds",
            fix="write it as a DICOM series or resample it",
        )
    array = volume.array.astype(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    image = nibabel.Nifti1Image(np.asarray(array), volume.affine)
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    target.write_bytes(_gzipped(content) if target.name.endswith(".gz") else content)
    return target


def write_npy(array: npt.NDArray[Any], path: str | PathLike[str]) -> Path:
    """Write an array as `.npy` in C order, never pickled. A `.npy` holds no affine."""
    target = Path(path)
    if target.suffix != ".npy":
        raise bad_argument(f"file name {target.name}", "a name that ends in .npy")
    with target.open("wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return target


def write_png(
    volume: Volume, path: str | PathLike[str], *, index: int | None = None, window: tuple[float, float] | None = None
) -> Path:
    """Write one slice across z as 8-bit grey: x runs along the image's columns, y down its rows.

    Args:
        volume: Shape (x, y, z).
        path: Where to.
        index: Which slice along z; the middle one when None.
        window: Intensities that become 0 and 255; least and greatest of the volume when None.

    Raises:
        MedvolError: BAD_ARGUMENT for a volume of another shape or a slice outside it.
    """
    from PIL import Image

    if volume.array.ndim != 3:
        raise bad_argument(f"an array of shape {volume.array.shape}", "(x, y, z)")
    depth = volume.array.shape[2]
    place = depth // 2 if index is None else index
    if not 0 <= place < depth:
        raise bad_argument(f"slice {place}", f"0 to {depth - 1}")
    low, high = (float(volume.array.min()), float(volume.array.max())) if window is None else window
    target = Path(path)
    Image.fromarray(to_bytes(volume.array[:, :, place], low, high).T).save(target, format="PNG")
    return target


def to_bytes(array: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map [low, high] to 0..255, rounded, clipped outside; a constant window gives 0."""
    if not high > low:
        return np.zeros(array.shape, dtype=np.uint8)
    return np.rint(np.clip((array.astype(np.float64) - low) * 255.0 / (high - low), 0, 255)).astype(np.uint8)


def write_stacked(
    folder: str | PathLike[str], parts: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]
) -> tuple[Path, ...]:
    """Write stacked arrays in pairs as Keras examples have them: `train_data.npy`, `train_labels.npy`, ...

    Args:
        folder: Made when absent.
        parts: Part, e.g. "train", to data of shape (cases, x, y, z) and labels of shape (cases,).

    Returns:
        The files, data before labels.

    Raises:
        MedvolError: BAD_ARGUMENT when data and labels of a part differ in length.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for part, (data, labels) in parts.items():
        if len(data) != len(labels):
            raise bad_argument(f"{len(data)} volumes and {len(labels)} labels in '{part}'", "one label per volume")
        written += [write_npy(data, place / f"{part}_data.npy"), write_npy(labels, place / f"{part}_labels.npy")]
    return tuple(written)


def write_rows(rows: Sequence[Row], path: str | PathLike[str]) -> Path:
    """Write a CSV of features or cases: columns as in the first row, None as an empty field, UTF-8, Unix line ends.

    Raises:
        MedvolError: BAD_ARGUMENT for no rows, or a row with other columns than the first.
    """
    if not rows:
        raise bad_argument("no rows", "at least one")
    columns = list(rows[0])
    other = next((row for row in rows if list(row) != columns), None)
    if other is not None:
        raise bad_argument(f"columns {list(other)}", f"{columns} in every row")
    target = Path(path)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return target


def _gzipped(content: bytes) -> bytes:
    # GzipFile, not gzip.compress: the latter's header depends on the Python version.
    buffer = BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()
