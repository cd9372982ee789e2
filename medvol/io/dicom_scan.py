"""Every series below a folder in a table, by headers alone: what it is, where it lies, whether it can be read.

Of the patient only a pseudonym appears: a keyed hash of the Patient ID. Without a secret key whoever knows the IDs of a
hospital can find out which one a hash belongs to; with one, only who holds it can.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.errors import MedvolError
from medvol.geometry import spacing_mm
from medvol.io.atomic import write_text
from medvol.io.dicom_file import dicom_errors
from medvol.io.dicom_geometry import Arranged
from medvol.io.dicom_groups import scan
from medvol.io.dicom_select import tag_of
from medvol.io.dicom_series import SeriesInfo, list_series, series_of
from medvol.io.dicom_walk import walk_header
from medvol.io.files import existing
from medvol.io.find import series_places

PATIENT_TAGS = "PatientID", "IssuerOfPatientID", "StudyInstanceUID"

OBLIQUE_COSINE = 0.996  # 5 degrees between the slice normal and the nearest axis of the patient


@dataclass(frozen=True)
class SeriesRow:
    """One series of a tree.

    Args:
        patient: Pseudonym, empty where the header could not be read.
        modality: As `CT`.
        description: Series description, as the scanner's user typed it.
        number: Series number.
        size: Voxels along x, y, z of the first volume; rows and columns alone where there is none.
        spacing_mm: Millimetres between voxel centres of the first volume, empty where there is none.
        orientation: `axial`, `coronal` or `sagittal`, with `oblique` beyond 5 degrees.
        files: Number of files.
        verdict: `ok`, or the code with which reading refuses.
        reason: The refusal, empty for `ok`.
        references: What names each volume that can be read; several when a tag tells them apart.
    """

    patient: str
    modality: str
    description: str
    number: int | None
    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    files: int
    verdict: str
    reason: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class TreeScan:
    """What a folder holds.

    Args:
        rows: One per series, sorted by patient, number and place.
        files: Number of DICOM files with an image.
        skipped: Number of DICOM files without one: reports, structure sets, segmentations.
        others: Number of files that are no DICOM.
    """

    rows: tuple[SeriesRow, ...]
    files: int
    skipped: int
    others: int


def scan_tree(folder: str | os.PathLike[str], *, key: bytes = b"") -> TreeScan:
    """Return the series below a folder; headers only, pixels are compared at repeated positions of one series.

    Args:
        folder: Any tree: one study, or the export of many patients.
        key: Secret of the pseudonyms; the same key gives the same ones.

    Raises:
        MedvolError: `NOT_FOUND`, `CANNOT_READ`, `NO_DICOM` when there is no DICOM file at all, or, for a file by its
            name, why it cannot be read.
    """
    folder = existing(Path(folder))
    found = scan(folder)
    if not folder.is_dir() and found.damaged:
        raise found.damaged[0]
    rows = []
    for info in series_of(found, folder):
        is_folder = folder.is_dir() and (info.uid or len(info.files) > 1)
        places = series_places(info) if is_folder else [(info.files[0], info.verdict)]
        for place, _ in places:
            # A series that was exported twice is read from either of its folders.
            here = info if len(places) == 1 else next(one for one in list_series(place) if one.uid == info.uid)
            rows.append(_row(here, place, key))
    if not rows and not found.skipped:
        raise MedvolError(
            "NO_DICOM",
            file=folder,
            found=f"{found.others} files, none of them DICOM",
            expected="a tree with DICOM files",
        )
    rows.sort(key=lambda row: (row.patient, row.number is None, row.number or 0, row.references, row.reason))
    files = len({one.path for one in found.slices}) + len(found.damaged)
    return TreeScan(tuple(rows), files, len(found.skipped), found.others)


def write_scan(result: TreeScan, path: str | os.PathLike[str]) -> None:
    """Write the rows as JSON, atomically."""
    rows = [
        {name: getattr(row, name) for name in SeriesRow.__dataclass_fields__} | {"references": list(row.references)}
        for row in result.rows
    ]
    facts = {"files": result.files, "skipped": result.skipped, "others": result.others, "series": rows}
    write_text(Path(path), json.dumps(facts, indent=4, ensure_ascii=False))


def write_scan_table(result: TreeScan, path: str | os.PathLike[str]) -> int:
    """Write a case table with a row per volume that can be read, atomically, and return their number.

    Columns are `case`, `patient` and `image`, the last relative to the table. Case names hold no folder names, which
    often are those of patients.

    Raises:
        MedvolError: `NO_VOLUMES` when nothing can be read.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as they are
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "image"])
    taken: dict[str, int] = {}
    for row in result.rows:
        for reference in row.references:
            name = f"{row.patient}_s{row.number or 0}"
            taken[name] = taken.get(name, 0) + 1
            name = name if taken[name] == 1 else f"{name}_{taken[name]}"
            writer.writerow([name, row.patient, os.path.relpath(reference, path.parent)])
    count = sum(taken.values())
    if not count:
        raise MedvolError(
            "NO_VOLUMES",
            file=path,
            found=f"{len(result.rows)} series, none of which can be read",
            expected="at least one volume",
            fix="see the verdicts of the scan",
        )
    write_text(path, text.getvalue())
    return count


def _row(info: SeriesInfo, place: Path, key: bytes) -> SeriesRow:
    volumes = info.volumes
    size: tuple[int, ...] = (info.columns, info.rows) if info.rows else ()
    spacing: tuple[float, ...] = ()
    if volumes:
        arranged = volumes[0][1]
        size = (*size, len(arranged.slices)) if size else (*arranged.slices[0].size[::-1], len(arranged.slices))
        spacing = tuple(round(float(step), 4) for step in spacing_mm(arranged.affine))
    return SeriesRow(
        patient=_pseudonym(info.files[0], key) if info.rows else "",
        modality=info.modality,
        description=info.description,
        number=info.number,
        size=size,
        spacing_mm=spacing,
        orientation=_orientation(volumes[0][1]) if volumes else "",
        files=info.count,
        verdict=info.verdict or "ok",
        reason=str(info.reason) if info.reason else "",
        references=tuple(_reference(place, fragment, len(volumes)) for fragment, _ in volumes),
    )


def _reference(place: Path, fragment: str, volumes: int) -> str:
    """Return what names a volume; a file that holds one needs no fragment, one of several is named by its folder."""
    if place.is_dir():
        return f"{place}#{fragment}" if fragment else str(place)
    return str(place) if volumes == 1 else f"{place.parent}#{fragment}"


def _orientation(arranged: Arranged) -> str:
    first = arranged.slices[0]
    normal = arranged.affine[:3, 2] / spacing_mm(arranged.affine)[2]
    return tag_of(first, "Orientation") + ("" if abs(normal).max() >= OBLIQUE_COSINE else " oblique")


def _pseudonym(path: Path, key: bytes) -> str:
    """Return twelve letters that stand for the patient of a file, or for its study where no patient is named."""
    from pydicom import dcmread

    with dicom_errors(path), path.open("rb") as stream:
        dataset: Any = walk_header(stream, PATIENT_TAGS)
        if dataset is None:
            dataset = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=list(PATIENT_TAGS))
        return pseudonym(identity_of(dataset), key)


def identity_of(dataset: Any) -> str:
    """Return what tells patients apart: Patient ID and its issuer, or the study where no patient is named.

    Args:
        dataset: Of pydicom or a plain header, with `PATIENT_TAGS`.
    """
    patient = str(dataset.get("PatientID") or "").strip()
    if patient:
        return f"{patient}\n{dataset.get('IssuerOfPatientID') or ''}"
    return str(dataset.get("StudyInstanceUID") or "")


def pseudonym(identity: str, key: bytes) -> str:
    """Return twelve letters that stand for a patient; the same key gives the same ones."""
    return hmac.new(b"medvol" + key, identity.encode(), hashlib.sha256).hexdigest()[:12]


def describe_rows(rows: Sequence[SeriesRow]) -> list[tuple[str, ...]]:
    """Return the cells of a table for people, heading first."""
    table: list[tuple[str, ...]] = [
        ("patient", "modality", "series", "description", "size", "spacing mm", "orientation", "files", "verdict")
    ]
    for row in rows:
        several = f" ({len(row.references)} volumes)" if len(row.references) > 1 else ""
        table.append(
            (
                *(row.patient, row.modality, "" if row.number is None else str(row.number), row.description[:24]),
                *("x".join(map(str, row.size)), " ".join(f"{step:.3g}" for step in row.spacing_mm)),
                *(row.orientation, str(row.files), row.verdict + several),
            )
        )
    return table
