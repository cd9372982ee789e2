"""The values of a mask: whole numbers from 0 on, and what is said of a mask that holds others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError

Array = npt.NDArray[Any]

MOST_VALUES = 255  # class indices are kept in 8 bits
ROUNDING = 1e-3
"""A float within this of a whole number is that number: scale factors of a header and resampling leave about 1e-6."""


def whole_numbers(voxels: Array) -> Array:
    """Return the voxels without rounding errors; what is no whole number within `ROUNDING` stays as it is."""
    if voxels.dtype.kind != "f":
        return voxels
    with np.errstate(invalid="ignore"):  # infinity minus itself
        near = np.rint(voxels)
        return np.where(np.abs(voxels - near) <= ROUNDING, near, voxels)


def has_rounding_errors(mask: Array) -> bool:
    """Tell whether a mask that `value_counts` took holds values beside whole numbers."""
    return mask.dtype.kind == "f" and any(not np.array_equal(slab, np.rint(slab)) for slab in _slabs(mask))


def value_counts(mask: Array, *, case: str, file: str = "") -> dict[int, int]:
    """Return how often a mask holds each of its values.

    Args:
        mask: Any shape; whole numbers from 0 on, whatever the type, rounding errors apart.
        case: For the message.
        file: The mask's, for the message.

    Raises:
        MedvolError: `BAD_LABEL`.
    """
    counts: Counter[int] = Counter()
    for part in _slabs(mask):
        slab = whole_numbers(part)
        if _odd(slab).any():
            number = sum(int(_odd(whole_numbers(one)).sum()) for one in _slabs(mask))
            found = f"a mask with the value {slab[_odd(slab)].flat[0]!s}; {number} voxels hold no whole number"
            raise bad_mask(case, found, file=file)
        low, high = int(slab.min()), int(slab.max())
        if low < 0:
            raise bad_mask(case, f"a mask with the value {low}", file=file)
        if high < 2**16:
            times = np.bincount(slab.astype(np.intp).ravel(order="K"))
            values = np.flatnonzero(times)
            counts.update(dict(zip(values.tolist(), times[values].tolist(), strict=True)))
        else:
            values, times = np.unique(slab, return_counts=True)
            counts.update({int(value): int(count) for value, count in zip(values, times, strict=True)})
    return dict(counts)


def bad_mask(case: str, found: str, fix: str = "", *, file: str = "") -> MedvolError:
    """Return the refusal of a mask for its values."""
    return MedvolError(
        "BAD_LABEL",
        case=case,
        file=file,
        found=found,
        expected=f"whole numbers from 0 on, at most {MOST_VALUES} of them",
        fix=fix or "correct the mask, or the label column",
    )


def _odd(slab: Array) -> npt.NDArray[np.bool_]:
    """Return which voxels hold no whole number; NaN and infinity are none."""
    if slab.dtype.kind != "f":
        return np.zeros(slab.shape, bool)
    with np.errstate(invalid="ignore"):
        return ~np.equal(np.mod(slab, 1), 0)


def _slabs(array: Array) -> Iterator[Array]:
    """Yield slices of a volume that are contiguous in memory: whole volumes would be copied several times over."""
    if not array.ndim:
        yield array
        return
    yield from np.moveaxis(array, int(np.argmax(np.abs(array.strides))), 0)
