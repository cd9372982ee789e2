"""The folder of cache entries, shared by any number of processes.

* An entry is a file `<key>.mvcache`; it is written under another name in the same folder, synced and renamed, so it is
  either whole or not there.
* `<key>.mvlock` is held (`flock`) while an entry is computed. The system releases it when its holder dies, however it
  dies, so a lock left behind by `kill -9` is free and no age or process number has to be guessed at.
* Anything else in the folder belongs to somebody else and is never touched. A file is ours when its name is a key and
  it starts with our magic.
* The folder is kept within a number of bytes by removing the entries that were used least recently, but never those
  that the asking data set itself uses: going through a study that is larger than the limit would otherwise remove each
  entry just before its turn. What does not fit stays uncached.
* The last part of a disk is left free: entries can be made again, but models and results must find room.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from medvol.data import cache_entry
from medvol.data.cache_entry import Array, Header
from medvol.errors import MedvolError

try:
    import fcntl
except ImportError:  # not on Windows; then several processes may compute the same entry, which is slower but as right
    fcntl = None  # type: ignore[assignment]

LOCK_PATIENCE_S = 600.0  # a holder that is stopped must not stop everybody; computing twice does no harm
POLL_S = 0.02
ORPHAN_S = 60.0  # an unlocked part file may have been created a moment ago and be about to be locked
ORPHAN_WITHOUT_LOCKS_S = 86400.0  # where the file system cannot say who is alive

SPARE_BYTES = 2**30  # left free for what a training writes, but not more than a twentieth of a disk

_ENTRY = re.compile(r"[0-9a-f]{40}\.mvcache")
_PART = re.compile(r"[0-9a-f]{40}\.[0-9a-f]{16}\.mvpart")
_LOCK = re.compile(r"[0-9a-f]{40}\.mvlock")


@dataclass(frozen=True)
class StoredEntry:
    """An entry of the folder, as a listing shows it."""

    path: Path
    nbytes: int
    used_ns: int


@final
class CacheFolder:
    """Entries in a folder, up to a number of bytes.

    Args:
        path: Folder; made when it is not there.
        max_bytes: Most that all entries together may take.

    Raises:
        MedvolError: `NOT_A_FOLDER`.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._listed_bytes: int | None = None
        self._written_bytes = 0
        if path.exists() and not path.is_dir():
            raise MedvolError(
                "NOT_A_FOLDER", file=path, found="a file", expected="a folder for the cache", fix="name another"
            )

    def entry_path(self, key: str) -> Path:
        """Return where the entry of a key lies, or would."""
        return self.path / f"{key}.mvcache"

    def open(self, key: str) -> int | None:
        """Return a descriptor of an entry's file, or None when there is none."""
        try:
            return os.open(self.entry_path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def mark_used(self, key: str) -> None:
        """Note that an entry is in use; in a folder that cannot be written nothing is removed either."""
        with contextlib.suppress(OSError):
            os.utime(self.entry_path(key))

    def store(self, key: str, head: bytes, header: Header, arrays: Sequence[Array], keep: Collection[str]) -> bool:
        """Write an entry; return False when it does not fit within the limit.

        Args:
            key: Name of the entry.
            head: First part of the file, from `cache_entry.pack`.
            header: The same, parsed.
            arrays: The arrays.
            keep: Keys that are not removed to make room.

        Raises:
            OSError: As the system says, e.g. EROFS; ENOSPC already at the last part of a disk. Nothing is left behind.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._make_room(header.length, keep):
            return False
        part = self.path / f"{key}.{secrets.token_hex(8)}.mvpart"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            try:
                _try_lock(descriptor)
                cache_entry.write(descriptor, head, arrays)
                part.replace(self.entry_path(key))
            finally:
                os.close(descriptor)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._written_bytes += header.length
        return True

    @contextlib.contextmanager
    def only_one(self, key: str) -> Iterator[None]:
        """Let one process at a time compute an entry; the others wait, and go ahead when that takes too long."""
        path = self.path / f"{key}.mvlock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:  # a full or read-only disk; there will be nothing to share either
            yield
            return
        deadline = time.monotonic() + LOCK_PATIENCE_S
        held = _try_lock(descriptor)
        try:
            while held is False and time.monotonic() < deadline:
                time.sleep(POLL_S)
                held = _try_lock(descriptor)
            yield
        finally:
            if held:
                path.unlink(missing_ok=True)
            os.close(descriptor)

    def entries(self) -> list[StoredEntry]:
        """Return the folder's own entries, the least recently used first."""
        found = []
        for item in _scan(self.path):
            if _ENTRY.fullmatch(item.name) and _is_ours(item.path):
                with contextlib.suppress(FileNotFoundError):
                    status = item.stat(follow_symlinks=False)
                    found.append(StoredEntry(Path(item.path), status.st_size, status.st_mtime_ns))
        return sorted(found, key=lambda entry: (entry.used_ns, entry.path))

    def sweep(self) -> int:
        """Remove what killed writers left behind; return how many files."""
        count = 0
        for item in _scan(self.path):
            if _PART.fullmatch(item.name) or _LOCK.fullmatch(item.name):
                with contextlib.suppress(OSError):
                    count += _remove_if_orphan(item.path, time.time() - item.stat().st_mtime)
        return count

    def _make_room(self, needed: int, keep: Collection[str]) -> bool:
        if self._listed_bytes is not None:
            headroom = self.max_bytes - self._listed_bytes
            # Other processes write too. Listing again after a sixteenth of the room keeps sixteen of them within it.
            if self._written_bytes + needed <= headroom // 16 and needed <= _room_on_disk(self.path):
                return True
        entries = self.entries()
        total = sum(entry.nbytes for entry in entries)
        removable = [entry for entry in entries if entry.path.stem not in keep]
        least = total - sum(entry.nbytes for entry in removable) + needed
        limit = min(self.max_bytes, total + _room_on_disk(self.path))
        if least > self.max_bytes:
            return False  # nothing is removed for what will not fit anyway
        if least > limit:
            raise OSError(errno.ENOSPC, "No space left but what is kept free for models and results")
        for entry in removable:
            if total + needed <= limit:
                break
            entry.path.unlink(missing_ok=True)
            total -= entry.nbytes
        self._listed_bytes, self._written_bytes = total, 0
        return True


def _room_on_disk(folder: Path) -> int:
    usage = shutil.disk_usage(folder)
    return usage.free - min(SPARE_BYTES, usage.total // 20)


def _scan(folder: Path) -> list[os.DirEntry[Any]]:
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError:
        return []


def _is_ours(path: str) -> bool:
    try:
        with Path(path).open("rb", buffering=0) as stream:
            return stream.read(len(cache_entry.MAGIC_OF_ANY_VERSION)) == cache_entry.MAGIC_OF_ANY_VERSION
    except OSError:
        return False


def _remove_if_orphan(path: str, age_s: float) -> bool:
    if age_s < ORPHAN_S:
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        held = _try_lock(descriptor)
        if held is False or (held is None and age_s < ORPHAN_WITHOUT_LOCKS_S):
            return False
        os.unlink(path)  # noqa: PTH108 - beside os.open, on the same text
        return True
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool | None:
    """Return True when the lock is ours now, False when another holds it, None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
