"""Rows of a table to the numbers that a network is given; the formulas stand in `medvol.data.column_facts`."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, final

import torch
from monai.transforms import Compose, Transform

from medvol.data.cache_chain import AfterCache
from medvol.data.column_facts import ColumnFacts, encode_row, oddities
from medvol.data.facts import Facts

logger = logging.getLogger(__name__)


def tabular_preprocessing(facts: Facts) -> Compose:
    """Return the one step from a row to the network's input under `image`, the same in training and inference."""
    return Compose([EncodeCovariatesd(facts.columns, key="image")])


@final
class EncodeCovariatesd(Transform, AfterCache):
    """Put a row's numbers under `key`, float32 of shape (features,), and take `covariates` away.

    What training knew nothing like (a new category, a first gap) is warned of once per kind, not once per row.

    Args:
        columns: As fitted on the training split.
        key: Item key of the numbers.

    Raises:
        MedvolError: `MISSING_COLUMN` or `BAD_VALUE`, with the case named.
    """

    def __init__(self, columns: Sequence[ColumnFacts], key: Hashable = "covariates") -> None:
        self.columns = tuple(columns)
        self.key = key
        self._said: set[str] = set()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its row encoded."""
        item = dict(data)
        row, case = item.pop("covariates"), str(item.get("case", ""))
        item[self.key] = torch.from_numpy(encode_row(self.columns, row, case))
        for sentence in oddities(self.columns, row):
            if sentence not in self._said:
                self._said.add(sentence)
                logger.warning("Case %s: %s", case, sentence)
        return item
