"""Run `medvol` in a notebook as a terminal would, and show the end of what it says."""

import io
import os
import shlex
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from medvol.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]

LEFT_OUT = (" - INFO - ", "%|", "Warning", "workflow = ", "Measured ", "Looked at ", "Wrote the report")
"""What lines hold that are not shown: MONAI's echo of the options, progress bars, warnings, times of this machine."""


def medvol(words: str, lines: int = 12, only: str = "") -> None:
    """Run `medvol WORDS` and print its last lines, paths shortened; all of it is printed in a terminal.

    Args:
        words: What follows `medvol` in a terminal.
        lines: How many lines to print, without those of `LEFT_OUT`.
        only: Text that a line must hold to be printed.
    """
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        main(shlex.split(words))
    text = said.getvalue().replace(f"{Path.cwd()}/", "").replace(f"{REPOSITORY}/", "")
    kept = [line for line in text.splitlines() if line.strip() and not any(map(line.__contains__, LEFT_OUT))]
    print("$ medvol", words)
    print("\n".join([line for line in kept if only in line][-lines:]))


def use_new_folder() -> None:
    """Work in a new temporary folder from here on, so that paths are short and nothing of yours is touched."""
    os.chdir(tempfile.mkdtemp(prefix="medvol_"))
