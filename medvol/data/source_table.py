"""Case tables as CSV, or as JSON rows of the same columns, and plain CSV files of features."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from medvol.data.column_roles import find_column, require_no_hidden_split, split_like
from medvol.data.columns import Table, covariates, read_delimited, require_distinct
from medvol.data.labels import is_missing
from medvol.data.paths import has_image_suffix, resolve
from medvol.data.study import TASKS, Draft, Label, Options, Row
from medvol.errors import MedvolError, nearest

FACTS = ("classes", "task", "laterality_matters", "mask_values")
"""What a JSON table, or the `.study.json` beside a CSV table, may say about the whole study."""


def read_csv(path: Path, options: Options) -> Draft:
    """Read a CSV case table, or a CSV of features when no column holds images.

    What a table cannot say (order of the classes, task, laterality) is taken from `<stem>.study.json` beside it, which
    `medvol.data.table.write_table` writes.
    """
    facts: dict[str, Any] = {}
    sidecar = sidecar_of(path)
    if sidecar.is_file() and options.label_column == "label":  # the facts are those of the column it was written with
        facts = read_json(sidecar)
        if not isinstance(facts, dict):
            raise _bad_json(sidecar, "not an object")
    return draft_of_table(read_delimited(path), options, facts, kind="CSV")


def sidecar_of(table: Path) -> Path:
    """Return where the facts of a CSV table stand."""
    return table.with_name(f"{table.stem}.study.json")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        MedvolError: `BAD_TABLE`.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _bad_json(path, "not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _bad_json(path, f"line {error.lineno} column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise _bad_json(path, "nested too deeply") from None


def read_json_rows(path: Path, document: Any, options: Options) -> Draft:
    """Read a JSON case table: a list of rows, or an object with `cases` and facts of the study."""
    facts: dict[str, Any] = {}
    rows = document
    if isinstance(document, dict):
        rows = document.get("cases")
        facts = {name: value for name, value in document.items() if name != "cases"}
        for name in facts:
            if name not in FACTS and name != "notes":
                raise _bad_json(path, f"unknown key '{name[:40]}'", nearest(name, [*FACTS, "cases"]))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _bad_json(path, "rows that are not objects")
    if not rows:
        raise MedvolError("EMPTY_DATASET", file=path, found="no rows", expected="a row per case")
    flat = [_flatten(row, options.image_column, index, path) for index, row in enumerate(rows)]
    columns = tuple(dict.fromkeys(name for row in flat for name in row))
    require_distinct(columns, path)
    cells = tuple(tuple(row.get(name) for name in columns) for row in flat)
    table = Table(columns, cells, tuple(f"row {index + 1}" for index in range(len(rows))), path)
    return draft_of_table(table, options, facts, kind="JSON")


def draft_of_table(table: Table, options: Options, facts: dict[str, Any], *, kind: str) -> Draft:
    """Return the rows of a table whose columns are named as in a case table.

    Without an image column the other columns are features, and without a label column the last of them is the label.

    Raises:
        MedvolError: `MISSING_COLUMN`, `AMBIGUOUS_COLUMN`, `EMPTY_DATASET`, `BAD_TABLE`.
    """
    if not table.rows:
        raise MedvolError("EMPTY_DATASET", file=table.file, found="a header and no row", expected="a row per case")
    images, image_notes = _image_columns(table, options)
    case, case_notes = find_column(table, "case", "case") if _has_case(table) else (None, ())
    patient, patient_notes = find_column(table, options.patient_column, "patient")
    split, split_notes = find_column(table, options.split_column, "split")
    taken = [*images, *(name for name in (case, patient, split) if name)]
    if split is None:  # before the last column becomes the label
        free = [name for name in table.columns if name not in (*taken, options.label_column)]
        require_no_hidden_split(table, free, options.split_column)
    label, label_notes = _label_column(table, options, taken, has_images=bool(images))
    others = [name for name in table.columns if name not in (*taken, label)]
    if not images and not others:
        raise MedvolError(
            "MISSING_COLUMN",
            file=table.file,
            found="neither an image nor a feature",
            expected="at least one more column",
        )
    folder = str(table.file.parent)
    features = covariates(table, others)
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    rows = tuple(
        Row(
            image=_images([cell[name] for name in images], folder, where, table, options),
            label=cell[label] if label else None,
            case=_text(cell[case]) if case else None,
            patient=_text(cell[patient]) if patient else None,
            split=_text(cell[split]) if split else None,
            covariates=values,
            where=where,
        )
        for cell, values, where in zip(cells, features, table.where, strict=True)
    )
    notes_on_others = (
        *_identifiers(features, patient),
        *(
            f"column '{name}' holds only words for splits, but was read as a covariate"
            for name in split_like(table, others)
        ),
    )
    read_as = f"{kind} case table" if images else f"{kind} of {len(others)} features"
    notes = (
        f"read as: {read_as}",
        *table.notes,
        *image_notes,
        *case_notes,
        *patient_notes,
        *split_notes,
        *label_notes,
        *notes_on_others,
    )
    return Draft(
        rows=rows,
        source=str(table.file),
        folder=folder,
        channels=tuple(_channel(name) for name in images),
        notes=notes,
        **_checked_facts(facts, table.file),
    )


def _has_case(table: Table) -> bool:
    # `cause` or `cases_per_year` are features; only a name that means `case` counts, never a near miss.
    return any(
        name.lower().replace("_", "").replace(" ", "") in ("case", "caseid", "casename") for name in table.columns
    )


def _identifiers(features: list[dict[str, str | float | None]], patient: str | None) -> list[str]:
    """Return a sentence for each covariate that looks like an identifier rather than a feature."""
    notes = []
    for name in features[0]:
        values = [row[name] for row in features]
        distinct = len(set(values))
        if name.lower().endswith("id") and patient is None and 1 < distinct < len(values):
            notes.append(f"column '{name}' repeats: if it names patients, rename it to 'patient'")
        elif distinct == len(values) > 2 and all(isinstance(value, str) for value in values):
            notes.append(
                f"column '{name}' is text that differs in every row: taken for an identifier, not for a feature"
            )
    return notes


def _image_columns(table: Table, options: Options) -> tuple[list[str], tuple[str, ...]]:
    if not options.image_column:
        return [], ()
    channels = [name for name in table.columns if name.startswith(f"{options.image_column}:")]
    if channels:
        return channels, ()
    name, notes = find_column(table, options.image_column, "image")
    if name:
        return [name], notes
    for candidate in table.columns:
        filled = [str(cell) for cell in table.column(candidate) if not is_missing(cell)]
        if filled and candidate != options.label_column and all(has_image_suffix(cell) for cell in filled):
            raise MedvolError(
                "MISSING_COLUMN",
                file=table.file,
                found=f"no column 'image', but '{candidate[:40]}' holds file names",
                fix="add a first line that names the columns, this one 'image'"
                if has_image_suffix(candidate)
                else "rename it to 'image'",
                details=table.columns,
            )
    return [], ()


def _label_column(
    table: Table, options: Options, taken: list[str], *, has_images: bool
) -> tuple[str | None, tuple[str, ...]]:
    wanted = options.label_column
    if not options.require_label:
        # A table to predict on need not have the column that the model was trained on.
        present = wanted in table.columns
        return (wanted, ()) if present else find_column(table, "label" if wanted else "", "label")
    if has_images:
        return find_column(table, wanted, "label", optional=False)
    rest = [name for name in table.columns if name not in taken]
    if wanted == "label" and wanted not in rest and rest and get_close_matches("label", [rest[-1].lower()], cutoff=0.8):
        return rest[-1], (f"the last column, '{rest[-1]}', read as the label",)
    name, notes = find_column(table, wanted, "label")
    if name or not wanted or not rest:
        return name, notes
    return rest[-1], (f"no column 'label': the last column, '{rest[-1]}', is the label",)


def _channel(column: str) -> str:
    return column.partition(":")[2] or "image"


def _images(cells: list[Label], folder: str, where: str, table: Table, options: Options) -> tuple[str, ...]:
    missing = [is_missing(cell) for cell in cells]
    if all(missing) and not options.require_image:
        return ()
    if any(missing):
        raise MedvolError(
            "MISSING_FILE",
            file=table.file,
            found=f"{where} names no image",
            expected="a path",
            fix="fill or remove the row",
        )
    return tuple(resolve(str(cell), folder) for cell in cells)


def _text(cell: Label) -> str | None:
    if is_missing(cell):
        return None
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _flatten(row: dict[str, Any], image_column: str, index: int, path: Path) -> dict[str, Label]:
    flat: dict[str, Label] = {}
    for name, value in row.items():
        if name == image_column and isinstance(value, list):
            flat |= {f"{name}:{position}": item for position, item in enumerate(value)}
        elif name == image_column and isinstance(value, dict):
            flat |= {f"{name}:{channel}": item for channel, item in value.items()}
        elif value is None or isinstance(value, str | int | float):
            flat[name] = str(value) if isinstance(value, bool) else value
        else:
            raise _bad_json(
                path, f"row {index + 1}: '{name[:40]}' is a {type(value).__name__}", "write text or a number"
            )
    return flat


def _checked_facts(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    classes, task, laterality, mask_values = (facts.get(name) for name in FACTS)
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise _bad_json(path, "classes that are not a list of texts")
    if task is not None and task not in TASKS:
        raise _bad_json(path, f"task '{task}'", nearest(str(task), TASKS))
    if laterality is not None and not isinstance(laterality, bool):
        raise _bad_json(path, f"laterality_matters {laterality!r}", "write true or false")
    whole = isinstance(mask_values, list) and all(type(one) is int and one >= 0 for one in mask_values)
    if mask_values is not None and not (whole and len(mask_values) == len(classes or ())):
        raise _bad_json(path, "mask_values that are not a whole number for each of the classes")
    return {
        "classes": tuple(classes or ()),
        "task": task,
        "laterality_matters": laterality,
        "mask_values": tuple(mask_values or ()),
    }


def _bad_json(path: Path, found: str, fix: str = "") -> MedvolError:
    return MedvolError(
        "BAD_TABLE", file=path, found=found[:120], expected="a case table as JSON", fix=fix or "correct the file"
    )
