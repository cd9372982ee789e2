"""Columns that alone give the label away: the diagnosis under another name, or a number taken after it.

A column is told of when it parts the classes of the training rows without one error, which real measurements hardly
ever do: a number whose values of the classes do not overlap, or a category each of whose texts stands with one class.
It is told, not refused, for a perfect measurement is possible.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from medvol.data.column_facts import ColumnFacts
from medvol.data.facts import training_cases
from medvol.data.labels import as_number, class_name, is_missing
from medvol.data.study import Study
from medvol.errors import MedvolError

FEWEST_ROWS = 20
FEWEST_OF_CLASS = 5
"""Five of 20 rows are the largest by chance in 1 of 15,504 columns; of two classes with fewer rows, too often."""


def telltale_columns(study: Study, columns: Sequence[ColumnFacts]) -> list[str]:
    """Return the names of the columns that part the classes of the training rows without an error.

    Args:
        study: Split, with covariates and classes.
        columns: As fitted on the training split.

    Raises:
        MedvolError: `NO_TRAINING_CASES`.
    """
    cases = training_cases(study)
    found = []
    for column in columns:
        rows = [(case.covariates.get(column.name), str(case.label)) for case in cases if case.label is not None]
        filled = [(cell, label) for cell, label in rows if not is_missing(cell)]
        sizes = Counter(label for _, label in filled)
        if len(filled) < FEWEST_ROWS or len(sizes) < 2 or min(sizes.values()) < FEWEST_OF_CLASS:
            continue
        if column.kind == "number":
            told = _parts_numbers([(as_number(cell) or 0.0, label) for cell, label in filled])
        else:
            told = _parts_texts([(class_name(cell), label) for cell, label in filled])
        if told:
            found.append(column.name)
    return found


def telltale(name: str) -> MedvolError:
    """Return what is said of such a column."""
    return MedvolError(
        "LEAK",
        found=f"column '{name[:40]}' alone tells the class of every training row",
        expected="nothing that follows from the label or is known only after it",
        fix=f"if it does, pass --exclude_columns \"['{name[:40]}']\"",
    )


def _parts_numbers(rows: Sequence[tuple[float, str]]) -> bool:
    values: dict[str, list[float]] = defaultdict(list)
    for number, label in rows:
        values[label].append(number)
    spans = sorted((min(numbers), max(numbers)) for numbers in values.values())
    return all(below[1] < above[0] for below, above in pairwise(spans))


def _parts_texts(rows: Sequence[tuple[str, str]]) -> bool:
    # Texts that stand in few rows each, as names of wards in a small study, part the classes by chance.
    texts = {text for text, _ in rows}
    return len(set(rows)) == len(texts) and len(rows) >= FEWEST_OF_CLASS * len(texts)
