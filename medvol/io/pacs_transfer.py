"""What both directions share: the kinds of PACS behind one face, retries, and the rows of the closing table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from medvol.errors import MedvolError
from medvol.io.pacs_address import WEB, Access, Address
from medvol.io.pacs_query import Finder, RemoteSeries

WHOLE, PARTIAL = "whole", "PARTIAL"
RETRIED = ("CONNECTION_LOST", "SERVER_ERROR")
INSTANCE_LIMIT = 2 << 30
"""Most bytes of one instance; the largest real ones, enhanced or segmentations, have some hundred megabytes."""
ANSWER_LIMIT = 1 << 28
"""Most bytes of one list; 100,000 instances take about 100 megabytes of JSON."""

Keep = Callable[[str, Callable[[BinaryIO], object]], None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outgoing:
    """A file that is to be sent.

    Args:
        path: Where it is.
        size: In bytes.
        study: UID of its study.
        series: UID of its series.
        uid: Its SOP instance UID.
        sop_class: UID of its kind.
        syntax: UID of its transfer syntax.
        modality: As `CT`.
    """

    path: Path
    size: int
    study: str
    series: str
    uid: str
    sop_class: str
    syntax: str
    modality: str


class Peer(Finder, Protocol):
    """A PACS, by DICOMweb or by DICOM's own protocol."""

    def fetch(self, remote: RemoteSeries, wanted: Sequence[str], keep: Keep) -> None:
        """Hand the wanted instances of a series to `keep`, as many as the PACS gives."""

    def send(self, batch: Sequence[Outgoing]) -> Mapping[str, str]:
        """Send files; return the reason by SOP instance UID, empty for those that the PACS confirms."""

    def close(self) -> None:
        """Close connections that are kept alive; a later request opens its own."""


@dataclass(frozen=True)
class Row:
    """What became of one series.

    Args:
        study: Short name of the study, as of its folder.
        series: Short name of the series.
        modality: As `CT`.
        moved: Instances transferred now.
        before: Instances that were there already.
        expected: Instances that make it whole.
        bytes: Of what is there now.
        verdict: `whole`, `PARTIAL`, or the code of what stopped it.
        reason: One line for a verdict other than `whole`.
    """

    study: str
    series: str
    modality: str
    moved: int
    before: int
    expected: int
    bytes: int
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of all that was asked for.

    Args:
        rows: One per series.
        untried: Requests or files that were not tried, after the connection was lost for good.
        others: Files that are no DICOM.
    """

    rows: tuple[Row, ...]
    untried: int = 0
    others: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether everything arrived."""
        return not self.untried and all(row.verdict == WHOLE for row in self.rows)


def connect(address: Address, access: Access) -> Peer:
    """Return the PACS at an address; nothing is sent yet.

    Raises:
        MedvolError: `NEED_PACKAGE` without the extra `net`, and what the credentials and certificates meet.
    """
    if address.kind == WEB:
        from medvol.io.pacs_web import WebPeer

        return WebPeer(address, access)
    from medvol.io.pacs_dimse import DimsePeer

    return DimsePeer(address, access)


def retry(access: Access, action: Callable[[], Result]) -> Result:
    """Return what an action returns, trying again after a dropped connection or a failure of the server.

    Raises:
        MedvolError: The last refusal, after `access.retries` further tries.
    """
    failures = 0
    while True:
        try:
            return action()
        except MedvolError as error:
            failures += 1
            if error.code not in RETRIED or failures > access.retries:
                raise
            wait(access, failures)


def wait(access: Access, failures: int) -> None:
    """Wait longer after each failure: 1, 2, 4, ... seconds."""
    time.sleep(access.first_wait_s * 2 ** (failures - 1))


def describe_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """Return the cells of a table for people, heading first."""
    table: list[tuple[str, ...]] = [("study", "series", "modality", "files", "now", "MB", "verdict")]
    for row in outcome.rows:
        files = f"{row.moved + row.before}/{row.expected}"
        size = f"{row.bytes / 1e6:,.1f}"
        table.append((row.study, row.series, row.modality, files, str(row.moved), size, row.verdict))
    return table
