"""A column of a table as a network sees it, and the numbers that a row's cells become.

A numeric column becomes one standardised number; where training had gaps, a second number says that the cell was empty.
A column of categories becomes one number per category of the training split, 1 for the row's own; an empty cell is a
row of zeros. Columns are found by name, so their order and further columns change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.data.labels import as_number, class_name, is_missing
from medvol.errors import MedvolError, nearest, require_choice

KINDS = ("number", "category")

LARGEST = 1e30
"""No measurement is larger. Float32 ends at 3.4e38, and what a network makes of more than that is nan."""

Cell = str | float | None


@dataclass(frozen=True)
class ColumnFacts:
    """What a model knows of one column, fitted on training rows only.

    Args:
        name: Name of the column.
        kind: `number` or `category`.
        mean: Of the filled cells; for numbers.
        sd: Standard deviation of the filled cells (n in the denominator, as scikit-learn has it). 0 for a column that
            never varied: then only its gaps tell something.
        fill: Median of the filled cells, which stands for an empty one.
        categories: Names of the categories in their order.
        has_gaps: Whether a training row had an empty cell.
    """

    name: str
    kind: str
    mean: float = 0.0
    sd: float = 1.0
    fill: float = 0.0
    categories: tuple[str, ...] = ()
    has_gaps: bool = False

    def __post_init__(self) -> None:
        require_choice("kind of a column", self.kind, KINDS)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the numbers that this column becomes."""
        if self.kind == "category":
            return tuple(f"{self.name}={category}" for category in self.categories)
        value = (self.name,) if self.sd > 0 else ()
        return (*value, f"{self.name} is empty") if self.has_gaps else value

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ColumnFacts:
        """Return the facts that `as_dict` wrote."""
        return cls(**{**values, "categories": tuple(values.get("categories", ()))})


def encode_row(columns: Sequence[ColumnFacts], covariates: Mapping[str, Cell], case: str) -> npt.NDArray[np.float32]:
    """Return the numbers of a row, shape (features,), in the order of `columns`.

    Args:
        columns: As fitted on the training split.
        covariates: Cells by column name; further ones are not looked at.
        case: Name of the row, for messages.

    Raises:
        MedvolError: `MISSING_COLUMN` with the nearest name, `BAD_VALUE` for text in a column of numbers, or a
            number that float32 cannot hold.
    """
    require_columns(columns, covariates, case=case)
    numbers = [number for column in columns for number in _encoded(column, covariates[column.name], case)]
    return np.array(numbers, dtype=np.float32)


def oddities(columns: Sequence[ColumnFacts], covariates: Mapping[str, Cell]) -> Iterator[str]:
    """Yield a sentence for each cell that training knew nothing like, and what is made of it."""
    for column in columns:
        cell = covariates.get(column.name)
        if is_missing(cell):
            if column.kind == "number" and not column.has_gaps:
                yield f"column '{column.name}' has gaps, training had none: filled with its median {column.fill:g}"
        elif column.kind == "category" and class_name(cell) not in column.categories:
            yield f"column '{column.name}' holds '{class_name(cell)[:40]}', unknown to training: taken as empty"


def require_columns(
    columns: Sequence[ColumnFacts], names: Mapping[str, Any] | Sequence[str], *, case: str = "", file: str = ""
) -> None:
    """Refuse a table that lacks a column which the model was trained on.

    Raises:
        MedvolError: `MISSING_COLUMN`, naming the first one and the nearest name that is there.
    """
    missing = [column.name for column in columns if column.name not in names]
    if missing:
        shown = ", ".join(str(name)[:25] for name in list(names)[:5]) + (" ..." if len(names) > 5 else "")
        raise MedvolError(
            "MISSING_COLUMN",
            case=case,
            file=file,
            found=f"no column '{missing[0][:40]}' among {len(names)}: {shown}",
            expected=f"the {len(columns)} columns of the training",
            fix=nearest(missing[0], names) or "add the column; its cells may be empty",
            details=missing,
        )


def too_large(name: str, cell: Cell, case: str) -> MedvolError:
    """Return the refusal of a number that no network can work with."""
    return MedvolError(
        "BAD_VALUE",
        case=case,
        found=f"column '{name[:40]}' holds {str(cell)[:40]}, too large for a network",
        expected=f"numbers up to {LARGEST:g}",
        fix="correct the cell, or leave it empty",
    )


def _encoded(column: ColumnFacts, cell: Cell, case: str) -> list[float]:
    is_empty = is_missing(cell)
    if column.kind == "category":
        name = None if is_empty else class_name(cell)
        return [float(name == category) for category in column.categories]
    number = column.fill if is_empty else as_number(cell)
    if number is None:
        raise MedvolError(
            "BAD_VALUE",
            case=case,
            found=f"column '{column.name[:40]}' holds '{str(cell)[:40]}'",
            expected="a number, as in training",
            fix="correct the cell, or leave it empty",
        )
    value = [(number - column.mean) / column.sd] if column.sd > 0 else []
    if value and abs(value[0]) > LARGEST:
        raise too_large(column.name, cell, case)
    return [*value, float(is_empty)] if column.has_gaps else value
