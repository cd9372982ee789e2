"""Numbers that a data set shares with its loader's workers, forked or spawned."""

from __future__ import annotations

from typing import final

import torch
from torch.utils.data import get_worker_info

ROWS = 64  # one for the main process and one per worker, so that no two processes write the same number
NAMES = ("hits", "misses", "damaged", "uncached")


@final
class SharedCounts:
    """Counters of a data set in shared memory.

    Args:
        items: Number of items whose accesses are counted.
    """

    def __init__(self, items: int) -> None:
        self._tensor = torch.zeros(ROWS * len(NAMES) + 2 + items, dtype=torch.int64).share_memory_()
        self._attach()

    def add(self, name: str) -> None:
        """Count one event of `NAMES`."""
        info = get_worker_info()
        row = 0 if info is None else 1 + info.id % (ROWS - 1)
        self._counts[row, NAMES.index(name)] += 1

    def total(self, name: str) -> int:
        """Return the events counted in all processes."""
        return int(self._counts[:, NAMES.index(name)].sum())

    def take_over(self, other: SharedCounts) -> None:
        """Continue the counts of events of another."""
        self._counts[:] = other._counts
        self._flags[:] = other._flags

    def warn_once(self) -> bool:
        """Return True the first time it is asked, in whatever process."""
        first = not self._flags[1]
        self._flags[1] = 1
        return first

    @property
    def epoch(self) -> int:
        """Epoch as last set."""
        return int(self._flags[0])

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch and count accesses from zero."""
        self._flags[0] = epoch
        self._visits[:] = 0

    def visit(self, index: int) -> int:
        """Return how often an item was accessed before in this epoch, and count this access."""
        count = int(self._visits[index])
        self._visits[index] = count + 1
        return count

    def __getstate__(self) -> torch.Tensor:
        return self._tensor

    def __setstate__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._attach()

    def _attach(self) -> None:
        # A NumPy view of the same memory: indexing a tensor for one number takes twenty times as long.
        numbers = self._tensor.numpy()
        end = ROWS * len(NAMES)
        self._counts = numbers[:end].reshape(ROWS, len(NAMES))
        self._flags = numbers[end : end + 2]
        self._visits = numbers[end + 2 :]
