"""Training in several processes: the network, and what only one of them may decide.

What is equal to one process, and what is not (torchrun with n processes of batch b, against one of batch n b):

* The batches are the same, case by case, and so are flips, rotations and grey values, drawn for the whole batch. The
  field of added noise is drawn in each process. Dropout is drawn in each process too.
* Gradients are averaged, which is the gradient of the mean over the whole batch: equal up to the order of sums for a
  loss that is a mean over cases. Class weights divide by their sum in each process, and soft Dice takes the volumes of
  a process as one: those differ, as they do between batch sizes.
* Batch normalisation takes the mean over a process's own cases, not over all (SyncBatchNorm exists on graphics cards
  alone, and costs an exchange per layer). Running statistics are averaged over the processes after every epoch.
* Validation and evaluation take each case once, in one of the processes: equal up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medvol.data.processes import Processes, from_first, process_count
from medvol.inference import runtime
from medvol.inference.runtime import Runtime
from medvol.training import plan

plan_segmentation = from_first(plan.plan_segmentation)
"""The plan of the first process: what fits into memory is measured."""

# torch 2.13 gave the option a new name.
_NAMES = signature(DistributedDataParallel).parameters
OWN_BUFFERS: dict[str, Any] = {
    next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in _NAMES): False
}
"""Running statistics are averaged after an epoch, not sent before every batch."""

_measured = from_first(runtime.choose_runtime)


def choose_runtime(network: nn.Module, input_shape: Sequence[int], *, device: torch.device, **options: Any) -> Runtime:
    """Return what the first process measures as the fastest runtime, set up in every process.

    Args:
        network: As for `medvol.inference.runtime.choose_runtime`.
        input_shape: As there.
        device: As there; nothing is measured on a graphics card.
        **options: As there.
    """
    if device.type == "cpu":
        found = _measured(network, input_shape, device=device, **options)
        options |= {"precision": found.dtype, "channels_last": found.channels_last}
    return runtime.choose_runtime(network, input_shape, device=device, **options)


def parallel(
    network: nn.Module, processes: Processes, *, seed: int, may_skip_layers: bool = False
) -> DistributedDataParallel:
    """Return the network as the trainer's, with gradients averaged over the processes.

    From here on each process draws dropout from a seed of its own.

    Args:
        network: On its device; the first process's weights are those of all.
        processes: From `join_processes`.
        seed: Of the run.
        may_skip_layers: Whether a batch may leave layers out, as the image's where no case has one.
    """
    wrapped = DistributedDataParallel(
        network,
        process_group=_group_of_gradients(),
        device_ids=[processes.device] if processes.device.type == "cuda" else None,
        **OWN_BUFFERS,
        find_unused_parameters=may_skip_layers,
    )
    torch.manual_seed(seed * 1_000_003 + processes.rank)
    return wrapped


def _group_of_gradients() -> dist.ProcessGroup | None:
    """Return a group for the gradients alone, or none on graphics cards, where one more costs their memory.

    A network keeps its group until Python ends. Gloo's threads let go of the last tensors on their own; where that
    comes after Python began to end, the process is aborted (pytorch issue 190489). The gradients' last exchange is long
    past by then; that of results is not, and its group must end before.
    """
    return dist.new_group() if dist.get_backend() == "gloo" else None


@torch.no_grad()
def average_buffers(*networks: nn.Module) -> None:
    """Replace running statistics by their mean over the processes; nothing happens in a single one."""
    if process_count() == 1:
        return
    for network in networks:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                _mean_over_processes(buffer)


def mean_over_processes(value: float) -> float:
    """Return the mean of a number over the processes."""
    if process_count() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    _mean_over_processes(tensor)
    return float(tensor)


def _mean_over_processes(tensor: Tensor) -> None:
    dist.all_reduce(tensor)
    tensor /= process_count()
