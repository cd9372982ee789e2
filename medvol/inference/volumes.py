"""Volumes to predict, one after the other, where one bad file does not stop the others and no note is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

from torch.utils.data import IterableDataset
from tqdm import tqdm

from medvol.data.notes import ReaderNotes, notes_of
from medvol.errors import MedvolError, find_refusal

logger = logging.getLogger(__name__)


@final
class VolumesToPredict(IterableDataset[dict[str, Any]]):
    """Preprocess each case as it is asked for; a case that cannot be read is listed and left out.

    Args:
        data: Items with `case` and `image`.
        transform: Preprocessing.
        show_progress: Whether to draw a progress bar.

    Attributes:
        failures: Refusals of the cases that could not be read.
        without_result: Refusals of results of cases that were predicted, as of a DICOM file that a header does not
            allow.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        show_progress: bool = True,
    ) -> None:
        self.data = list(data)
        self.transform = transform
        self.show_progress = show_progress
        self.failures: list[MedvolError] = []
        self.without_result: list[MedvolError] = []
        self.notes = ReaderNotes()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the preprocessed cases that could be read; warn of what readers noted at the end."""
        self.failures.clear()
        self.without_result.clear()
        self.notes = ReaderNotes()
        for item in tqdm(self.data, desc="Predicting", unit="case", disable=not self.show_progress):
            try:
                prepared = self.transform(dict(item))
                self.notes.add(item["case"], notes_of(prepared))
                yield prepared
            except Exception as error:
                # MONAI's Compose wraps what a transform raises; anything that is not a refusal is a defect and goes on.
                refusal = find_refusal(error)
                if refusal is None:
                    raise
                named = refusal.for_case(item["case"])
                logger.warning("Left out: %s", named)
                self.failures.append(named)
        self.notes.warn()
