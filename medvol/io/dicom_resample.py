"""Planes where a stack has no slices: by linear interpolation along it, or filled with one value."""

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


def fill_planes(stack: Array, planes: npt.NDArray[np.float64], value: float) -> Array:
    """Return the planes of a stack that are slices, and planes of one value in place of the others.

    int16 where the stack is and the value fits, else float32.
    """
    is_small = value.is_integer() and np.can_cast(np.min_scalar_type(int(value)), np.int16)
    kind = np.int16 if stack.dtype == np.int16 and is_small else np.float32
    result = np.full((len(planes), *stack.shape[1:]), value, kind)
    for index, place in enumerate(planes):
        if place == int(place):
            result[index] = stack[int(place)]
    return result
