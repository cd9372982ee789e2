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
    if path.is_symlink():
        raise leads_nowhere(path)
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


def leads_nowhere(path: Path) -> MedvolError:
    """Return the refusal for a link whose file is not there, as DataLad and git-annex leave until it is fetched."""
    return MedvolError(
        "NOT_FOUND",
        file=path,
        found="a link to a file that is not there",
        expected="the file",
        fix="fetch it, as by `datalad get` or `git annex get`, or remove the link",
    )


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield every visible file below a folder, in sorted order, following each linked folder once.

    Raises:
        MedvolError: `CANNOT_READ` when a folder may not be listed: a part left out silently would look complete.
    """
    return (path for path in _walk(folder) if path.is_file())


def files_and_dangling_links(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return what `walk_files` yields, and in its order every visible link that leads nowhere.

    Raises:
        MedvolError: `CANNOT_READ`.
    """
    files: list[Path] = []
    links: list[Path] = []
    for path in _walk(folder):
        if path.is_file():
            files.append(path)
        elif path.is_symlink() and not path.exists():
            links.append(path)
    return files, links


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every visible entry below a folder that is no folder itself."""
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
            if not name.startswith("."):
                yield Path(root, name)
