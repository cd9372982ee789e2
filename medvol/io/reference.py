"""References: strings that name voxels.

A *reference* is a path, or `path#fragment` where one path holds several volumes:

| reference | names |
|---|---|
| `a.npy#12` | row 12 of a stacked array |
| `a.npz#train_images[12]` | row 12 of one array of an archive |
| `a.npz#train_images` | the whole array |
| `a.mat#tumorMask` | a field of a figshare `cjdata` file; `image` when none is named |
| `folder#1.2.840.99` | the series of that UID in a DICOM folder |
| `seg.dcm#liver;tumour?` | structures of a DICOM label, see `medvol.io.labels` |

A `#` that belongs to the name of an existing file or folder is never taken for a fragment.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from medvol.errors import MedvolError

_FRAGMENT = re.compile(r"(?P<key>[^\[\]]*)(?:\[(?P<index>\d{1,12})\])?")


@dataclass(frozen=True)
class Reference:
    """The parts of a reference.

    Args:
        path: File or folder.
        key: Array of an archive, field of a mat file or UID of a series; None when the fragment names none.
        index: Row of a stacked array; None for the whole.
        text: The reference as it was given.
    """

    path: Path
    key: str | None = None
    index: int | None = None
    text: str = ""


def parse_reference(ref: str | PathLike[str]) -> Reference:
    """Split a reference into path and fragment; nothing needs to exist.

    Raises:
        MedvolError: `BAD_REFERENCE` for a fragment that no format knows.
    """
    text = fspath(ref)
    if not text or "\0" in text:
        raise MedvolError(
            "BAD_REFERENCE", file=text.replace("\0", "?"), found="no path", expected="a path or path#fragment"
        )
    if "#" not in text or os.path.lexists(text):
        return Reference(Path(text), text=text)
    path, fragment = _split(text)
    if path.lower().endswith(".npy"):
        if not re.fullmatch(r"\d{1,12}", fragment):
            raise _bad(text, "a row number, as in a.npy#12")
        return Reference(Path(path), index=int(fragment), text=text)
    match = _FRAGMENT.fullmatch(fragment)
    if match is None or not match["key"]:
        raise _bad(text, "name or name[row] behind the '#'")
    return Reference(Path(path), key=match["key"], index=int(match["index"]) if match["index"] else None, text=text)


def source_files(ref: str | PathLike[str]) -> tuple[Path, ...]:
    """Return the files whose content decides the voxels of a reference, sorted.

    For a DICOM folder these are the files of the series, found by reading their headers, or the one segmentation or
    structure set in it; for a header with its voxels in another file (mhd, nhdr) both.

    Raises:
        MedvolError: `NOT_FOUND`, `BAD_REFERENCE`, or what listing a DICOM folder finds.
    """
    from medvol.io.files import existing

    reference = parse_reference(ref)
    path = existing(reference.path)
    if path.is_dir():
        return _files_of_folder(path, reference)
    if path.suffix.lower() in (".mhd", ".nhdr", ".mha", ".nrrd"):
        from medvol.io.itk_header import data_files

        return data_files(path)
    return (path,)


def _files_of_folder(path: Path, reference: Reference) -> tuple[Path, ...]:
    from medvol.io.dicom_series import series_files

    try:
        return series_files(path, reference.key)
    except MedvolError as error:
        if error.code not in ("NO_DICOM", "NOT_FOUND", "BAD_REFERENCE"):
            raise
        from medvol.io.labels import find_label

        found = find_label(reference.text)
        if found is None:
            raise
        return (found,)


def _split(text: str) -> tuple[str, str]:
    """Split at the last `#` that has an existing path before it, else at the last one."""
    marks = [position for position, letter in enumerate(text) if letter == "#"]
    for position in reversed(marks):
        if position and os.path.lexists(text[:position]):
            return text[:position], text[position + 1 :]
    return text[: marks[-1]], text[marks[-1] + 1 :]


def _bad(text: str, expected: str) -> MedvolError:
    return MedvolError("BAD_REFERENCE", file=text, found="a fragment that cannot be read", expected=expected)
