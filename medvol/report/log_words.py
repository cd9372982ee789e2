"""Numbers as the tables of a run's log show them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def interval_text(bounds: Sequence[float], *, signed: bool = False) -> str:
    """Return `low to high`, or `undefined` where there is none: one patient alone has no spread.

    Args:
        bounds: Lower and upper end.
        signed: Whether a plus is written, as of differences.
    """
    if not all(math.isfinite(bound) for bound in bounds):
        return "undefined"
    sign = "+" if signed else ""
    return " to ".join(f"{bound:{sign}.3f}" for bound in bounds)
