"""What readers assumed or dropped of the files of a run, told once for each kind of it.

A reader refuses what it cannot place and notes the rest: a slice that was there twice, a tilted gantry, a qform beside
another sform. A line per case would hide one kind behind another, so a run logs each kind with its first case and the
number of the others; `medvol check` lists every case.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, final

logger = logging.getLogger(__name__)

_ROUTINE = ("64-bit ", "the format has no geometry")
"""Starts of the notes that every file of a kind has: a narrower type, which changes no result, and arrays in voxels."""


@final
class ReaderNotes:
    """Notes by kind; two notes are of one kind when only numbers, or what follows a colon, differ."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}
        self._cases: dict[str, set[str]] = {}

    def add(self, case: str, notes: Iterable[str]) -> None:
        """Take the notes of a case."""
        for note in telling(notes):
            kind = re.sub(r"\d+(\.\d+)?", "", note.partition(": ")[0])
            self._first.setdefault(kind, (case, note))
            self._cases.setdefault(kind, set()).add(case)

    def lines(self) -> list[str]:
        """Return a line per kind: the first case, its note, and how many other cases have one like it."""
        lines = []
        for kind, (case, note) in self._first.items():
            others = len(self._cases[kind]) - 1
            lines.append(f"case {case}: {note}" + (f" (and {others} more cases)" if others else ""))
        return lines

    def warn(self) -> None:
        """Log the lines as warnings."""
        for line in self.lines():
            logger.warning("Read with a note: %s", line)


def telling(notes: Iterable[str]) -> list[str]:
    """Return the notes that a user should see, none twice."""
    return [note for note in dict.fromkeys(notes) if note and not note.startswith(_ROUTINE)]


def notes_of(item: Any) -> list[str]:
    """Return the notes in the metadata of an item's images, or of the template of a cached one."""
    values = item.values() if isinstance(item, Mapping) else ()
    metas = [meta for value in values if isinstance(meta := getattr(value, "meta", None), Mapping)]
    return [note for meta in metas for note in str(meta.get("notes") or "").split("\n")]
