"""Values of options, checked by the kind of the value that stands in the bundle's own configuration.

MONAI passes a text where a number belongs on to whatever component takes it, whose error names neither the option nor
its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from medvol.errors import MedvolError

LEAST = {
    **dict.fromkeys(("max_epochs", "batch_size", "val_interval", "patches_per_epoch", "early_stop_patience"), 1),
    **dict.fromkeys(("width", "feature_size", "in_channels", "top"), 1),
    **dict.fromkeys(("workers", "seed", "split_seed", "report_cases"), 0),
}
"""Whole numbers, and the smallest that each may be."""

LISTS = ("width",)
"""Whole numbers of which there may be several."""

ABOVE_ZERO = ("nsd_tolerance_mm",)
NOT_NEGATIVE = ("learning_rate", "weight_decay", "encoder_factor", "cache_ram_gb")
SHARES = ("warmup_fraction", "label_smoothing")
"""From 0 to below 1."""

PATHS = ("_dir", "_root", "_file")
"""How names of options end that take a path."""

EXPRESSIONS = ("$", "@", "%")
"""How values begin that MONAI works out."""


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
    _require_device(config.get("device"))
    require_texts({name: value for name, value in config.items() if _is_text(name, defined)})
    for name, value in config.items():
        own = next((one[name] for one in defined if isinstance(one.get(name), bool | int | float)), None)
        if own is None or value is None or value == "auto" or (isinstance(value, str) and value[:1] in EXPRESSIONS):
            continue
        expected = _expected(name, value, own)
        if expected:
            raise MedvolError(
                "BAD_VALUE", found=f"--{name} {str(value)[:60]}", expected=expected, fix=f"such as --{name} {own}"
            )


def require_texts(options: Mapping[str, Any]) -> None:
    """Refuse a path or another text that is True: so MONAI's command line reads an option without a value.

    Raises:
        MedvolError: `BAD_VALUE`.
    """
    for name, value in options.items():
        if isinstance(value, bool):
            expected = "a path" if name.endswith(PATHS) else "a text"
            fix = f"write what it is behind --{name}"
            raise MedvolError("BAD_VALUE", found=f"--{name} without a value", expected=expected, fix=fix)


def require_no_hash(words: Sequence[str]) -> None:
    """Refuse a path with a `#` on MONAI's command line, which takes it for a comment or turns it into `::`.

    Args:
        words: The command line.

    Raises:
        MedvolError: `BAD_VALUE`.
    """
    for word, after in pairwise([*words, ""]):
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name.endswith(("_dir", "_root")) and "#" in (value or after):
            raise MedvolError(
                "BAD_VALUE",
                found=f"--{name} {(value or after)[:80]}, in which MONAI takes the '#' for something else",
                expected="a path without it",
                fix="rename it, or use `medvol train`, `evaluate` or `predict`, which keep it",
            )


def _is_text(name: str, defined: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an option is a path by its name, or has a text as the bundle's own value that is no expression."""
    own = [one[name] for one in defined if name in one]
    return name.endswith(PATHS) or any(isinstance(one, str) and one[:1] not in EXPRESSIONS for one in own)


def _expected(name: str, value: Any, own: bool | float) -> str:
    """Return what an option may be where its value is not that; else nothing."""
    if isinstance(own, bool):
        return "" if value in (True, False) else "True or False"  # 1 and 0 equal them
    is_number = _is_number(value)
    if name in LEAST:
        words = f"a whole number from {LEAST[name]} on" + (", or a list of them" if name in LISTS else "")
        several = value if name in LISTS and isinstance(value, list) and value else [value]
        return "" if all(_is_whole(one, LEAST[name]) for one in several) else words
    rules = {
        "a number above 0": (ABOVE_ZERO, lambda: value > 0),
        "a number that is not negative": (NOT_NEGATIVE, lambda: value >= 0),
        "a number from 0 to below 1": (SHARES, lambda: 0 <= value < 1),
    }
    for words, (names, holds) in rules.items():
        if name in names:
            return "" if is_number and holds() else words
    return "" if is_number else "a number"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any, least: int) -> bool:
    return _is_number(value) and value >= least and float(value).is_integer()


def _require_device(value: Any) -> None:
    """Refuse a device that is named on the command line and is not there; an expression is the bundle's own."""
    if not isinstance(value, str) or value.startswith("$"):
        return
    try:
        device = torch.device(value)
        there = device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
    except RuntimeError:  # torch's refusal of the name lists all devices that it has ever known
        there = False
    if not there:
        cards = torch.cuda.device_count()
        known = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{index}" for index in range(cards))]
        raise MedvolError(
            "BAD_VALUE",
            found=f"--device {value[:60]}",
            expected=" or ".join(known[:5]),
            fix="leave it out: a graphics card is taken where torch finds one",
        )
