"""Tables of cells, however they were written: separators, quotes, byte-order marks, missing headers."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medvol.data.labels import as_number, is_missing
from medvol.data.study import Label
from medvol.errors import MedvolError

SEPARATORS = ("\t", ";", ",", "|")

SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")

_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how zipped ones begin, and those of Excel before 2007

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


@dataclass(frozen=True)
class Table:
    """Named columns and rows of cells.

    Args:
        columns: Column names, all different.
        rows: One tuple of cells per row, as long as `columns`; text from CSV, text or numbers from JSON.
        where: Words for each row in an error message, such as `line 7`.
        file: The file it was read from.
        notes: What was assumed while reading.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Label, ...], ...]
    where: tuple[str, ...]
    file: Path
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> list[Label]:
        """Return the cells of one column."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def read_delimited(path: Path) -> Table:
    """Read a CSV file: UTF-8 or UTF-16, separated by comma, semicolon, tab or bar, with or without a header.

    The separator is the one that cuts the first lines into the most equal number of cells. A first row with a number in
    it is data, and columns are then called `column_1`, `column_2` ...; the numbers 0, 1, 2 ... are a header, though, as
    pandas writes it for an array. In a table separated by semicolons a column of `1,5` is read with decimal commas.

    Raises:
        MedvolError: `EMPTY_DATASET`, `BAD_TABLE` or `DUPLICATE_COLUMN`.
    """
    text = _decode(path)
    separator = _separator(text)
    lines = _split(text, separator, path)
    if not lines:
        raise MedvolError("EMPTY_DATASET", file=path, found="an empty table", expected="a row per case")
    quoted = _quoted_columns([line for _, line in lines[1:]])
    if quoted:
        lines = [
            (number, [_unquoted(cell, index, quoted) for index, cell in enumerate(line)]) for number, line in lines
        ]
    notes = [f"single quotes around the cells of {len(quoted)} columns were removed"] if quoted else []
    if _is_header(lines[0][1]):
        columns, lines = lines[0][1], lines[1:]
    else:
        columns = [f"column_{index + 1}" for index in range(len(lines[0][1]))]
        notes.append("the table has no header: columns were numbered from column_1")
    table = _assemble(path, columns, lines, notes)
    return _decimal_points(table) if separator == ";" else table


def covariates(table: Table, names: Sequence[str]) -> list[dict[str, str | float | None]]:
    """Return the named columns row by row: numbers where every filled cell of a column is one, else text."""
    columns: dict[str, list[str | float | None]] = {}
    for name in names:
        cells = [None if is_missing(cell) else cell for cell in table.column(name)]
        numbers = [as_number(cell) for cell in cells]
        numeric = all(number is not None for number, cell in zip(numbers, cells, strict=True) if cell is not None)
        columns[name] = list(numbers) if numeric else [None if cell is None else str(cell) for cell in cells]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)] or [
        {} for _ in table.rows
    ]


def _decode(path: Path) -> str:
    if path.is_dir():
        raise MedvolError("BAD_TABLE", file=path, found="a folder", expected="a CSV file", fix="name the file in it")
    data = path.read_bytes()
    if data.startswith(_WORKBOOKS):
        raise MedvolError(
            "BAD_TABLE", file=path, found="a spreadsheet", expected="a text table", fix="save it as 'CSV UTF-8'"
        )
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise MedvolError(
            "BAD_TABLE",
            file=path,
            found=f"byte 0x{data[error.start]:02x} at {error.start} is not {encoding}",
            expected="a text table",
            fix="save it as 'CSV UTF-8'",
        ) from None


def _separator(text: str) -> str:
    head = [line for line in text.splitlines() if line.strip()][:20]
    best = (0, 0, ",")
    for separator in SEPARATORS:
        counts = [len(row) for row in csv.reader(head, delimiter=separator)]
        if counts and counts[0] > 1:
            even = int(len(set(counts)) == 1)
            best = max(best, (even, counts[0], separator), key=lambda one: one[:2])
    return best[2]


def _split(text: str, separator: str, path: Path) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                lines.append((reader.line_num, stripped))
    except csv.Error as error:
        raise MedvolError(
            "BAD_TABLE",
            file=path,
            found=f"line {reader.line_num}: {error}",
            expected="a CSV table",
            fix="check the quotes",
        ) from None
    return lines


def _in_single_quotes(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == "'"


def _quoted_columns(lines: Sequence[Sequence[str]]) -> frozenset[int]:
    """Return the columns in which every filled cell is in single quotes, as Weka's ARFF files leave them."""
    filled: dict[int, list[bool]] = {}
    for line in lines:
        for index, cell in enumerate(line):
            if not is_missing(cell):
                filled.setdefault(index, []).append(_in_single_quotes(cell))
    return frozenset(index for index, cells in filled.items() if all(cells))


def _unquoted(cell: str, index: int, quoted: frozenset[int]) -> str:
    return cell[1:-1] if index in quoted and _in_single_quotes(cell) else cell


def _is_header(cells: Sequence[str]) -> bool:
    numbers = [as_number(cell) for cell in cells]
    present = [number for number in numbers if number is not None]
    return not present or (len(present) > 1 and present == list(range(len(present))))


def _assemble(path: Path, columns: list[str], lines: list[tuple[int, list[str]]], notes: list[str]) -> Table:
    while columns and not columns[-1] and all(not any(line[len(columns) - 1 :]) for _, line in lines):
        columns = columns[:-1]  # spreadsheets leave separators behind the last column
    rows = []
    for number, line in lines:
        cells = line[: len(columns)] if not any(line[len(columns) :]) else line
        if len(cells) != len(columns):
            raise MedvolError(
                "BAD_TABLE",
                file=path,
                found=f"line {number} has {len(cells)} cells",
                expected=f"{len(columns)}, as in the first line",
                fix="quote cells that hold a separator",
            )
        rows.append(tuple(cells))
    index = columns.index("") if columns.count("") == 1 else None
    if index is not None:
        counted = [str(start + row) for start in (0, 1) for row in range(len(rows))]
        values = [row[index] for row in rows]
        if values in (counted[: len(rows)], counted[len(rows) :]):
            columns = columns[:index] + columns[index + 1 :]
            rows = [row[:index] + row[index + 1 :] for row in rows]
            notes = [*notes, "a column that only counts the rows was left out"]
    columns = [name or f"column_{position + 1}" for position, name in enumerate(columns)]
    require_distinct(columns, path)
    return Table(tuple(columns), tuple(rows), tuple(f"line {number}" for number, _ in lines), path, tuple(notes))


def require_distinct(columns: Sequence[str], path: Path) -> None:
    """Raise `DUPLICATE_COLUMN` when two columns have one name."""
    twice = [name for name, times in Counter(columns).items() if times > 1]
    if twice:
        raise MedvolError(
            "DUPLICATE_COLUMN",
            file=path,
            found=f"{columns.count(twice[0])} columns '{twice[0][:40]}'",
            expected="different names",
            fix="rename one, or add a header row if the table has none",
        )


def _decimal_points(table: Table) -> Table:
    changed = []
    columns = [table.column(name) for name in table.columns]
    for position, cells in enumerate(columns):
        texts = [str(cell) for cell in cells if not is_missing(cell)]
        commas = [bool(_DECIMAL_COMMA.fullmatch(text)) for text in texts]
        if any(commas) and all(comma or as_number(text) is not None for comma, text in zip(commas, texts, strict=True)):
            columns[position] = [str(cell).replace(",", ".") for cell in cells]
            changed.append(table.columns[position])
    if not changed:
        return table
    note = f"decimal commas read in {len(changed)} columns, such as '{changed[0]}'"
    rows = tuple(zip(*columns, strict=True))
    return Table(table.columns, rows, table.where, table.file, (*table.notes, note))
