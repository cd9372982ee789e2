"""What the commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def with_dashes(words: Sequence[str]) -> list[str]:
    """Return the words of a command with dashes in the names of options, which a training writes with underscores."""
    return [re.sub(r"^--[a-z]+(_[a-z]+)+(?==|$)", lambda name: name[0].replace("_", "-"), word) for word in words]


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with aligned columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
