"""Values of options, checked by the kind of the value that stands in the bundle's own configuration.

MONAI passes a text where a number belongs on to whatever component takes it, whose error names neither the option nor
its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medvol.errors import MedvolError

LEAST = {
    "max_epochs": 1,
    "batch_size": 1,
    "val_interval": 1,
    "patches_per_epoch": 1,
    "workers": 0,
    "seed": 0,
    "split_seed": 0,
}
"""Whole numbers, and the smallest that each may be."""

ABOVE_ZERO = ("learning_rate",)


def require_values(config: Mapping[str, Any], defined: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an option at the top of a configuration whose value is of another kind than the bundle's own.

    Switches are True or False, numbers are numbers; `auto`, None, references and expressions are left to what reads
    them, and so is an option that no file gives a switch or a number.

    Args:
        config: The configuration with its overrides.
        defined: The bundle's own configuration files.

    Raises:
        MedvolError: `BAD_VALUE` with the option, its value, what it may be, and an example.
    """
    for name, value in config.items():
        own = next((one[name] for one in defined if isinstance(one.get(name), bool | int | float)), None)
        if own is None or value is None or value == "auto" or (isinstance(value, str) and value[:1] in ("$", "@", "%")):
            continue
        expected = _expected(name, value, own)
        if expected:
            raise MedvolError(
                "BAD_VALUE", found=f"--{name} {str(value)[:60]}", expected=expected, fix=f"such as --{name} {own}"
            )


def _expected(name: str, value: Any, own: bool | float) -> str:
    """Return what an option may be where its value is not that; else nothing."""
    if isinstance(own, bool):
        return "" if value in (True, False) else "True or False"  # 1 and 0 equal them
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in LEAST:
        least = LEAST[name]
        return "" if is_number and value >= least and float(value).is_integer() else f"a whole number from {least} on"
    if name in ABOVE_ZERO:
        return "" if is_number and value > 0 else "a number above 0"
    return "" if is_number else "a number"
