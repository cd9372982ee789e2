"""What a structure is called in a hospital: SNOMED CT codes by the names that studies use.

The table is `segment_codes.csv` beside this file. A column holds a code as `value^scheme^meaning`, the way DICOM's own
tools write it; `synonyms` are separated by `|`; where `has_sides` is yes, `left` or `right` in a study's name (`lh`,
`rh`) becomes a modifier. Capitals, blanks, dashes and underscores do not matter. A study's own table of the same
columns is looked at first. Codes and meanings are those of pydicom's dictionary of the standard's context groups.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from medvol.errors import MedvolError

TABLE = Path(__file__).with_name("segment_codes.csv")
COLUMNS = ("name", "category", "type")
"""Columns that a table must have; `synonyms`, `modifier` and `has_sides` may be absent."""

SegmentCodes = str | Path | Sequence[str]
"""A study's own table, or `name=name of the table` for each name that says too little by itself, or a list of both."""

_SIDES = {"left": "left", "lh": "left", "right": "right", "rh": "right"}
_LONGEST = 64  # characters of a code's meaning, and of a segment's label


@dataclass(frozen=True)
class Code:
    """A coded concept.

    Args:
        value: Such as `10200004`.
        scheme: Such as `SCT` for SNOMED CT.
        meaning: Such as `Liver`.
    """

    value: str
    scheme: str
    meaning: str


_SIDE_CODES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}


@dataclass(frozen=True)
class Structure:
    """A structure of a study and what it is.

    Args:
        name: As the study says it.
        category: Such as anatomical structure.
        kind: Such as liver.
        modifiers: Such as left.
    """

    name: str
    category: Code
    kind: Code
    modifiers: tuple[Code, ...] = ()

    @property
    def meaning(self) -> str:
        """The code in words, as `Kidney, Left`."""
        return ", ".join(one.meaning for one in (self.kind, *self.modifiers))


@dataclass(frozen=True)
class _Row:
    category: Code
    kind: Code
    modifiers: tuple[Code, ...]
    has_sides: bool


def coded_structures(names: Sequence[str], segment_codes: SegmentCodes = ()) -> tuple[Structure, ...]:
    """Return the codes of a study's structures, in their order.

    Args:
        names: Structures without the background.
        segment_codes: Tables to look at first, and other names for structures, as `Anterior=hippocampus_anterior`.

    Raises:
        MedvolError: `UNKNOWN_STRUCTURE` with the nearest names, `BAD_TABLE`, `NOT_FOUND`.
    """
    given = [str(segment_codes)] if isinstance(segment_codes, str | Path) else list(segment_codes)
    table: dict[str, _Row] = {}
    aliases: dict[str, str] = {}
    for one in given:
        name, mark, other = one.partition("=")
        if mark:
            aliases["_".join(_words(name))] = other
        elif one:
            table = {**read_codes(Path(one)), **table}
    table = {**read_codes(TABLE), **table}
    return tuple(_coded(name, aliases.get("_".join(_words(name)), name), table) for name in names)


def read_codes(path: Path) -> dict[str, _Row]:
    """Return the rows of a table by normalised name and synonym.

    Raises:
        MedvolError: `NOT_FOUND`, `BAD_TABLE` with the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MedvolError(
            "NOT_FOUND", file=path, found=f"no table of codes ({type(error).__name__})", expected="a CSV file"
        ) from error
    table: dict[str, _Row] = {}
    for line, row in enumerate(rows, start=2):
        absent = [column for column in COLUMNS if not (row.get(column) or "").strip()]
        if absent:
            raise _bad_table(path, line, f"no {absent[0]}")
        modifier = (row.get("modifier") or "").strip()
        entry = _Row(
            _parse(row["category"], path, line),
            _parse(row["type"], path, line),
            (_parse(modifier, path, line),) if modifier else (),
            (row.get("has_sides") or "").strip().casefold() == "yes",
        )
        for name in (row["name"], *(row.get("synonyms") or "").split("|")):
            if _words(name):
                table.setdefault("_".join(_words(name)), entry)
    return table


def _coded(name: str, looked_up: str, table: Mapping[str, _Row]) -> Structure:
    words = _words(looked_up)
    row = table.get("_".join(words))
    if row is not None:
        return Structure(name, row.category, row.kind, row.modifiers)
    sides = [_SIDES[word] for word in words if word in _SIDES]
    row = table.get("_".join(word for word in words if word not in _SIDES))
    if row is not None and row.has_sides and len(sides) == 1:
        return Structure(name, row.category, row.kind, (*row.modifiers, _SIDE_CODES[sides[0]]))
    near = get_close_matches("_".join(words), table, n=3, cutoff=0.5)
    raise MedvolError(
        "UNKNOWN_STRUCTURE",
        found=f"no code for the structure '{looked_up[:40]}'",
        expected=f"a name of the table, such as {', '.join(near or list(table)[:3])}"[:90],
        fix="pass --segment_codes FILE, a CSV of name,category,type as in medvol/io/segment_codes.csv",
    )


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.casefold()) if word]


def _parse(text: str, path: Path, line: int) -> Code:
    parts = [part.strip() for part in text.split("^")]
    if len(parts) != 3 or not all(parts) or len(parts[0]) > 16 or len(parts[1]) > 16 or len(parts[2]) > _LONGEST:
        raise _bad_table(path, line, f"the code '{text[:40]}'")
    return Code(*parts)


def _bad_table(path: Path, line: int, found: str) -> MedvolError:
    expected = "name,category,type with codes as value^scheme^meaning"
    return MedvolError("BAD_TABLE", file=path, found=f"{found} in line {line}", expected=expected)
