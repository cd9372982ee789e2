"""Files that are either whole or not there: written beside their place, synced, then renamed onto it."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from medvol.errors import MedvolError, is_full


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file in the folder of `path` and rename it onto `path`.

    The old file stays as it was until the new one is complete on disk. An interruption waits for that.

    Raises:
        MedvolError: `DISK_FULL` or `CANNOT_WRITE`; nothing is left behind.
    """
    with interruptions_wait():
        _write_and_rename(Path(path), write)


@contextmanager
def interruptions_wait() -> Iterator[None]:
    """Let a first Ctrl-C or SIGTERM wait until the end of the block; a second one ends it at once.

    Signals arrive in the main thread alone; in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def wait(number: int, _frame: FrameType | None) -> None:
        waiting.append(number)
        if len(waiting) > 1:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None:  # one that Python did not set, nor can
                signal.signal(number, handler)

    try:
        for number, handler in before.items():
            if handler not in (None, signal.SIG_IGN):
                signal.signal(number, wait)
        yield
    finally:
        restore()
        if len(waiting) == 1:
            signal.raise_signal(waiting[0])


def _write_and_rename(path: Path, write: Callable[[BinaryIO], object]) -> None:
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
