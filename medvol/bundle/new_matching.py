"""Which row of a table names which scan: by one kind of word for all, such as the file or the first folder.

Words of several kinds may name different rows: of `scans/1/2.nii.gz` the folder names patient 1, and the file patient 2
where it means the second scan. So the kinds are compared as a whole, and the kind decides that finds the most rows:

* another kind does not matter where each scan that it finds has the same row under the kind that decides;
* else the kind that decides must find more rows than it, and each in one place of the tree: a folder is one place, a
  file name that stands in several folders is not. The rows that the other finds must be among its own, or scattered.

All else is refused. Rejected: the word that comes first by alphabet, or by an order of kinds, which labels scans
wrongly in silence; and a mixture of kinds, where a stray file name labels a scan whose patient has no row.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from medvol.data.columns import Table
from medvol.data.paths import without_suffix
from medvol.errors import MedvolError

PATH = "path"
SHOWN_LETTERS = 50  # of a reference in a message


class Name(NamedTuple):
    """A word that may name a scan, and the place in the tree that has it; '' for what stands in a header."""

    word: str
    place: str = ""


@dataclass(frozen=True)
class Scan:
    """A volume, and the words by which a row of the table may name it, by their kind."""

    case: str
    patient: str
    reference: str
    names: Mapping[str, Name]


@dataclass(frozen=True)
class Found:
    """The rows that name scans by one kind of word.

    Args:
        kind: Of the word.
        rows: Positions of the rows that name each scan, by the scan's position; several where they say the same.
        scattered: Whether a row names scans in several places of the tree.
        contradiction: Two rows with one word and different labels, patients or splits, or None.
    """

    kind: str
    rows: Mapping[int, tuple[int, ...]]
    scattered: bool
    contradiction: tuple[int, int] | None

    @property
    def found(self) -> frozenset[int]:
        """Every row that names a scan."""
        return frozenset(row for several in self.rows.values() for row in several)


def names_of(reference: str, folder: str, header: Mapping[str, str]) -> dict[str, Name]:
    """Return what may name a scan: what its header says, its file, the folders above it and its path.

    Parts of the path are counted from the root and from the file, as trees need not be equally deep.

    Args:
        reference: The scan, below `folder` or the folder itself.
        folder: Root of the tree.
        header: Words of other kinds.
    """
    path, _, fragment = reference.partition("#")
    parts = [without_suffix(part) for part in Path(os.path.relpath(path, folder)).parts]
    places = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
    names = {kind: Name(word) for kind, word in header.items()}
    names["series"] = Name(fragment.partition(";")[0])
    if len(parts) > 1:
        names[PATH] = Name(places[-1], places[-1])
    placed = [Name(word, place) for word, place in zip(parts, places, strict=True)]
    if placed:
        names["file name"] = placed[-1]
    names |= {f"name at level {depth} of the tree": name for depth, name in enumerate(placed, start=1)}
    names |= {f"folder {depth} above the file": name for depth, name in enumerate(placed[-2::-1], start=1)}
    return {kind: name for kind, name in names.items() if name.word}


def find_rows(
    cells: Sequence[tuple[int, object]], scans: Sequence[Scan], same: Callable[[int, int], bool]
) -> list[Found]:
    """Return the rows that each kind of word finds, for the kinds that find any.

    Where cells are paths of scans, no cell with several parts is taken for a word.

    Args:
        cells: Position and cell of each row that counts.
        scans: What is to be named.
        same: Whether two rows with one word give a scan the same label, patient and split.
    """
    by_path: dict[str, list[int]] = defaultdict(list)
    parts_of = {row: _parts(cell) for row, cell in cells}
    for row, parts in parts_of.items():
        for start in range(len(parts) - 1):
            by_path["/".join(parts[start:])].append(row)
    paths = _found(PATH, by_path, scans, same)
    by_word: dict[str, list[int]] = defaultdict(list)
    for row, parts in parts_of.items():
        if len(parts) == 1 or not paths.rows:
            by_word[parts[-1]].append(row)
    kinds = dict.fromkeys(kind for scan in scans for kind in scan.names if kind != PATH)
    found = [paths, *(_found(kind, by_word, scans, same) for kind in kinds)]
    return [one for one in found if one.rows]


def deciding_kind(found: Sequence[Found], scans: Sequence[Scan], table: Table) -> Found:
    """Return the kind of word by which a table names scans.

    Args:
        found: What each kind finds, at least one.
        scans: What is named.
        table: Whose rows name it.

    Raises:
        MedvolError: `AMBIGUOUS_LABEL`, with the rows.
    """
    clear = [one for one in found if one.contradiction is None]
    best = max(clear or found, key=lambda one: (len(one.found), len(one.rows)))
    for other in (best, *found):
        if _outdoes(best, other):
            continue
        if other.contradiction is None:
            raise _ambiguous(best, other, scans, table)
        first, second = (table.where[row] for row in other.contradiction)
        raise MedvolError(
            "AMBIGUOUS_LABEL",
            file=table.file,
            found=f"{second} gives another label, patient or split to a scan that {first} names too",
            expected="one row for a scan",
            fix="name the series, the case or the path instead of the patient",
        )
    return best


def word_of(cell: object) -> str:
    """Return a cell as a word: a path's last part without its ending, so that `scans/a.nii.gz` names `a`."""
    return _parts(cell)[-1]


def _parts(cell: object) -> list[str]:
    text = str(cell).strip().replace("\\", "/").rstrip("/")
    return [without_suffix(part) for part in text.split("/")]


def _found(
    kind: str, rows_of: Mapping[str, Sequence[int]], scans: Sequence[Scan], same: Callable[[int, int], bool]
) -> Found:
    rows: dict[int, tuple[int, ...]] = {}
    places: dict[str, set[str]] = defaultdict(set)
    for position, scan in enumerate(scans):
        name = scan.names.get(kind)
        if name is not None and name.word in rows_of:
            rows[position] = tuple(rows_of[name.word])
            places[name.word].add(name.place)
    unlike = ((rows_of[word][0], row) for word in places for row in rows_of[word][1:])
    contradiction = next((pair for pair in unlike if not same(*pair)), None)
    return Found(kind, rows, any(len(one) > 1 for one in places.values()), contradiction)


def _outdoes(best: Found, other: Found) -> bool:
    """Tell whether the rows that a kind finds hold against what another finds."""
    if best.contradiction is not None:
        return False
    if _unlike(best, other) is None:
        return True
    more = len(best.found) > len(other.found) and not best.scattered
    return more and (best.found > other.found or other.scattered)


def _unlike(best: Found, other: Found) -> int | None:
    """Return the first scan that a kind finds, and another does not find under the same row."""
    return next((scan for scan, rows in other.rows.items() if best.rows.get(scan) != rows), None)


def _ambiguous(best: Found, other: Found, scans: Sequence[Scan], table: Table) -> MedvolError:
    """Return the refusal with a scan that both kinds find where there is one."""
    both = (scan for scan, rows in other.rows.items() if best.rows.get(scan, rows) != rows)
    scan = next(both, _unlike(best, other)) or 0
    words = [
        f"{table.where[one.rows[scan][0]] if scan in one.rows else 'no row'} by the {one.kind}" for one in (best, other)
    ]
    return MedvolError(
        "AMBIGUOUS_LABEL",
        file=table.file,
        found=f"scan {_tail(scans[scan].reference)} is named by {words[0]}, by {words[1]}",
        expected="one row for a scan",
        fix="name the scans by a column 'image' with their paths",
    )


def _tail(reference: str) -> str:
    return reference if len(reference) <= SHOWN_LETTERS else f"...{reference[-SHOWN_LETTERS:]}"
