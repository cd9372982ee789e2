"""A DICOM series as one volume, or a refusal that names the file, the numbers and the way out.

What is refused by name for now: several images in one folder, colour, multi-frame files (enhanced or not), Siemens
mosaics. The order of slices follows from their positions; instance numbers are never used for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.io.dicom_geometry import STEP_TOLERANCE_MM, Arranged, arrange, sort_slices
from medvol.io.dicom_groups import Scan, choose_group, scan
from medvol.io.dicom_header import SliceHeader
from medvol.io.dicom_pixels import pixel_fingerprint, read_stack
from medvol.io.files import existing
from medvol.io.options import ReadOptions
from medvol.io.voxels import require_size


@dataclass(frozen=True)
class SeriesInfo:
    """One image series of a folder, by its headers.

    Args:
        uid: Series Instance UID.
        modality: As `CT`.
        description: Series description, as the scanner's user typed it.
        number: Series number, None when there is none.
        rows: Rows of the first file.
        columns: Columns of the first file.
        count: Number of files.
        verdict: Empty when the headers describe one volume, else the code of the refusal.
        files: The files, sorted.
    """

    uid: str
    modality: str
    description: str
    number: int | None
    rows: int
    columns: int
    count: int
    verdict: str
    files: tuple[Path, ...]


def list_series(folder: Path | str) -> list[SeriesInfo]:
    """Return the image series below a folder, sorted by number and UID; pixels are compared only at repeated positions.

    Files without an image are left out; a file whose header cannot be read appears as a series without UID.

    Raises:
        MedvolError: `NOT_FOUND` or `CANNOT_READ`.
    """
    folder = existing(Path(folder))
    found = scan(folder)
    by_uid: dict[str, list[SliceHeader]] = {}
    for one in found.slices:
        by_uid.setdefault(one.series_uid, []).append(one)
    listed = [_info(found, folder, uid, slices) for uid, slices in by_uid.items()]
    listed += [SeriesInfo("", "", "", None, 0, 0, 1, one.code, (Path(one.file),)) for one in found.damaged]
    return sorted(listed, key=lambda one: (one.number is None, one.number or 0, one.uid, one.files))


def series_files(path: Path, uid: str | None) -> tuple[Path, ...]:
    """Return the files that decide the voxels of a series, sorted.

    Raises:
        MedvolError: As `read_series` where it chooses the image.
    """
    group, _ = choose_group(scan(path), path, uid)
    return tuple(sorted(one.path for one in group))


def read_series(path: Path | str, uid: str | None = None, options: ReadOptions | None = None) -> Volume:
    """Read one DICOM file, or the only series of a folder, or the series with the given UID.

    Returns:
        Volume of shape (column, row, slice), a transposed view of memory in the order slice, row, column; int16 where
        every slope is 1 and the values fit, else float32.

    Raises:
        MedvolError: `MIXED_SERIES`, `NO_DICOM`, `NO_GEOMETRY`, `MISSING_SLICES`, `UNEVEN_SPACING`,
            `DUPLICATE_POSITION`, `TRUNCATED`, `BAD_DICOM`, `NEED_CODEC`, `COLOUR_IMAGE`, `ENHANCED_MULTIFRAME`,
            `MULTIFRAME`, `SIEMENS_MOSAIC`, `BAD_DTYPE`, `BAD_AFFINE`, `TOO_LARGE` or `NONFINITE`.
    """
    options = options or ReadOptions()
    path = existing(Path(path))
    group, notes = choose_group(scan(path), path, uid)
    arranged = _plan(group, options)
    rows, columns = arranged.slices[0].size
    require_size(len(arranged.slices) * rows * columns * 2, path, options)
    stack = read_stack(arranged.slices)
    source = f"{path}#{uid}" if uid else str(path)
    # The slice axis stays the slowest in memory: a copy to x-major order costs more than reading.
    return Volume(stack.transpose(2, 1, 0), arranged.affine, source=source, notes=notes + arranged.notes)


def _info(found: Scan, folder: Path, uid: str, slices: Sequence[SliceHeader]) -> SeriesInfo:
    verdict = ""
    try:
        group, _ = choose_group(found, folder, uid)
        _plan(group, ReadOptions())
    except MedvolError as error:
        verdict = error.code
    first = slices[0]
    files = tuple(sorted(one.path for one in slices))
    number = first.number
    return SeriesInfo(uid, first.modality, first.description, number, *first.size, len(files), verdict, files)


def _plan(group: Sequence[SliceHeader], options: ReadOptions) -> Arranged:
    """Return the slices of one image in order, checked as far as headers go."""
    for one in group:
        _require_plain(one)
    notes: tuple[str, ...] = ()
    if len(group) > 1:
        ordered, levels = sort_slices(group)
        group, notes = _without_duplicates(ordered, levels)
    arranged = arrange(group, options)
    first = arranged.slices[0]
    if first.photometric == "MONOCHROME1":
        notes += ("MONOCHROME1: low values are meant to look bright; values not inverted",)
    if any(one.is_lossy for one in group):
        notes += ("lossy compression was applied to these images",)
    instances = [one.instance for one in group if one.instance is not None]
    if len(instances) == len(group) and max(instances) - min(instances) + 1 > len(group):
        span = max(instances) - min(instances) + 1
        notes += (f"instance numbers span {span} for {len(group)} slices: some may be missing at the ends",)
    return Arranged(arranged.slices, arranged.affine, arranged.notes + notes)


def _require_plain(one: SliceHeader) -> None:
    """Refuse by name what is not one grey slice per file."""
    if one.problem is not None:
        raise one.problem
    refusals = (
        ("SIEMENS_MOSAIC", "MOSAIC" in one.image_type, "a mosaic of slices", "convert it with dcm2niix"),
        ("ENHANCED_MULTIFRAME", one.is_enhanced, "an enhanced multi-frame file", "convert it with dcm2niix"),
        ("MULTIFRAME", one.frames != 1, f"{one.frames} frames without functional groups", "export single frames"),
        (
            "COLOUR_IMAGE",
            not one.photometric.startswith("MONOCHROME"),
            f"colours ({one.photometric})",
            "export it as PNG",
        ),
        ("BAD_DTYPE", one.bits not in (8, 16), f"{one.bits} bits per voxel", "export it with 16 bits"),
        ("BAD_DICOM", min(one.size) < 1, f"{one.size[0]} x {one.size[1]} pixels", "send the file again"),
        ("BAD_DICOM", one.rescale[0] == 0, "RescaleSlope 0", "export the series again"),
    )
    for code, applies, found, fix in refusals:
        if applies:
            raise MedvolError(
                code, file=one.path, found=found, expected="one grey image per file, 8 or 16 bits", fix=fix
            )


def _without_duplicates(
    slices: Sequence[SliceHeader], levels: np.ndarray
) -> tuple[tuple[SliceHeader, ...], tuple[str, ...]]:
    """Drop a second copy of the same image; refuse two images at one place."""
    if np.diff(levels).min() > STEP_TOLERANCE_MM:
        return tuple(slices), ()
    kept: list[SliceHeader] = [slices[0]]
    dropped, level = 0, levels[0]
    for one, here in zip(slices[1:], levels[1:], strict=True):
        if here - level > STEP_TOLERANCE_MM:
            kept.append(one)
            level = here
        elif pixel_fingerprint(one) == pixel_fingerprint(kept[-1]):
            dropped += 1
        else:
            raise _duplicate(kept[-1], one, slices, levels)
    return tuple(kept), (f"{dropped} files dropped: same image at the same position",)


def _duplicate(
    first: SliceHeader, second: SliceHeader, slices: Sequence[SliceHeader], levels: np.ndarray
) -> MedvolError:
    places = 1 + int((np.diff(levels) > STEP_TOLERANCE_MM).sum())
    several = (
        f" ({len(slices)} files in {places} places: perhaps echoes or time points)" if len(slices) > places else ""
    )
    return MedvolError(
        "DUPLICATE_POSITION",
        file=first.path,
        found=f"other pixels at the same position in {second.path.name[-60:]}{several}",
        expected="one image per position",
        fix="put each volume into a folder of its own",
    )
