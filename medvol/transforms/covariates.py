"""Rows of a table to the numbers that a network is given; the formulas stand in `medvol.data.column_facts`."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, final

import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Transform

from medvol.data.cache_chain import AfterCache
from medvol.data.column_facts import ColumnFacts, encode_row, oddities
from medvol.data.facts import Facts
from medvol.data.labels import is_missing
from medvol.errors import MedvolError
from medvol.transforms.preprocess import volume_preprocessing

logger = logging.getLogger(__name__)


def tabular_preprocessing(facts: Facts) -> Compose:
    """Return the one step from a row to the network's input under `image`, the same in training and inference."""
    return Compose([EncodeCovariatesd(facts.columns, key="image")])


def fusion_preprocessing(facts: Facts, *, key: str = "image") -> Compose:
    """Return the steps from a case with an image, a row or both to a network's inputs.

    Args:
        facts: What was fitted on the training split.
        key: Item key of the reference and, afterwards, of the image; `covariates` holds the row's numbers, all nan
            where nothing of it is known, and `has_image` is 1 or 0.
    """
    volume = [WhereImaged(key, step) for step in volume_preprocessing(facts, key=key).transforms]
    return Compose([*volume, EncodeCovariatesd(facts.columns, may_lack_all=True), FillImaged(key, facts)])


@final
class EncodeCovariatesd(Transform, AfterCache):
    """Put a row's numbers under `key`, float32 of shape (features,), and take `covariates` away.

    What training knew nothing like (a new category, a first gap) is warned of once per kind, not once per row.

    Args:
        columns: As fitted on the training split.
        key: Item key of the numbers.
        may_lack_all: Whether a row of which nothing is known, every cell empty or no column there, becomes nan instead
            of medians.

    Raises:
        MedvolError: `MISSING_COLUMN` or `BAD_VALUE`, with the case named.
    """

    def __init__(
        self, columns: Sequence[ColumnFacts], key: Hashable = "covariates", *, may_lack_all: bool = False
    ) -> None:
        self.columns = tuple(columns)
        self.key = key
        self.may_lack_all = may_lack_all
        self._said: set[str] = set()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its row encoded."""
        item = dict(data)
        row, case = item.pop("covariates"), str(item.get("case", ""))
        if self.may_lack_all and all(is_missing(row.get(column.name)) for column in self.columns):
            item[self.key] = torch.full((sum(len(column.features) for column in self.columns),), torch.nan)
            return item
        item[self.key] = torch.from_numpy(encode_row(self.columns, row, case))
        for sentence in oddities(self.columns, row):
            if sentence not in self._said:
                self._said.add(sentence)
                logger.warning("Case %s: %s", case, sentence)
        return item


@final
class WhereImaged(Transform):
    """Apply a step to items that have an image, and hand on the others as they are."""

    def __init__(self, key: Hashable, step: Transform) -> None:
        self.key = key
        self.step = step

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item, its image transformed."""
        return dict(self.step(data)) if self.key in data else dict(data)


@final
class FillImaged(Transform, AfterCache):
    """Put zeros where an item has no image, and say so under `has_image`.

    Raises:
        MedvolError: `EMPTY_CASE` for an item that has neither an image nor a row.
    """

    def __init__(self, key: Hashable, facts: Facts) -> None:
        self.key = key
        self.shape = (facts.in_channels, *facts.spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with `image` of the network's size and `has_image`, 1 or 0."""
        if self.key in data:
            return {**data, "has_image": torch.tensor(1.0)}
        if bool(data["covariates"].isnan().all()):
            raise MedvolError(
                "EMPTY_CASE",
                case=str(data.get("case", "")),
                found="neither an image nor any covariate",
                expected="at least one of them",
                fix="fill the row, or remove it",
            )
        return {**data, self.key: MetaTensor(torch.zeros(self.shape)), "has_image": torch.tensor(0.0)}
