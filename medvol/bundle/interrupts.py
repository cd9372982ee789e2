"""A run that is told to end: one line instead of a traceback, and the exit code that a shell gives for the signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import partial
from types import FrameType

from medvol.errors import INTERRUPTED


def end_politely_on_sigterm() -> None:
    """Have SIGTERM, by which batch systems end a job, unwind the run: half-written files go, the exit code is 143.

    A second signal ends the process at once. Does nothing outside the main thread, as of a server, or where somebody
    else handles the signal already.
    """
    if _may_set() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, partial(_unwind, os.getpid()))


def end_at_once_on_sigterm() -> None:
    """Take `end_politely_on_sigterm` back, as for a process that lives on after a run."""
    handler = signal.getsignal(signal.SIGTERM)
    if _may_set() and isinstance(handler, partial) and handler.func is _unwind:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _may_set() -> bool:
    return threading.current_thread() is threading.main_thread()


def _unwind(process: int, number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    if os.getpid() == process:  # not in those that load data, which inherit the handler
        sys.stderr.write(f"\n{INTERRUPTED}\n")
    raise SystemExit(128 + number)
