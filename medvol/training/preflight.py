"""Before the first step: does the network take this shape, and does a training step fit into memory?

Both are answered by running the step on torch's meta device, where tensors have a shape and no numbers. Every tensor
that an operator returns is counted from its creation until it is freed, through forward, loss and backward, so that
what is kept for the gradient, what works in place and what a network does outside of its modules are counted as they
are. Rejected: forward hooks on modules, which see neither functional calls nor what backward needs on top.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medvol.errors import MedvolError, find_refusal
from medvol.networks.mean import as_outputs

GIB = 2**30
PROCESS_GB = 0.6  # Python with torch, MONAI and SimpleITK, before the first volume: 0.46 GiB measured
WORKSPACE = 1.4  # what convolutions reorder on the side, and blocks that malloc cannot reuse: 1.3 to 1.7 measured
LARGEST_MULTIPLE = 64

_GROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of this process' control group, in the second and first version of Linux's interface."""

Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class MemoryEstimate:
    """What a step takes, in GiB.

    Args:
        weights_gb: Parameters and buffers of the network.
        state_gb: The two moments of AdamW and the averaged copy.
        tensors_gb: Most that all other tensors hold at one time, gradients and workspace included.
        process_gb: What Python and its libraries take.
    """

    weights_gb: float
    state_gb: float
    tensors_gb: float
    process_gb: float = PROCESS_GB

    @property
    def total_gb(self) -> float:
        """Resident memory of the process at its peak, without cached volumes."""
        return self.weights_gb + self.state_gb + self.tensors_gb + self.process_gb


def predict_memory(
    network: nn.Module, input_shape: Sequence[int], batch_size: int, *, loss: Loss | None = None
) -> MemoryEstimate:
    """Return the memory that a training step in float32 will take, without taking it.

    Peak resident memory of two training steps in a process of its own, in GiB: 3 classes, Dice and cross-entropy,
    AdamW, averaged copy, freed memory kept as training keeps it. The layout, which channels last made 11 % larger,
    is not predicted.

    | network | patch | batch | measured | predicted |
    |---|---|---|---|---|
    | unet, width 16 | 40 x 56 x 40 | 4 | 1.14 | 1.21 |
    | unet, width 16 | 64 x 64 x 64 | 2 | 1.47 | 1.62 |
    | unet, width 16 | 96 x 96 x 96 | 2 | 3.37 | 3.59 |
    | swin_unetr, feature size 24 | 64 x 64 x 64 | 2 | 2.24 | 2.44 |
    | swin_unetr, feature size 24 | 96 x 96 x 96 | 2 | 5.56 | 5.86 |

    Args:
        network: Any network on any device; a copy is run on the meta device.
        input_shape: Channel and spatial size of one volume, (channel, x, y, z).
        batch_size: Volumes per step.
        loss: Takes logits, or the list of them that a network with deep supervision returns, and labels
            (n, 1, x, y, z); None sums the logits.

    Raises:
        MedvolError: `BAD_PATCH_SIZE` when the network does not take the shape.
    """
    weights = sum(one.nbytes for one in (*network.parameters(), *network.buffers()))
    # Gradients appear in the run and are counted there.
    peak = _peak_bytes(network, (batch_size, *input_shape), loss)
    return MemoryEstimate(weights / GIB, 3 * weights / GIB, WORKSPACE * peak / GIB)


def require_fits(predicted_gb: float, available_gb: float, *, spatial_size: Sequence[int], batch_size: int) -> None:
    """Refuse a step that does not fit into memory.

    Raises:
        MedvolError: `TOO_LARGE` with the predicted and the available GiB.
    """
    if predicted_gb > available_gb:
        patch = " x ".join(map(str, spatial_size))
        raise MedvolError(
            "TOO_LARGE",
            found=f"a step on {batch_size} patches of {patch} voxels would take {predicted_gb:.1f} GB",
            expected=f"at most {available_gb:.1f} GB",
            fix="pass a smaller --spatial_size or --batch_size, or a larger --memory_gb",
        )


def require_shape(network: nn.Module, in_channels: int, spatial_size: Sequence[int]) -> None:
    """Refuse a spatial size that the network cannot be trained on, with the nearest one that it can.

    Raises:
        MedvolError: `BAD_PATCH_SIZE`, `INPUT_TOO_SMALL`, or what the network itself names.
    """
    try:
        _run(_twin(network), (1, in_channels, *spatial_size))
    except MedvolError:
        raise
    except Exception as error:  # a network may fail in any way on a size that it was not made for
        refusal = find_refusal(error)
        if refusal is not None:
            raise refusal from error
        raise MedvolError(
            "BAD_PATCH_SIZE",
            found=f"patches of {' x '.join(map(str, spatial_size))} voxels ({type(error).__name__})",
            expected="a size that the network's pooling divides",
            fix=_better(network, in_channels, spatial_size),
            details=[str(error)],
        ) from error


def patch_multiple(network: nn.Module, in_channels: int) -> tuple[int, int, int]:
    """Return the multiple that a patch must be of along x, y, z.

    MONAI's SegResNetDS says it by `shape_factor()`; of other networks the smallest power of two is taken whose third
    multiple they run on and return in full: an odd one, so that no larger multiple is met by chance.

    Raises:
        MedvolError: `BAD_PATCH_SIZE` when no multiple up to 64 runs.
    """
    stated = getattr(network, "shape_factor", None)
    if callable(stated):
        first, second, third = (int(one) for one in stated())
        return first, second, third
    multiple, failure = 1, ""
    while multiple <= LARGEST_MULTIPLE:
        failure = _failure(network, in_channels, [3 * multiple] * 3)
        if not failure:
            return multiple, multiple, multiple
        multiple *= 2
    raise MedvolError(
        "BAD_PATCH_SIZE",
        found=f"a {type(network).__name__} that runs on no cube of 3 to {3 * LARGEST_MULTIPLE} voxels",
        expected="a network from volumes to logits of the same size, able to run on torch's meta device",
        fix="check make_network",
        details=[failure],
    )


def available_memory_gb(device: torch.device | None = None) -> float:
    """Return the memory that this process may still take, in GiB.

    Args:
        device: A CUDA device for its free memory; else the machine's, or its control group's if that is less.
    """
    if device is not None and device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0]) / GIB
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # page cache counts as free there, which AVPHYS does not say
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines.get("MemAvailable", f"{free // 1024} kB").split()[0]) * 1024
    for limit, used in _GROUP_FILES:
        try:
            left = int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such group, or no limit: "max"
            continue
        free = min(free, max(0, left))
    return free / GIB


def _peak_bytes(network: nn.Module, shape: Sequence[int], loss: Loss | None) -> int:
    twin = _twin(network)
    with _LiveBytes() as live:
        outputs = _run(twin, shape)
        _total(outputs, shape, loss).backward()
    return live.peak


def _twin(network: nn.Module) -> nn.Module:
    """Return a copy of the network on the meta device, ready to be trained."""
    return copy.deepcopy(network).to("meta", torch.float32).train()


def _run(twin: nn.Module, shape: Sequence[int]) -> Any:
    """Return what a network on the meta device makes of a batch."""
    with torch.enable_grad():
        return twin(torch.empty(tuple(shape), device="meta", dtype=torch.float32))


def _total(outputs: Any, shape: Sequence[int], loss: Loss | None) -> Tensor:
    several = as_outputs(outputs)
    if loss is None:
        return torch.stack([one.float().sum() for one in several]).sum()
    return loss(several, torch.empty((shape[0], 1, *shape[2:]), device="meta", dtype=torch.uint8))


def _failure(network: nn.Module, in_channels: int, size: Sequence[int]) -> str:
    """Return why a network gives no logits of a size, or an empty string when it does."""
    try:
        outputs = _run(_twin(network), (1, in_channels, *size))
    except Exception as error:  # a network may fail in any way on a size that it was not made for
        return f"{type(error).__name__}: {error}"
    finest = as_outputs(outputs)[0]
    return "" if tuple(finest.shape[2:]) == tuple(size) else f"its output has the shape {tuple(finest.shape)}"


def _better(network: nn.Module, in_channels: int, spatial_size: Sequence[int]) -> str:
    """Return advice: the smallest size from the given one on that runs."""
    multiple = 2
    while multiple <= LARGEST_MULTIPLE:
        size = [-(-length // multiple) * multiple for length in spatial_size]
        if not _failure(network, in_channels, size):
            return f"pass --spatial_size '{size}', multiples of {multiple}"
        multiple *= 2
    return "see the network's documentation"


@final
class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operators made and that are still referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and count what it made; views and in-place results are known already."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
