"""How the pixels of a DICOM file stand in it, and the numbers of its header."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Stored:
    """How the pixels of a file stand in it.

    Args:
        bits_allocated: Bits per voxel in the file, 8 or 16.
        bits_stored: Bits that carry the value; others may hold an overlay.
        high_bit: The highest of these.
        is_signed: Whether they are a two's complement.
        offset: First byte of the first frame of native little-endian pixels, 0 where pydicom must find them.
        padding: Lowest and highest stored value that stands for "nothing was measured here".
        fragments: First byte of the fragments of compressed pixels, 0 where pydicom must find them.
    """

    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    offset: int = 0
    padding: tuple[int, int] | None = None
    fragments: int = 0


def numbers(dataset: Any, keyword: str, count: int) -> Numbers | None:
    """Return a decimal attribute's values; None when absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0):
        return None
    values = tuple(
        float(one) for one in (value if hasattr(value, "__len__") and not isinstance(value, str) else [value])
    )
    if len(values) != count or not all(math.isfinite(one) for one in values):
        raise ValueError(f"{keyword} has {len(values)} values, some perhaps not finite")
    return values


def whole(dataset: Any, keyword: str) -> int | None:
    """Return an integer attribute; None when absent or empty."""
    value = dataset.get(keyword)
    return None if value in (None, "") else int(value)


def words(dataset: Any, keyword: str) -> list[str]:
    """Return a text attribute's values in capitals; none when absent."""
    value = dataset.get(keyword)
    values = [] if value is None else [value] if isinstance(value, str) else value
    return [str(one).strip().upper() for one in values]


def stored_of(dataset: Any, place: tuple[int, int]) -> Stored:
    """Return how a file's pixels stand in it; `place` is the first byte of native pixels, and that of fragments."""
    allocated = whole(dataset, "BitsAllocated") or 0
    bits = whole(dataset, "BitsStored") or allocated
    high, is_signed = whole(dataset, "HighBit"), whole(dataset, "PixelRepresentation") == 1
    low, limit = (
        _padding(dataset, keyword, bits, is_signed) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")
    )
    span = None if low is None else sorted((low, low if limit is None else limit))
    padding = None if span is None else (span[0], span[1])
    return Stored(allocated, bits, bits - 1 if high is None else high, is_signed, place[0], padding, place[1])


def _padding(dataset: Any, keyword: str, bits: int, is_signed: bool) -> int | None:
    """Return a padding value as the stored value that it means; scanners write it signed and unsigned alike."""
    value = dataset.get(keyword)
    if isinstance(value, bytes):  # implicit encoding does not say which of the two it is
        value = int.from_bytes(value[:2], "little" if dataset.original_encoding[1] else "big") if value else None
    if value in (None, "") or not 1 <= bits <= 16:
        return None
    value = int(value) & ((1 << bits) - 1)
    return value - (1 << bits) if is_signed and value >> (bits - 1) else value
