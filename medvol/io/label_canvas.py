"""A label map that structures are painted into, one plane after the other, so that no structure needs a volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError

Index = tuple[int | slice, ...]
Plane = npt.NDArray[np.bool_]


@final
class Canvas:
    """Voxels with one value each, and a count of those that several structures claim.

    Args:
        shape: Voxels along x, y, z.
        values: Every value that will be painted.
        separate: Paint every value into a channel of its own, where nothing overlaps.
    """

    def __init__(self, shape: Sequence[int], values: Sequence[int], *, separate: bool = False) -> None:
        kind = np.uint8 if separate or max(values, default=0) < 256 else np.uint16
        channels = (len(set(values)),) if separate else ()
        # The slice axis is the slowest in memory, as in a volume that was read from a series.
        self.labels: npt.NDArray[Any] = np.zeros((*shape, *channels), dtype=kind, order="F")
        self.channels = {value: place for place, value in enumerate(sorted(set(values)))} if separate else None
        self.overlaps: Counter[tuple[int, int]] = Counter()

    def paint(self, index: Index, mask: Plane, value: int) -> None:
        """Give the voxels of a plane where `mask` is true a value; `index` selects the plane in x, y, z."""
        if self.channels is not None:
            self.labels[(*index, self.channels[value])][mask] = 1
            return
        plane = self.labels[index]
        taken = plane[mask]
        for other in np.unique(taken[(taken != 0) & (taken != value)]).tolist():
            self.overlaps[min(other, value), max(other, value)] += int((taken == other).sum())
        plane[mask] = value


def require_no_overlap(canvas: Canvas, names: Mapping[int, str], path: Path) -> None:
    """Raise `LABELS_OVERLAP` when structures share voxels, naming those that share most."""
    if not canvas.overlaps:
        return
    (first, second), count = canvas.overlaps.most_common(1)[0]
    more = f" and {len(canvas.overlaps) - 1} more pairs" if len(canvas.overlaps) > 1 else ""
    raise MedvolError(
        "LABELS_OVERLAP",
        file=path,
        found=f"'{names[first][:32]}' and '{names[second][:32]}' share {count} voxels{more}",
        expected="one structure per voxel",
        fix="name those that do not overlap behind the file, as in seg.dcm#liver;spleen",
        details=[
            f"'{names[one]}' and '{names[other]}': {number} voxels"
            for (one, other), number in canvas.overlaps.most_common()
        ],
    )
