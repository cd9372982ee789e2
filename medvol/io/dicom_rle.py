"""DICOM's run-length encoding (PS3.5 annex G) of label maps, a frame at a time and without a loop over voxels.

pydicom's own encoder goes through the rows in Python: 30 ms for 512 x 512 voxels, where this takes less than one. Every
run becomes two bytes, so the code of a label map is short and that of noise twice as long as the noise: not for images.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

_LONGEST_RUN = 128


def encode_frame(frame: npt.NDArray[Any]) -> bytes:
    """Return the encoded frame.

    Args:
        frame: Shape (rows, columns), uint8 or uint16.
    """
    width = frame.dtype.itemsize
    # One segment for each byte of a voxel, the highest first.
    planes = np.ascontiguousarray(frame).view(np.uint8).reshape(*frame.shape, width)
    order = range(width) if frame.dtype.byteorder == ">" else reversed(range(width))
    segments = [_encode_bytes(planes[:, :, byte]) for byte in order]
    starts = np.cumsum([64, *(len(one) for one in segments[:-1])]).tolist()
    return struct.pack("<16I", width, *starts, *[0] * (15 - width)) + b"".join(segments)


def _encode_bytes(plane: npt.NDArray[np.uint8]) -> bytes:
    """Return pairs of a count and a value: 257 - n for a run of n, 0 for one byte alone; no run leaves its row."""
    starts = np.empty(plane.shape, dtype=bool)
    np.not_equal(plane[:, 1:], plane[:, :-1], out=starts[:, 1:])
    starts[:, ::_LONGEST_RUN] = True  # a longer run is cut where cutting costs nothing
    begin = np.flatnonzero(starts)
    length = np.diff(begin, append=plane.size)
    pairs = np.empty((len(begin), 2), dtype=np.uint8)
    pairs[:, 0] = np.where(length == 1, 0, 257 - length)
    pairs[:, 1] = plane.reshape(-1)[begin]
    return pairs.tobytes()  # of even length, as segments must be
