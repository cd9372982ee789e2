"""Batches of cases, the same whatever the number of workers, and resumable at any epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any, final

import torch
from monai.data import MetaTensor
from torch.utils.data import DataLoader, Dataset, Sampler


@final
class EpochShuffle(Sampler[int]):
    """A new order for each epoch that depends on seed and epoch alone, so that a resumed run sees the same batches."""

    def __init__(self, source: Sized, seed: int) -> None:
        self.source = source
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        """Yield every index once."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(len(self.source), generator=generator).tolist())

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.source)


def collate_cases(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch: `image` (n, channel, x, y, z) float32, `label` (n,) or masks (n, 1, x, y, z), names as lists.

    Where items have them: `covariates` (n, features) and `has_image` (n,).

    Metadata stays behind: a network does not need it, and collating it costs more than collating the voxels.
    """
    batch: dict[str, Any] = {"image": _stacked([item["image"] for item in items])}
    for key in ("case", "patient"):
        batch[key] = [str(item.get(key, "")) for item in items]
    for key in ("covariates", "has_image"):
        if all(key in item for item in items):
            batch[key] = torch.stack([item[key] for item in items])
    if all(item.get("label") is not None for item in items):
        labels = [item["label"] for item in items]
        batch["label"] = _stacked(labels) if isinstance(labels[0], torch.Tensor) else torch.as_tensor(labels)
    return batch


def _stacked(images: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([one.as_tensor() if isinstance(one, MetaTensor) else one for one in images])


def training_loader(dataset: Dataset[Any], *, batch_size: int, seed: int, workers: int = 0) -> DataLoader[Any]:
    """Return a loader that shuffles each epoch anew and drops an incomplete last batch.

    Batch normalisation on a rest of one or two volumes does more harm than the missing cases, and the next epoch
    leaves out others.
    """
    count = len(dataset)  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        batch_size=min(batch_size, count),
        sampler=EpochShuffle(dataset, seed),  # type: ignore[arg-type]
        drop_last=True,
        collate_fn=collate_cases,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def evaluation_loader(dataset: Dataset[Any], *, batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """Return a loader over all cases in their order."""
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate_cases, num_workers=workers)


def case_loader(dataset: Dataset[Any], *, workers: int = 0) -> DataLoader[Any]:
    """Return a loader that hands on one case at a time as it is, metadata included, in the order of the data set."""
    return DataLoader(dataset, batch_size=1, collate_fn=_only_item, num_workers=workers)


def _only_item(items: Sequence[Any]) -> Any:
    return items[0]
