"""A folder of scans and a table of labels as one case table.

The row of a scan is found by what both know: the Patient ID of a DICOM header, its pseudonym and the case name that
`medvol scan --csv` writes, the path, the name of the file, or that of a folder above it. For all scans it is one kind
of word, see `medvol.bundle.new_matching`. The Patient ID is compared and forgotten: the table holds the pseudonym.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvol.bundle.new_matching import PATH, Found, Scan, deciding_kind, find_rows, names_of, word_of
from medvol.data.column_roles import find_column, missing_column, patient_columns
from medvol.data.columns import Table, read_delimited
from medvol.data.labels import is_missing
from medvol.data.paths import require_path, resolve
from medvol.data.sources import open_study
from medvol.data.table import covariate_column
from medvol.errors import MedvolError
from medvol.io.atomic import write_text
from medvol.io.dicom_file import dicom_errors
from medvol.io.dicom_scan import TreeScan, scan_tree
from medvol.io.dicom_walk import walk_header
from medvol.io.files import walk_files

IDENTIFIERS = ("case", "patient", "series", "image", "file", "id")
"""Of columns that find equally many scans, the first of these names is taken."""

SHOWN = 6


def write_labelled_table(
    folder: str, labels: str, path: Path, *, label_column: str = "label", series: str = ""
) -> tuple[str, ...]:
    """Write the case table of a folder's scans that a table gives a label to, and return what was assumed.

    Columns of the table besides the label and the one that names the scan become covariates, or `patient` and `split`
    where they are called so; a further `case`, `image` or `label` becomes `covariate_<name>`. Without a column of
    patients the scans that one row names are of one patient. Of DICOM the headers say who the patients are, and columns
    of the table that name them are left out.

    Args:
        folder: Tree of DICOM files, or folder of volumes.
        labels: CSV with a column that names a scan, its patient or its folder, and a column of labels.
        path: Case table to write.
        label_column: Column of the label.
        series: Text that the description of a DICOM series must hold; empty for every series.

    Raises:
        MedvolError: `NOT_FOUND`, `MISSING_COLUMN`, `NO_MATCH`, `AMBIGUOUS_LABEL`, `NO_VOLUMES`, or what reading finds.
    """
    table = read_delimited(require_path(labels))
    if label_column not in table.columns:
        raise missing_column(table, label_column)
    scans, notes = _scans(folder, series)
    by_header = all(scan.patient for scan in scans)
    patient, read_as = (None, ()) if by_header else find_column(table, "patient", "patient")
    left_out = patient_columns(table) if by_header else []
    split = next((name for name in table.columns if name.lower() == "split"), None)
    given = [label_column, *(name for name in (patient, split) if name)]
    column, found, rows = _naming_column(table, label_column, scans, given)
    named = [(scans[scan], table.rows[several[0]]) for scan, several in sorted(found.rows.items())]
    roles = {"case": column, "label": label_column, "patient": patient, "split": split}
    write_text(path, _written(table, named, path, roles, left_out))
    idle = len(rows - found.found)
    notes += read_as
    notes.append(f"labels of {Path(labels).name}: column '{column}' names {len(named)} of {len(scans)} scans")
    notes.append(f"scans are named by the {found.kind}" + ", the same in several folders" * found.scattered)
    if len(named) < len(scans):
        notes.append(f"{len(scans) - len(named)} scans without a label are left out")
    if idle:
        notes.append(f"{idle} rows of {Path(labels).name} name no scan of this folder")
    return tuple(notes)


def _scans(folder: str, series: str) -> tuple[list[Scan], list[str]]:
    try:
        tree = scan_tree(folder)
    except MedvolError as refusal:
        if refusal.code != "NO_DICOM":
            raise
        tree = TreeScan((), 0, 0, 0)
    if tree.rows:
        return _dicom_scans(tree, folder, series)
    study = open_study(folder, task="unlabelled", require_label=False)
    scans = [
        Scan(case.case, "", case.image[0], names_of(case.image[0], folder, {"case name": case.case}))
        for case in study.cases
    ]
    return scans, [note for note in study.notes if note.startswith("read as")]


def _dicom_scans(tree: TreeScan, folder: str, series: str) -> tuple[list[Scan], list[str]]:
    chosen = [row for row in tree.rows if series.lower() in row.description.lower()]
    taken: Counter[str] = Counter()
    scans, patients = [], _patient_ids(folder)
    for row in chosen:
        for reference in row.references:
            case = f"{row.patient}_s{row.number or 0}"
            taken[case] += 1
            case = case if taken[case] == 1 else f"{case}_{taken[case]}"
            place, _, fragment = reference.partition("#")
            named = patients.get(fragment.partition(";")[0]) or patients.get(place, "")
            header = {"Patient ID": named, "pseudonym": row.patient, "case name": case}
            scans.append(Scan(case, row.patient, reference, names_of(reference, folder, header)))
    kinds = Counter(row.description or "no description" for row in chosen if row.references)
    shown = ", ".join(f"'{name}' ({count})" for name, count in kinds.most_common(SHOWN))
    unread = sum(not row.references for row in chosen)
    if not scans:
        described = sorted({row.description for row in tree.rows})
        raise MedvolError(
            "NO_VOLUMES",
            file=folder,
            found=f"{len(tree.rows)} series, {len(chosen)} with '{series}' in the description, none readable"
            if series
            else f"{len(tree.rows)} series, none of which can be read",
            expected="at least one volume",
            fix="`medvol scan` says why",
            details=described,
        )
    notes = [f"read as: DICOM tree of {len(chosen)} series of {len({row.patient for row in chosen})} patients"]
    if unread:
        notes.append(f"{unread} series cannot be read and are left out; `medvol scan` says why")
    if len(scans) > len({scan.patient for scan in scans}) and len(kinds) > 1:
        notes.append(f"patients have several series: {shown}; --series TEXT keeps those whose description holds it")
    return scans, notes


def _patient_ids(folder: str) -> dict[str, str]:
    """Return the Patient ID of every series and every file, which go no further than the comparison with the table."""
    from pydicom import dcmread

    tags = ["PatientID", "SeriesInstanceUID"]
    known: dict[str, str] = {}
    for file in walk_files(Path(folder)):
        try:
            with dicom_errors(file), file.open("rb") as stream:
                header: Any = walk_header(stream, tags)
                if header is None:
                    header = dcmread(stream, stop_before_pixels=True, specific_tags=list(tags))
                patient = str(header.get("PatientID") or "").strip()
                series = str(header.get("SeriesInstanceUID") or "")
        except MedvolError:
            continue  # no DICOM, or named as unreadable by the scan
        known[str(file)] = patient
        known.setdefault(series, patient)
    return known


def _naming_column(
    table: Table, label_column: str, scans: Sequence[Scan], given: Sequence[str]
) -> tuple[str, Found, frozenset[int]]:
    """Return the column that names the most scans, what it finds, and the rows that could name any.

    Rows without a label are left out. A column with paths of scans goes before others; of columns that find equally
    many, one whose words are clear does.

    Args:
        table: Of labels.
        label_column: Its column of the label.
        scans: What is to be named.
        given: Columns of which rows with one word must give a scan the same.
    """
    at = [table.columns.index(name) for name in given]

    def same(one: int, other: int) -> bool:
        return all(table.rows[one][index] == table.rows[other][index] for index in at)

    labelled = [row for row, cell in enumerate(table.column(label_column)) if not is_missing(cell)]
    found: dict[str, list[Found]] = {}
    for name in table.columns:
        cells = table.column(name)
        named = [(row, cells[row]) for row in labelled if not is_missing(cells[row])]
        if name != label_column and (kinds := find_rows(named, scans, same)):
            found[name] = kinds
    if not found:
        raise MedvolError(
            "NO_MATCH",
            file=table.file,
            found=f"no column names one of {len(scans)} scans",
            expected="Patient IDs, names of folders or files, or the cases of `medvol scan --csv`",
            fix="add a column 'patient' or 'case'",
        )
    decided: dict[str, Found | MedvolError] = {}
    for name, kinds in found.items():
        try:
            decided[name] = deciding_kind(kinds, scans, table)
        except MedvolError as refusal:
            decided[name] = refusal

    def rank(name: str) -> tuple[bool, int, bool, int]:
        plain = name.lower().replace("_", "").replace(" ", "").removesuffix("id").removesuffix("name") or "id"
        place = IDENTIFIERS.index(plain) if plain in IDENTIFIERS else len(IDENTIFIERS)
        best = decided[name]
        most = len(best.rows) if isinstance(best, Found) else max(len(one.rows) for one in found[name])
        return found[name][0].kind == PATH, most, isinstance(best, Found), -place

    column = max(found, key=rank)
    best = decided[column]
    if isinstance(best, MedvolError):
        raise best
    cells = table.column(column)
    return column, best, frozenset(row for row in labelled if not is_missing(cells[row]))


def _written(
    table: Table,
    found: Sequence[tuple[Scan, tuple[Any, ...]]],
    path: Path,
    roles: Mapping[str, str | None],
    left_out: Sequence[str],
) -> str:
    at = {name: index for index, name in enumerate(table.columns)}
    case, label_column, patient, split = (roles[role] or "" for role in ("case", "label", "patient", "split"))
    kept = [name for name in table.columns if name not in (case, label_column, patient, split, *left_out)]
    times = Counter(id(row) for _, row in found)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "image", "label", *(["split"] if split else []), *map(covariate_column, kept)])
    for scan, row in found:
        shared = word_of(row[at[case]]) if times[id(row)] > 1 else scan.case
        person = scan.patient or (row[at[patient]] if patient else shared)
        label = str(row[at[label_column]]).strip()
        mask = resolve(label, str(table.file.parent))
        label = os.path.relpath(mask, path.parent) if "/" in label and Path(mask).exists() else label
        place, hash_sign, fragment = scan.reference.partition("#")
        image = os.path.relpath(place, path.parent) + hash_sign + fragment
        cells = [scan.case, person, image, label, *([row[at[split]]] if split else [])]
        writer.writerow([*cells, *(("" if is_missing(row[at[name]]) else row[at[name]]) for name in kept)])
    return text.getvalue()
