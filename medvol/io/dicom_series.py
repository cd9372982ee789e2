"""A DICOM series as one volume, or a refusal that names the file, the numbers and the way out.

Rule zero: a volume comes back only if every voxel's position follows from the headers. The order of slices follows from
their positions; instance numbers are never used for it. Refused by name: several images or several volumes where none
is chosen, colour, multi-frame files without functional groups, Siemens mosaics, tiles, parts of a concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.io.dicom_codecs import codec_problem
from medvol.io.dicom_geometry import Arranged, arrange
from medvol.io.dicom_groups import Scan, choose_group, scan
from medvol.io.dicom_header import SliceHeader
from medvol.io.dicom_pixels import read_stack
from medvol.io.dicom_quantity import settle_quantity
from medvol.io.dicom_resample import fill_planes, interpolate_planes
from medvol.io.dicom_select import Selection, fragment_of, parse_selection
from medvol.io.dicom_volumes import Parted, only_volume, part_volumes, several_volumes
from medvol.io.files import existing
from medvol.io.options import ReadOptions, with_texts
from medvol.io.voxels import require_size


@dataclass(frozen=True)
class SeriesInfo:
    """One image series of a folder, by its headers.

    Args:
        uid: Series Instance UID; empty for a damaged file, and for files without one, the series of their folder.
        modality: As `CT`.
        description: Series description, as the scanner's user typed it.
        number: Series number, None when there is none.
        rows: Rows of the first file.
        columns: Columns of the first file.
        count: Number of files.
        verdict: Empty when the headers describe one volume, else the code of the refusal.
        files: The files, sorted.
        reason: The refusal behind the verdict, None when there is none.
        volumes: Fragment and arrangement of each volume that can be read; several when a tag tells them apart.
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
    reason: MedvolError | None = None
    volumes: tuple[tuple[str, Arranged], ...] = ()


def list_series(folder: Path | str) -> list[SeriesInfo]:
    """Return the image series below a folder, sorted by number and UID; pixels are compared only at repeated positions.

    Files without an image are left out; a file whose header cannot be read appears as a series without UID.

    Raises:
        MedvolError: `NOT_FOUND` or `CANNOT_READ`.
    """
    folder = existing(Path(folder))
    return series_of(scan(folder), folder)


def series_of(found: Scan, folder: Path) -> list[SeriesInfo]:
    """Return the image series among the headers of a folder, sorted by number and UID."""
    by_series: dict[str | Path, list[SliceHeader]] = {}
    for one in found.slices:
        by_series.setdefault(one.series_uid or _place_without_uid(one), []).append(one)
    listed = []
    for series, slices in by_series.items():
        place, seen = folder, slices
        if isinstance(series, Path) and len({one.path for one in slices}) > 1:
            # What the folder reads as: the files have no other name.
            place, seen = series, [one for one in found.slices if one.path.is_relative_to(series)]
        listed.append(series_info(Scan(tuple(seen), found.damaged, ()), place, slices))
    listed += [SeriesInfo("", "", "", None, 0, 0, 1, one.code, (Path(one.file),), one) for one in found.damaged]
    return sorted(listed, key=lambda one: (one.number is None, one.number or 0, one.uid, one.files))


def _place_without_uid(one: SliceHeader) -> Path:
    """Return the folder of a slice that names no series; a picture, or a file of several frames, stands for itself."""
    return one.path if one.position is None or one.is_enhanced else one.path.parent


def series_info(found: Scan, folder: Path, slices: Sequence[SliceHeader]) -> SeriesInfo:
    """Return what the headers of one series say, and what reading it would do.

    Args:
        found: What its reference is chosen from.
        folder: Of the reference.
        slices: Of the series.
    """
    uid = slices[0].series_uid
    reason: MedvolError | None = None
    volumes: list[tuple[str, Arranged]] = []
    try:
        group, _ = choose_group(found, folder, Selection(uid or None))
        _require_readable(group)
        parts = part_volumes(group, Selection(uid or None))
        for part in parts:
            try:
                volumes.append((fragment_of(uid, part.tags), _arrange(part, ReadOptions(), is_part=len(parts) > 1)))
            except MedvolError as error:
                reason = error
        if len(parts) > 1:
            raise several_volumes(parts, folder)
    except MedvolError as error:
        reason = error
    first = slices[0]
    files = tuple(sorted({one.path for one in slices}))
    verdict = reason.code if reason else ""
    shown = uid, first.modality, first.description, first.number
    return SeriesInfo(*shown, *first.size, len(files), verdict, files, reason, tuple(volumes))


def series_files(path: Path, fragment: str | None) -> tuple[Path, ...]:
    """Return the files that decide the voxels of a series, sorted.

    Raises:
        MedvolError: As `read_series` where it chooses the image.
    """
    selection = parse_selection(fragment, path)
    group, _ = choose_group(scan(path), path, selection)
    return tuple(sorted({one.path for one in group}))


def read_series(path: Path | str, fragment: str | None = None, options: ReadOptions | None = None) -> Volume:
    """Read one DICOM file, or the only series of a folder, or what a fragment selects (see `medvol.io.dicom_select`).

    Returns:
        Volume of shape (column, row, slice), a transposed view of memory in the order slice, row, column; int16 where
        every slope is 1 and the values fit, else float32.

    Raises:
        MedvolError: `MIXED_SERIES`, `SEVERAL_VOLUMES`, `NO_DICOM`, `NO_GEOMETRY`, `MISSING_SLICES`, `UNEVEN_SPACING`,
            `DUPLICATE_POSITION`, `TRUNCATED`, `BAD_DICOM`, `NEED_CODEC`, `COLOUR_IMAGE`, `ENHANCED_MULTIFRAME`,
            `CONCATENATION`, `MULTIFRAME`, `SIEMENS_MOSAIC`, `TILED_IMAGE`, `BAD_DTYPE`, `BAD_AFFINE`, `TOO_LARGE`,
            `NOT_FOUND`, `BAD_REFERENCE`, `UNKNOWN_OPTION`, `NO_SUV`, `NO_SCALE` or `NONFINITE`.
    """
    path = existing(Path(path))
    selection = parse_selection(fragment, path)
    options = with_texts(options or ReadOptions(), selection.options, path)
    group, notes = choose_group(scan(path), path, selection)
    _require_readable(group)
    arranged = _arrange(only_volume(group, selection, path), options, is_part=bool(selection.tags))
    rows, columns = arranged.slices[0].size
    size = len(arranged.slices) * 2 + (0 if arranged.planes is None else len(arranged.planes) * 4)
    require_size(size * rows * columns, path, options)
    slices, quantity = settle_quantity(arranged.slices, options)
    stack, more = read_stack(slices, options.pad_to)
    more = quantity + more
    if arranged.planes is not None and options.uneven_spacing == "fill":
        stack = fill_planes(stack, arranged.planes, options.pad_to or 0.0)
    elif arranged.planes is not None:
        stack = interpolate_planes(stack, arranged.planes)
    source = f"{path}#{fragment}" if fragment else str(path)
    # The slice axis stays the slowest in memory: a copy to x-major order costs more than reading.
    return Volume(stack.transpose(2, 1, 0), arranged.affine, source=source, notes=notes + arranged.notes + more)


def _arrange(part: Parted, options: ReadOptions, *, is_part: bool = False) -> Arranged:
    """Return the slices of one volume in order, checked as far as headers go."""
    arranged = arrange(part.slices, options)
    is_part |= arranged.planes is not None  # then the gaps that a number would hint at are known
    notes, count = part.notes, len(part.slices)
    if part.slices[0].photometric == "MONOCHROME1":
        notes += ("MONOCHROME1: low values are meant to look bright; values not inverted",)
    if any(one.is_lossy for one in part.slices):
        notes += ("lossy compression was applied to these images",)
    instances = [one.instance for one in part.slices if one.instance is not None]
    # The numbers of one of several volumes run over all of them.
    span = max(instances) - min(instances) + 1 if len(instances) == count and not is_part else 0
    expected = part.slices[0].expected_count or 0
    if span > count:
        notes += (f"instance numbers span {span} for {count} slices: some may be missing at the ends",)
    elif expected > count and not is_part:
        notes += (f"{expected} images in the acquisition, {count} here: some may be missing at the ends",)
    return replace(arranged, notes=arranged.notes + notes)


def _require_readable(group: Sequence[SliceHeader]) -> None:
    """Refuse by name what is not grey slices that can be decoded."""
    for one in group:
        _require_slice(one)
    for one in {(one.syntax, one.stored.bits_stored): one for one in group}.values():
        if (missing := codec_problem(one)) is not None:
            raise missing


def _require_slice(one: SliceHeader) -> None:
    """Refuse by name what is not one grey slice per file or frame."""
    if one.problem is not None:
        raise one.problem
    is_stack = one.frames == 1 or one.is_enhanced
    refusals = (
        ("MULTIFRAME", not is_stack, f"{one.frames} frames without functional groups", "export single frames"),
        (
            "COLOUR_IMAGE",
            not one.photometric.startswith("MONOCHROME"),
            f"colours ({one.photometric})",
            "export it as PNG",
        ),
        (
            "BAD_DTYPE",
            one.stored.bits_allocated not in (8, 16),
            f"{one.stored.bits_allocated} bits per voxel",
            "export it with 16 bits",
        ),
        (
            "BAD_DICOM",
            one.stored.bits_stored > one.stored.bits_allocated,
            f"{one.stored.bits_stored} bits stored in {one.stored.bits_allocated}",
            "send the file again",
        ),
        ("BAD_DICOM", min(one.size) < 1, f"{one.size[0]} x {one.size[1]} pixels", "send the file again"),
        ("BAD_DICOM", one.rescale[0] == 0, "RescaleSlope 0", "export the series again"),
    )
    for code, applies, found, fix in refusals:
        if applies:
            raise MedvolError(
                code, file=one.path, found=found, expected="one grey image per file, 8 or 16 bits", fix=fix
            )
