"""Sending to a PACS in bounded batches. A file counts as sent when the PACS confirms it by its UID.

A journal in each folder, `.pacs/sent_*.jsonl`, remembers what which PACS confirmed, so that a push that was cut short
goes on where it ended. It holds hashes alone. What was deleted in the PACS meanwhile is sent again with `again`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import final

from tqdm import tqdm

from medvol.errors import MedvolError
from medvol.io.dicom_file import dicom_errors
from medvol.io.files import existing, walk_files
from medvol.io.pacs_address import Access, Address
from medvol.io.pacs_query import is_uid
from medvol.io.pacs_store import HIDDEN, append_journal, read_journal, short_name
from medvol.io.pacs_transfer import PARTIAL, WHOLE, Outcome, Outgoing, Peer, Row, retry

BATCH_FILES = 50
BATCH_BYTES = 64 << 20
_TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality")


def push(
    peer: Peer,
    address: Address,
    sources: Sequence[Path],
    *,
    access: Access | None = None,
    again: bool = False,
    show_progress: bool = False,
) -> Outcome:
    """Send files, and all DICOM files below folders; what the journal of a folder knows as sent is passed over.

    Args:
        peer: The PACS.
        address: Where it is, the name under which the journal remembers it.
        sources: Files and folders.
        access: Retries.
        again: Send what the journal knows too.
        show_progress: Whether a bar is shown.

    Raises:
        MedvolError: `NO_DICOM`, `NOT_FOUND`, `CANNOT_READ`, and what prevents the first batch.
    """
    access = Access() if access is None else access
    outgoing, others = collect(sources)
    journal = _Journal(sources, address)
    reasons: dict[str, str] = {}
    before = {one.uid for one in outgoing if not again and journal.knows(one)}
    waiting = [one for one in outgoing if one.uid not in before]
    stopped: MedvolError | None = None
    known, quiet = len(before), not show_progress
    with closing(peer), tqdm(total=len(outgoing), initial=known, desc="Sending", unit="file", disable=quiet) as bar:
        for batch in _batches(waiting):
            try:
                answer = retry(access, partial(peer.send, batch))
            except MedvolError as error:
                if not (reasons or before):
                    raise
                stopped = error
                break
            for one in batch:
                reasons[one.uid] = answer.get(one.uid, "the PACS does not confirm it")
            journal.add([one for one in batch if not reasons[one.uid]])
            bar.update(len(batch))
    rows = tuple(_rows(outgoing, before, reasons, stopped))
    return Outcome(rows, sum(one.uid not in reasons for one in waiting), others)


def collect(sources: Sequence[Path]) -> tuple[list[Outgoing], int]:
    """Return the DICOM files of the sources in the order of their series, each instance once, and the number of others.

    Raises:
        MedvolError: `NO_DICOM`, `NOT_FOUND`, `CANNOT_READ`, `SAME_UID` for two instances of one name.
    """
    found: dict[str, Outgoing] = {}
    others = 0
    for source in sources:
        for path in walk_files(existing(source)) if source.is_dir() else [existing(source)]:
            one = _header(path)
            if one is None:
                others += 1
            elif found.setdefault(one.uid, one) is not one and found[one.uid].path.read_bytes() != path.read_bytes():
                raise MedvolError(
                    "SAME_UID",
                    file=path,
                    found="another content under the SOP instance UID of another file",
                    expected="a UID per instance",
                    fix="a PACS would keep one of them; remove the other",
                    details=(str(found[one.uid].path),),
                )
    if not found:
        raise MedvolError("NO_DICOM", file=sources[0], found=f"{others} files, none of them DICOM that can be sent")
    return sorted(found.values(), key=lambda one: (one.study, one.series, one.path)), others


@final
class _Journal:
    """What was sent, a journal in each folder; single files are always sent.

    Args:
        sources: Files and folders.
        address: The PACS, whose journals are kept apart.
    """

    def __init__(self, sources: Sequence[Path], address: Address) -> None:
        place = address.url or f"{address.title}@{address.host}:{address.port}"
        name = f"sent_{hashlib.sha256(place.encode()).hexdigest()[:16]}.jsonl"
        # In a folder of its own, since other programs stop at a file beside the images that is none.
        self._files = {folder: folder / HIDDEN / name for folder in sources if folder.is_dir()}
        self._sent = {folder: read_journal(path) for folder, path in self._files.items()}

    def knows(self, one: Outgoing) -> bool:
        """Whether this file, with this size, was confirmed."""
        return any(sent.get(short_name(one.uid)) == one.size for sent in self._sent.values())

    def add(self, sent: Sequence[Outgoing]) -> None:
        """Remember files; a folder that may not be written to has no journal."""
        for folder, path in self._files.items():
            with suppress(MedvolError):
                here = [one for one in sent if one.path.is_relative_to(folder)]
                append_journal(path, {short_name(one.uid): one.size for one in here})


def _header(path: Path) -> Outgoing | None:
    """Return what a file is, None for what is no instance of a DICOM series."""
    from pydicom import dcmread

    try:
        with dicom_errors(path):
            dataset = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            sop_class, uid, study, series, modality = (str(dataset.get(name, "")) for name in _TAGS)
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    except MedvolError as refusal:
        if refusal.code != "BAD_DICOM":
            raise
        return None  # junk
    if not all(map(is_uid, (sop_class, uid, study, series, syntax))):
        return None
    return Outgoing(path, path.stat().st_size, study, series, uid, sop_class, syntax, modality[:16])


def _batches(outgoing: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Yield files of one series at a time, bounded in number and bytes; a larger file goes alone."""
    batch: list[Outgoing] = []
    for one in outgoing:
        size = sum(other.size for other in batch) + one.size
        if batch and (len(batch) >= BATCH_FILES or size > BATCH_BYTES or one.series != batch[0].series):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _rows(
    outgoing: Sequence[Outgoing], before: set[str], reasons: dict[str, str], stopped: MedvolError | None
) -> Iterator[Row]:
    by_series: dict[tuple[str, str], list[Outgoing]] = {}
    for one in outgoing:
        by_series.setdefault((one.study, one.series), []).append(one)
    for (study, series), files in by_series.items():
        there = [one for one in files if one.uid in before or reasons.get(one.uid) == ""]
        known = sum(one.uid in before for one in files)
        failed = sorted({reasons[one.uid] for one in files if reasons.get(one.uid)})
        verdict, reason = WHOLE, ""
        if len(there) < len(files):
            verdict = PARTIAL if stopped is None or failed else stopped.code
            why = "; ".join(failed)[:120] if failed or stopped is None else str(stopped)
            reason = f"{len(there)} of {len(files)} instances are there: {why}"
        yield Row(
            short_name(study),
            short_name(series),
            files[0].modality,
            len(there) - known,
            known,
            len(files),
            sum(one.size for one in there),
            verdict,
            reason,
        )
