"""What a model learns of a table's columns: fitted on training rows only, stored beside the weights.

Whether a column holds numbers or categories, its mean, spread and median and the names of its categories are read off
the rows of the training split alone, so that a change of a test row changes nothing in the model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medvol.data.column_facts import LARGEST, Cell, ColumnFacts, require_columns, too_large
from medvol.data.facts import Facts, training_cases
from medvol.data.labels import as_number, class_name, is_missing, sorted_classes
from medvol.data.study import Case, Study
from medvol.data.table import items
from medvol.data.telltale import telltale, telltale_columns
from medvol.errors import MedvolError, nearest

logger = logging.getLogger(__name__)

MOST_CATEGORIES = 50
"""More kinds of text than this in one column are an identifier or free text, not categories."""

MOSTLY_NUMBERS = 0.5
"""From this share of numbers on, the text between them is a slip of the pen, not a category."""

FEW_CATEGORIES = 10
"""Up to so many kinds of numbers with a unit are categories, as doses are."""

_TELLS_NOTHING = "tells nothing in training: it never varies, or is a text that differs in every row"

_WITH_COMMA = re.compile(r"[+-]?\d+(?:,\d+)+(?:\.\d+)?")
"""Where semicolons separate, `1,5` has been read as a number before; where commas do, such a cell is quoted."""

_WITH_UNIT = re.compile(r"[+-]?\d+(?:[.,]\d+)?(?:\s*%|\s+[^\W\d_]\S*)")


def tabular_facts(
    study: Study, *, exclude_columns: Sequence[str] = (), categorical_columns: Sequence[str] = ()
) -> Facts:
    """Return the facts of a study of features: its classes and what is fitted on its columns; no image.

    Args:
        study: Split, with covariates.
        exclude_columns: Columns to leave out.
        categorical_columns: Columns of numbers that are codes, not quantities.

    Raises:
        MedvolError: As `fit_columns`.
    """
    return Facts(
        classes=study.classes,
        channels=(),
        spatial_size=(),
        spacing_mm=None,
        intensity="",
        limits=None,
        has_geometry=False,
        laterality_matters=False,
        columns=_told_of(study, exclude_columns, categorical_columns),
    )


def with_columns(
    facts: Facts, study: Study, *, exclude_columns: Sequence[str] = (), categorical_columns: Sequence[str] = ()
) -> Facts:
    """Return the facts of a study of images with what is fitted on its covariates added; see `fit_columns`."""
    return replace(facts, columns=_told_of(study, exclude_columns, categorical_columns))


def _told_of(study: Study, excluded: Sequence[str], codes: Sequence[str]) -> tuple[ColumnFacts, ...]:
    """Fit the columns, and warn of those that give the label away."""
    columns = fit_columns(study, exclude_columns=excluded, categorical_columns=codes)
    for name in telltale_columns(study, columns):
        logger.warning("%s", telltale(name))
    return columns


def fit_columns(
    study: Study, *, exclude_columns: Sequence[str] = (), categorical_columns: Sequence[str] = ()
) -> tuple[ColumnFacts, ...]:
    """Return what the training rows say of each column, sorted by name, so that the order in the table tells nothing.

    Columns that never vary and text that differs in every row are left out, and said to be.

    Raises:
        MedvolError: `NO_TRAINING_CASES`, `UNKNOWN_OPTION` for a column that is not there, `BAD_VALUE` for text among
            numbers, `TOO_MANY_CATEGORIES`, `NO_FEATURES` when nothing is left.
    """
    cases = training_cases(study)
    names = _column_names(study)
    for option, wanted in (("exclude_columns", exclude_columns), ("categorical_columns", categorical_columns)):
        for name in wanted:
            if name not in names:
                raise MedvolError(
                    "UNKNOWN_OPTION",
                    file=study.source,
                    found=f"{option} names '{name[:40]}'",
                    expected="a column of the table",
                    fix=nearest(name, names),
                    details=names,
                )
    kept = [name for name in names if name not in exclude_columns]
    fitted = [_fitted(name, cases, is_code=name in categorical_columns) for name in kept]
    columns = tuple(column for column in fitted if column is not None and column.features)
    dropped = [name for name in kept if name not in {column.name for column in columns}]
    if dropped:
        logger.info("Left out, for they tell nothing in training: %s", ", ".join(dropped))
    if not columns:
        raise MedvolError(
            "NO_FEATURES",
            file=study.source,
            found=f"{len(names)} columns, none of which varies in training",
            expected="at least one column to learn from",
            fix="add columns to the table",
        )
    return columns


def column_refusals(study: Study) -> dict[str, MedvolError | None]:
    """Return for each column why a model cannot learn from it, `NO_FEATURES` where it tells nothing, or None.

    Raises:
        MedvolError: `NO_TRAINING_CASES`.
    """
    cases = training_cases(study)
    refusals: dict[str, MedvolError | None] = {}
    for name in _column_names(study):
        try:
            column = _fitted(name, cases, is_code=False)
        except MedvolError as refusal:
            refusals[name] = refusal
            continue
        told = column is not None and column.features
        refusals[name] = None if told else MedvolError("NO_FEATURES", found=f"column '{name[:40]}' {_TELLS_NOTHING}")
    return refusals


def items_with_covariates(study: Study, split: str | None = None) -> list[dict[str, Any]]:
    """Return `items` of a split with each row's other columns under `covariates`.

    They stand apart from `items` because a volume cache takes every field of an item as part of its key: a corrected
    age must not make a bundle that does not look at it prepare the volume again.

    Raises:
        MedvolError: As `medvol.data.table.items`.
    """
    of_case = {case.case: case.covariates for case in study.cases}
    return [{**item, "covariates": dict(of_case[item["case"]])} for item in items(study, split)]


def check_columns(study: Study, columns: Sequence[ColumnFacts], *, may_lack_all: bool = False) -> None:
    """Compare a table with what a model was trained on, by name; say which columns are not looked at.

    Args:
        study: Table to work on.
        columns: Of the model.
        may_lack_all: Whether the model can do without any of them; then a table that has none of them, or a folder of
            images, is warned of. One that has some and lacks others is refused all the same.

    Raises:
        MedvolError: `MISSING_COLUMN` with the nearest name.
    """
    names = dict.fromkeys(name for case in study.cases for name in case.covariates)
    known = {column.name for column in columns}
    if may_lack_all and not known & set(names):
        logger.warning("None of the model's covariates is there: predicted from the images alone")
    else:
        require_columns(columns, names, file=study.source)
    further = [name for name in names if name not in known]
    if further:
        shown = ", ".join(further[:8]) + (" ..." if len(further) > 8 else "")
        logger.info("%d columns are not known to the model and not looked at: %s", len(further), shown)


def _column_names(study: Study) -> list[str]:
    return sorted({name for case in study.cases for name in case.covariates})


def _fitted(name: str, cases: Sequence[Case], *, is_code: bool) -> ColumnFacts | None:
    cells = [case.covariates.get(name) for case in cases]
    filled = [(case.case, cell) for case, cell in zip(cases, cells, strict=True) if not is_missing(cell)]
    has_gaps = len(filled) < len(cells)
    numbers = [as_number(cell) for _, cell in filled]
    known = [number for number in numbers if number is not None]
    if filled and len(known) == len(filled) and not is_code:
        for case, cell in filled:
            if abs(as_number(cell) or 0.0) > LARGEST:  # or its column would be left out, as one of infinite spread
                raise too_large(name, cell, case)
        sd = float(np.std(known)) if len(set(known)) > 1 else 0.0
        return ColumnFacts(name, "number", float(np.mean(known)), sd, float(np.median(known)), has_gaps=has_gaps)
    if not is_code and len(known) >= MOSTLY_NUMBERS * max(1, len(filled)) and filled:
        case, cell = next(one for one, number in zip(filled, numbers, strict=True) if number is None)
        raise MedvolError(
            "BAD_VALUE",
            case=case,
            found=f"column '{name[:40]}' holds '{str(cell)[:30]}'; {len(known)} of {len(filled)} cells are numbers",
            expected="numbers only",
            fix=f"correct or empty the cell, or pass --categorical_columns \"['{name[:40]}']\"",
        )
    if not is_code:
        texts = [str(cell).strip() for _, cell in filled]
        _require_plain(name, texts, _WITH_UNIT, "with a unit", "write the numbers alone")
        _require_plain(name, texts, _WITH_COMMA, "with a comma", "write 1.5 for 1,5 and 1500 for 1,500")
    return _categories(name, [cell for _, cell in filled], has_gaps=has_gaps)


def _require_plain(name: str, cells: Sequence[str], pattern: re.Pattern[str], what: str, fix: str) -> None:
    """Refuse quantities that their spelling has turned into text, which would be left out or taken for categories."""
    measured = [cell for cell in cells if pattern.fullmatch(cell)]
    if len(set(cells)) > FEW_CATEGORIES and len(measured) >= MOSTLY_NUMBERS * len(cells):
        raise MedvolError(
            "BAD_VALUE",
            found=f"column '{name[:40]}' holds '{measured[0][:30]}'; {len(measured)} of {len(cells)} cells are numbers "
            f"{what}",
            expected="numbers only",
            fix=f"{fix}, or exclude the column",
        )


def _categories(name: str, cells: Sequence[Cell], *, has_gaps: bool) -> ColumnFacts | None:
    categories = sorted_classes([class_name(cell) for cell in cells])
    if len(categories) == len(cells) > 2 or (len(categories) <= 1 and not (categories and has_gaps)):
        return None
    if len(categories) > MOST_CATEGORIES:
        raise MedvolError(
            "TOO_MANY_CATEGORIES",
            found=f"column '{name[:40]}' holds {len(categories)} different texts in {len(cells)} training rows",
            expected=f"at most {MOST_CATEGORIES}",
            fix=f"group them, or pass --exclude_columns \"['{name[:40]}']\"",
        )
    return ColumnFacts(name, "category", categories=categories, has_gaps=has_gaps)
