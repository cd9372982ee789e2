"""MATLAB 5 to 7 files, as far as a struct of arrays and texts goes.

SciPy's reader is compiled code that trusts the lengths in the file: of 400 randomly damaged files one ended the whole
process with a segmentation fault (SciPy 1.17). This one is Python, checks every length, and knows only what is needed.
Format: "MAT-File Format", The MathWorks, level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medvol.io.options import ReadOptions
from medvol.io.voxels import Array, require_size

_COMPRESSED, _MATRIX = 15, 14
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_STORED |= {16: "u1", 17: "u2", 18: "u4"}  # UTF-8, 16 and 32; only ASCII is expected
_STRUCT, _CHAR = 2, 4
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800
_MOST_FIELDS = 1000

_Element = tuple[int, memoryview]


def read_mat5_struct(path: Path, name: str, fields: Sequence[str], options: ReadOptions) -> dict[str, Array]:
    """Return fields of a 1 x 1 struct as arrays indexed as in MATLAB; texts are arrays of code points.

    A field or struct that is not there is left out.

    Raises:
        ValueError: The file contradicts itself.
        zlib.error: A compressed part is damaged.
        MedvolError: `TOO_LARGE`.
    """
    require_size(path.stat().st_size, path, options)
    data = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("no byte order mark")
    for element in _elements(memoryview(data)[128:], order):
        kind, body = _inflated(element[1], order, path, options) if element[0] == _COMPRESSED else element
        if kind != _MATRIX:
            continue
        parts = _elements(body, order)
        class_code, _, found = _head(parts, order)
        if found == name and class_code == _STRUCT:
            return _fields(parts, order, fields)
    return {}


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """Yield type and content of each data element."""
    position = 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from(order + "II", data, position)
        if kind >> 16:  # the small form keeps length, type and up to four bytes in eight
            kind, length, start, step = kind & 0xFFFF, kind >> 16, position + 4, 8
            if length > 4:
                raise ValueError("a small element of more than 4 bytes")
        else:
            start = position + 8
            step = 8 + (length if kind == _COMPRESSED else -(-length // 8) * 8)
        if start + length > len(data):
            raise ValueError("an element that ends behind the file")
        yield kind, data[start : start + length]
        position += step
    if position < len(data):
        raise ValueError("bytes behind the last element")


def _inflated(body: memoryview, order: str, path: Path, options: ReadOptions) -> _Element:
    decoder = zlib.decompressobj()
    data = decoder.decompress(body, options.max_bytes + 1)
    require_size(len(data), path, options)
    if not decoder.eof:
        raise ValueError("a compressed element that ends too early")
    return next(_elements(memoryview(data), order))


def _head(parts: Iterator[_Element], order: str) -> tuple[int, tuple[int, ...], str]:
    """Return class, dimensions and name of a matrix; refuses complex numbers."""
    flags = _numbers(next(parts, None), order)
    shape = tuple(int(length) for length in _numbers(next(parts, None), order))
    name = next(parts, (0, memoryview(b"")))[1].tobytes().decode("ascii", "replace")
    if len(flags) < 1 or len(shape) < 2 or min(shape) < 0:
        raise ValueError("a matrix without class or dimensions")
    if int(flags[0]) & _COMPLEX:
        raise ValueError("complex numbers")
    return int(flags[0]) & 0xFF, shape, name


def _fields(parts: Iterator[_Element], order: str, wanted: Sequence[str]) -> dict[str, Array]:
    length = int(_numbers(next(parts, None), order)[0])
    names = next(parts, (0, memoryview(b"")))[1].tobytes()
    if not 1 <= length <= 64 or len(names) % length or len(names) // length > _MOST_FIELDS:
        raise ValueError("field names that contradict their length")
    found: dict[str, Array] = {}
    for start in range(0, len(names), length):
        kind, body = next(parts, (0, memoryview(b"")))
        name = names[start : start + length].split(b"\0")[0].decode("ascii", "replace")
        if kind != _MATRIX:
            raise ValueError("a struct with fewer fields than names")
        if name in wanted:
            found[name] = _array(body, order)
    return found


def _array(body: memoryview, order: str) -> Array:
    parts = _elements(body, order)
    code, shape, _ = _head(parts, order)
    if code not in _CLASSES and code != _CHAR:
        raise ValueError("a field that is no array of numbers and no text")
    stored = _numbers(next(parts, (1, memoryview(b""))), order)
    if stored.size != math.prod(shape):
        raise ValueError("fewer or more values than the dimensions say")
    dtype = "u4" if code == _CHAR else _CLASSES[code]
    return stored.astype(dtype).reshape(shape, order="F")


def _numbers(element: _Element | None, order: str) -> Array:
    if element is None or element[0] not in _STORED:
        raise ValueError("an element of numbers is missing")
    dtype = np.dtype(order + _STORED[element[0]])
    return np.frombuffer(element[1], dtype=dtype)
