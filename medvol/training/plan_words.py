"""The reasons of a plan, in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from medvol.data.fingerprint import Fingerprint
from medvol.training.budget import BATCH_SHARE, LARGEST_BATCH, Fit

SHOWN = 6


def why_structures(
    fingerprint: Fingerprint, values: Sequence[int], classes: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> str:
    """Return which mask value is what, and which are exchanged when left and right are mirrored."""
    named = [f"{value} {name}" for value, name in zip(values, classes, strict=True)]
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    text = f"values of {fingerprint.training_cases} training masks: {', '.join(named[:SHOWN])}{more}"
    return text + (f"; {len(pairs)} pairs of left and right" if pairs else "")


def why_fit(
    fit: Fit, median: Sequence[int], *, memory_gb: float, limit: str, stated: tuple[bool, bool]
) -> dict[str, str]:
    """Return the reasons for patch, batch, depth and memory.

    Args:
        fit: What was chosen.
        median: Voxels of the median training volume on the working grid.
        memory_gb: The budget.
        limit: What else limits the patch.
        stated: Whether the user stated the patch, and the batch.
    """
    padded = [-(-length // step) * step for length, step in zip(median, fit.multiple, strict=True)]
    volume = f"the median training volume, {_size(median)} voxels on the working grid"
    if stated[0]:
        patch = f"as given; {volume}"
    elif math.prod(fit.size) >= math.prod(padded):
        patch = f"{volume}, padded to multiples of {_size(fit.multiple)}"
    else:
        patch = f"as much of {volume}, as fits into {memory_gb:.1f} GB and {limit}; multiples of {_size(fit.multiple)}"
    levels = max(fit.multiple).bit_length()
    memory = fit.memory
    parts = f"weights and optimiser {memory.weights_gb + memory.state_gb:.2f}, one step {memory.tensors_gb:.2f}"
    batch = f"within {memory_gb:.1f} GB, {BATCH_SHARE:.0%} of the voxels and {LARGEST_BATCH}"
    return {
        "spatial_size": patch,
        "batch_size": "as given" if stated[1] else batch,
        "network": f"{levels} resolutions for this patch and spacing, {fit.parameters / 1e6:.1f} million weights",
        "memory": f"{parts}, Python and libraries {memory.process_gb:.2f} GB; cached volumes come on top",
    }


def absent_structures(shown: Collection[int], values: Sequence[int], classes: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for every class that no training mask shows, given the values that they hold."""
    for value, name in zip(values, classes, strict=True):
        if value and value not in shown:
            yield f"no training mask holds '{name}' (value {value}): it cannot be learnt"


def _size(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
