"""The end of what several processes do together: from there on the first one is alone, as if it had been all along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.engines import SupervisedEvaluator

from medvol.bundle.segmentation import CollectCases
from medvol.data.processes import gathered, is_first, part
from medvol.inference.collect import CollectPredictions
from medvol.inference.segment import WriteMasks


def part_ways(evaluator: SupervisedEvaluator, handlers: Sequence[Any]) -> None:
    """Give the first process what all have collected, end the others, and let the evaluator see every case again.

    What follows (calibration, post-processing, tables, pictures) is then the same code, and the same result, as that of
    a run in one process.

    Args:
        evaluator: Over a share of the cases so far.
        handlers: Its handlers; each that collects cases takes those of the other processes.

    Raises:
        SystemExit: With code 0, in all processes but the first.
    """
    own = [one for one in handlers if isinstance(one, CollectPredictions | WriteMasks | CollectCases)]
    _, *others = gathered(own)
    first = is_first()
    part()
    if not first:
        raise SystemExit(0)
    for handler, *theirs in zip(own, *others, strict=True):
        _absorb(handler, theirs)
    evaluator.state.epoch_length = len(evaluator.data_loader)


def _absorb(handler: Any, others: Sequence[Any]) -> None:
    """Add to a handler what those of the other processes have."""
    if isinstance(handler, CollectCases):
        handler.cases.absorb([one.cases for one in others])
    elif isinstance(handler, WriteMasks):
        for one in others:
            handler.written.update(one.written)
    else:
        handler.absorb(others)
