"""Which files of a folder belong to one image: same study, series, frame of reference, orientation, matrix, spacing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvol.errors import MedvolError, nearest
from medvol.io.dicom_header import Numbers, SliceHeader, is_dicom, read_slice_header
from medvol.io.files import cannot_read, walk_files

ORIENTATION_TOLERANCE = 1e-3
"""Largest difference between direction cosines of slices of one image; rounding of scanners drifts by 4e-4."""

_LOCALIZERS = {"LOCALIZER", "SCOUT", "SURVEY"}

Slices = tuple[SliceHeader, ...]


@dataclass(frozen=True)
class Scan:
    """What was found in a folder.

    Args:
        slices: Files with an image.
        damaged: Files that are DICOM and whose header cannot be read.
        skipped: DICOM files without an image: reports, structure sets, segmentations.
    """

    slices: Slices
    damaged: tuple[MedvolError, ...]
    skipped: tuple[Path, ...]


def scan(path: Path) -> Scan:
    """Read the headers of a file, or of every visible file below a folder, one at a time.

    Raises:
        MedvolError: `CANNOT_READ` for a folder or file that may not be read.
    """
    slices: list[SliceHeader] = []
    damaged: list[MedvolError] = []
    skipped: list[Path] = []
    for file in walk_files(path) if path.is_dir() else [path]:
        try:
            with file.open("rb") as stream:
                head = stream.read(132)
        except OSError as error:
            raise cannot_read(file, error) from error
        if path.is_dir() and (file.name.upper() == "DICOMDIR" or not is_dicom(head)):
            continue
        try:
            header = read_slice_header(file)
        except MedvolError as error:
            damaged.append(error)
            continue
        if header is None:
            skipped.append(file)
        else:
            slices.append(header)
    return Scan(tuple(slices), tuple(damaged), tuple(skipped))


def group_slices(slices: Iterable[SliceHeader]) -> tuple[Slices, ...]:
    """Return the slices of each image, in the order in which the images were met."""
    groups: list[list[SliceHeader]] = []
    by_identity: dict[tuple[object, ...], list[list[SliceHeader]]] = {}
    for one in slices:
        identity = (one.study_uid, one.series_uid, one.frame_uid, one.size, one.photometric, one.is_enhanced)
        candidates = by_identity.setdefault(identity, [])
        for group in candidates:
            if _near(group[0].orientation, one.orientation) and _near(group[0].spacing, one.spacing):
                group.append(one)
                break
        else:
            candidates.append([one])
            groups.append(candidates[-1])
    return tuple(tuple(group) for group in groups)


def choose_group(found: Scan, folder: Path, uid: str | None) -> tuple[Slices, tuple[str, ...]]:
    """Return the one image of a folder, or of the series with the given UID, and notes on what was left out.

    Localizers are set aside when exactly one other image remains.

    Raises:
        MedvolError: `NO_DICOM`, `NOT_FOUND` for an unknown UID, `MIXED_SERIES`, or the first damaged file that lies
            beside the image's files and may be one of its slices.
    """
    chosen = [one for one in found.slices if uid is None or one.series_uid == uid]
    if not chosen:
        raise _nothing(found, folder, uid)
    groups = group_slices(chosen)
    notes: tuple[str, ...] = ()
    if len(groups) > 1:
        rest = [group for group in groups if not _LOCALIZERS & set(group[0].image_type)]
        if len(rest) != 1:
            raise _mixed(groups, folder)
        left_out = sum(len(group) for group in groups) - len(rest[0])
        notes, groups = (f"{left_out} localizer files left out",), (rest[0],)
    folders = {one.path.parent for one in groups[0]}
    for error in found.damaged:
        if Path(error.file).parent in folders:
            raise error
    if found.skipped and uid is None:
        notes += (f"{len(found.skipped)} DICOM files without an image skipped",)
    return groups[0], notes


def describe_group(group: Sequence[SliceHeader]) -> str:
    """Return words for an image: UID, modality, number of files, matrix."""
    first = group[0]
    return f"{first.series_uid}: {first.modality}, {len(group)} files of {first.size[0]} x {first.size[1]}"


def _near(first: Numbers | None, second: Numbers | None) -> bool:
    if first is None or second is None:
        return first is second
    return all(abs(a - b) <= ORIENTATION_TOLERANCE for a, b in zip(first, second, strict=True))


def _nothing(found: Scan, folder: Path, uid: str | None) -> MedvolError:
    if found.damaged:
        return found.damaged[0]
    if uid is not None and found.slices:
        known = {one.series_uid for one in found.slices}
        return MedvolError(
            "NOT_FOUND",
            file=folder,
            found=f"no series {uid}",
            expected=f"one of {len(known)} series",
            fix=nearest(uid, known),
            details=sorted(known),
        )
    what = f"{len(found.skipped)} DICOM files, none with an image" if found.skipped else "no DICOM file"
    return MedvolError("NO_DICOM", file=folder, found=what, expected="the files of an image series")


def _mixed(groups: Sequence[Slices], folder: Path) -> MedvolError:
    series = {group[0].series_uid for group in groups}
    several = len(series) > 1
    brief = "; ".join(f"{group[0].modality} {len(group)} x {group[0].size[0]}x{group[0].size[1]}" for group in groups)
    return MedvolError(
        "MIXED_SERIES",
        file=folder,
        found=f"{len(groups)} images in {len(series)} series: {brief}"[:110],
        expected="one image",
        fix="name a series, as in folder#UID" if several else "put each orientation or size into a folder of its own",
        details=[describe_group(group) for group in groups],
    )
