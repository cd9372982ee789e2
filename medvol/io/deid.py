"""A tree of DICOM files de-identified into another one, file by file, to be taken up again where it stopped.

A result is `pseudonym/study/series/instance.dcm` with hashed UIDs, so nothing of the source's names is left, and its
bytes follow from the source, the key and the options alone. A file that is there already with the same bytes is
finished, or a copy; with other bytes it is refused, since one instance cannot have two contents.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from medvol import __version__
from medvol.errors import MedvolError
from medvol.io.atomic import write_atomically, write_text
from medvol.io.deid_file import Deidentified, DeidOptions, deidentify_file
from medvol.io.deid_key import key_check
from medvol.io.deid_profile import Profile, load_profile
from medvol.io.dicom_header import is_dicom_file
from medvol.io.files import cannot_read, existing, walk_files

RECORD = "deid.json"


@dataclass
class DeidReport:
    """What became of a tree.

    Args:
        written: Files written by this run.
        present: Files that an earlier run wrote, or copies within the source.
        others: Files that are no DICOM, and DICOMDIR.
        swept: Texts that held an identifier although no rule names their attribute.
        series: Folders of the results, relative to the target.
        faces: Those of CT and MR of a head, or of a part of the body that is not stated.
        refused: Why files were left out.
    """

    written: int = 0
    present: int = 0
    others: int = 0
    swept: int = 0
    series: set[PurePosixPath] = field(default_factory=set)
    faces: set[PurePosixPath] = field(default_factory=set)
    refused: list[MedvolError] = field(default_factory=list)

    @property
    def patients(self) -> int:
        """Number of patients with results."""
        return len({series.parts[0] for series in self.series})

    @property
    def studies(self) -> int:
        """Number of studies with results."""
        return len({series.parent for series in self.series})

    @property
    def codes(self) -> Counter[str]:
        """Number of refused files by code."""
        return Counter(one.code for one in self.refused)

    def note(self, result: Deidentified, *, is_new: bool) -> None:
        """Count a result."""
        self.written += is_new
        self.present += not is_new
        self.swept += result.swept
        self.series.add(result.series)
        if result.may_show_face:
            self.faces.add(result.series)


def deidentify_tree(
    source: str | Path, target: str | Path, options: DeidOptions, *, show_progress: bool = True
) -> DeidReport:
    """Write every DICOM object below a folder without what identifies its patient, and `deid.json` beside them.

    Nothing is ever overwritten. A file that cannot be taken is refused by itself; the others go on.

    Args:
        source: A file or a tree, such as the export of a PACS.
        target: Folder of the results: absent, empty, or of an earlier run with the same key and options.
        options: Key, dates, pixels.
        show_progress: Whether to draw a progress bar.

    Raises:
        MedvolError: `NEED_PACKAGE`, `NOT_FOUND`, `FOLDERS_OVERLAP`, `FOLDER_IN_USE`, `OTHER_SETTINGS`, `NO_DICOM`,
            `DISK_FULL`, `CANNOT_WRITE`.
    """
    profile = load_profile()
    source, target = existing(Path(source)), Path(target)
    _require_apart(source, target)
    settings = _settings(options, profile)
    _require_same_settings(target, settings)
    report = DeidReport()
    files = list(walk_files(source)) if source.is_dir() else [source]
    for path in tqdm(files, desc="De-identifying", unit="file", disable=not show_progress):
        result = _attempt(path, options, profile, report)
        if result is None:
            continue
        if not report.series:  # from here on the folder says how it was made, also when this run is interrupted
            write_text(target / RECORD, json.dumps(settings | {"finished": False}, indent=4))
        _keep(result, target, path, report)
    if not (report.series or report.refused):
        raise MedvolError("NO_DICOM", file=source, found=f"{len(files)} files, none of them DICOM")
    if report.series:
        write_text(target / RECORD, json.dumps(settings | {"finished": True} | _counts(report), indent=4))
    return report


def _attempt(path: Path, options: DeidOptions, profile: Profile, report: DeidReport) -> Deidentified | None:
    try:
        if path.name.upper() == "DICOMDIR" or not _looks_like_dicom(path):
            report.others += 1  # an index lists names and folders, and would list what is gone
            return None
        return deidentify_file(path, options, profile)
    except MedvolError as error:
        report.refused.append(error)
        return None


def _looks_like_dicom(path: Path) -> bool:
    try:
        return is_dicom_file(path)
    except OSError as error:
        raise cannot_read(path, error) from error


def _keep(result: Deidentified, target: Path, path: Path, report: DeidReport) -> None:
    place = target / result.place
    if not place.exists():
        write_atomically(place, lambda stream: stream.write(result.data))
        report.note(result, is_new=True)
    elif place.read_bytes() == result.data:
        report.note(result, is_new=False)
    else:
        report.refused.append(
            MedvolError(
                "OTHER_CONTENT",
                file=path,
                found="its SOP Instance UID belongs to a result with other content",
                expected="one content for one instance",
                fix="find out which of the two files is right, or take a new folder",
            )
        )


def _require_apart(source: Path, target: Path) -> None:
    inner, outer = target.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise MedvolError(
            "FOLDERS_OVERLAP",
            file=target,
            found="source and results lie in one folder",
            expected="results outside the source",
            fix="name another folder",
        )


def _settings(options: DeidOptions, profile: Profile) -> dict[str, Any]:
    return {
        "profile": profile.name,
        "dicom_anonymizer": profile.library,
        "medvol": __version__,
        "shift_dates": options.shift_dates,
        "allow_pixels": options.allow_pixels,
        "keep_structure_names": options.keep_structure_names,
        "key_check": key_check(options.key),
    }


def _require_same_settings(target: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder of something else, or of a run whose results this one would not continue."""
    if not target.exists():
        return
    record = target / RECORD
    if not record.is_file():
        if target.is_dir() and not any(target.iterdir()):
            return
        raise MedvolError(
            "FOLDER_IN_USE", file=target, found="it holds something else", expected="an absent or empty folder"
        )
    try:
        before = dict(json.loads(record.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise MedvolError("FOLDER_IN_USE", file=record, found="a record that cannot be read") from error
    free = ("medvol", "allow_pixels")  # which change no result that is there
    other = [name for name, value in settings.items() if name not in free and before.get(name) != value]
    if other:
        raise MedvolError(
            "OTHER_SETTINGS",
            file=target,
            found=f"results made with another {', '.join(other)}".replace("key_check", "key"),
            expected="the settings of the earlier run",
            fix="take a new folder",
        )


def _counts(report: DeidReport) -> dict[str, Any]:
    return {
        "files": report.written + report.present,
        "patients": report.patients,
        "studies": report.studies,
        "series": len(report.series),
        "series_that_may_show_a_face": len(report.faces),
        "texts_swept": report.swept,
        "not_dicom": report.others,
        "refused": dict(sorted(report.codes.items())),
    }
