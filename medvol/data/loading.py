"""Batches of cases, the same whatever the number of workers, and resumable at any epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any, final

import torch
from monai.data import MetaTensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medvol.data.processes import Processes


@final
class EpochShuffle(Sampler[int]):
    """A new order for each epoch that depends on seed and epoch alone, so that a resumed run sees the same batches.

    Args:
        source: The cases.
        seed: Of the run.
        batch_size: Cases per batch and process; only looked at with several processes.
        processes: Each takes its part of every batch, so that together they see what one would with the whole batch.
    """

    def __init__(self, source: Sized, seed: int, *, batch_size: int = 1, processes: Processes | None = None) -> None:
        self.source = source
        self.seed = seed
        self.batch_size = batch_size
        self.processes = processes
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        """Yield every index once; with several processes those of this one, without an incomplete last batch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.source), generator=generator).tolist()
        if self.processes is None:
            return iter(order)
        taken = self.processes.count * self.batch_size
        starts = range(self.processes.rank * self.batch_size, len(self) * self.processes.count, taken)
        return iter([index for start in starts for index in order[start : start + self.batch_size]])

    def __len__(self) -> int:
        """Return the number of cases."""
        if self.processes is None:
            return len(self.source)
        return len(self.source) // (self.processes.count * self.batch_size) * self.batch_size


@final
class OwnShare(Sampler[int]):
    """The cases of this process in their order: every case is in exactly one process."""

    def __init__(self, source: Sized, processes: Processes) -> None:
        self.source = source
        self.processes = processes

    def __iter__(self) -> Iterator[int]:
        """Yield the indices."""
        return iter(self.processes.share(len(self.source)))

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.processes.share(len(self.source)))


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


def without_metadata(image: torch.Tensor) -> torch.Tensor:
    """Return the plain tensor of one that may be a MetaTensor, whose bookkeeping slows every operator."""
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _stacked(images: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([without_metadata(one) for one in images])


def training_loader(
    dataset: Dataset[Any], *, batch_size: int, seed: int, workers: int = 0, processes: Processes | None = None
) -> DataLoader[Any]:
    """Return a loader that shuffles each epoch anew and drops an incomplete last batch.

    Batch normalisation on a rest of one or two volumes does more harm than the missing cases, and the next epoch
    leaves out others.

    Args:
        dataset: The cases.
        batch_size: Cases per step, with several processes of each of them.
        seed: Of the order.
        workers: Processes that load.
        processes: Processes that train together.
    """
    count = len(dataset) // (1 if processes is None else processes.count)  # type: ignore[arg-type]
    size = max(1, min(batch_size, count))
    return DataLoader(
        dataset,
        batch_size=size,
        sampler=EpochShuffle(dataset, seed, batch_size=size, processes=processes),  # type: ignore[arg-type]
        drop_last=True,
        collate_fn=collate_cases,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def evaluation_loader(
    dataset: Dataset[Any], *, batch_size: int, workers: int = 0, processes: Processes | None = None
) -> DataLoader[Any]:
    """Return a loader over all cases in their order, or over this process's share of them."""
    sampler = _sampler(dataset, processes)
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=collate_cases, num_workers=workers)


def case_loader(dataset: Dataset[Any], *, workers: int = 0, processes: Processes | None = None) -> DataLoader[Any]:
    """Return a loader that hands on one case at a time as it is, metadata included, in the order of the data set."""
    sampler = _sampler(dataset, processes)
    return DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=_only_item, num_workers=workers)


def _sampler(dataset: Dataset[Any], processes: Processes | None) -> Sampler[int] | None:
    return None if processes is None else OwnShare(dataset, processes)  # type: ignore[arg-type]


def _only_item(items: Sequence[Any]) -> Any:
    return items[0]
