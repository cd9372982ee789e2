"""One 2D image as rows and columns, whatever the format.

Every library that publishes weights, and every array that holds pictures, counts rows first; volumes count x first. So
this is the one place where a file's axes become row, column and, for colours, red, green, blue.

| source | row, column |
|---|---|
| PNG, JPEG, MATLAB | as a viewer shows them |
| npy, npz | the first two axes as stored; a third axis of length 3 holds colours, one of length 1 is dropped |
| a DICOM file with one image | as stored; needs no place in space; MONOCHROME1 is inverted within its range |
| NIfTI, NRRD, MetaImage with one slice | y and x as stored |

A volume of several slices is refused. A stacked array of shape (n, row, column, 3) is named row by row, `a.npz#x[12]`.
"""

from __future__ import annotations

from os import PathLike

import numpy as np

from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.io.files import existing
from medvol.io.read import read_volume
from medvol.io.reference import Reference, parse_reference

_ARRAYS = (b"\x93NUMPY", b"PK\x03\x04")  # the first bytes of npy and npz
_LOW_IS_BRIGHT = "MONOCHROME1"


def read_image(ref: str | PathLike[str]) -> Volume:
    """Read the only image that a reference names.

    Returns:
        Volume of shape (row, column), or (row, column, 3) with the channel axis named, without a geometry; unsigned
        16-bit integers come as int32, which torch can compute with.

    Raises:
        MedvolError: `WRONG_DIMS` for a volume, and what `read_volume` finds.
    """
    reference = parse_reference(ref)
    path = existing(reference.path)
    head = b""
    if path.is_file():
        with path.open("rb") as stream:
            head = stream.read(6)
    volume = _read(reference)
    array, channel_axis = volume.array, volume.channel_axis
    if channel_axis is None and array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if head.startswith(_ARRAYS):
        channel_axis = 2 if array.ndim == 3 and array.shape[2] == 3 else None
    else:
        array = array.swapaxes(0, 1)
    if array.ndim - (channel_axis is not None) != 2:
        raise MedvolError(
            "WRONG_DIMS",
            file=volume.source,
            found=f"a volume of shape {volume.array.shape}",
            expected="one image: rows, columns and at most 3 colours",
            fix="use a 3D bundle for volumes, or name one slice",
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int32 if array.dtype.itemsize == 2 else np.float32)
    notes = volume.notes
    if any(note.startswith(_LOW_IS_BRIGHT) for note in notes):
        # One study may hold radiographs of both kinds, and a picture is what a viewer shows.
        array = (float(array.min()) + float(array.max()) - array.astype(np.float64)).astype(array.dtype)
        notes = (*(note for note in notes if _LOW_IS_BRIGHT not in note), f"{_LOW_IS_BRIGHT}: inverted in its range")
    return Volume(np.ascontiguousarray(array), np.eye(4), False, volume.source, channel_axis, notes)


def _read(reference: Reference) -> Volume:
    """Return what a reference names; a DICOM image without a place in space, as radiographs are, in shape (x, y, 1)."""
    try:
        return read_volume(reference.text)
    except MedvolError as error:
        # Whatever else is wrong with a DICOM file is refused before its geometry.
        if error.code != "NO_GEOMETRY":
            raise
        from medvol.io.dicom_groups import choose_group, scan
        from medvol.io.dicom_select import parse_selection

        path = reference.path
        found = scan(path)
        if not found.slices:  # no DICOM
            raise
        group, notes = choose_group(found, path, parse_selection(reference.key, path))
        if len(group) != 1:
            raise
    from medvol.io.dicom_pixels import read_stack

    stack, more = read_stack(group)
    if group[0].photometric == _LOW_IS_BRIGHT:
        more = (*more, _LOW_IS_BRIGHT)
    return Volume(stack.transpose(2, 1, 0), np.eye(4), False, reference.text, notes=notes + more)
