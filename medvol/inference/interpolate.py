"""Linear interpolation of streamed logits to another number of voxels over the same field of view.

The arithmetic is that of `torch.nn.functional.interpolate(mode="trilinear", align_corners=False)` on the whole volume,
plane by plane: the two axes within a plane are left to torch, the axis of the stream is done here. Classes are gone
through a few at a time, so the memory needed grows neither with their number nor with the length of the volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medvol.inference.windows import Slab

SCRATCH_BYTES = 16 * 2**20  # of interpolated logits at a time; about three such tensors live together

_PLANES = 8  # per block; the plane before a block is interpolated once more, which costs an eighth


@dataclass(frozen=True)
class TargetBlock:
    """Neighbouring planes of the target, not yet interpolated.

    Args:
        axis: Axis of the volume along which the planes follow one another.
        start: Index of the first plane in the target.
        sources: Planes of logits, each (classes, planes, a, b), that together make up the stretch which is needed.
        low: For each target plane, the nearer-to-zero of its two planes in the stretch, shape (planes,).
        high: The other one.
        weight: Share of the other one, shape (planes,).
        size: Voxels of the target within a plane.
    """

    axis: int
    start: int
    sources: tuple[Tensor, ...]
    low: Tensor
    high: Tensor
    weight: Tensor
    size: tuple[int, int]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.sources[0])

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """Yield a first class, and the target's logits of a few classes from it on, (classes, planes, a, b).

        The logits are the caller's own.
        """
        needed, place = torch.unique(torch.cat([self.low, self.high]), return_inverse=True)
        low, high = place.split(len(self.low))
        plane_bytes = 4 * self.size[0] * self.size[1]
        step = max(1, SCRATCH_BYTES // (plane_bytes * max(len(needed), len(low))))
        for first in range(0, self.classes, step):
            stretch = torch.cat([source[first : first + step] for source in self.sources], dim=1)
            planes = _within_planes(stretch.index_select(1, needed), self.size)
            if bool((self.weight == 0).all()):
                yield first, planes.index_select(1, low)
            else:
                weight = self.weight[:, None, None]
                part = planes.index_select(1, low).mul_(1 - weight)
                yield first, part.add_(planes.index_select(1, high).mul_(weight))


def target_blocks(
    slabs: Iterable[Slab], working_shape: Sequence[int], target_shape: Sequence[int]
) -> Iterator[TargetBlock]:
    """Yield the target's planes in order, a few at a time, as soon as the logits they need have arrived.

    A block refers to the slab that it was made of; both are valid until the next one is asked for.

    Args:
        slabs: Logits of a volume of `working_shape`, following one another along one axis.
        working_shape: Voxels of the whole volume of logits.
        target_shape: Voxels of the target, along the same axes.

    Raises:
        ValueError: If the slabs leave a gap or do not cover the volume.
    """
    done, stop = 0, 0
    before: tuple[Tensor, ...] = ()
    axis = 0
    for axis, start, logits in slabs:
        if start != stop:
            raise ValueError(f"a slab starts at plane {start}, the one before ended at {stop}")
        low, high, weight = _taps(working_shape[axis], target_shape[axis])
        a, b = (length for other, length in enumerate(target_shape) if other != axis)
        for planes in logits.movedim(1 + axis, 1).split(_PLANES, dim=1):
            first = stop - (1 if before else 0)
            stop += planes.shape[1]
            ready = int(np.searchsorted(high, stop))
            for begin in range(done, ready, 2 * _PLANES):
                part = slice(begin, min(begin + 2 * _PLANES, ready))
                taps = [torch.from_numpy(values[part] - first).to(planes.device) for values in (low, high)]
                share = torch.from_numpy(weight[part]).to(planes.device)
                yield TargetBlock(axis, begin, (*before, planes), taps[0], taps[1], share, (a, b))
            done, before = ready, (planes[:, -1:].clone(),)
    if stop != working_shape[axis]:
        raise ValueError(f"the slabs end at plane {stop} of {working_shape[axis]}")


def _taps(working: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the two planes that each target plane lies between, and the share of the second; torch's rounding."""
    scale = np.float32(working) / np.float32(target)
    place = np.maximum(scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = np.minimum(place.astype(np.int64), working - 1)
    weight = np.clip(place - low.astype(np.float32), 0, 1).astype(np.float32)
    high = np.where(weight > 0, np.minimum(low + 1, working - 1), low)
    return low, high, weight


def _within_planes(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate planes, (classes, planes, a, b), to `size`."""
    if planes.shape[2:] == size:
        return planes
    if planes.device.type != "cpu":
        return functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    result = planes.new_empty((*planes.shape[:2], *size))
    for source, target in zip(planes.flatten(0, 1), result.flatten(0, 1), strict=True):
        # One at a time: torch takes another kernel, with other last bits, according to how many there are.
        target.copy_(functional.interpolate(source[None, None], size=size, mode="bilinear", align_corners=False)[0, 0])
    return result
