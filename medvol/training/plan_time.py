"""The length of a training: a step is measured, and as many are planned as fit into the minutes."""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import nn

from medvol.inference.memory import keep_freed_memory
from medvol.inference.runtime import Runtime, runtimes_for
from medvol.training.budget import SMALLEST_BATCH, Fit, Problem, largest_fit, with_batch
from medvol.training.losses import DeepDiceCeLoss

STEPS = 4000  # of the optimiser when nothing is stated; nnU-Net takes 250,000
FEWEST_STEPS = 500  # below that, batch and patch are made smaller instead
MOST_STEPS = 40_000
TRAINING_SHARE = 0.8  # of the time; the rest goes into reading, validation and the report
MEASUREMENTS = 5
LEAST_SHARE = 0.5  # of its voxels that a patch keeps from one measurement to the next: a step's time is not linear


def steps_in(minutes: float, seconds: float) -> int:
    """Return how many steps of so many seconds fit into a training of so many minutes."""
    return min(MOST_STEPS, int(minutes * 60 * TRAINING_SHARE / seconds))


def minutes_of(steps: int, seconds: float) -> float:
    """Return the minutes that a training of so many steps takes in all."""
    return round(steps * seconds / 60 / TRAINING_SHARE, 1)


def fit_to_minutes(
    problem: Problem, fit: Fit, minutes: float, device: torch.device, *, keep_batch: bool, keep_size: bool
) -> tuple[Fit, float]:
    """Return the fit made small enough for 500 steps, the batch first, and the seconds of its step.

    Args:
        problem: What patches are fitted to.
        fit: What fits into memory.
        minutes: Budget of the whole training.
        device: Where it will run.
        keep_batch: The batch is stated.
        keep_size: The patch is stated.
    """
    seconds = seconds_per_step(problem, fit, device)
    for _ in range(MEASUREMENTS - 1):
        share = max(LEAST_SHARE, steps_in(minutes, seconds) / FEWEST_STEPS)
        if share >= 1:
            break
        if not keep_batch and fit.batch_size > SMALLEST_BATCH:
            smaller = with_batch(fit, max(SMALLEST_BATCH, int(fit.batch_size * share)))
        elif not keep_size:
            smaller = largest_fit(
                problem, fit.size, batch_size=fit.batch_size, memory_gb=math.inf, most_voxels=fit.voxels * share
            )
        else:
            break
        if smaller == fit:
            break
        fit, seconds = smaller, seconds_per_step(problem, smaller, device)
    return fit, seconds


def seconds_per_step(problem: Problem, fit: Fit, device: torch.device) -> float:
    """Return the time of one training step (forward, loss, backward), in the fastest precision and layout here.

    Each is run twice and the second counts; one that is slow the first time is not run again.
    """
    if device.type == "cpu":
        keep_freed_memory()
    network = problem.network(fit.size).to(device)
    best = math.inf
    with torch.random.fork_rng(devices=[]):
        for runtime in runtimes_for(device, "train"):
            twin = copy.deepcopy(network).to(memory_format=runtime.memory_format)  # type: ignore[call-overload]
            first = _step_seconds(twin, fit, problem, runtime, device)
            if first < 2 * best:
                best = min(best, _step_seconds(twin, fit, problem, runtime, device))
    return best


def _step_seconds(network: nn.Module, fit: Fit, problem: Problem, runtime: Runtime, device: torch.device) -> float:
    images = torch.zeros(fit.batch_size, problem.in_channels, *fit.size, device=device)
    labels = torch.zeros(fit.batch_size, 1, *fit.size, device=device)
    start = time.perf_counter()
    with torch.autocast(runtime.device_type, torch.bfloat16, enabled=runtime.dtype == "bfloat16"):
        outputs = network.train()(images.contiguous(memory_format=runtime.memory_format))
    DeepDiceCeLoss()(outputs, labels).backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
