"""What an earlier training left where this one writes: hours of work, moved aside before it would be replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import final

from ignite.engine import Engine, Events

from medvol.errors import MedvolError

logger = logging.getLogger(__name__)

FOLDER = "earlier"


@final
class EarlierFiles:
    """Files of one folder that may be there from an earlier training, and not from the one that goes on.

    Args:
        *paths: The files, which belong together.
        worth: Tells whether files that are there are worth keeping; all are when None.
    """

    def __init__(self, *paths: Path, worth: Callable[[], bool] | None = None) -> None:
        self.paths = paths
        self.worth = worth
        self._ours = False

    def attach(self, engine: Engine) -> None:
        """Hook into the start of the run; attach after `ResumeState`."""
        engine.add_event_handler(Events.STARTED, self._look)

    def _look(self, engine: Engine) -> None:
        self._ours = engine.state.iteration > 0  # it goes on with them

    def set_aside(self) -> None:
        """Move them into `earlier/DATE_TIME` beside them; call before each writing, only the first moves anything.

        Raises:
            MedvolError: `CANNOT_WRITE`.
        """
        if not self._ours and (self.worth is None or self.worth()):
            set_aside(*self.paths)
        self._ours = True


def set_aside(*paths: Path) -> None:
    """Move those of the files that are there into `earlier/DATE_TIME` beside them, and log where they are.

    Args:
        *paths: Files of one folder, which belong together. The time is that of the first.

    Raises:
        MedvolError: `CANNOT_WRITE`.
    """
    there = [path for path in paths if path.is_file()]
    if not there:
        return
    written = datetime.fromtimestamp(there[0].stat().st_mtime).astimezone()
    stem = there[0].parent / FOLDER / written.strftime("%Y-%m-%d_%H-%M-%S")
    names = (stem.with_name(f"{stem.name}_{number}") if number else stem for number in count())
    folder = next(name for name in names if not name.exists())
    try:
        folder.mkdir(parents=True)
        for path in there:
            path.rename(folder / path.name)
    except OSError as error:
        fix = "name another folder"
        raise MedvolError("CANNOT_WRITE", file=folder, found=str(error.strerror), fix=fix) from error
    logger.warning("Kept of an earlier training: %s in %s", " and ".join(path.name for path in there), folder)
