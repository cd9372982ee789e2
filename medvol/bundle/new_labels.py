"""A folder of scans and a table of labels as one case table.

The row of a scan is found by whatever both know: the Patient ID of a DICOM header, its pseudonym and the case name that
`medvol scan --csv` writes, the name of the file, or that of any folder above it. The Patient ID is compared and
forgotten: the table holds the pseudonym.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.data.column_roles import missing_column
from medvol.data.columns import Table, read_delimited
from medvol.data.labels import is_missing
from medvol.data.paths import require_path, resolve, without_suffix
from medvol.data.sources import open_study
from medvol.errors import MedvolError
from medvol.io.atomic import write_text
from medvol.io.dicom_file import dicom_errors
from medvol.io.dicom_scan import TreeScan, scan_tree
from medvol.io.dicom_walk import walk_header
from medvol.io.files import walk_files

IDENTIFIERS = ("case", "patient", "series", "image", "file", "id")
"""Of columns that find equally many scans, the first of these names is taken."""

SHOWN = 6


@dataclass(frozen=True)
class Scan:
    """A volume, and the words by which a row of the table may name it."""

    case: str
    patient: str
    reference: str
    words: frozenset[str]


def write_labelled_table(
    folder: str, labels: str, path: Path, *, label_column: str = "label", series: str = ""
) -> tuple[str, ...]:
    """Write the case table of a folder's scans that a table gives a label to, and return what was assumed.

    Columns of the table besides the label and the one that names the scan become covariates, or `patient` and `split`
    where they are called so.

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
    column = _naming_column(table, label_column, scans)
    rows = _rows_by_word(table, column, label_column)
    found = [(scan, rows[word]) for scan in scans for word in sorted(scan.words & rows.keys())[:1]]
    write_text(path, _written(table, found, path, {"case": column, "label": label_column}))
    used = {id(row) for _, row in found}
    idle = len({id(row) for row in rows.values()} - used)
    notes.append(f"labels of {Path(labels).name}: column '{column}' names {len(found)} of {len(scans)} scans")
    if len(found) < len(scans):
        notes.append(f"{len(scans) - len(found)} scans without a label are left out")
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
    scans = [Scan(case.case, "", case.image[0], _words(case.image[0], folder, case.case)) for case in study.cases]
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
            scans.append(Scan(case, row.patient, reference, _words(reference, folder, case, row.patient, named)))
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


def _words(reference: str, folder: str, *names: str) -> frozenset[str]:
    """Return what may name a scan: names, the folders below the root, the file with and without its ending."""
    path, _, fragment = reference.partition("#")
    below = Path(os.path.relpath(path, folder)).parts
    words = {*names, *below, *(without_suffix(part) for part in below), fragment}
    return frozenset(words - {"", "."})


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


def _naming_column(table: Table, label_column: str, scans: Sequence[Scan]) -> str:
    def rank(name: str) -> tuple[int, int]:
        words = {_word(cell) for cell in table.column(name)}
        plain = name.lower().replace("_", "").replace(" ", "").removesuffix("id").removesuffix("name") or "id"
        place = IDENTIFIERS.index(plain) if plain in IDENTIFIERS else len(IDENTIFIERS)
        return sum(bool(scan.words & words) for scan in scans), -place

    column = max((name for name in table.columns if name != label_column), key=rank, default="")
    if not column or not rank(column)[0]:
        raise MedvolError(
            "NO_MATCH",
            file=table.file,
            found=f"no column names one of {len(scans)} scans",
            expected="Patient IDs, names of folders or files, or the cases of `medvol scan --csv`",
            fix="add a column 'patient' or 'case'",
        )
    return column


def _rows_by_word(table: Table, column: str, label_column: str) -> dict[str, tuple[Any, ...]]:
    """Return the row of each word, rows without a label left out; one word with two labels is refused."""
    rows: dict[str, tuple[Any, ...]] = {}
    name, label = table.columns.index(column), table.columns.index(label_column)
    for row, where in zip(table.rows, table.where, strict=True):
        if is_missing(row[label]) or is_missing(row[name]):
            continue
        known = rows.setdefault(_word(row[name]), row)
        if known[label] != row[label]:
            raise MedvolError(
                "AMBIGUOUS_LABEL",
                file=table.file,
                found=f"{where} gives another label to a scan named before",
                expected="one label for each",
                fix="name the series or the case instead of the patient",
            )
    return rows


def _word(cell: object) -> str:
    """Return a cell as a word: a path's last part without its ending, so that `scans/a.nii.gz` names `a`."""
    text = str(cell).strip().replace("\\", "/").rstrip("/")
    return without_suffix(text.rsplit("/", 1)[-1])


def _written(
    table: Table, found: Sequence[tuple[Scan, tuple[Any, ...]]], path: Path, columns: Mapping[str, str]
) -> str:
    at = {name: index for index, name in enumerate(table.columns)}
    known = {name.lower(): name for name in table.columns if name not in columns.values()}
    split = known.get("split")
    patient = next((name for name in table.columns if name.lower() == "patient"), None)
    kept = [name for name in known.values() if name not in (patient, split)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "image", "label", *(["split"] if split else []), *kept])
    for scan, row in found:
        person = scan.patient or (row[at[patient]] if patient else scan.case)
        label = str(row[at[columns["label"]]]).strip()
        mask = resolve(label, str(table.file.parent))
        label = os.path.relpath(mask, path.parent) if "/" in label and Path(mask).exists() else label
        place, hash_sign, fragment = scan.reference.partition("#")
        image = os.path.relpath(place, path.parent) + hash_sign + fragment
        cells = [scan.case, person, image, label, *([row[at[split]]] if split else [])]
        writer.writerow([*cells, *(("" if is_missing(row[at[name]]) else row[at[name]]) for name in kept)])
    return text.getvalue()
