"""Sizes that a network's patches divide."""

from __future__ import annotations

import logging
from dataclasses import replace

from medvol.data.facts import Facts

logger = logging.getLogger(__name__)


def in_multiples(facts: Facts, multiple: int) -> Facts:
    """Return the facts with every axis of the spatial size rounded up to a multiple.

    Volumes without a geometry are then resized a little further, those with one padded.

    Args:
        facts: As fitted, or with the size that the user asked for.
        multiple: What every axis must be a multiple of.
    """
    size = tuple(-(-length // multiple) * multiple for length in facts.spatial_size)
    if size != tuple(facts.spatial_size):
        before = " x ".join(map(str, facts.spatial_size))
        logger.info("spatial_size %s rounded up to %s, multiples of %d", before, " x ".join(map(str, size)), multiple)
    return replace(facts, spatial_size=size)
