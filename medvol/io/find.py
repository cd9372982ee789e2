"""The volumes below a folder, each with a name that is unique and safe as a file name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from medvol.errors import MedvolError
from medvol.io.files import cannot_read, existing, files_and_dangling_links
from medvol.io.read import DICOM, NPZ, PAIR, SUFFIXES, file_kind, suffix_kind

if TYPE_CHECKING:
    from medvol.io.dicom_series import SeriesInfo

LIKE_IMAGES = (*PAIR, ".img.gz", ".tif", ".tiff", ".bmp", ".gif", ".mgz", ".mgh", ".mnc", ".par", ".rec")
"""Endings of images in formats that are not read."""

# Verdicts that one part of a series scattered over folders may get, so that the parts are no copies.
_INCOMPLETE = ("MISSING_SLICES", "UNEVEN_SPACING", "NO_GEOMETRY")


@dataclass(frozen=True)
class Found:
    """A volume that can be read.

    Args:
        reference: For `read_volume`; absolute if the folder was.
        name: From the path relative to the folder; for DICOM the folder of the files and the series number, if any.
        verdict: For DICOM and links, the code with which reading will refuse, by the headers; empty otherwise.
    """

    reference: str
    name: str
    verdict: str = ""


def find_volumes(folder: str | PathLike[str]) -> list[Found]:
    """Return the volumes below a folder, or the one that a file holds, sorted by name.

    Files count by their suffix; DICOM files by their content, one entry per series, wherever below the folder its files
    lie. Hidden files, archives of several arrays and other files are passed over, see `find_passed_over`. A series that
    reading would refuse, and a link that leads nowhere, are listed with their verdict, so that nobody takes a shorter
    list for the whole study.

    Raises:
        MedvolError: `NOT_FOUND`, `EMPTY_FOLDER`, `CANNOT_READ`; `UNKNOWN_FORMAT` for a file of none.
    """
    folder = existing(Path(folder))
    if not folder.is_dir():
        return _found_file(folder)
    files, links = files_and_dangling_links(folder)
    found = [Found(str(path), _stem(path.relative_to(folder))) for path in files if _is_volume_file(path)]
    found += [
        Found(str(path), _stem(path.relative_to(folder)), "NOT_FOUND")
        for path in links
        if suffix_kind(path.name) not in ("", DICOM)
    ]
    if any(suffix_kind(path.name) in ("", DICOM) for path in (*files, *links)):
        found += _found_series(folder)
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        raise MedvolError(
            "EMPTY_FOLDER",
            file=folder,
            found=f"{len(files)} files, none of them a volume",
            expected=f"DICOM series or files ending in {kinds}"[:120],
            fix="name the folder that holds the volumes",
        )
    return _unique(sorted(found, key=lambda one: (one.name, one.reference)))


def find_passed_over(folder: Path) -> list[Path]:
    """Return what `find_volumes` passes over below a folder though somebody may take it for a volume, sorted.

    That are files that end like images of formats that are not read, one of each pair of `.hdr` and `.img`, archives of
    several arrays, and links that lead nowhere and whose names do not say to what.

    Raises:
        MedvolError: `CANNOT_READ`.
    """
    files, links = files_and_dangling_links(folder)
    passed = [path for path in files if _is_like_an_image(path)]
    headers = {path.with_suffix("") for path in passed if path.suffix.lower() == ".hdr"}
    passed = [path for path in passed if path.suffix.lower() != ".img" or path.with_suffix("") not in headers]
    return sorted([*passed, *(path for path in links if not suffix_kind(path.name))])


def _is_like_an_image(path: Path) -> bool:
    kind = suffix_kind(path.name)
    return path.name.lower().endswith(LIKE_IMAGES) or (kind == NPZ and not _is_volume_file(path))


def _is_volume_file(path: Path) -> bool:
    kind = suffix_kind(path.name)
    if kind in ("", DICOM):
        return False
    if kind != NPZ:
        return True
    from medvol.io.npz import array_names

    try:
        return len(array_names(path)) == 1
    except MedvolError:
        return True  # damaged: reading it says how
    except OSError as error:
        raise cannot_read(path, error) from error


def _found_file(file: Path) -> list[Found]:
    try:
        kind, _ = file_kind(file)
    except OSError as error:
        raise cannot_read(file, error) from error
    name = _stem(Path(file.name))
    if kind != DICOM:
        return [Found(str(file), name)]
    from medvol.io.dicom_series import list_series

    return [Found(str(file), name, one.verdict) for one in list_series(file)]


def _found_series(root: Path) -> list[Found]:
    from medvol.io.dicom_series import list_series

    found = []
    for info in list_series(root):
        if not info.uid and len(info.files) == 1:  # a damaged header, or a file without a series: it stands for itself
            found.append(Found(str(info.files[0]), _stem(info.files[0].relative_to(root)), info.verdict))
            continue
        suffix = "" if info.number is None else f"_series{info.number}"
        for place, verdict in series_places(info):
            relative = place.relative_to(root).as_posix()
            name = _safe(f"{root.resolve().name if relative == '.' else relative}{suffix}")
            found.append(Found(f"{place}#{info.uid}" if info.uid else str(place), name, verdict))
    return found


def series_places(info: SeriesInfo) -> list[tuple[Path, str]]:
    """Return the folder of a series, or several where each holds a complete copy of it, with their verdicts."""
    from medvol.io.dicom_series import list_series

    folders = sorted({path.parent for path in info.files})
    common = Path(os.path.commonpath(folders))
    if len(folders) == 1 or not info.verdict or info.volumes:
        return [(common, info.verdict)]
    # The same series converted or exported twice does not read as one image, but each copy may.
    alone = [(place, one.verdict) for place in folders for one in list_series(place) if one.uid == info.uid]
    complete = not any(verdict in _INCOMPLETE for _, verdict in alone)
    return alone if complete else [(common, info.verdict)]


def _stem(path: Path) -> str:
    text = path.as_posix()
    suffix = max((one for one in SUFFIXES if text.lower().endswith(one)), key=len, default="")
    return _safe(text[: len(text) - len(suffix)])


def _safe(text: str) -> str:
    """Return the text with everything but letters, digits, dot, hyphen and underscore replaced."""
    kept = "".join(letter if letter.isalnum() or letter in ".-_" else "_" for letter in text)
    return kept.strip("._") or "volume"


def _unique(found: Iterable[Found]) -> list[Found]:
    """Number repeated names; names that differ only in case repeat, because some file systems take them for one."""
    taken: set[str] = set()
    named = []
    for one in found:
        name, count = one.name, 1
        while name.casefold() in taken:
            count += 1
            name = f"{one.name}_{count}"
        taken.add(name.casefold())
        named.append(Found(one.reference, name, one.verdict))
    return named
