"""Numbers on their way into a JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import numpy as np


def json_ready(value: Any) -> Any:
    """Return the value made of dict, list, str, int, float, bool and None only, as strict JSON allows.

    nan and infinity become None: JSON has no word for them, and Python's writer would emit text that other readers
    refuse. Keys become strings, sets become sorted lists, dataclasses become objects.

    Raises:
        TypeError: For a type without a natural JSON form.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return json_ready(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return value.as_posix()
    return _container_ready(value)


def _container_ready(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: json_ready(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, Set):
        return [json_ready(item) for item in sorted(value)]
    if isinstance(value, Sequence):
        return [json_ready(item) for item in value]
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
