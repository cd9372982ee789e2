"""One training at a time in a folder: two would replace each other's checkpoints and mix their curves."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from medvol.errors import MedvolError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".training.lock"


def lock_folder(folder: Path) -> int | None:
    """Lock a folder for trainings of this process, until it unlocks it or ends, however it ends.

    The system keeps the lock, so none is left behind by `kill -9`, and on a shared disk other machines see it. Where
    the file system has no locks, or nothing can be written, there is none: whoever writes there meets that. A process
    may lock a folder again, as a notebook whose training was interrupted.

    Args:
        folder: Of the results; made if absent.

    Returns:
        What `unlock_folder` takes.

    Raises:
        MedvolError: `BUSY`, with the process that holds it.
    """
    if fcntl is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 200).decode(errors="replace")
        os.close(descriptor)
        if not isinstance(error, (BlockingIOError, PermissionError)):
            return None
        raise MedvolError(
            "BUSY",
            file=folder,
            found=f"a training that writes there now: {holder or 'process unknown'}",
            expected="one at a time",
            fix="wait for its end, or pass another --output_dir",
        ) from error
    with contextlib.suppress(OSError):  # a full disk; the words are for messages alone
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
    return descriptor


def unlock_folder(folder: Path, descriptor: int | None) -> None:
    """Take the lock of `lock_folder` off."""
    if descriptor is not None:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        os.close(descriptor)
