"""The folder that a pull fills: a series is staged in a hidden folder and moved to its place when it is whole.

    FOLDER/STUDY/SERIES/INSTANCE.dcm       whole series only; what `medvol scan FOLDER` finds
    FOLDER/.pacs/STUDY_SERIES/             a series on its way
    FOLDER/.pacs/STUDY_SERIES.jsonl        its journal: a line per file that was written to its end

All names are hashes of UIDs. A UID identifies a patient to whoever has the PACS, and paths end up in case tables and
reports; and nothing that a server sends can become a path. The same UID gives the same name everywhere.

A file is in the journal once it is on disk for good. The waits for the disk come after each fifty files, not after each
file: on a busy disk those of 300 slices took 2 to 3 s instead of 5 to 7 s.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, final

from medvol.errors import MedvolError, is_full
from medvol.io.files import cannot_read
from medvol.io.pacs_query import RemoteSeries

HIDDEN = ".pacs"
_SYNCED_AT_ONCE = 50


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
        self._unsynced: list[str] = []

    @property
    def bytes(self) -> int:
        """Size of the instances that are there."""
        there = (_file_name(uid) for uid in self._remote.instances)
        return sum(self._written[name] for name in there if self._is_there(name))

    def missing(self) -> list[str]:
        """Return the UIDs of the instances that are not there, or not to their end."""
        return [uid for uid in self._remote.instances if not self._is_there(_file_name(uid))]

    def keep(self, uid: str, write: Callable[[BinaryIO], object]) -> None:
        """Write one instance.

        Raises:
            MedvolError: `DISK_FULL`, `CANNOT_WRITE`.
        """
        name = _file_name(uid)
        path = self._staging / name
        try:
            self._staging.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                write(stream)
            self._written[name] = path.stat().st_size
        except OSError as error:
            raise _refusal(path, error) from error
        self._unsynced.append(name)
        if len(self._unsynced) >= _SYNCED_AT_ONCE:
            self.sync()

    def sync(self) -> None:
        """Wait until what was kept is on disk, and write it into the journal.

        Raises:
            MedvolError: `DISK_FULL`, `CANNOT_WRITE`.
        """
        for name in self._unsynced:
            path = self._staging / name
            try:
                with path.open("r+b") as stream:
                    os.fsync(stream.fileno())
            except OSError as error:
                raise _refusal(path, error) from error
        append_journal(self._journal, {name: self._written[name] for name in self._unsynced})
        self._unsynced.clear()

    def finish(self) -> None:
        """Move a whole series to its place, beside what lies there already.

        Raises:
            MedvolError: `CANNOT_WRITE`.
        """
        self.sync()
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
            raise _refusal(self.place, error) from error

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


def append_journal(path: Path, sizes: Mapping[str, int]) -> None:
    """Add a line per name.

    Raises:
        MedvolError: `DISK_FULL`, `CANNOT_WRITE`.
    """
    if not sizes:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            # The newline comes first, so that a line cut by a crash does not swallow the next one.
            stream.writelines("\n" + json.dumps([name, size]) for name, size in sizes.items())
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError) -> MedvolError:
    if is_full(error):
        return MedvolError("DISK_FULL", file=path, found="no space left to write it", fix="free space and run it again")
    return MedvolError("CANNOT_WRITE", file=path, found=error.strerror or type(error).__name__)


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
