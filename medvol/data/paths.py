"""References and paths of a case table: resolving, naming, and finding out cheaply what exists."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from medvol.errors import MedvolError, nearest
from medvol.io.files import DICOM_SUFFIXES

IMAGE_SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".npy",
    ".npz",
    ".mat",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".bmp",
    *DICOM_SUFFIXES,
)
"""Endings by which a cell of a table is taken for the name of an image or a mask."""

_UNSAFE = re.compile(r"[^\w.\-]+")


def has_image_suffix(reference: str) -> bool:
    """Tell whether a reference ends like an image file, with or without a fragment behind it."""
    text = reference.lower()
    return text.endswith(IMAGE_SUFFIXES) or text.rpartition("#")[0].endswith(IMAGE_SUFFIXES)


def without_suffix(name: str) -> str:
    """Return a file name without its image suffix; other dots stay."""
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def file_of(reference: str) -> str:
    """Return the path part of a reference, going by the text alone."""
    return reference.rpartition("#")[0] or reference


def resolve(reference: str, folder: str) -> str:
    """Return the absolute form of a reference that stands relative to `folder`.

    A table written on Windows has backslashes; where no file has that literal name they are taken as separators.
    """
    path = os.path.join(folder, os.path.expanduser(reference))  # noqa: PTH118, PTH111 - a reference is not a path
    if "\\" in reference and os.sep == "/" and not os.path.lexists(path):
        path = os.path.join(folder, reference.replace("\\", "/"))  # noqa: PTH118
    return os.path.abspath(path)  # noqa: PTH100 - resolving links would detach a file from its table


def existence() -> Callable[[str], bool]:
    """Return a function that tells whether a reference names something, with one listing per folder.

    Ten thousand files in a folder cost one `listdir`, where ten thousand `stat` calls take minutes on a network drive.
    """
    listings: dict[str, frozenset[str]] = {}

    def is_listed(path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in listings:
            try:
                listings[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 - names only, no Path per file
            except OSError:
                listings[folder] = frozenset()
        return name in listings[folder] if name else Path(folder).is_dir()

    return lambda reference: is_listed(reference) or ("#" in reference and is_listed(file_of(reference)))


def require_path(source: str) -> Path:
    """Return the absolute path of a source that exists.

    Raises:
        MedvolError: `NOT_FOUND`, with the nearest existing name; never with more than one level guessed.
    """
    path = Path(os.path.abspath(os.path.expanduser(source)))  # noqa: PTH100, PTH111 - links stay as the user wrote them
    if path.exists():
        return path
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        names = sorted(entry.name for entry in missing.parent.iterdir())
    except OSError:
        names = []
    raise MedvolError(
        "NOT_FOUND",
        file=path,
        found="no such file or folder" if missing == path else f"the folder '{missing.name}' does not exist",
        expected="an existing path",
        fix=nearest(missing.name, names) or "check the path",
    )


def derive_names(images: Sequence[Sequence[str]]) -> list[str]:
    """Return a case name for each row from its first image: the file's stem, or the relative path where stems repeat.

    Rows without an image are numbered.
    """
    width = max(4, len(str(len(images))))
    if not all(images):
        return [f"row_{index:0{width}d}" for index in range(len(images))]
    files = [row[0] for row in images]
    stems = [_safe(os.path.basename(name)) for name in files]  # noqa: PTH119
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    folders = {os.path.dirname(name) for name in files}  # noqa: PTH120
    try:
        top = os.path.commonpath(folders)
    except ValueError:  # drives differ
        return [_safe(name) for name in files]
    return [_safe(os.path.relpath(name, top)) for name in files]


def _safe(reference: str) -> str:
    path, _, fragment = reference.rpartition("#") if "#" in reference else (reference, "", "")
    text = without_suffix(path) + (f"_{fragment}" if fragment else "")
    return _UNSAFE.sub("_", text).strip("_.") or "case"
