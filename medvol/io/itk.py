"""NRRD and MetaImage through SimpleITK; never DICOM, whose tilt it drops, and never writing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from medvol.errors import MedvolError
from medvol.geometry import Affine, Volume, affine_from, lps_to_ras
from medvol.io.itk_header import TextHeader, check_payload, problem_of_geometry, read_text_header
from medvol.io.options import ReadOptions, assumed_affine
from medvol.io.voxels import Array, require_size, settle_axes, settle_values

_IMAGE_IO = {"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}


def read_itk(path: Path, options: ReadOptions) -> Volume:
    """Read a .nrrd, .nhdr, .mha or .mhd file.

    Returns:
        Volume of shape (x, y, z), or (x, y, z, channel) where `options.channels` says so. A two-dimensional image has
        shape (x, y) and no geometry, because the format does not place it in space.

    Raises:
        MedvolError: `NOT_NRRD`, `NOT_METAIMAGE`, `BAD_HEADER`, `NO_GEOMETRY`, `BAD_AFFINE`, `TRUNCATED`, `CORRUPT`,
            `TOO_LARGE`, `WRONG_DIMS`, `BAD_DTYPE` or `NONFINITE`.
    """
    header = read_text_header(path)
    image, components = _execute(path, header, options)
    array = _array(image, components)
    if image.GetDimension() == 2:
        affine, has_geometry = np.eye(4), False
        notes: tuple[str, ...] = ("two-dimensional: the format does not place it in space",)
    else:
        has_geometry = True
        affine, notes = _affine(image, problem_of_geometry(header), path, options)
    spatial = image.GetDimension()
    array, channel_axis, axis_notes = settle_axes(
        array, path, options, with_channels=(spatial + 1 if components > 1 else 4,)
    )
    if components > 1 and channel_axis is None:
        raise MedvolError(
            "WRONG_DIMS",
            file=path,
            found=f"{components} numbers per voxel",
            expected="one",
            fix="pick one component, or say that there are channels (channels=True)",
        )
    array, value_notes = settle_values(array, path, options)
    return Volume(array, affine, has_geometry, str(path), channel_axis, notes + axis_notes + value_notes)


def _execute(path: Path, header: TextHeader, options: ReadOptions) -> tuple[Any, int]:
    import SimpleITK as sitk  # noqa: N813 - the name everybody uses

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_IMAGE_IO[header.kind])
    try:
        reader.ReadImageInformation()
        pixel = reader.GetPixelID()
        components = int(reader.GetNumberOfComponents())
        if "complex" in sitk.GetPixelIDValueAsString(pixel).lower():
            raise MedvolError(
                "BAD_DTYPE", file=path, found="complex voxels", expected="real numbers", fix="save magnitudes"
            )
        count = math.prod(reader.GetSize()) * components * _number_bytes(sitk.GetPixelIDValueAsString(pixel))
        require_size(count, path, options)
        check_payload(header, count)
        return reader.Execute(), components
    except RuntimeError as error:
        raise _refusal(path, str(error)) from error


def _number_bytes(pixel_name: str) -> int:
    bits = re.search(r"(\d+)-bit", pixel_name)
    return int(bits[1]) // 8 if bits else 1


def _refusal(path: Path, text: str) -> MedvolError:
    lines = [line.strip() for line in text.replace(str(path), path.name).splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if not line.startswith("/")), "unknown")[:100]
    return MedvolError(
        "CORRUPT",
        file=path,
        found=f"it cannot be read ({reason})",
        expected="a complete file",
        fix="copy or download the file again",
    )


def _array(image: Any, components: int) -> Array:
    import SimpleITK as sitk  # noqa: N813

    stored: Array = sitk.GetArrayFromImage(image)
    spatial = image.GetDimension()
    axes = tuple(reversed(range(spatial))) + ((spatial,) if components > 1 else ())
    return stored.transpose(axes)


def _affine(image: Any, problem: str, path: Path, options: ReadOptions) -> tuple[Affine, tuple[str, ...]]:
    if problem and options.assume_spacing_mm is not None:
        affine, note = assumed_affine(options.assume_spacing_mm)
        return affine, (f"{problem}: {note}",)
    if problem:
        raise MedvolError(
            "NO_GEOMETRY",
            file=path,
            found=problem,
            expected="spacing and orientation of a patient space",
            fix="write them into the header, or say assume_spacing_mm=(x, y, z)",
        )
    count = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(count, count)[:3, :3]
    lps = affine_from(image.GetSpacing()[:3], direction, image.GetOrigin()[:3])
    if not np.isfinite(lps).all() or abs(np.linalg.det(direction)) < 1e-3 or min(image.GetSpacing()[:3]) < 1e-9:
        raise MedvolError("BAD_AFFINE", file=path, found="singular or not finite", expected="a regular finite matrix")
    return lps_to_ras(lps), ()
