"""The rules for values and axes that every format shares.

Integers stay integers, in the machine's byte order; 64-bit integers become 32-bit where all values fit; floating point
becomes float32. What float32 cannot hold is refused: complex numbers, colours, overflow.
"""

from __future__ import annotations

from os import PathLike

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.io.options import ReadOptions

Array = npt.NDArray[np.generic]


def settle_values(array: Array, file: str | PathLike[str], options: ReadOptions) -> tuple[Array, tuple[str, ...]]:
    """Return the array in one of the accepted types, and notes on what was changed.

    Raises:
        MedvolError: `BAD_DTYPE` or `NONFINITE`.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return array.view(np.uint8), ()
    if kind in "iu" and size <= 4:
        return np.asarray(array, dtype=array.dtype.newbyteorder("=")), ()
    if kind in "iu":
        return _narrow_integers(array, file)
    if kind == "f" and size <= 8:
        return _settle_floats(array, file, options)
    raise MedvolError(
        "BAD_DTYPE",
        file=file,
        found=f"voxels of type {array.dtype}"[:80],
        expected="integers or real numbers of at most 64 bits",
        fix="save magnitude or channels as plain numbers",
    )


def settle_axes(
    array: Array, file: str | PathLike[str], options: ReadOptions, *, with_channels: tuple[int, ...] = (3, 4)
) -> tuple[Array, int | None, tuple[str, ...]]:
    """Return the array with its channel axis, trailing axes of length 1 beyond the third dropped.

    Args:
        array: As stored, spatial axes first.
        file: For the message.
        options: Whether there are channels.
        with_channels: Numbers of axes at which the last one holds the channels, where the caller says that there are
            any. A NIfTI of three axes has none, an array of three axes is an image with channels.

    Raises:
        MedvolError: `WRONG_DIMS`.
    """
    stored = array.shape
    if options.channels and array.ndim == 5 and stored[3] == 1:
        array = array[:, :, :, 0, :]  # a NIfTI vector keeps the fourth axis for time
    is_channel_last = options.channels and array.ndim in with_channels
    while array.ndim > 3 and array.shape[-1] == 1 and not is_channel_last:
        array = array[..., 0]
    if array.ndim - is_channel_last not in (2, 3) or 0 in stored:
        raise MedvolError(
            "WRONG_DIMS",
            file=file,
            found=f"an array of shape {stored}"[:120],
            expected="2 or 3 axes of at least one voxel",
            fix="save each volume or channel as a file, in columns image:a and image:b; from Python channels=True",
        )
    dropped = (f"axes of length 1 dropped, stored shape {stored}",) if array.shape != stored else ()
    return array, array.ndim - 1 if is_channel_last else None, dropped


def require_size(count: int, file: str | PathLike[str], options: ReadOptions) -> None:
    """Refuse to allocate more than the limit.

    Raises:
        MedvolError: `TOO_LARGE`.
    """
    if count > options.max_bytes:
        raise MedvolError(
            "TOO_LARGE",
            file=file,
            found=f"{count:,} bytes of voxels",
            expected=f"at most {options.max_bytes:,}",
            fix="raise max_bytes if the file is meant to be that large",
        )


def _narrow_integers(array: Array, file: str | PathLike[str]) -> tuple[Array, tuple[str, ...]]:
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    limits = np.iinfo(np.int32)
    if low < limits.min or high > limits.max:
        raise MedvolError(
            "BAD_DTYPE",
            file=file,
            found=f"64-bit integers from {low} to {high}",
            expected="values that 32 bits can hold",
            fix="rescale the values before saving",
        )
    return array.astype(np.int32), ("64-bit integers stored as 32-bit, values unchanged",)


def _settle_floats(array: Array, file: str | PathLike[str], options: ReadOptions) -> tuple[Array, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    finite = np.isfinite(array)
    if not finite.all():
        array, notes = _fill(array, ~finite, file, options)
    if array.dtype == np.float32:
        return np.asarray(array, dtype=np.float32), notes
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if array.dtype.itemsize > 4:
        notes += ("64-bit floating point read as 32-bit",)
        if not np.isfinite(narrow).all():
            largest = float(np.abs(array.astype(np.float64)).max())
            raise MedvolError(
                "BAD_DTYPE",
                file=file,
                found=f"values up to {largest:.3g}",
                expected="at most 3.4e38, the limit of 32-bit floating point",
                fix="rescale the values before saving",
            )
    return narrow, notes


def _fill(
    array: Array, bad: npt.NDArray[np.bool_], file: str | PathLike[str], options: ReadOptions
) -> tuple[Array, tuple[str, ...]]:
    count = int(bad.sum())
    first = tuple(int(axis[0]) for axis in np.nonzero(bad))
    if options.nan_fill is None:
        raise MedvolError(
            "NONFINITE",
            file=file,
            found=f"{count} voxels are NaN or infinite, the first at {first}",
            expected="finite values",
            fix="repair the file; from Python, nan_fill=VALUE fills them",
        )
    filled = array.copy()
    filled[bad] = options.nan_fill
    return filled, (f"{count} NaN or infinite voxels set to {options.nan_fill:g}",)
