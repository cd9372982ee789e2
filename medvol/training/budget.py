"""Patch and batch of a network for a budget of memory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from medvol.errors import MedvolError
from medvol.training.losses import DeepDiceCeLoss
from medvol.training.preflight import MemoryEstimate, patch_multiple, predict_memory, require_shape

Size = tuple[int, int, int]
MakeNetwork = Callable[..., nn.Module]

SMALLEST_PATCH = 16  # voxels along an axis below which a patch is not shrunk
SMALLEST_BATCH = 2
LARGEST_BATCH = 4
BATCH_SHARE = 0.05  # of the training split's voxels, nnU-Net's limit: a larger batch repeats itself
ROUNDS = 12


@dataclass(frozen=True)
class Fit:
    """A patch and a batch with what they cost.

    Args:
        size: Voxels of a patch along x, y, z.
        batch_size: Patches per step.
        multiple: What a size must be a multiple of along x, y, z.
        memory: Of one step.
        parameters: Of the network.
    """

    size: Size
    batch_size: int
    multiple: Size
    memory: MemoryEstimate
    parameters: int

    @property
    def voxels(self) -> int:
        """Voxels of a patch."""
        return math.prod(self.size)


@dataclass(frozen=True)
class Problem:
    """What patches are fitted to.

    Args:
        make_network: See `build_network`.
        in_channels: Channels of the images.
        num_outputs: Classes, background included.
        spacing_mm: Of the working grid, along x, y, z; None in voxel space.
    """

    make_network: MakeNetwork
    in_channels: int
    num_outputs: int
    spacing_mm: tuple[float, float, float] | None

    def network(self, size: Sequence[int]) -> nn.Module:
        """Return a new network for a patch size; torch's random numbers stay as they are."""
        with torch.random.fork_rng(devices=[]):
            return build_network(
                self.make_network,
                self.in_channels,
                self.num_outputs,
                spatial_size=tuple(size),
                spacing_mm=self.spacing_mm,
            )

    def fit(self, size: Size, batch_size: int, network: nn.Module | None = None) -> Fit:
        """Return what a patch and a batch cost.

        Raises:
            MedvolError: `BAD_PATCH_SIZE` or what else the network has against the size.
        """
        network = network or self.network(size)
        require_shape(network, self.in_channels, size)
        memory = predict_memory(network, (self.in_channels, *size), batch_size, loss=DeepDiceCeLoss())
        parameters = sum(one.numel() for one in network.parameters())
        return Fit(size, batch_size, patch_multiple(network, self.in_channels), memory, parameters)


def build_network(
    make_network: MakeNetwork,
    in_channels: int,
    num_outputs: int,
    *,
    spatial_size: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
) -> nn.Module:
    """Return `make_network(in_channels, num_outputs)`, with the patch size and the spacing where it names them.

    Args:
        make_network: A function such as `medvol.networks.unet.unet` or any network class of MONAI that takes its input
            and output channels first.
        in_channels: Channels of the images.
        num_outputs: Classes, background included.
        spatial_size: Voxels of a training patch along x, y, z.
        spacing_mm: Of the working grid.
    """
    named = inspect.signature(make_network).parameters
    known: dict[str, Any] = {"spatial_size": tuple(spatial_size), "spacing_mm": spacing_mm and tuple(spacing_mm)}
    return make_network(in_channels, num_outputs, **{name: value for name, value in known.items() if name in named})


def largest_fit(
    problem: Problem, wanted: Sequence[int], *, batch_size: int, memory_gb: float, most_voxels: float = math.inf
) -> Fit:
    """Return the largest patch, up to a wanted size padded to what the network divides, that stays within limits.

    It is shrunk along its longest axis (in mm) first. When even the smallest patch takes too much memory, that one is
    returned.

    Raises:
        MedvolError: What the network has against every size tried.
    """
    fit = _settled(problem, wanted, batch_size)
    for _ in range(ROUNDS):
        share = _room(fit, memory_gb)
        target = min(most_voxels, fit.voxels * share)
        if target >= fit.voxels:
            break
        smaller = shrunk(fit.size, fit.multiple, target, problem.spacing_mm)
        if smaller == fit.size:
            break
        try:
            fit = _settled(problem, smaller, batch_size)
        except MedvolError:  # as small as this network can go
            break
    return fit


def largest_batch(problem: Problem, fit: Fit, *, total_voxels: float, memory_gb: float) -> Fit:
    """Return the fit with 2 to 4 patches per batch: within memory, and 5 % of the training split's voxels."""
    by_data = round(BATCH_SHARE * total_voxels / fit.voxels)
    network = problem.network(fit.size)
    for batch_size in range(min(LARGEST_BATCH, by_data), fit.batch_size, -1):
        larger = problem.fit(fit.size, batch_size, network)
        if larger.memory.total_gb <= memory_gb:
            return larger
    return fit


def shrunk(size: Size, multiple: Size, voxels: float, spacing_mm: Sequence[float] | None) -> Size:
    """Return a size of at most some voxels, shrunk step by step along the axis that is longest in mm."""
    steps, result = spacing_mm or (1.0, 1.0, 1.0), list(size)
    while math.prod(result) > voxels:
        able = [axis for axis in range(3) if result[axis] - multiple[axis] >= max(SMALLEST_PATCH, multiple[axis])]
        if not able:
            break
        axis = max(able, key=lambda one: result[one] * steps[one])
        result[axis] -= multiple[axis]
    return result[0], result[1], result[2]


def _settled(problem: Problem, wanted: Sequence[int], batch_size: int) -> Fit:
    """Return the smallest size from the wanted one on that its own network takes: its depth depends on the size."""
    size: Size = (int(wanted[0]), int(wanted[1]), int(wanted[2]))
    refusal: MedvolError | None = None
    for _ in range(ROUNDS):
        network = problem.network(size)
        multiple = patch_multiple(network, problem.in_channels)
        rounded = [-(-length // step) * step for length, step in zip(size, multiple, strict=True)]
        if tuple(rounded) == size:
            try:
                return problem.fit(size, batch_size, network)
            except MedvolError as error:  # a single voxel at the bottom, say
                refusal = error
                axis = rounded.index(min(rounded))
                rounded[axis] += multiple[axis]
        size = (rounded[0], rounded[1], rounded[2])
    if refusal is None:
        raise MedvolError("BAD_PATCH_SIZE", found=f"no patch size near {list(wanted)} that the network takes")
    raise refusal


def _room(fit: Fit, memory_gb: float) -> float:
    """Return the share of its voxels that a patch may keep to stay within memory; above 1 when it does."""
    fixed = fit.memory.total_gb - fit.memory.tensors_gb
    return max(0.0, memory_gb - fixed) / fit.memory.tensors_gb


def with_batch(fit: Fit, batch_size: int) -> Fit:
    """Return a fit with a smaller batch, its memory scaled."""
    share = batch_size / fit.batch_size
    return replace(fit, batch_size=batch_size, memory=replace(fit.memory, tensors_gb=fit.memory.tensors_gb * share))
