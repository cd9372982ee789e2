"""The folder that a pull fills: a series is staged in a hidden folder and moved to its place when it is whole.

    FOLDER/STUDY/SERIES/INSTANCE.dcm       whole series only; what `medvol scan FOLDER` finds
    FOLDER/.pacs/STUDY_SERIES/             a series on its way
    FOLDER/.pacs/STUDY_SERIES.jsonl        its journal: a line per file that was written to its end

All names are hashes of UIDs. A UID identifies a patient to whoever has the PACS, and paths end up in case tables and
reports; and nothing that a server sends can become a path. The same UID gives the same name everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, final

from medvol.errors import MedvolError
from medvol.io.atomic import write_atomically
from medvol.io.files import cannot_read
from medvol.io.pacs_query import RemoteSeries

HIDDEN = ".pacs"


def short_name(uid: str) -> str:
    """Return sixteen letters that stand for a UID."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


@final
class SeriesFolder:
    """A series on its way into a folder.

    Args:
        root: Folder of the pull.
        remote: The series as the PACS lists it.
    """

    def __init__(self, root: Path, remote: RemoteSeries) -> None:
        study, series = short_name(remote.study), short_name(remote.series)
        self.place = root / study / series
        self._staging = root / HIDDEN / f"{study}_{series}"
        self._journal = self._staging.with_suffix(".jsonl")
        self._remote = remote
        self._written = read_journal(self._journal)

    @property
    def bytes(self) -> int:
        """Size of the instances that are there."""
        there = (_file_name(uid) for uid in self._remote.instances)
        return sum(self._written[name] for name in there if self._is_there(name))

    def missing(self) -> list[str]:
        """Return the UIDs of the instances that are not there, or not to their end."""
        return [uid for uid in self._remote.instances if not self._is_there(_file_name(uid))]

    def keep(self, uid: str, write: Callable[[BinaryIO], object]) -> None:
        """Write one instance; it counts as there once it is on disk to its end.

        Raises:
            MedvolError: `DISK_FULL`, `CANNOT_WRITE`.
        """
        name = _file_name(uid)
        write_atomically(self._staging / name, write)
        size = (self._staging / name).stat().st_size
        append_journal(self._journal, name, size)
        self._written[name] = size

    def finish(self) -> None:
        """Move a whole series to its place, beside what lies there already.

        Raises:
            MedvolError: `CANNOT_WRITE`.
        """
        if not self._staging.is_dir():
            return  # nothing arrived: it was whole before
        old = self._staging.with_suffix(".old")
        try:
            shutil.rmtree(old, ignore_errors=True)
            self.place.parent.mkdir(parents=True, exist_ok=True)
            if self.place.is_dir():
                # The series grew since it was fetched. The earlier files stay visible until the moment of the exchange.
                for path in self.place.iterdir():
                    if not (self._staging / path.name).exists():
                        _link(path, self._staging / path.name)
                self.place.replace(old)
            self._staging.replace(self.place)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise MedvolError(
                "CANNOT_WRITE", file=self.place, found=error.strerror or "the series cannot be moved to its place"
            ) from error

    def _is_there(self, name: str) -> bool:
        size = self._written.get(name, -1)
        return any(_size(folder / name) == size for folder in (self._staging, self.place))


def read_journal(path: Path) -> dict[str, int]:
    """Return sizes by name; a line that was cut by a crash, or is not ours, counts as not written.

    Raises:
        MedvolError: `CANNOT_READ`.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise cannot_read(path, error) from error
    sizes = {}
    for line in lines:
        try:
            name, size = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(name, str) and isinstance(size, int):
            sizes[name] = size
    return sizes


def append_journal(path: Path, name: str, size: int) -> None:
    """Add a line.

    Raises:
        MedvolError: `CANNOT_WRITE`.
    """
    try:
        with path.open("a", encoding="utf-8") as stream:
            # The newline comes first, so that a line cut by a crash does not swallow this one.
            stream.write("\n" + json.dumps([name, size]))
    except OSError as error:
        raise MedvolError("CANNOT_WRITE", file=path, found=error.strerror or "the journal cannot be written") from error


def _file_name(uid: str) -> str:
    return f"{short_name(uid)}.dcm"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -2


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
