"""NIfTI volumes: one pass over the file, to its end, with every number of the header checked first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.io.inflate import inflate
from medvol.io.nifti_affine import nifti_affine
from medvol.io.nifti_layout import HEAD_BYTES, Layout, parse_layout, scaling
from medvol.io.options import ReadOptions
from medvol.io.voxels import require_size, settle_axes, settle_values

RATIO_FREE_BYTES = 1 << 30  # below 1 GiB a high ratio is an honest mask; memory is bounded either way
_BLOCK = 1 << 20

_Bytes = npt.NDArray[np.uint8]


def read_nifti(path: Path, options: ReadOptions) -> Volume:
    """Read a .nii or .nii.gz file, whichever it is by its content.

    Returns:
        Volume of shape (x, y, z), or (x, y, z, channel) where `options.channels` says so; integers as stored where the
        header's scaling is trivial, else float32.

    Raises:
        MedvolError: `TRUNCATED`, `CORRUPT`, `NOT_NIFTI`, `BAD_HEADER`, `BAD_AFFINE`, `NO_GEOMETRY`, `TOO_LARGE`,
            `WRONG_DIMS`, `NONFINITE` or `BAD_DTYPE`.
    """
    layout, data, notes = _load(path, options)
    affine, affine_notes = nifti_affine(layout.header, path, options)
    stored = np.frombuffer(
        data, dtype=layout.dtype, offset=layout.offset, count=layout.voxel_bytes // layout.dtype.itemsize
    )
    factors = scaling(layout, path)
    values = stored if factors is None else _scaled(stored, *factors, path)
    array = values.reshape(layout.shape, order="F")
    if array.ndim == 2:
        array = array[..., None]  # the format places every image in space, so a slice is a volume one voxel deep
    array, channel_axis, axis_notes = settle_axes(array, path, options, with_channels=(4,))
    array, value_notes = settle_values(array, path, options)
    return Volume(
        array=array,
        affine=affine,
        source=str(path),
        channel_axis=channel_axis,
        notes=notes + affine_notes + axis_notes + value_notes,
    )


def read_nifti_layout(path: Path) -> Layout:
    """Return where the voxels of a file lie; reads the header only.

    Raises:
        MedvolError: What is wrong with the header.
    """
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        if head[:2] == b"\x1f\x8b":
            stream.seek(0)
            head = _head_of(inflate(stream, path))[0]
    return parse_layout(head, path, ReadOptions(max_bytes=1 << 62))


def _load(path: Path, options: ReadOptions) -> tuple[Layout, _Bytes, tuple[str, ...]]:
    with path.open("rb") as stream:
        is_compressed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        size = path.stat().st_size
        named_compressed = path.name.lower().endswith(".gz")
        notes: tuple[str, ...] = ()
        if is_compressed != named_compressed:
            notes = (f"the content is {'gzip' if is_compressed else 'not compressed'}, unlike its name",)
        if is_compressed:
            return *_load_compressed(inflate(stream, path), path, size, options), notes
        layout = parse_layout(stream.read(HEAD_BYTES), path, options)
    if size < layout.total_bytes:
        raise _truncated(path, size, layout)
    if size > layout.total_bytes:
        notes += (f"{size - layout.total_bytes} bytes behind the voxels ignored",)
    return layout, np.fromfile(path, dtype=np.uint8, count=layout.total_bytes), notes


def _load_compressed(
    pieces: Iterator[bytes], path: Path, compressed_bytes: int, options: ReadOptions
) -> tuple[Layout, _Bytes]:
    head, piece = _head_of(pieces)
    layout = parse_layout(head, path, options)
    total = layout.total_bytes
    if total > RATIO_FREE_BYTES and total > options.max_ratio * compressed_bytes:
        raise MedvolError(
            "TOO_LARGE",
            file=path,
            found=f"{total:,} bytes of voxels from {compressed_bytes:,} compressed ones",
            expected=f"a ratio of at most {options.max_ratio:g}",
            fix="raise max_ratio if the file is honest",
        )
    out: _Bytes = np.empty(total, dtype=np.uint8)
    seen = 0
    while piece:
        fits = min(len(piece), total - seen) if seen < total else 0
        out[seen : seen + fits] = np.frombuffer(piece, dtype=np.uint8, count=fits)
        seen += len(piece)
        require_size(seen, path, options)  # bytes behind the voxels are read for the checksum, but not without end
        piece = next(pieces, b"")
    if seen < total:
        raise _truncated(path, seen, layout)
    return layout, out


def _head_of(pieces: Iterator[bytes]) -> tuple[bytes, bytes]:
    """Return the first 544 bytes and everything read so far."""
    piece = next(pieces, b"")
    while len(piece) < HEAD_BYTES:
        more = next(pieces, b"")
        if not more:
            break
        piece += more
    return piece[:HEAD_BYTES], piece


def _scaled(stored: npt.NDArray[Any], slope: float, intercept: float, path: Path) -> npt.NDArray[np.float32]:
    """Return stored * slope + intercept, computed in float64 block by block, as float32."""
    out = np.empty(stored.shape, dtype=np.float32)
    for start in range(0, len(stored), _BLOCK):
        block = stored[start : start + _BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):
            exact = block * np.float64(slope) + np.float64(intercept)
            out[start : start + _BLOCK] = exact
        lost = ~np.isfinite(out[start : start + _BLOCK]) & np.isfinite(block)
        if lost.any():
            raise MedvolError(
                "BAD_DTYPE",
                file=path,
                found=f"values up to {float(np.abs(exact[lost]).max()):.3g} after scl_slope {slope:g}",
                expected="at most 3.4e38, the limit of 32-bit floating point",
                fix="repair the scaling in the header",
            )
    return out


def _truncated(path: Path, size: int, layout: Layout) -> MedvolError:
    return MedvolError(
        "TRUNCATED",
        file=path,
        found=f"{size:,} bytes",
        expected=f"{layout.total_bytes:,} for shape {layout.shape} of {layout.dtype}",
        fix="copy or download the file again",
    )
