"""What is asked of a PACS, and what it answers: from requests to the lists of instances of whole series.

An answer counts only if it repeats what was asked: a PACS that passes over a key it does not know answers with other
patients, whose images nobody asked for.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medvol.errors import MedvolError, nearest
from medvol.io.files import cannot_read, existing

STUDY, SERIES, IMAGE = "STUDY", "SERIES", "IMAGE"
_UID = re.compile(r"[0-9.]{1,64}")
_DATE = re.compile(r"[0-9]{8}|[0-9]{8}-|-[0-9]{8}|[0-9]{8}-[0-9]{8}")
_MODALITY = re.compile(r"[A-Z0-9]{2,16}")
_WILD = re.compile(r"[*?\\]|[\x00-\x1f]")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID")
_EXACT = ("PatientID", "AccessionNumber")
COLUMNS = (*_UIDS, *_EXACT, "StudyDate", "Modality")
_NARROW = (*_UIDS, *_EXACT, "StudyDate")
MANY = 100_000
"""Most studies, series or instances that one answer may list."""

Answer = Mapping[str, str]


class Finder(Protocol):
    """What can be searched: both kinds of PACS."""

    def find(self, level: str, keys: Mapping[str, str], wanted: Sequence[str], expected: int = 0) -> list[Answer]:
        """Return the answers at a level as attributes by keyword, empty where absent."""


@dataclass(frozen=True)
class Request:
    """What to fetch: all given attributes hold at once.

    Args:
        where: Names the request in messages, as `row 3`; its values may tell of a patient.
        keys: Value by keyword, of `COLUMNS`; none empty.

    Raises:
        MedvolError: `BAD_QUERY`.
    """

    where: str
    keys: Mapping[str, str]

    def __post_init__(self) -> None:
        for name, value in self.keys.items():
            if not _is_valid(name, value):
                raise MedvolError(
                    "BAD_QUERY",
                    found=f"{self.where}: a {name} that cannot be asked for",
                    expected="a UID of digits and dots, a date YYYYMMDD or YYYYMMDD-YYYYMMDD, a text without * ? \\",
                )
        if not any(name in self.keys for name in _NARROW):
            raise MedvolError(
                "BAD_QUERY",
                found=f"{self.where}: nothing that narrows the search",
                expected=f"a value of {', '.join(_NARROW)}",
            )


@dataclass(frozen=True)
class RemoteSeries:
    """A series as the PACS lists it.

    Args:
        study: UID of its study.
        series: Its UID.
        modality: As `CT`.
        stated: Number of its instances as the PACS states it; 0 where it does not.
        instances: SOP class by SOP instance UID; a class may be empty.
    """

    study: str
    series: str
    modality: str
    stated: int
    instances: Mapping[str, str]

    @property
    def count(self) -> int:
        """Number of instances that make the series whole."""
        return max(self.stated, len(self.instances))


def is_uid(text: str) -> bool:
    """Tell whether a text can be a UID: nothing but digits and dots, so that it is harmless in a path or an address."""
    return _UID.fullmatch(text) is not None


def uid_request(study: str = "", series: str = "") -> Request:
    """Return the request of one study, or of one series.

    Raises:
        MedvolError: `BAD_QUERY`.
    """
    keys = {"StudyInstanceUID": study.strip(), "SeriesInstanceUID": series.strip()}
    return Request("the command line", {name: value for name, value in keys.items() if value})


def read_requests(path: Path) -> list[Request]:
    """Return the requests of a CSV, one per row; columns are DICOM keywords, empty cells ask for nothing.

    Raises:
        MedvolError: `BAD_QUERY` with the row, `CANNOT_READ`, `NOT_FOUND`.
    """
    existing(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            rows = [row for row in reader]
    except OSError as error:
        raise cannot_read(path, error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise MedvolError(
            "BAD_QUERY", file=path, found="no table that can be read", expected="a CSV in UTF-8"
        ) from error
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or not header:
        raise MedvolError(
            "BAD_QUERY",
            file=path,
            found=f"column '{unknown[0][:40]}'" if unknown else "no header",
            expected=f"columns of {', '.join(COLUMNS)}",
            fix=nearest(unknown[0], COLUMNS) if unknown else "",
        )
    requests = []
    for number, row in enumerate(rows, start=2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) > len(header):
            raise MedvolError("BAD_QUERY", file=path, found=f"row {number} has more cells than the header")
        keys = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
        requests.append(Request(f"row {number}", keys))
    if not requests:
        raise MedvolError("BAD_QUERY", file=path, found="no row", expected="one row per request")
    return requests


def find_series(peer: Finder, request: Request) -> Iterator[RemoteSeries]:
    """Yield the series that a request asks for, each with the list of its instances.

    Raises:
        MedvolError: `NOTHING_FOUND`, `TOO_MANY`, and what the connection meets.
    """
    count = 0
    for study in _studies(peer, request):
        keys = {"StudyInstanceUID": study} if study else {}
        keys |= {name: request.keys[name] for name in ("SeriesInstanceUID", "Modality") if name in request.keys}
        wanted = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances")
        for answer in _answers(peer, SERIES, keys, wanted):
            uid, of_study = answer["SeriesInstanceUID"], answer.get("StudyInstanceUID") or study
            if not is_uid(uid) or not is_uid(of_study):
                continue
            count += 1
            yield _with_instances(peer, of_study, uid, answer)
    if not count:
        raise MedvolError(
            "NOTHING_FOUND",
            found=f"{request.where}: the PACS has no such series",
            fix="check the UIDs; a series may need its StudyInstanceUID beside it",
        )


def _with_instances(peer: Finder, study: str, series: str, answer: Answer) -> RemoteSeries:
    stated = _number(answer.get("NumberOfSeriesRelatedInstances", ""))
    keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    images = _answers(peer, IMAGE, keys, ("SOPInstanceUID", "SOPClassUID"), expected=stated)
    instances = {
        one["SOPInstanceUID"]: one["SOPClassUID"] if is_uid(one.get("SOPClassUID", "")) else ""
        for one in images
        if is_uid(one["SOPInstanceUID"])
    }
    modality = answer.get("Modality", "")
    return RemoteSeries(study, series, modality if _MODALITY.fullmatch(modality) else "", stated, instances)


def _studies(peer: Finder, request: Request) -> list[str]:
    """Return the UIDs of the studies that fit; one empty UID where only a series is named."""
    keys = {name: value for name, value in request.keys.items() if name not in ("SeriesInstanceUID", "Modality")}
    if set(keys) <= {"StudyInstanceUID"}:
        return [request.keys.get("StudyInstanceUID", "")]
    answers = _answers(peer, STUDY, keys, ("StudyInstanceUID", *keys))
    return [one["StudyInstanceUID"] for one in answers if is_uid(one["StudyInstanceUID"])]


def _answers(
    peer: Finder, level: str, keys: Mapping[str, str], wanted: Sequence[str], expected: int = 0
) -> list[Answer]:
    """Return the answers that repeat what was asked for, each UID once."""
    name = {STUDY: "StudyInstanceUID", SERIES: "SeriesInstanceUID", IMAGE: "SOPInstanceUID"}[level]
    found: dict[str, Answer] = {}
    for answer in peer.find(level, keys, tuple(dict.fromkeys((*wanted, *keys))), expected):
        if answer.get(name) and all(_repeats(key, value, answer) for key, value in keys.items()):
            found[answer[name]] = answer
    if len(found) > MANY:
        raise MedvolError(
            "TOO_MANY", found=f"{len(found):,} answers", expected=f"at most {MANY:,}", fix="narrow the search"
        )
    return [found[uid] for uid in sorted(found)]


def _repeats(key: str, asked: str, answer: Answer) -> bool:
    said = answer.get(key, "")
    if not said:
        return key in _UIDS  # the levels above stand in the request, and are compared once more in what arrives
    if key == "StudyDate" and "-" in asked:
        first, _, last = asked.partition("-")
        return first <= said <= (last or "99999999")
    return said == asked


def _is_valid(name: str, value: str) -> bool:
    if name in _UIDS:
        return is_uid(value)
    if name == "StudyDate":
        return _DATE.fullmatch(value) is not None
    if name == "Modality":
        return _MODALITY.fullmatch(value) is not None
    return name in _EXACT and 0 < len(value) <= 64 and not _WILD.search(value)


def _number(text: str) -> int:
    return min(int(text), MANY) if text.isascii() and text.isdigit() and len(text) < 12 else 0
