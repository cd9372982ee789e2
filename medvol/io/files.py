"""Files and folders: finding them, refusing what is not there, walking a tree in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medvol.errors import MedvolError, nearest

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def existing(path: Path) -> Path:
    """Return the path when there is a file or folder.

    Raises:
        MedvolError: `NOT_FOUND`, with the nearest name in the same folder.
    """
    if path.exists():
        return path
    parent = path.parent
    while not parent.exists() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        names = []
    raise MedvolError(
        "NOT_FOUND",
        file=path,
        found="no such file or folder",
        expected="an existing path",
        fix=nearest(path.name, names) or "check the spelling",
    )


def cannot_read(path: Path, error: OSError) -> MedvolError:
    """Return the refusal for a file that is there but that the system does not hand out."""
    return MedvolError(
        "CANNOT_READ", file=path, found=error.strerror or "it cannot be read", fix="check its permissions"
    )


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield every visible file below a folder, in sorted order, following each linked folder once.

    Raises:
        MedvolError: `CANNOT_READ` when a folder may not be listed: a part left out silently would look complete.
    """
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise cannot_read(Path(error.filename or folder), error) from error

    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path
