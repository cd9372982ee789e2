"""The few attributes of a plain little-endian file, without parsing the many others.

pydicom makes an object of every element it passes, which costs most of the time of a scan over thousands of files. This
walk jumps from length to length and keeps the bytes of the wanted tags. Whatever is not entirely plain (no preamble,
big endian, deflated, unknown value representations, an end before the pixels) it leaves to pydicom by returning None.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple, final

_IMPLICIT = b"1.2.840.10008.1.2"
_UNDEFINED = 0xFFFFFFFF
_PIXELS = 0x7FE00008  # the first of the three elements that hold pixels
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_BUFFERS = (1 << 15, 1 << 20)  # most headers end within the first; private blocks of some vendors need the second
_BINARY = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FD": "d", b"FL": "f"}


class _Meta(NamedTuple):
    """The transfer syntax, and the SOP class under the name that pydicom gives it."""

    TransferSyntaxUID: Any
    MediaStorageSOPClassUID: str


@final
class PlainHeader:
    """Attributes of one file, asked for as of a pydicom dataset.

    Args:
        values: Value representation and bytes by tag.
        file_meta: Transfer syntax and SOP class of the file.
        is_implicit: Whether the file leaves out value representations.
    """

    def __init__(self, values: Mapping[int, tuple[bytes, bytes]], file_meta: _Meta, *, is_implicit: bool) -> None:
        self._values = values
        self.file_meta = file_meta
        self.original_encoding = (is_implicit, True)

    def __contains__(self, name: str | int) -> bool:
        return tag_of_name(name) in self._values

    def get(self, name: str | int) -> Any:
        """Return a value: a text, a number, bytes, or a list of them; None when absent or empty."""
        found = self._values.get(tag_of_name(name))
        return None if found is None or not found[1] else _convert(*found)

    @property
    def Rows(self) -> int:  # noqa: N802 - as in DICOM
        """Number of rows."""
        return int(self.get("Rows"))


@lru_cache(maxsize=512)
def tag_of_name(name: str | int) -> int:
    """Return the number of a tag given by number or by keyword."""
    if isinstance(name, int):
        return name
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(name) or 0


def walk_header(stream: BinaryIO, wanted: Iterable[str | int]) -> PlainHeader | None:
    """Return the wanted attributes of a plain file, the stream at its pixels; None when pydicom must read it."""
    tags = _tags(tuple(wanted))
    for size in _BUFFERS:
        stream.seek(0)
        data = stream.read(size)
        found = _walk(data, tags)
        if found is not None:
            header, at = found
            stream.seek(at)
            return header
        if len(data) < size:
            break
    stream.seek(0)
    return None


def _walk(data: bytes, tags: Collection[int]) -> tuple[PlainHeader, int] | None:
    """Return the header in the first bytes of a file and where its pixels start."""
    if data[128:132] != b"DICM":
        return None
    try:
        meta, at = _meta(data)
        syntax = _plain_syntax(meta.get(0x00020010, b"").rstrip(b"\0 "))
        if syntax is None:
            return None
        is_implicit = syntax == _IMPLICIT.decode()
        values: dict[int, tuple[bytes, bytes]] = {}
        found = _elements(data, at, tags, values, is_implicit=is_implicit)
    except struct.error:  # the buffer ends within an element
        return None
    # A text beyond ASCII needs the character set of the file.
    if found is None or not all(value.isascii() for kind, value in values.values() if kind in (b"LO", b"SH", b"LT")):
        return None
    sop_class = meta.get(0x00020002, b"").rstrip(b"\0 ").decode("ascii", "replace")
    return PlainHeader(values, _Meta(syntax, sop_class), is_implicit=is_implicit), found


def _meta(data: bytes) -> tuple[dict[int, bytes], int]:
    """Return the values of the file meta group, which is always explicit little endian, and its end."""
    at = 132
    values: dict[int, bytes] = {}
    while True:
        group, element = struct.unpack_from("<HH", data, at)
        if group != 2:
            return values, at
        kind = data[at + 4 : at + 6]
        start = at + (12 if kind in _LONG else 8)
        (length,) = struct.unpack_from("<I", data, at + 8) if kind in _LONG else struct.unpack_from("<H", data, at + 6)
        at = start + length
        values[group << 16 | element] = data[start:at]


def _elements(
    data: bytes, at: int, tags: Collection[int], values: dict[int, tuple[bytes, bytes]], *, is_implicit: bool
) -> int | None:
    """Collect wanted elements into `values`; return where the pixels start, None for what is not plain."""
    depth = 0
    while True:
        group, element = struct.unpack_from("<HH", data, at)
        tag = group << 16 | element
        if group == 0xFFFE:
            step = _delimiter(data, at, tag)
            if step is None or not depth:
                return None
            at, depth = step[0], depth + step[1]
            continue
        if tag >= _PIXELS and not depth:
            return at if tag <= _PIXELS + 8 else None
        kind, start, length = _head(data, at, tag if tag in tags else 0, is_implicit=is_implicit)
        is_wanted = tag in tags and not depth
        if not kind or (length == _UNDEFINED and kind != b"SQ" and not is_implicit):
            return None
        if length == _UNDEFINED:
            at, depth, length = start, depth + 1, 0
        else:
            at = start + length
        if at > len(data):
            return None
        if is_wanted:
            values[tag] = kind, data[start : start + length]


def _head(data: bytes, at: int, wanted: int, *, is_implicit: bool) -> tuple[bytes, int, int]:
    """Return value representation (empty when it is unknown), start and length of an element."""
    if is_implicit:
        (length,) = struct.unpack_from("<I", data, at + 4)
        return (_kind_of(wanted) if wanted else b"UN"), at + 8, length
    kind = data[at + 4 : at + 6]
    if kind in _SHORT:
        return kind, at + 8, struct.unpack_from("<H", data, at + 6)[0]
    (length,) = struct.unpack_from("<I", data, at + 8)
    if kind == b"UN" and wanted and length != _UNDEFINED:
        kind = _kind_of(wanted)  # from a program that did not know the tag, or came from an implicit file
    return (kind if kind in _LONG or kind in _SHORT else b""), at + 12, length


def _delimiter(data: bytes, at: int, tag: int) -> tuple[int, int] | None:
    """Return the place behind an item's start or end, and the change of depth."""
    (length,) = struct.unpack_from("<I", data, at + 4)
    if tag == _ITEM:
        return (at + 8, 1) if length == _UNDEFINED else (at + 8 + length, 0)
    return (at + 8, -1) if tag in (_ITEM_END, _SEQUENCE_END) else None


def _convert(kind: bytes, value: bytes) -> Any:
    if kind in _BINARY:
        code = _BINARY[kind]
        numbers = struct.unpack(f"<{len(value) // struct.calcsize(code)}{code}", value)
        return numbers[0] if len(numbers) == 1 else list(numbers)
    if kind in _LONG:
        return value
    texts: list[Any] = [one.strip(" \0") for one in value.decode("latin-1").split("\\")]
    if kind == b"IS":
        texts = [_whole(one) if one else None for one in texts]
    return texts[0] if len(texts) == 1 else texts


def _whole(text: str) -> int:
    number = float(text)
    if not number.is_integer():
        raise ValueError("an integer string that is no integer")
    return int(number)


@lru_cache(maxsize=16)
def _tags(wanted: tuple[str | int, ...]) -> frozenset[int]:
    return frozenset(tag_of_name(name) for name in wanted)


@lru_cache(maxsize=512)
def _kind_of(tag: int) -> bytes:
    """Return the value representation that the standard gives a tag; private and ambiguous ones stay bytes."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    kind = dictionary_VR(tag).encode() if dictionary_has_tag(tag) else b"UN"
    return kind if kind in _SHORT or kind in _LONG else b"UN"


@lru_cache(maxsize=64)
def _plain_syntax(uid: bytes) -> Any:
    """Return a transfer syntax whose header is little endian and not deflated, else None."""
    from pydicom.uid import UID

    syntax = UID(uid.decode("ascii", "replace"))
    if not syntax.is_transfer_syntax or syntax.is_private or syntax.is_deflated or not syntax.is_little_endian:
        return None
    return syntax
