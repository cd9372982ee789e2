"""Sampling a volume: few voxels, from all of its planes."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvol.data.sampling import thinned


@pytest.mark.parametrize("shape", [(512, 512, 128), (64, 64, 64), (7, 8, 9), (256, 256, 33)])
def test_planes_along_every_axis_are_seen_alike(shape):
    places = thinned(np.arange(prod(shape)), 16384)
    assert len(places) == len(set(places.tolist())) <= 16384
    for along, length in zip(np.unravel_index(places, shape), shape, strict=True):
        share = np.bincount(along, minlength=length) / len(places)
        np.testing.assert_allclose(share, 1 / length, atol=6 * (length * len(places)) ** -0.5)


@given(st.integers(0, 5000), st.integers(1, 5000))
def test_no_more_are_taken_than_asked_for_and_half_as_many_where_there_are_enough(voxels, most):
    values = np.arange(voxels)
    taken = thinned(values, most)
    assert np.all(np.diff(taken) > 0)
    assert min(voxels, most) / 2 <= len(taken) <= most
    assert np.array_equal(thinned(torch.from_numpy(values), most).numpy(), taken)
