"""The file of one cache entry: a header that describes, and the arrays as they lie in memory.

    offset 0    magic (8 bytes), header length (8), file length (8), BLAKE2b-256 of the header (32), zeros (8)
    offset 64   header, JSON: key, content (what `cache_codec` wrote), arrays (dtype, shape, offset, CRC-32)
    then        each array, C order, starting at a multiple of 64 bytes so that it can be mapped for any dtype

Nothing in it can execute. Torn files are found by the length, anything else by the checksums: CRC-32 runs at 6 GB/s
where BLAKE2b runs at 1.3, and what it guards against is a disk, not a forger.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
import weakref
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1
MAGIC_OF_ANY_VERSION = b"MEDVOLC"
MAGIC = MAGIC_OF_ANY_VERSION + bytes([FORMAT_VERSION])
ALIGNMENT = 64
MAPPED_BYTES = 8 * 2**20
"""From here on an array is mapped instead of read: below, reading is three times faster than the page faults."""

LIVE_MAPS = 256
"""Each map holds a file descriptor, of which a process has 1024; whoever keeps more items alive gets them in memory."""

_PREFIX = struct.Struct("<8sQQ32s8x")
_live: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

Array = npt.NDArray[Any]


@final
class EntryDamaged(Exception):  # noqa: N818 - an answer that is always acted upon, never shown
    """The file is not a complete entry of this key."""


@dataclass(frozen=True)
class ArrayPlace:
    """Where one array lies in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    crc: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """A parsed header.

    Args:
        prefix: The first 64 bytes; they hold the header's hash, so equal prefixes mean equal entries.
        content: What the codec wrote.
        places: Where the arrays lie.
        length: Bytes of the whole file.
    """

    prefix: bytes
    content: Any
    places: tuple[ArrayPlace, ...]
    length: int


def pack(key: str, content: Any, arrays: Sequence[Array]) -> tuple[Header, bytes]:
    """Return the header of an entry, parsed and as the bytes that precede the first array.

    Args:
        key: Name of the entry; a file copied under another name is found out by it.
        content: JSON-ready; NaN and infinities are allowed.
        arrays: C-contiguous, without objects.
    """
    arrays = [np.asarray(array, order="C") for array in arrays]
    sums = [zlib.crc32(_bytes_of(array)) for array in arrays]
    # Offsets stand in the header whose length they depend on; counted from the first array they do not.
    offsets, end = [], 0
    for array in arrays:
        offsets.append(end)
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    described = [
        {"dtype": array.dtype.str, "shape": array.shape, "offset": offset, "crc": crc}
        for array, offset, crc in zip(arrays, offsets, sums, strict=True)
    ]
    text = json.dumps({"key": key, "content": content, "arrays": described}, separators=(",", ":")).encode()
    first = -(-(_PREFIX.size + len(text)) // ALIGNMENT) * ALIGNMENT
    prefix = _PREFIX.pack(MAGIC, len(text), first + end, hashlib.blake2b(text, digest_size=32).digest())
    return _parse(prefix, text, key), prefix + text + bytes(first - _PREFIX.size - len(text))


def write(descriptor: int, head: bytes, arrays: Iterable[Array]) -> None:
    """Write a packed entry to an open file and sync it.

    Raises:
        OSError: As the system says, e.g. ENOSPC.
    """
    _write_all(descriptor, head)
    for array in arrays:
        _write_all(descriptor, _bytes_of(np.asarray(array, order="C")))
        _write_all(descriptor, bytes(-array.nbytes % ALIGNMENT))
    os.fsync(descriptor)


def read_header(descriptor: int, key: str) -> Header:
    """Read and check the header of an open entry.

    Raises:
        EntryDamaged: If it is anything but the complete header of `key` in a file of the right length.
    """
    prefix = os.pread(descriptor, _PREFIX.size, 0)
    if len(prefix) != _PREFIX.size or not prefix.startswith(MAGIC):
        raise EntryDamaged("no entry")
    _, header_length, file_length, _ = _PREFIX.unpack(prefix)
    actual = os.fstat(descriptor).st_size
    if actual != file_length or header_length > actual - _PREFIX.size:
        raise EntryDamaged(f"{actual} of {file_length} bytes")
    return _parse(prefix, os.pread(descriptor, header_length, _PREFIX.size), key)


def is_same(descriptor: int, header: Header) -> bool:
    """Tell whether an open file is still the entry that the header was read from; a microsecond."""
    return os.pread(descriptor, _PREFIX.size, 0) == header.prefix


def verify(header: Header, arrays: Sequence[Array]) -> None:
    """Compare the checksums of all arrays.

    Raises:
        EntryDamaged: If one differs.
    """
    for place, array in zip(header.places, arrays, strict=True):
        if zlib.crc32(_bytes_of(array)) != place.crc:
            raise EntryDamaged("checksum")


def read_arrays(descriptor: int, header: Header) -> list[Array]:
    """Return all arrays, writable and independent of the file: large ones mapped copy-on-write, small ones read.

    Raises:
        EntryDamaged: If the file ends early.
    """
    return [
        map_array(descriptor, place) if place.nbytes >= MAPPED_BYTES else read_array(descriptor, place)
        for place in header.places
    ]


def read_array(descriptor: int, place: ArrayPlace) -> Array:
    """Return one array in memory of its own.

    Raises:
        EntryDamaged: If the file ends early.
    """
    array: Array = np.empty(place.shape, place.dtype)
    _read_into(descriptor, array, place.offset)
    return array


def read_crop(descriptor: int, place: ArrayPlace, start: Sequence[int], size: Sequence[int]) -> Array:
    """Return a crop of one array in memory of its own.

    Of a large array only the pages of the crop are touched; of a small one the planes along its second axis that the
    crop needs are read.

    Args:
        descriptor: Open file of the entry.
        place: Where the array lies; its first axis, the channel, is not cropped.
        start: First element along each axis after the channel.
        size: Elements along each axis after the channel.

    Raises:
        EntryDamaged: If the file ends early.
    """
    ranges = [slice(first, first + length) for first, length in zip(start, size, strict=True)]
    if place.nbytes >= MAPPED_BYTES:
        return np.array(map_array(descriptor, place)[(slice(None), *ranges)], order="C")
    planes: Array = np.empty((place.shape[0], size[0], *place.shape[2:]), place.dtype)
    plane_bytes = math.prod(place.shape[2:]) * place.dtype.itemsize
    for channel, target in enumerate(planes):
        _read_into(descriptor, target, place.offset + (channel * place.shape[1] + start[0]) * plane_bytes)
    return np.array(planes[(slice(None), slice(None), *ranges[1:])], order="C")


def map_array(descriptor: int, place: ArrayPlace) -> Array:
    """Return one array mapped copy-on-write: only the pages that are used are read, and writing stays private."""
    if place.nbytes == 0 or len(_live) >= LIVE_MAPS:
        return read_array(descriptor, place)
    if os.fstat(descriptor).st_size < place.offset + place.nbytes:
        raise EntryDamaged("ends early")
    start = place.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = place.offset - start + place.nbytes
    try:
        mapped = mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY, offset=start)
    except OSError:  # out of maps or descriptors; memory does as well
        return read_array(descriptor, place)
    _live.add(mapped)
    flat = np.frombuffer(mapped, np.uint8, place.nbytes, place.offset - start)
    return flat.view(place.dtype).reshape(place.shape)


def _parse(prefix: bytes, text: bytes, key: str) -> Header:
    _, _, length, digest = _PREFIX.unpack(prefix)
    if hashlib.blake2b(text, digest_size=32).digest() != digest:
        raise EntryDamaged("header")
    header = json.loads(text)
    if header["key"] != key:
        raise EntryDamaged("another key")
    first = -(-(_PREFIX.size + len(text)) // ALIGNMENT) * ALIGNMENT
    places = tuple(
        ArrayPlace(np.dtype(one["dtype"]), tuple(one["shape"]), first + one["offset"], one["crc"])
        for one in header["arrays"]
    )
    return Header(prefix, header["content"], places, length)


def _bytes_of(array: Array) -> memoryview:
    if array.nbytes == 0:
        return memoryview(b"")
    return array.reshape(-1).view(np.uint8).data


def _read_into(descriptor: int, target: Array, offset: int) -> None:
    view, done = _bytes_of(target), 0
    while done < target.nbytes:
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise EntryDamaged("ends early")
        done += count


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(descriptor, view) :]
