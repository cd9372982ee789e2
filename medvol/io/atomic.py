"""Files that are either whole or not there: written beside their place, synced, then renamed onto it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from medvol.errors import MedvolError, is_full


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file in the folder of `path` and rename it onto `path`.

    The old file stays as it was until the new one is complete on disk.

    Raises:
        MedvolError: `DISK_FULL` or `CANNOT_WRITE`; nothing is left behind.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp makes files private
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        trouble = _system_error(error)
        if trouble is None:
            raise
        raise _refusal(path, trouble) from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, with a newline at its end."""
    data = text if text.endswith("\n") else text + "\n"
    write_atomically(path, lambda stream: stream.write(data.encode()))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _system_error(error: BaseException | None) -> OSError | None:
    # torch closes its archive after a failed write, which fails too and hides the first error behind a RuntimeError.
    while isinstance(error, RuntimeError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, OSError) else None


def _refusal(path: Path, error: OSError) -> MedvolError:
    if is_full(error):
        return MedvolError(
            "DISK_FULL", file=path, found="no space left to write it", fix="free space; the old file is intact"
        )
    reason = error.strerror or str(error)
    return MedvolError("CANNOT_WRITE", file=path, found=reason, fix="name a folder that you may write to")
