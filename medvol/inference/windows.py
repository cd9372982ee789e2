"""Where windows lie on a volume, and the sums over those that overlap, a few planes at a time."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from monai.data.utils import dense_patch_slices
from torch import Tensor, nn

Start = tuple[int, int, int]


class Slab(NamedTuple):
    """Finished planes of a volume of logits.

    Args:
        axis: The axis along which slabs follow one another, 0 to 2; the same for all slabs of a volume.
        start: Index of the first plane along that axis.
        logits: Shape (classes, x, y, z), whole along the two other axes, float32.
    """

    axis: int
    start: int
    logits: Tensor


def stream_axis(shape: Sequence[int]) -> int:
    """Return the axis along which a volume of this shape is streamed: the longest, the first of equals."""
    return max(range(3), key=lambda axis: shape[axis])


@dataclass(frozen=True)
class WindowPlan:
    """Where the windows lie on a volume padded to at least one window."""

    image: Tensor
    patch: Start
    size: Start
    """Shape of the padded volume."""
    before: Start
    """Voxels of padding before the volume; window positions count from the padding's first voxel."""
    fill: tuple[float, ...]
    """Value of the padding in each channel."""
    axis: int
    rows: tuple[list[Start], ...]

    def cut(self, start: Start) -> Tensor:
        """Return a window, padded where it reaches out of the volume; a view where it does not."""
        window = self.image
        padding: list[int] = []
        for axis in range(3):
            first = start[axis] - self.before[axis]
            low, high = max(first, 0), min(first + self.patch[axis], self.image.shape[1 + axis])
            window = window.narrow(1 + axis, low, high - low)
            padding = [low - first, first + self.patch[axis] - high, *padding]
        if not any(padding):
            return window
        channels = zip(window, self.fill, strict=True)
        return torch.stack([nn.functional.pad(one, padding, value=value) for one, value in channels])


def plan_windows(image: Tensor, patch: Start, overlap: float) -> WindowPlan:
    """Place windows as MONAI and nnU-Net do: every step a share of the side, the last window flush with the end.

    Args:
        image: Shape (channel, x, y, z).
        patch: Sides of a window.
        overlap: Share of a side that the next window covers too.
    """
    shape = image.shape[1:]
    size = [max(length, side) for length, side in zip(shape, patch, strict=True)]
    step = [
        side if side == length else max(int(side * (1 - overlap)), 1) for length, side in zip(size, patch, strict=True)
    ]
    axis = stream_axis(shape)
    rows: dict[int, list[Start]] = {}
    for slices in dense_patch_slices(size, patch, step):
        x, y, z = (int(one.start) for one in slices)
        rows.setdefault((x, y, z)[axis], []).append((x, y, z))
    before = _triple((large - small) // 2 for large, small in zip(size, shape, strict=True))
    fill = tuple(image.flatten(1).amin(dim=1).tolist())
    return WindowPlan(image, patch, _triple(size), before, fill, axis, tuple(rows[first] for first in sorted(rows)))


@final
class WindowSums:
    """Weighted sums of logits, and of weights, in the planes that a row of windows touches."""

    def __init__(self, plan: WindowPlan, importance: Tensor) -> None:
        self.plan = plan
        self.importance = importance[None]
        self.start = 0  # plane of the padded volume that is the buffer's first
        self._weights = importance.new_zeros(self._shape(1))
        self._sums: Tensor | None = None

    def _begin(self, logits: Tensor) -> Tensor:
        """Make the buffer where the logits are, or in the computer's memory where it is too large for a card's."""
        shape = self._shape(len(logits))
        home = logits.device if has_room(logits.device, 4 * math.prod(shape)) else torch.device("cpu")
        self.importance, self._weights = self.importance.to(home), self._weights.to(home)
        return _zeros(shape, home)

    def _shape(self, classes: int) -> list[int]:
        shape = [classes, *self.plan.size]
        shape[1 + self.plan.axis] = self.plan.patch[self.plan.axis]
        return shape

    def add(self, start: Start, logits: Tensor) -> None:
        """Add a window's logits, shape (classes, *patch)."""
        if self._sums is None:
            self._sums = self._begin(logits)
        # Fused and class by class, so that neither a weighted nor a float32 copy of all logits is made.
        for sums, values in zip(self._window(self._sums, start), logits, strict=True):
            sums.addcmul_(values.to(sums.device).float(), self.importance[0])
        self._window(self._weights, start).add_(self.importance)

    def finish(self, count: int) -> Slab:
        """Divide the first `count` planes by their weights and return those that belong to the volume."""
        plan = self.plan
        logits = self._planes(0, count)
        logits.div_(self._weights.narrow(1 + plan.axis, 0, count))
        for axis, (first, length) in enumerate(zip(plan.before, plan.image.shape[1:], strict=True)):
            if axis != plan.axis:
                logits = logits.narrow(1 + axis, first, length)
        # Padding along the axis means that there is one row, which holds the volume and the padding on both sides.
        first = max(plan.before[plan.axis] - self.start, 0)
        length = min(count - first, plan.image.shape[1 + plan.axis])
        start = self.start + first - plan.before[plan.axis]
        return Slab(plan.axis, start, logits.narrow(1 + plan.axis, first, length))

    def advance(self, count: int) -> None:
        """Drop the first `count` planes and make room for as many behind the last."""
        kept = self.plan.patch[self.plan.axis] - count
        for tensor in (self._sums, self._weights):
            planes = [] if tensor is None else tensor.split(1, dim=1 + self.plan.axis)
            for index in range(len(planes)):
                # One plane at a time: source and target may overlap by all but `count` planes.
                if index < kept:
                    planes[index].copy_(planes[index + count])
                else:
                    planes[index].zero_()
        self.start += count

    def _planes(self, first: int, count: int) -> Tensor:
        if self._sums is None:
            raise ValueError("no window was added")
        return self._sums.narrow(1 + self.plan.axis, first, count)

    def _window(self, tensor: Tensor, start: Start) -> Tensor:
        for axis in range(3):
            first = start[axis] - (self.start if axis == self.plan.axis else 0)
            tensor = tensor.narrow(1 + axis, first, self.plan.patch[axis])
        return tensor


def has_room(device: torch.device, size: int) -> bool:
    """Return whether so many bytes take at most half of a graphics card's free memory; of others nobody asks."""
    if device.type != "cuda":
        return True
    free = torch.cuda.mem_get_info(device)[0]
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return size <= (free + cached) / 2


def constant_values(window: Tensor) -> tuple[float, ...] | None:
    """Return each channel's value when all its voxels are equal, else None."""
    values = window[:, 0, 0, 0]
    # A look at one line settles almost all windows.
    if not bool((window[:, :, 0, 0] == values[:, None]).all()):
        return None
    low, high = torch.aminmax(window.flatten(1), dim=1)
    return tuple(values.tolist()) if torch.equal(low, high) else None


def _zeros(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return zeros, float32, which on a processor lie in pages of their own.

    Within malloc's heap a long-lived buffer would land among what the network allocates and frees for each window, and
    where freed memory is kept (`medvol.inference.memory`) the heap would grow around it.
    """
    if device.type != "cpu":
        return torch.zeros(shape, device=device)
    pages = mmap.mmap(-1, 4 * math.prod(shape))
    return torch.frombuffer(pages, dtype=torch.float32).view(shape)


def _triple(values: Iterable[int]) -> Start:
    x, y, z = values
    return x, y, z
