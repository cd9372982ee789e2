"""Several processes that work on one study: who is first, what each takes, and how what they found comes together.

Alone, as most runs are, a process is the first of one, and nothing here costs or changes anything. Files are written by
the first process; only what belongs to single cases, as their masks and cache entries, is written by whoever has them.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist

from medvol.errors import MedvolError, require_choice

T = TypeVar("T")
P = ParamSpec("P")

BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Args:
        rank: Number of this one.
        count: How many there are.
        device: Where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    def share(self, length: int) -> range:
        """Return the part of `length` cases that this process takes: neighbours, so that joined parts keep the order.

        After the processes have parted it is all of them.

        No case is taken twice, so that a mean over all processes counts each once; parts differ by one case at most.

        Raises:
            MedvolError: `TOO_FEW_CASES` when a process would have none.
        """
        if self.count > 1 and process_count() == 1:
            return range(length)
        if 0 < length < self.count:
            raise MedvolError(
                "TOO_FEW_CASES",
                found=f"{length} cases for {self.count} processes",
                expected="one for each at least",
                fix=f"start {length} processes",
            )
        return range(length * self.rank // self.count, length * (self.rank + 1) // self.count)


def join_processes(backend: str) -> Processes:
    """Join the processes that torchrun has started.

    Args:
        backend: `gloo` between processors, `nccl` between graphics cards, one process for each.

    Raises:
        MedvolError: `UNKNOWN_OPTION`, `NO_DEVICE` without a graphics card, or `NO_PROCESSES` outside torchrun.
    """
    require_choice("backend", backend, BACKENDS)
    device = torch.device("cpu")
    if backend == "nccl":
        local, there = dist.get_node_local_rank(fallback_rank=0), torch.cuda.device_count()
        if local >= there:
            raise MedvolError(
                "NO_DEVICE",
                found=f"{there} graphics cards",
                expected="one for each process",
                fix="start fewer, or take multi_process_cpu.json",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        try:
            dist.init_process_group(backend)
        except ValueError as error:  # what torchrun tells its processes is not there
            raise MedvolError(
                "NO_PROCESSES",
                found="a single process",
                expected="several",
                fix="start it as `torchrun --standalone --nproc_per_node=2 -m monai.bundle run ...`",
            ) from error
        atexit.register(_leave)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def process_count() -> int:
    """Return the number of processes that work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def is_first() -> bool:
    """Return whether this is the process that writes files and speaks."""
    return process_rank() == 0


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in their order, in each of them."""
    if process_count() == 1:
        return [value]
    values: list[Any] = [None] * process_count()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Return when every process has come here."""
    gathered(None)


@contextmanager
def in_turn() -> Iterator[None]:
    """Let the first process go before the others, which find what it has made."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def from_first(make: Callable[P, T]) -> Callable[P, T]:
    """Return a function whose result the first process makes for all of them, as a measurement that may differ."""

    @wraps(make)
    def shared(*arguments: P.args, **options: P.kwargs) -> T:
        values = [make(*arguments, **options) if is_first() else None]
        if process_count() > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]  # the first process's, which made one

    return shared


def part() -> None:
    """Leave the other processes: from here on this one is the first of one.

    The first process leaves last: where it goes while another still reads from it, that one waits for ever.
    """
    if process_count() > 1:
        word = torch.zeros(1, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        if is_first():
            for rank in range(1, process_count()):
                dist.recv(word, src=rank)
        else:
            dist.send(word, dst=0)
    _leave()


def _leave() -> None:
    idist.finalize()
    if dist.is_initialized():
        dist.destroy_process_group()
