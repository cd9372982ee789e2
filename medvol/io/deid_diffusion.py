"""Diffusion of classic MR files: two numbers that vendors kept in private blocks, put where DICOM has a place for them.

Without them nothing tells the volumes of such a series apart once private blocks are gone. The blocks are those that
PS3.15 E.3.10 lists as safe; only plain numbers are taken over.
"""

from __future__ import annotations

import math
import struct
from typing import Any

_MR = "1.2.840.10008.5.1.4.1.1.4"
_LARGEST_B_VALUE = 1e5  # s/mm2; GE adds multiples of a billion to some, as dcm2niix has found

_Place = tuple[str, int, int]

_B_VALUES: tuple[_Place, ...] = (
    ("SIEMENS MR HEADER", 0x0019, 0x0C),
    ("GEMS_PARM_01", 0x0043, 0x39),
    ("Philips Imaging DD 001", 0x2001, 0x03),
)
# One attribute with three numbers, or three with one each.
_DIRECTIONS: tuple[tuple[_Place, ...], ...] = (
    (("SIEMENS MR HEADER", 0x0019, 0x0E),),
    tuple(("GEMS_ACQU_01", 0x0019, offset) for offset in (0xBB, 0xBC, 0xBD)),
    tuple(("Philips MR Imaging DD 001", 0x2005, offset) for offset in (0xB0, 0xB1, 0xB2)),
)


def keep_diffusion(dataset: Any) -> None:
    """Add b-value and gradient direction to a classic MR image that states them in private blocks only."""
    if str(dataset.get("SOPClassUID") or "") != _MR:
        return
    if "DiffusionBValue" not in dataset:
        value = next((found[0] for place in _B_VALUES if (found := _numbers(dataset, place))), None)
        if value is not None and value >= 0:
            dataset.DiffusionBValue = value % _LARGEST_B_VALUE
    if "DiffusionGradientOrientation" not in dataset:
        for places in _DIRECTIONS:
            direction = [one for place in places for one in _numbers(dataset, place)]
            if len(direction) == 3 and any(direction):
                dataset.DiffusionGradientOrientation = direction
                return


def _numbers(dataset: Any, place: _Place) -> list[float]:
    """Return the numbers of a private attribute, none when it is absent or holds anything else."""
    creator, group, offset = place
    try:
        value = dataset.private_block(group, creator)[offset].value
    except KeyError:
        # Some exports drop the names of blocks; then the maker of the scanner says whose the first one is.
        is_nameless = (group, 0x0010) not in dataset and (group, 0x1000 | offset) in dataset
        if not is_nameless or not str(dataset.get("Manufacturer") or "").upper().startswith(creator[:2].upper()):
            return []
        value = dataset[group, 0x1000 | offset].value
    if isinstance(value, bytes) and len(value) in (4, 24) and not value.isascii():
        value = list(struct.unpack("<f" if len(value) == 4 else "<3d", value))
    elif isinstance(value, bytes):
        value = value.decode("latin-1").strip(" \0").split("\\")
    try:
        numbers = [float(one) for one in (value if isinstance(value, list) or hasattr(value, "append") else [value])]
    except (TypeError, ValueError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []
