"""Filling polygons whose corners lie between pixel centres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

_DECIMALS = 6  # of a pixel; millimetres turned into indices carry noise that must not decide about a pixel


def fill_even_odd(polygons: Sequence[Points], shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which pixel centres lie inside an odd number of closed polygons.

    A hole is a polygon inside another, or a keyhole: one polygon that runs into itself and back along the same line. Of
    centres exactly on an outline those at its low side are inside, so that polygons which share an edge do not overlap.

    Args:
        polygons: Corners in pixel indices, shape (corner, 2) each; a centre has whole coordinates.
        shape: Pixels along both axes.
    """
    start = np.concatenate([np.zeros((0, 2)), *polygons]).round(_DECIMALS)
    end = np.concatenate([np.zeros((0, 2)), *(np.roll(one, -1, axis=0) for one in polygons)]).round(_DECIMALS)
    # Every edge from low to high, so that the two sides of a keyhole cross a line at bit for bit the same place.
    swap = start[:, 1] > end[:, 1]
    start[swap], end[swap] = end[swap], start[swap].copy()
    first = np.clip(np.ceil(start[:, 1]), 0, shape[1]).astype(np.int64)
    last = np.clip(np.ceil(end[:, 1]), 0, shape[1]).astype(np.int64)  # this line is not crossed any more
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    crossing = (x0 + (line - y0) * (x1 - x0) / (y1 - y0)).round(_DECIMALS)
    turns = np.zeros((shape[0] + 1, shape[1]), dtype=np.int64)
    np.add.at(turns, (np.clip(np.ceil(crossing), 0, shape[0]).astype(np.int64), line), 1)
    return np.asarray(np.cumsum(turns[:-1], axis=0) % 2 == 1)
