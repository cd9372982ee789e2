"""Fetching from a PACS: series arrive whole or not at all, and a pull that was cut short goes on where it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from medvol.errors import MedvolError
from medvol.io.pacs_address import Access
from medvol.io.pacs_query import RemoteSeries, Request, find_series
from medvol.io.pacs_store import SeriesFolder, short_name
from medvol.io.pacs_transfer import PARTIAL, RETRIED, WHOLE, Outcome, Peer, Row, wait

_ENDS_ALL = ("DISK_FULL", "CANNOT_WRITE", "CANNOT_READ", "NEED_PACKAGE")
_ENDS_RUN = (*RETRIED, "NOT_AUTHORISED", "TLS_FAILED")


def pull(
    peer: Peer, requests: Sequence[Request], folder: Path, *, access: Access | None = None, show_progress: bool = False
) -> Outcome:
    """Fetch what is asked for into a folder; instances that lie there to their end are not fetched again.

    The number of files is held against the list of instances and the number that the PACS states. A series that lacks
    one stays staged, and its row says how many are there.

    Raises:
        MedvolError: What prevents the first answer, as `NOTHING_FOUND`, `NOT_AUTHORISED`, `CONNECTION_LOST`; and
            `DISK_FULL` at any time. Whatever meets a later series stands in its row.
    """
    with closing(peer):
        return _pull(peer, requests, folder, Access() if access is None else access, show_progress=show_progress)


def _pull(peer: Peer, requests: Sequence[Request], folder: Path, access: Access, *, show_progress: bool) -> Outcome:
    rows: list[Row] = []
    seen: set[str] = set()
    for index, request in enumerate(requests):
        try:
            for remote in find_series(peer, request):
                if remote.series not in seen:
                    seen.add(remote.series)
                    rows.append(_pull_series(peer, remote, folder, access, show_progress=show_progress))
                    if rows[-1].verdict in _ENDS_RUN:
                        return Outcome(tuple(rows), len(requests) - index - 1)
        except MedvolError as error:
            if error.code in _ENDS_ALL or len(requests) == 1 or (not rows and error.code in _ENDS_RUN):
                raise
            rows.append(Row("", request.where, "", 0, 0, 0, 0, error.code, str(error)))
            if error.code in _ENDS_RUN:
                return Outcome(tuple(rows), len(requests) - index - 1)
    return Outcome(tuple(rows))


def _pull_series(peer: Peer, remote: RemoteSeries, folder: Path, access: Access, *, show_progress: bool) -> Row:
    local = SeriesFolder(folder, remote)
    before = len(remote.instances) - len(local.missing())
    verdict, reason = WHOLE, ""
    with tqdm(
        total=remote.count, initial=before, desc=short_name(remote.series), unit="file", disable=not show_progress
    ) as bar:

        def keep(uid: str, write: Callable[[BinaryIO], object]) -> None:
            local.keep(uid, write)
            bar.update()

        try:
            _fetch(peer, remote, local, keep, access)
        except MedvolError as error:
            if error.code in _ENDS_ALL:
                raise
            verdict, reason = error.code, str(error)
        finally:
            local.sync()
    there = len(remote.instances) - len(local.missing())
    if there == remote.count and there:
        local.finish()
        verdict = WHOLE
    elif verdict == WHOLE:
        verdict = PARTIAL
        reason = f"PARTIAL: {there} of {remote.count} instances arrived; run the same command again for the rest"
    names = short_name(remote.study), short_name(remote.series), remote.modality
    return Row(*names, there - before, before, remote.count, local.bytes, verdict, "" if verdict == WHOLE else reason)


def _fetch(
    peer: Peer,
    remote: RemoteSeries,
    local: SeriesFolder,
    keep: Callable[[str, Callable[[BinaryIO], object]], None],
    access: Access,
) -> None:
    """Ask for what is missing until all is there, or a full round brings nothing new."""
    failures = 0
    missing = local.missing()
    while missing:
        try:
            peer.fetch(remote, missing, keep)
        except MedvolError as error:
            if error.code not in RETRIED:
                raise
            left = local.missing()
            failures = failures + 1 if len(left) == len(missing) else 1  # a try that brought something is no failure
            if failures > access.retries:
                raise
            wait(access, failures)
        else:
            left = local.missing()
            if len(left) == len(missing):
                return
        missing = left
