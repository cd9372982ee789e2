"""Patches for training a segmentation, read from the cache without the rest of the volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from torch.utils.data import Dataset

from medvol.data.cache import CachedVolumes
from medvol.errors import MedvolError


@final
class ClassPatches(Dataset[Any]):
    """Random patches of cached volumes, a stated share of them around a voxel of a class.

    The class is drawn evenly among those that the volume has, so that a small structure is seen as often as a large
    one. The voxel need not be the patch's centre: it lies anywhere in its middle half, and patches stay inside the
    volume. Everything drawn depends on seed, epoch and item alone (see `CachedVolumes`).

    Args:
        volumes: Cached items with `image`, `label` and `sites`, at least as large as a patch.
        patch_size: Voxels along x, y, z.
        per_epoch: Patches per epoch; every volume gives equally many, up to one.
        class_share: Share of the patches that are placed around a class; the others lie anywhere.

    Raises:
        MedvolError: `BAD_VALUE` for a share outside 0..1 or no patches.
    """

    def __init__(
        self, volumes: CachedVolumes, patch_size: Sequence[int], *, per_epoch: int, class_share: float = 0.5
    ) -> None:
        if not 0 <= class_share <= 1 or per_epoch < 1:
            raise MedvolError(
                "BAD_VALUE",
                found=f"class_share {class_share}, {per_epoch} patches per epoch",
                expected="a share between 0 and 1, at least one patch",
                fix="such as --class_share 0.5 --patches_per_epoch 200",
            )
        self.volumes = volumes
        self.patch_size = tuple(patch_size)
        self.per_epoch = per_epoch
        self.class_share = class_share

    @property
    def data(self) -> Sequence[Any]:
        """The volumes' items, as MONAI's clients look for them."""
        return self.volumes.data

    def __len__(self) -> int:
        """Return the number of patches of an epoch."""
        return self.per_epoch

    def __getitem__(self, index: int) -> Any:
        """Return a patch: the item after all steps, image and label of the patch's size."""
        return self.volumes.drawn_crop(index % len(self.volumes), self.patch_size, self._draw_start)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins."""
        self.volumes.set_epoch(epoch)

    def _draw_start(
        self, shape: Sequence[int], item: Mapping[str, Any], generator: np.random.RandomState
    ) -> Sequence[int]:
        room = np.maximum(np.asarray(shape) - self.patch_size, 0)
        anywhere = generator.randint(0, room + 1)
        sites = np.asarray(item["sites"])
        present = np.flatnonzero(sites[:, 0, 0] >= 0)
        around_class = generator.random_sample() < self.class_share
        if not around_class or not len(present):
            return [int(first) for first in anywhere]
        chosen = sites[present[generator.randint(len(present))]]
        site = chosen[generator.randint(len(chosen))]
        # Where in the patch the voxel comes to lie: its middle half.
        within = np.asarray(self.patch_size) * generator.uniform(0.25, 0.75, 3)
        return [int(first) for first in np.clip(np.floor(site - within), 0, room)]
