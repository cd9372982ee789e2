"""Which quantity a volume holds: the header's rescale, Philips' own unit, or uptake.

The rescale of the header is what every other program shows, so it is the default. What else a header offers is named in
a note and taken on request only; a real world value map is never applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medvol.errors import MedvolError
from medvol.io.dicom_header import SliceHeader
from medvol.io.dicom_suv import suv_slices
from medvol.io.options import ReadOptions

Slices = tuple[SliceHeader, ...]


def settle_quantity(slices: Sequence[SliceHeader], options: ReadOptions) -> tuple[Slices, tuple[str, ...]]:
    """Return the slices with the rescale that gives the wanted quantity, and notes on it.

    Raises:
        MedvolError: `NO_SUV` or `NO_SCALE`.
    """
    settled, notes = tuple(slices), _offers(slices)
    if options.philips == "float":
        settled, notes = _undisplayed(settled), ("Philips scale slope applied, values in the scanner's unit",)
    if options.suv:
        settled, note = suv_slices(settled)
        notes += (note,)
    return settled, notes


def _offers(slices: Sequence[SliceHeader]) -> tuple[str, ...]:
    """Return notes on other quantities that the headers offer."""
    notes: tuple[str, ...] = ()
    if any(one.has_real_world for one in slices):
        notes += ("a real world value map is there; the header's rescale was applied, not the map",)
    if any(one.scale is not None and one.scale * one.rescale[0] != 1 for one in slices):
        notes += ("Philips scale slope not applied: values are those of the display; philips='float' applies it",)
    return notes


def _undisplayed(slices: Slices) -> Slices:
    """Return the slices with Philips' floating point rescale, (pixel x slope + intercept) / (slope x scale).

    Source: Chenevert et al., Errors in quantitative image analysis due to platform-dependent image scaling, 2014.
    """
    settled = []
    for one in slices:
        slope, intercept = one.rescale
        if one.scale is None or one.has_lut:
            raise MedvolError(
                "NO_SCALE",
                file=one.path,
                found="no scale slope (2005,100E) of Philips",
                expected="one in every image",
                fix="read it with philips='display'",
            )
        settled.append(replace(one, rescale=(1 / one.scale, intercept / (slope * one.scale))))
    return tuple(settled)
