"""Which files of a folder belong to one image: same patient, study, series, modality, frame of reference and grid.

One series of two patients is an accident of an export; stacked, it would be reported under one of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.errors import MedvolError
from medvol.io.dicom_file import truncated
from medvol.io.dicom_header import SliceHeader, is_dicom, read_slice_headers
from medvol.io.dicom_select import IMAGE_TAGS, Selection, fragment_of, select, tag_of
from medvol.io.dicom_stored import Numbers
from medvol.io.files import DICOM_SUFFIXES, cannot_read, files_and_dangling_links, leads_nowhere

ORIENTATION_TOLERANCE = 1e-3
"""Largest difference between direction cosines of slices of one image; rounding of scanners drifts by 4e-4."""

_COMPARED: tuple[tuple[str, Callable[[SliceHeader], Any]], ...] = (
    ("patient", lambda one: one.patient),
    ("study", lambda one: one.study_uid),
    ("modality", lambda one: one.modality),
    ("orientation", lambda one: one.orientation),
    ("size", lambda one: one.size),
    ("PixelSpacing", lambda one: one.spacing),
    ("FrameOfReferenceUID", lambda one: one.frame_uid),
    ("PhotometricInterpretation", lambda one: one.photometric),
)
"""What a refusal says of the images of one series, most telling first; that of patients names none."""

_LOCALIZERS = {"LOCALIZER", "SCOUT", "SURVEY"}

Slices = tuple[SliceHeader, ...]


@dataclass(frozen=True)
class Scan:
    """What was found in a folder.

    Args:
        slices: Files with an image, frames of multi-frame files one by one.
        damaged: Files that are DICOM and whose header cannot be read.
        skipped: DICOM files without an image: reports, structure sets, segmentations.
        others: Number of files that are no DICOM.
    """

    slices: Slices
    damaged: tuple[MedvolError, ...]
    skipped: tuple[Path, ...]
    others: int = 0


def scan(path: Path) -> Scan:
    """Read the headers of a file, or of every visible file below a folder, one at a time.

    Raises:
        MedvolError: `CANNOT_READ` for a folder or file that may not be read.
    """
    if path.name.upper() == "DICOMDIR":
        path = path.parent  # the index may name any file of the system; the folder holds what it indexes
    slices: list[SliceHeader] = []
    damaged: list[MedvolError] = []
    skipped: list[Path] = []
    others = 0
    files, links = files_and_dangling_links(path) if path.is_dir() else ([path], [])
    for file in files:
        try:
            with file.open("rb") as stream:
                head = stream.read(132)
        except OSError as error:
            raise cannot_read(file, error) from error
        if path.is_dir() and (file.name.upper() == "DICOMDIR" or not is_dicom(head)):
            others += 1
            if file.suffix.lower() in DICOM_SUFFIXES:
                damaged.append(_no_dicom(file, head))
            continue
        try:
            headers = read_slice_headers(file)
        except MedvolError as error:
            damaged.append(error if is_dicom(head) else _no_dicom(file, head))
            continue
        slices.extend(headers)
        if not headers:
            skipped.append(file)
    # A slice that was not fetched: without it the others would read as a shorter volume.
    damaged += [leads_nowhere(link) for link in links if link.suffix.lower() in DICOM_SUFFIXES]
    return Scan(tuple(slices), tuple(damaged), tuple(skipped), others)


def group_slices(slices: Iterable[SliceHeader]) -> tuple[Slices, ...]:
    """Return the slices of each image, in the order in which the images were met.

    Files without a series UID are of one series when they lie in one folder and have the same series number.
    """
    groups: list[list[SliceHeader]] = []
    by_identity: dict[tuple[object, ...], list[list[SliceHeader]]] = {}
    for one in slices:
        identity = (
            *(one.patient, one.study_uid, one.series_uid or (one.path.parent, one.number), one.modality),
            *(one.frame_uid, one.size, one.photometric, one.is_enhanced, is_localizer(one), tag_of(one, "StackID")),
        )
        candidates = by_identity.setdefault(identity, [])
        for group in candidates:
            if _near(group[0].orientation, one.orientation) and _near(group[0].spacing, one.spacing):
                group.append(one)
                break
        else:
            candidates.append([one])
            groups.append(candidates[-1])
    return tuple(tuple(group) for group in groups)


def is_localizer(one: SliceHeader) -> bool:
    """Tell whether an image only shows where others lie."""
    return bool(_LOCALIZERS & set(one.image_type))


def choose_group(found: Scan, folder: Path, selection: Selection) -> tuple[Slices, tuple[str, ...]]:
    """Return the one image of a folder that a selection leaves, and notes on what was left out.

    Localizers, and captures of a screen that state no place, are set aside when exactly one other image remains; not
    where only some files name their series, for the folder then stands for those that do not.

    Raises:
        MedvolError: `NO_DICOM`, `NOT_FOUND` for a selection that nothing meets, `MIXED_SERIES`, or the first damaged
            file that lies beside the image's files and may be one of its slices.
    """
    chosen = select(found.slices, selection, folder)
    if not chosen:
        raise _nothing(found, folder)
    groups = group_slices(chosen)
    notes: tuple[str, ...] = ()
    if len(groups) > 1:
        rest = [group for group in groups if not (is_localizer(group[0]) or _is_capture(group[0]))]
        if len(rest) != 1 or len({bool(group[0].series_uid) for group in groups}) > 1:
            raise _mixed(groups, folder)
        notes, groups = tuple(_left_out(group) for group in groups if group is not rest[0]), (rest[0],)
    folders = {one.path.parent for one in groups[0]}
    for error in found.damaged:
        if Path(error.file).parent in folders:
            raise error
    if found.skipped and selection.uid is None:
        notes += (f"{len(found.skipped)} DICOM files without an image skipped",)
    return groups[0], notes


def describe_group(group: Sequence[SliceHeader]) -> str:
    """Return words for an image: UID, modality, number of files, matrix."""
    first = group[0]
    uid = first.series_uid or "no series UID"
    return f"{uid}: {first.modality}, {len(group)} files of {first.size[0]} x {first.size[1]}"


def _no_dicom(file: Path, head: bytes) -> MedvolError:
    """Return the refusal of a file that is named as an image and holds none: a slice that a copy has lost."""
    size = file.stat().st_size
    if any(head):
        return MedvolError(
            "BAD_DICOM",
            file=file,
            found="another kind of file",
            expected="a DICOM file",
            fix="copy it again, remove it or name another",
        )
    return truncated(file, f"{size:,} bytes" + (", all zero at the start" if size else ""), "an image")


def _is_capture(one: SliceHeader) -> bool:
    """Tell whether an image is a page of a report or of a screen: no position, no direction."""
    return one.position is None and one.orientation is None and (one.is_capture or one.modality in ("SC", "OT"))


def _left_out(group: Slices) -> str:
    kind = "localizer" if is_localizer(group[0]) else "screen capture"
    names = ", ".join(one.name for one in group[:3]) + (", ..." if len(group) > 3 else "")
    return f"{len(group)} {kind} files left out: {names}"


def _near(first: Numbers | None, second: Numbers | None) -> bool:
    if first is None or second is None:
        return first is second
    return all(abs(a - b) <= ORIENTATION_TOLERANCE for a, b in zip(first, second, strict=True))


def _nothing(found: Scan, folder: Path) -> MedvolError:
    if found.damaged:
        return found.damaged[0]
    what = f"{len(found.skipped)} DICOM files, none with an image" if found.skipped else "no DICOM file"
    return MedvolError("NO_DICOM", file=folder, found=what, expected="the files of an image series")


def _mixed(groups: Sequence[Slices], folder: Path) -> MedvolError:
    series = {group[0].series_uid or group[0].path.parent for group in groups}
    brief = "; ".join(f"{group[0].modality} {len(group)} x {group[0].size[0]}x{group[0].size[1]}" for group in groups)
    fix, details = "name a series, as in folder#UID", [describe_group(group) for group in groups]
    differing: list[str] = []
    if not all(group[0].series_uid for group in groups):
        fix = "put files without a SeriesInstanceUID into a folder of its own for each series"
    elif len(series) == 1:
        differing = _differing(groups)
        fix = f"put each {differing[0] if differing else 'image'} into a folder of its own"
        # One tag that has another value in every image names them; patients are no choice.
        for name in IMAGE_TAGS if differing[:1] != ["patient"] else ():
            values = [tag_of(group[0], name) for group in groups]
            if all(values) and len(set(values)) == len(values):
                fix = f"name one, as in folder#UID;{name}={values[0]}"[:80]
                details = [
                    f"{fragment_of(group[0].series_uid, [(name, value)])}: {line}"
                    for group, value, line in zip(groups, values, details, strict=True)
                ]
                break
    told = f", other {', '.join(differing)}" if differing else ""
    return MedvolError(
        "MIXED_SERIES",
        file=folder,
        found=f"{len(groups)} images in {len(series)} series{told}: {brief}"[:110],
        expected="one image",
        fix=fix,
        details=details,
    )


def _differing(groups: Sequence[Slices]) -> list[str]:
    """Return the names of what is not the same in all images."""
    firsts = [group[0] for group in groups]
    return [name for name, value in _COMPARED if any(not _same(value(firsts[0]), value(one)) for one in firsts)]


def _same(first: Any, second: Any) -> bool:
    is_tuple_of_floats = any(isinstance(one, tuple) and isinstance(one[0], float) for one in (first, second))
    return _near(first, second) if is_tuple_of_floats else first == second
