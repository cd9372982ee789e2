"""Dates that move by a whole number of days, so that intervals within a patient stay."""

from __future__ import annotations

import re
from datetime import date, timedelta

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # with points: before DICOM
_TIME = re.compile(r"\d{2}(:?\d{2}(:?\d{2}(\.\d{1,6})?)?)?")
_DATETIME = re.compile(r"(\d{8})(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)?(?:[+-]\d{4})?")


def moved(text: str, vr: str, days: int) -> str | None:
    """Return a date, a date with time or a time, the date moved back; None for what is not entirely one.

    A year or a month alone cannot move by days. The time of the day stays; its zone, which tells the region, goes.

    Args:
        text: Value as in the file.
        vr: `DA`, `DT` or `TM`.
        days: Days to go back.
    """
    text = text.strip(" \0")
    if vr == "TM":
        return text if _TIME.fullmatch(text) else None
    found = (_DATE if vr == "DA" else _DATETIME).fullmatch(text)
    if found is None:
        return None
    parts = found.groups()
    digits = "".join(parts) if vr == "DA" else parts[0]
    try:
        day = date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) - timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{day.year:04d}{day.month:02d}{day.day:02d}" + ("" if vr == "DA" else parts[1] or "")
