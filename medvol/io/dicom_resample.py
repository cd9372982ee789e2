"""Planes between slices, by linear interpolation along the stack."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def interpolate_planes(stack: Array, planes: npt.NDArray[np.float64]) -> Array:
    """Return the planes of a stack, shape (plane, row, column), float32.

    Args:
        stack: Shape (slice, row, column).
        planes: Fractional slice indices; a whole number takes that slice as it is.
    """
    result = np.empty((len(planes), *stack.shape[1:]), np.float32)
    for index, place in enumerate(planes):
        below = int(place)
        share = np.float32(place - below)
        result[index] = stack[below]
        if share:
            result[index] += share * (stack[below + 1] - result[index])
    return result
