"""From label cells to a task, class names and values.

Rules, in this order: a task that is given holds; cells that end like image files, or are paths that exist, are masks;
classes that are given mean classification; numbers are classes when they are whole, of at most 20 kinds and on average
at least two cases each, else they are regressed; anything else is a class name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medvol.data.paths import has_image_suffix, resolve
from medvol.data.study import Draft, Label, Options, Row, Task
from medvol.errors import MedvolError, nearest

MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "?"})
"""Cells that mean "nothing here", in lower case. `none` is not among them: it is a frequent class name."""

MOST_NUMBER_CLASSES = 20
"""Whole numbers of more kinds than this are a quantity (age, score), not classes."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Labels:
    """The settled labels of a study, one value per row in the same order."""

    task: Task
    values: tuple[Label, ...]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def is_missing(value: object) -> bool:
    """Tell whether a cell is empty: None, NaN, or a text that spreadsheets write for nothing."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in MISSING)


def as_number(value: object) -> float | None:
    """Return a cell as a finite number, or None when it is text."""
    if isinstance(value, bool | int | float):
        number = float(value)
        return number if abs(number) < float("inf") else None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number = float(value)
        return number if abs(number) < float("inf") else None
    return None


def class_name(value: object) -> str:
    """Return the name of a class: whole numbers without a point (`1.0` is `1`), text as it stands."""
    number = as_number(value)
    if number is None or isinstance(value, bool):
        return str(value).strip()
    return str(int(number)) if number.is_integer() else repr(number)


def sorted_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Return distinct class names: in numeric order when all are numbers, else alphabetically."""
    distinct = set(names)
    numbers = {name: as_number(name) for name in distinct}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(distinct, key=lambda name: numbers[name] or 0.0))
    return tuple(sorted(distinct))


def settle_labels(draft: Draft, names: Sequence[str], options: Options, exists: Callable[[str], bool]) -> Labels:
    """Infer or apply the task and turn every cell into its value.

    Args:
        draft: Rows as read.
        names: Case name of each row, for messages.
        options: Task and classes as given by the user.
        exists: Tells whether a reference names something.

    Raises:
        MedvolError: `BAD_LABEL` for cells that do not fit the task, `UNKNOWN_LABEL` for a class that is not declared.
    """
    rows = draft.rows
    cells: list[Label] = [None if is_missing(row.label) else row.label for row in rows]
    present = [(name, row, cell) for name, row, cell in zip(names, rows, cells, strict=True) if cell is not None]
    declared = options.classes or draft.classes
    task = options.task or draft.task
    if not present or task == "unlabelled":
        return Labels("unlabelled", (None,) * len(rows), declared)
    notes: tuple[str, ...] = ()
    if task is None:
        task, notes = _guess(draft, present, declared, exists)
    if task == "regression":
        return Labels(
            task, tuple(_regressed(name, cell, draft) for name, cell in zip(names, cells, strict=True)), (), notes
        )
    if task == "segmentation":
        masks = (_mask(name, cell, draft) for name, cell in zip(names, cells, strict=True))
        return Labels(task, tuple(masks), declared, notes)
    found = [None if cell is None else class_name(cell) for cell in cells]
    classes = declared or sorted_classes([name for name in found if name is not None])
    for name, value in zip(names, found, strict=True):
        if value is not None:
            require_class(value, classes, case=name, file=draft.source)
    _check_spelling(classes, draft.source)
    return Labels("classification", tuple(found), classes, notes)


def require_class(value: str, classes: Sequence[str], *, case: str, file: str) -> None:
    """Raise `UNKNOWN_LABEL` when a label is not among the classes."""
    if value in classes:
        return
    shown = ", ".join(classes[:8]) + (f" ... ({len(classes)} classes)" if len(classes) > 8 else "")
    raise MedvolError(
        "UNKNOWN_LABEL",
        case=case,
        file=file,
        found=f"label '{value[:40]}'",
        expected=f"one of: {shown}",
        fix=nearest(value, classes) or "correct the label, or declare the class",
    )


def _guess(
    draft: Draft, present: Sequence[tuple[str, Row, Label]], declared: Sequence[str], exists: Callable[[str], bool]
) -> tuple[Task, tuple[str, ...]]:
    masks = [_is_mask(cell, draft.folder, exists) for _, _, cell in present]
    if all(masks):
        return "segmentation", ()
    if declared:
        return "classification", ()
    if any(masks):
        name, _, cell = present[masks.index(False)]
        found = f"label '{str(cell)[:40]}' among {sum(masks)} labels that are mask files"
        raise _bad_label(draft, name, found, "one kind of label", "correct it")
    numbers = [as_number(cell) for _, _, cell in present if not isinstance(cell, bool)]
    distinct = {class_name(cell) for _, _, cell in present}
    if all(number is not None for number in numbers) and numbers:
        whole = all(number.is_integer() for number in numbers if number is not None)
        few = len(distinct) <= 2 or (len(distinct) <= MOST_NUMBER_CLASSES and 2 * len(distinct) <= len(present))
        kind = f"{len(distinct)} distinct {'whole ' if whole else ''}numbers in {len(present)} labels"
        if whole and few:
            return "classification", (f"labels are {kind}: read as classes",)
        return "regression", (f"labels are {kind}: read as a quantity, not as classes",)
    if len(distinct) > MOST_NUMBER_CLASSES and 2 * len(distinct) > len(present):
        name, _, cell = present[0]
        found = f"{len(distinct)} different texts in {len(present)} labels, such as '{str(cell)[:30]}'"
        raise _bad_label(draft, name, found, "class names", "check the label column")
    return "classification", ()


def _is_mask(cell: Label, folder: str, exists: Callable[[str], bool]) -> bool:
    # A bare word may also be a folder beside the table (`benign/`), so only something with a separator is looked up.
    if not isinstance(cell, str) or as_number(cell) is not None:
        return False
    return has_image_suffix(cell) or (("/" in cell or "\\" in cell) and exists(resolve(cell, folder)))


def _regressed(name: str, cell: Label, draft: Draft) -> float | None:
    number = as_number(cell)
    if cell is not None and number is None:
        raise _bad_label(draft, name, f"label '{str(cell)[:40]}'", "a finite number to regress", "correct the label")
    return number


def _mask(name: str, cell: Label, draft: Draft) -> str | None:
    if cell is not None and not isinstance(cell, str):
        raise _bad_label(draft, name, f"label {cell}", "the path of a mask", "correct the label, or the task")
    return None if cell is None else resolve(cell, draft.folder)


def _check_spelling(classes: Sequence[str], file: str) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise MedvolError(
                "UNKNOWN_LABEL",
                file=file,
                found=f"classes '{other}' and '{name}' differ only in capitals",
                expected="one spelling per class",
                fix="correct the labels",
            )


def _bad_label(draft: Draft, name: str, found: str, expected: str, fix: str) -> MedvolError:
    return MedvolError("BAD_LABEL", case=name, file=draft.source, found=found, expected=expected, fix=fix)
