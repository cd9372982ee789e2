"""The same scan in two splits, found before training and without reading anything twice.

Files that lie in one split, or have a size of their own, are not opened. Of the rest the first and the last 64 KiB are
compared, and only files that agree there are read in full. Rows of a stacked array are compared where it is small.
`medvol check`, which decodes every volume, also finds the same voxels in files that differ, as `.nii` and `.nii.gz`.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from medvol.data.cache_key import ends_of
from medvol.data.same_scans import Scan, is_constant, same_scans, scan_of
from medvol.data.study import Case, Study
from medvol.errors import MedvolError
from medvol.inference.record import file_sha256
from medvol.io.read import read_channels
from medvol.io.reference import Reference, parse_reference, source_files

logger = logging.getLogger(__name__)

MOST_BYTES = 2**30  # of an array whose rows are compared; 0.4 GB in 1600 rows take 1.6 s


class _Source(NamedTuple):
    """An image that is a file of its own: the file with its voxels, and what of it is read."""

    case: Case
    reference: str
    key: str | None
    path: Path


def require_no_leak(study: Study) -> None:
    """Refuse a study with the same file in two splits; log a warning where rows of an array are the same.

    Args:
        study: Opened and split.

    Raises:
        MedvolError: `LEAK`, with the first pair and their number.
    """
    images = [(case, reference) for case in study.cases for reference in case.image]
    if len({case.split for case, _ in images}) < 2:
        return
    refused, told = same_scans([*_files(images), *_rows(images)])
    for refusal in refused:
        raise refusal
    for one in told:
        if one.code == "LEAK":
            logger.warning("%s", one)


def _files(images: Sequence[tuple[Case, str]]) -> Iterator[Scan]:
    """Yield the files that have a twin in another split."""
    files = [source for case, reference in images if (source := _source(case, reference)) is not None]
    looks: tuple[Callable[[_Source], Hashable], ...] = (
        lambda one: (one.key, one.path.stat().st_size),
        lambda one: ends_of(one.path),
        lambda one: file_sha256(one.path),
    )
    groups: list[tuple[Hashable, list[_Source]]] = [(None, files)]
    for look in looks:
        groups = [part for _, group in groups for part in _alike(group, look)]
    for content, group in groups:
        if not _is_constant(group[0].reference):
            yield from (Scan(one.case, one.reference, content) for one in group)


def _alike(sources: Sequence[_Source], look: Callable[[_Source], Hashable]) -> Iterator[tuple[Hashable, list[_Source]]]:
    """Yield groups that look alike and lie in two splits, each with its look."""
    groups: dict[Hashable, list[_Source]] = {}
    for one in sources:
        try:
            groups.setdefault(look(one), []).append(one)
        except OSError:  # whoever reads it refuses it, with its case
            continue
    yield from (part for part in groups.items() if len({one.case.split for one in part[1]}) > 1)


def _source(case: Case, reference: str) -> _Source | None:
    """Return the largest file of an image, as a header may lie beside its voxels; None for a folder or a row."""
    try:
        parts = parse_reference(reference)
        if parts.index is not None or parts.path.is_dir():
            return None
        return _Source(case, reference, parts.key, max(source_files(reference), key=lambda file: file.stat().st_size))
    except (MedvolError, OSError):  # whoever reads it refuses it, with its case
        return None


def _is_constant(reference: str) -> bool:
    try:
        return is_constant(read_channels(reference).array)
    except MedvolError:  # whoever reads it refuses it, with its case
        return True


def _rows(images: Sequence[tuple[Case, str]]) -> Iterator[Scan]:
    """Yield the rows of small arrays, in the order of the study."""
    sizes: dict[tuple[Path, str | None], int] = {}
    for case, reference in images:
        try:
            parts = parse_reference(reference)
            if parts.index is None:
                continue
            array = parts.path, parts.key
            if array not in sizes:
                sizes[array] = _array_bytes(parts)
            if sizes[array] > MOST_BYTES:
                continue
            scan = scan_of(case, reference, read_channels(reference).array)
        except (MedvolError, OSError):  # whoever reads it refuses it, with its case
            continue
        if scan is not None:
            yield scan


def _array_bytes(parts: Reference) -> int:
    """Return the bytes of a stacked array, decompressed."""
    if parts.key is None:
        return parts.path.stat().st_size
    try:
        with zipfile.ZipFile(parts.path) as archive:
            return archive.getinfo(f"{parts.key}.npy").file_size
    except (zipfile.BadZipFile, KeyError):
        return MOST_BYTES + 1
