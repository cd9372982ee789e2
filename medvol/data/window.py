"""The window of Hounsfield units that a user states, checked in one place for every task."""

from __future__ import annotations

from collections.abc import Sequence

from medvol.errors import MedvolError


def given_window(window_hu: Sequence[float] | None, intensity: str) -> tuple[float, float] | None:
    """Return the window that is given, which makes the scheme `ct`; None without one.

    Raises:
        MedvolError: `BAD_VALUE` for a window that is none, or beside a stated scheme that takes none.
    """
    if window_hu is None:
        return None
    values = [float(value) for value in window_hu]
    if len(values) != 2 or not values[0] < values[1]:
        expected, fix = "the lowest and the highest value", "write --window_hu '[-160, 240]'"
        raise MedvolError("BAD_VALUE", found=f"window_hu {values}", expected=expected, fix=fix)
    if intensity not in ("auto", "ct"):
        raise MedvolError(
            "BAD_VALUE",
            found=f"window_hu {values} with intensity '{intensity}', which takes no window",
            expected="a window with intensity 'ct' or 'auto'",
            fix="write --intensity ct, or leave --window_hu out",
        )
    return values[0], values[1]
