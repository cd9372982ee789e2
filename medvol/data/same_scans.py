"""The same scan under two names: trained on under one and measured on under the other, it makes numbers too good.

Scans are the same when their voxels are. What has no contrast, as an empty picture, equals others for another reason
and does not count; nor does one reference in two cases, which the checks of the case table refuse. Rows of a stacked
array are only told: published sets hold equal ones on both sides of their official split, as BreastMNIST does (`train`
row 115 and `test` row 76, with different labels), and have to stay usable.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.data.study import Case
from medvol.errors import MedvolError
from medvol.io.reference import parse_reference

SHOWN = 10  # pairs listed in `details` before the rest is only counted


@dataclass(frozen=True)
class Scan:
    """An image of a case, known by its content.

    Args:
        case: Whose it is.
        reference: What was read.
        content: Digest that equal scans share.
    """

    case: Case
    reference: str
    content: Hashable

    @property
    def words(self) -> str:
        """Case, split and file, for a message."""
        split = f" of {self.case.split}" if self.case.split else ""
        return f"case {self.case.case[:40]}{split} ({Path(self.reference).name[-40:]})"


def is_constant(voxels: npt.NDArray[Any]) -> bool:
    """Tell whether all voxels are equal."""
    return bool(voxels.size) and bool((voxels == voxels.flat[0]).all())


def is_row(reference: str) -> bool:
    """Tell whether a reference names a row of a stacked array."""
    return parse_reference(reference).index is not None


def scan_of(case: Case, reference: str, voxels: npt.NDArray[Any]) -> Scan | None:
    """Return a scan known by shape, type and bytes of its voxels; None for one without contrast."""
    if is_constant(voxels):
        return None
    digest = hashlib.blake2b(f"{voxels.shape} {voxels.dtype.str}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(voxels).data)
    return Scan(case, reference, digest.digest())


def same_scans(scans: Iterable[Scan]) -> tuple[list[MedvolError], list[MedvolError]]:
    """Return what is to be refused of scans that are the same, and what is to be told.

    `LEAK` is of files in two splits, or told of rows in two; `SAME_SCAN` is told of those within one split, where a
    patient may count twice.
    """
    by_content: dict[Hashable, dict[str, Scan]] = {}
    for scan in scans:
        by_content.setdefault(scan.content, {}).setdefault(scan.reference, scan)
    groups = [list(group.values()) for group in by_content.values()]
    groups = [group for group in groups if len({scan.case.case for scan in group}) > 1]
    across = [group for group in groups if len({scan.case.split for scan in group}) > 1]
    within = [group for group in groups if len({scan.case.split for scan in group}) == 1]
    rows = [group for group in across if any(is_row(scan.reference) for scan in group)]
    files = [group for group in across if group not in rows]
    one_side = "keep one of each pair, or give both the same patient and the same split"
    refused = [_finding("LEAK", files, one_side)] if files else []
    told = [_finding("LEAK", rows, "what is measured on them is too good; " + one_side)] if rows else []
    if within:
        told.append(_finding("SAME_SCAN", within, "keep one of each pair, or give both the same patient"))
    return refused, told


def _finding(code: str, groups: Sequence[Sequence[Scan]], fix: str) -> MedvolError:
    first, second = _pair(groups[0])
    here = f"here in {second.case.split}, " if second.case.split else ""
    pairs = sum(_count_pairs(group) for group in groups)
    return MedvolError(
        code,
        case=second.case.case,
        file=second.reference,
        found=f"{here}the same scan as {first.words}; {pairs} such pair{'s' * (pairs > 1)}",
        fix=fix,
        details=[" and ".join(scan.words for scan in _pair(group)) for group in groups[:SHOWN]],
    )


def _pair(group: Sequence[Scan]) -> tuple[Scan, Scan]:
    """Return the first scan and its first twin, of another split where there is one."""
    first, *others = group
    return first, next((one for one in others if one.case.split != first.case.split), others[0])


def _count_pairs(group: Sequence[Scan]) -> int:
    """Return the pairs that lie in two splits, or all of a group within one."""
    splits = Counter(scan.case.split for scan in group)
    every = len(group) * (len(group) - 1) // 2
    return every if len(splits) == 1 else every - sum(count * (count - 1) // 2 for count in splits.values())
