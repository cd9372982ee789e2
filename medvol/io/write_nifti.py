"""Label masks as NIfTI files that are whole or not there, and the names they get.

The file is written plane by plane into a gzip stream of level 1: 10 MB of 25 structures take 0.05 s and 1.0 MB with it,
0.20 s and 0.6 MB with level 6. Before it takes its name it is read again from beginning to end; gzip's checksum and
length, and ours of what was meant, have to agree.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.geometry import Affine, is_sheared, spacing_mm
from medvol.io.atomic import write_atomically

GZIP_LEVEL = 1
MASK_SUFFIX = ".nii.gz"
MASK, PROBABILITY = b"medvol labels", b"medvol probability"
"""How the description in the header of what medvol writes begins."""

_BLOCK_BYTES = 4 * 2**20
_DESCRIPTION = slice(148, 228)  # where it stands in a NIfTI-1 header
_GZIP = 31  # zlib's number for a gzip stream with the largest window
_LABEL_INTENT = "label"  # NIfTI's code 1002: values are labels
_COMMENT = 6  # NIfTI's extension code for plain text
_SCANNER, _ALIGNED = 1, 2
_LONGEST_AXIS = 2**15 - 1

_UNSAFE = re.compile(r"[^\w.\-]+")


def write_mask(
    path: str | Path,
    labels: npt.NDArray[Any],
    affine: Affine,
    structures: Sequence[str] = (),
    *,
    has_geometry: bool = True,
) -> None:
    """Write labels to a .nii.gz file, atomically.

    The sform holds the affine. The qform holds it too unless the axes are sheared, which a qform cannot say. The names
    of the structures stand as JSON in a text extension, where medvol, nibabel and a hex editor find them. Labels of a
    volume without geometry get the identity, units left open, and a description that says so: their numbers are voxels.

    Args:
        path: Ends in .nii.gz.
        labels: Array or memmap, uint8 or uint16, shape (x, y, z). Fastest when laid out as NIfTI is, x fastest.
        affine: Voxel index to RAS+ millimetres.
        structures: Names of the labels from 0 on.
        has_geometry: Whether `affine` is in millimetres.

    Raises:
        MedvolError: `WRONG_ARRAY`, `DISK_FULL`, `CANNOT_WRITE`; no part of a file is left, an older one stays.
    """
    if not str(path).endswith(MASK_SUFFIX):
        raise MedvolError("CANNOT_WRITE", file=path, found="another kind of file", expected=f"a name in {MASK_SUFFIX}")
    _require_mask(labels, affine, path)
    _write_whole(path, _label_header(labels, affine, structures, has_geometry), labels, labels.dtype)


def write_probabilities(
    path: str | Path, probabilities: npt.NDArray[Any], affine: Affine, *, has_geometry: bool = True
) -> None:
    """Write the probabilities of one structure to a .nii.gz file as float32, atomically and verified as masks are.

    Args:
        path: Ends in .nii.gz.
        probabilities: Array or memmap of floating point numbers, shape (x, y, z).
        affine: Voxel index to RAS+ millimetres.
        has_geometry: Whether `affine` is in millimetres.

    Raises:
        MedvolError: `DISK_FULL`, `CANNOT_WRITE`; no part of a file is left, an older one stays.
    """
    header = _grid_header(probabilities.shape, np.dtype(np.float32), affine, has_geometry)
    header["descrip"] = PROBABILITY
    _write_whole(path, _as_bytes(header), probabilities, np.dtype(np.float32))


def _write_whole(path: str | Path, header: bytes, voxels: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    def write(stream: BinaryIO) -> None:
        compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP)
        checksum, size = 0, 0
        for block in _blocks(header, voxels, dtype):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
            stream.write(compressor.compress(block))
        stream.write(compressor.flush())
        stream.flush()
        _verify(stream, checksum, size)

    write_atomically(path, write)


def read_structures(path: str | Path) -> tuple[str, ...]:
    """Return the names that `write_mask` put into a file, label 0 first; none for a file of another origin."""
    for extension in nib.load(path).header.extensions:
        if extension.get_code() == _COMMENT:
            try:
                names = json.loads(extension.get_content())["medvol_labels"]
            except (ValueError, KeyError, TypeError):
                continue
            return tuple(str(name) for name in names)
    return ()


def is_result(path: str | Path) -> bool:
    """Tell whether a file is a mask or a map of probabilities that medvol wrote, by the description in its header."""
    if not str(path).endswith(MASK_SUFFIX):
        return False
    try:
        with gzip.open(path) as stream:
            head = stream.read(_DESCRIPTION.stop)
    except (OSError, EOFError, zlib.error):  # what is damaged is another reader's to refuse
        return False
    return head[_DESCRIPTION].startswith((MASK, PROBABILITY))


def mask_paths(folder: str | Path, cases: Iterable[str], suffix: str = MASK_SUFFIX) -> dict[str, Path]:
    """Return the file of each case of a run, named after the case, all decided before the first is written.

    Characters other than letters, digits, dots, dashes and underscores become underscores.

    Args:
        folder: Where the files will lie.
        cases: Names of all cases of the run.
        suffix: Ending of the files.

    Raises:
        MedvolError: `SAME_OUTPUT` when two cases would get one file, also where they differ only by capitals, by the
            way an accent is stored or by replaced characters: on some file systems one would overwrite the other.
    """
    paths: dict[str, Path] = {}
    taken: dict[str, str] = {}
    for case in cases:
        name = _UNSAFE.sub("_", unicodedata.normalize("NFC", case)).lstrip(".") or "_"
        other = taken.setdefault(name.casefold(), case)
        if case in paths or other != case:
            raise MedvolError(
                "SAME_OUTPUT",
                case=case,
                file=f"{name}{suffix}",
                found=f"the file of case '{other[:60]}' too",
                expected="a file for each case",
                fix="rename one of the cases",
            )
        paths[case] = Path(folder) / f"{name}{suffix}"
    return paths


def _require_mask(labels: npt.NDArray[Any], affine: Affine, path: str | Path) -> None:
    is_label = labels.dtype in (np.dtype(np.uint8), np.dtype(np.uint16))
    if not is_label or labels.ndim != 3 or labels.size == 0 or max(labels.shape) > _LONGEST_AXIS:
        raise MedvolError(
            "WRONG_ARRAY",
            file=path,
            found=f"an array of shape {labels.shape} and type {labels.dtype}"[:120],
            expected=f"uint8 or uint16, three axes of 1 to {_LONGEST_AXIS} voxels",
        )
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0:
        raise MedvolError("WRONG_ARRAY", file=path, found="an affine that is not regular", expected="a 4x4 matrix")


def _label_header(labels: npt.NDArray[Any], affine: Affine, structures: Sequence[str], has_geometry: bool) -> bytes:
    """Return header and extensions, up to the first voxel."""
    header = _grid_header(labels.shape, labels.dtype, affine, has_geometry)
    header.set_intent(_LABEL_INTENT, name="labels")
    header["descrip"] = MASK if has_geometry else MASK + b", voxel space: no millimetres"
    if structures:
        text = json.dumps({"medvol_labels": list(structures)})
        header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, text.encode()))
    return _as_bytes(header)


def _grid_header(shape: Sequence[int], dtype: np.dtype[Any], affine: Affine, has_geometry: bool) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype.newbyteorder("<"))
    header.set_slope_inter(1, 0)
    header.set_zooms(spacing_mm(affine))
    code = _SCANNER if has_geometry else _ALIGNED
    header.set_sform(affine, code)
    if not is_sheared(affine):
        header.set_qform(affine, code)
    header.set_xyzt_units("mm" if has_geometry else "unknown")
    return header


def _as_bytes(header: nib.Nifti1Header) -> bytes:
    stream = io.BytesIO()
    header.write_to(stream)
    return stream.getvalue().ljust(int(header.get_data_offset()), b"\0")


def _blocks(header: bytes, voxels: npt.NDArray[Any], dtype: np.dtype[Any]) -> Iterator[bytes]:
    """Yield the file before compression: x fastest, a few planes of z at a time."""
    yield header
    step = max(1, _BLOCK_BYTES // (voxels[:, :, 0].size * dtype.itemsize))
    for first in range(0, voxels.shape[2], step):
        planes = np.asarray(voxels[:, :, first : first + step])
        yield planes.astype(dtype.newbyteorder("<"), copy=False).tobytes(order="F")


def _verify(stream: BinaryIO, checksum: int, size: int) -> None:
    """Read a finished gzip file through.

    Raises:
        OSError: If it does not hold what was written.
    """
    decompressor = zlib.decompressobj(_GZIP)
    found, length = 0, 0
    # Its own descriptor on the same file: the temporary file has no name that is known here.
    with os.fdopen(os.dup(stream.fileno()), "rb") as again:
        again.seek(0)
        try:
            while not decompressor.eof:
                packed = again.read(_BLOCK_BYTES // 4) if not decompressor.unconsumed_tail else b""
                data = decompressor.decompress(decompressor.unconsumed_tail + packed, _BLOCK_BYTES)
                if not data and not packed:
                    break
                found, length = zlib.crc32(data, found), length + len(data)
        except zlib.error as error:
            raise OSError(f"the file does not read back: {error}") from error
        is_whole = decompressor.eof and not again.read(1) and not decompressor.unused_data
    if not is_whole or (found, length) != (checksum, size):
        raise OSError(f"{length} bytes read back with another checksum or end, {size} were written")
