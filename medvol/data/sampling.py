"""Looking at some of a volume's voxels instead of all."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

Values = TypeVar("Values", bound=Any)  # a NumPy array or a tensor, whose voxels may be too many for quantiles


def thinned(values: Values, most: int) -> Values:
    """Return at most `most` values of a flattened volume, the same ones in every run.

    One is drawn from each of as many stretches of equal length. A constant step would meet the same planes over and
    over where it shares a factor with the length of an axis: one of 32 sees 4 of the 128 planes of 512 x 512 x 128.

    Args:
        values: Shape (voxels,).
        most: At least 1.
    """
    length = -(-len(values) // most)
    if length <= 1:
        return values
    starts = np.arange(0, len(values), length)
    places = starts + np.random.default_rng(0).integers(0, length, len(starts))
    return values[places.clip(max=len(values) - 1)]
