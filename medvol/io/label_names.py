"""Which structures of a DICOM label are wanted, and the value of each.

The part of a reference behind `#` lists structures by name or number, separated by `;`: `seg.dcm#liver;tumour?` is the
liver as 1 and the tumour as 2. A name with a question mark may be absent. Without a list every structure is taken with
its own number; numbers differ from file to file, so a study whose files disagree must list them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medvol.errors import MedvolError, nearest
from medvol.io.dicom_tags import plain_text

_UID = re.compile(r"\d+(\.\d+){3,}")


@dataclass(frozen=True)
class Wanted:
    """Structures and their values.

    Args:
        values: Value by the structure's number in the file.
        names: Name by value.
        notes: What was merged or is absent.
    """

    values: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def split_fragment(fragment: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Return the UID and the structures that a fragment lists."""
    parts = [part.strip() for part in (fragment or "").split(";") if part.strip()]
    uids = [part for part in parts if _UID.fullmatch(part)]
    return (uids[0] if uids else None), tuple(part for part in parts if part not in uids)


def choose_structures(available: Sequence[tuple[int, str]], listed: Sequence[str], path: Path) -> Wanted:
    """Return the value of each wanted structure; several of one name are one structure.

    Args:
        available: Number and name of each structure of the file; numbers from 1 on.
        listed: Names or numbers as the user wrote them; all structures when there are none.
        path: For the message.

    Raises:
        MedvolError: `NOT_FOUND` with the nearest name, `BAD_REFERENCE` for a structure that is listed twice.
    """
    named = [(number, plain_text(name) or f"structure {number}") for number, name in available]
    by_name: dict[str, list[int]] = {}
    for number, name in named:
        by_name.setdefault(name.casefold(), []).append(number)
    notes = tuple(f"{len(same)} structures named '{name}' taken as one" for name, same in by_name.items() if same[1:])
    if not listed:
        values = {number: by_name[name.casefold()][0] for number, name in named}
        spelt = {name.casefold(): name for _, name in reversed(named)}
        return Wanted(values, {same[0]: spelt[name] for name, same in by_name.items()}, notes)
    values, names = {}, {}
    for value, word in enumerate(listed, start=1):
        name = word.removesuffix("?").strip()
        numbers = by_name.get(name.casefold()) or [number for number, _ in named if str(number) == name]
        if not numbers and name == word:
            raise _not_found(name, [one for _, one in named], path)
        if any(number in values for number in numbers):
            raise MedvolError(
                "BAD_REFERENCE", file=path, found=f"'{name[:40]}' listed twice", expected="each structure once"
            )
        values |= dict.fromkeys(numbers, value)
        names[value] = next((one for number, one in named if number in numbers), name)
        notes += () if numbers else (f"no structure '{name}' in the file: taken as absent",)
    return Wanted(values, names, notes)


def _not_found(name: str, names: Sequence[str], path: Path) -> MedvolError:
    shown = ", ".join(names)
    return MedvolError(
        "NOT_FOUND",
        file=path,
        found=f"no structure '{name[:40]}'",
        expected=shown if len(shown) < 80 else f"{shown[:70]} ... ({len(names)})",
        fix=nearest(name, names) or f"write '{name[:20]}?' where it may be absent",
        details=names,
    )
