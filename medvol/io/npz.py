"""NumPy archives: one array by name, decompressed once per process however many of its rows are read.

The opened arrays are held in a small cache, because a member has to be decompressed from its start to reach a row. Its
key holds size and time of the file, so a rewritten archive is read anew. The price is memory in each worker process; a
stacked .npy, which is memory-mapped, has neither the price nor the need.
"""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from medvol.errors import MedvolError, nearest
from medvol.geometry import Volume
from medvol.io.npy import array_volume, parse_npy_header, take_row
from medvol.io.options import ReadOptions
from medvol.io.reference import Reference
from medvol.io.voxels import Array, require_size

HELD_ARRAYS = 4  # images of train, val and test, and one more
HELD_BYTES = 2 << 30
_PIECE = 1 << 22

_Key = tuple[str, str, int, int]
_held: OrderedDict[_Key, Array] = OrderedDict()
_lock = threading.Lock()
# A worker forked while another thread reads must not inherit a lock that nobody will release.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def read_npz(reference: Reference, options: ReadOptions) -> Volume:
    """Read an array, or one row of a stacked array, from a .npz archive.

    Raises:
        MedvolError: `AMBIGUOUS_NPZ`, `UNSAFE_NPY`, `CORRUPT`, `NOT_NPZ`, `BAD_REFERENCE`, `TOO_LARGE`, `WRONG_DIMS`,
            `BAD_DTYPE` or `NONFINITE`.
    """
    path = reference.path
    status = path.stat()
    key = (os.path.realpath(path), reference.key or "", status.st_size, status.st_mtime_ns)
    with _lock:
        stacked = _held.get(key)
        if stacked is None:
            stacked = _read_member(path, reference, options)
            _hold(key, stacked)
        _held.move_to_end(key)
    return array_volume(np.array(take_row(stacked, reference)), reference, options)


def array_names(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in an archive, sorted.

    Raises:
        MedvolError: `CORRUPT` or `NOT_NPZ`.
    """
    with _opened(path) as archive:
        return _names(archive, path)


def _hold(key: _Key, array: Array) -> None:
    _held[key] = array
    while len(_held) > 1 and (len(_held) > HELD_ARRAYS or sum(one.nbytes for one in _held.values()) > HELD_BYTES):
        _held.popitem(last=False)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; whatever the zip layer finds becomes one refusal."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, NotImplementedError, KeyError) as error:
        # The text may quote the damaged bytes.
        reason = "wrong CRC-32" if "CRC" in str(error) else type(error).__name__
        raise MedvolError(
            "CORRUPT",
            file=path,
            found=f"an archive that cannot be read ({reason})",
            expected="an archive that agrees with its checksums",
            fix="copy or download the file again",
        ) from error


def _names(archive: zipfile.ZipFile, path: Path) -> tuple[str, ...]:
    names = tuple(sorted(name[:-4] for name in archive.namelist() if name.endswith(".npy")))
    if not names:
        raise MedvolError(
            "NOT_NPZ", file=path, found="a zip archive without arrays", expected="one made by numpy.savez"
        )
    return names


def _read_member(path: Path, reference: Reference, options: ReadOptions) -> Array:
    with _opened(path) as archive:
        name = _choose(_names(archive, path), reference)
        with cast(Any, archive.open(f"{name}.npy")) as stream:
            header = parse_npy_header(stream, path)
            require_size(header.value_bytes, path, options)
            declared = archive.getinfo(f"{name}.npy").file_size
            if declared != header.offset + header.value_bytes:
                raise MedvolError(
                    "CORRUPT",
                    file=path,
                    found=f"array '{name}' has {declared:,} bytes",
                    expected=f"{header.offset + header.value_bytes:,} for shape {header.shape} of {header.dtype}",
                    fix="save the archive again",
                )
            data = np.empty(header.value_bytes, dtype=np.uint8)
            view, position = memoryview(data.data), 0
            # zipfile compares the checksum with the last byte that it hands out.
            while position < len(view) and (count := stream.readinto(view[position : position + _PIECE])):
                position += count
    if position < len(view):
        raise MedvolError("TRUNCATED", file=path, found=f"{position:,} bytes of '{name}'", expected=f"{len(view):,}")
    array: Array = data.view(header.dtype) if header.value_bytes else np.empty(0, header.dtype)
    array = array.reshape(header.shape, order="F" if header.is_fortran else "C")
    array.flags.writeable = False
    return array


def _choose(names: tuple[str, ...], reference: Reference) -> str:
    if reference.key in names:
        return str(reference.key)
    shown = ", ".join(names[:8])
    if reference.key is not None:
        raise MedvolError(
            "BAD_REFERENCE",
            file=reference.text,
            found=f"no array '{reference.key}'",
            expected=f"one of {shown}"[:120],
            fix=nearest(reference.key, names),
        )
    if len(names) > 1:
        raise MedvolError(
            "AMBIGUOUS_NPZ",
            file=reference.path,
            found=f"{len(names)} arrays: {shown}"[:150],
            expected="one array, or its name",
            fix=f"name it, as in {reference.path.name}#{names[0]}"[:80],
            details=names,
        )
    return names[0]
