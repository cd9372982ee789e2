"""The learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(
    optimizer: Optimizer, *, max_lr: float | Sequence[float], total_steps: int, warmup_fraction: float = 0.25
) -> OneCycleLR:
    """Return torch's one-cycle schedule (Smith and Topin, 2018), also for runs of a few steps.

    torch divides by zero where the warm-up is exactly one step long, as in a trial run of one epoch of four batches.

    Args:
        optimizer: Its learning rate is set at every step, and Adam's first beta against it.
        max_lr: Highest learning rate, or one for each group of the optimiser.
        total_steps: Optimiser steps of the whole run.
        warmup_fraction: Share of the steps in which the rate rises.
    """
    steps = max(2, total_steps)
    fraction = max(warmup_fraction, 1.5 / steps)
    highest = list(max_lr) if isinstance(max_lr, Sequence) else max_lr
    return OneCycleLR(optimizer, max_lr=highest, total_steps=steps, pct_start=min(fraction, 1.0))
