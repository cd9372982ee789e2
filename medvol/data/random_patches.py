"""Patches anywhere in unlabelled volumes, read from the cache without the rest of the volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch.utils.data import Dataset

from medvol.data.cache import CachedVolumes
from medvol.errors import MedvolError


@final
class RandomPatches(Dataset[Any]):
    """Random patches of cached volumes; every volume gives equally many, up to one.

    Where a patch lies depends on seed, epoch and item alone (see `CachedVolumes`).

    Args:
        volumes: Cached items with `image`, at least as large as a patch.
        patch_size: Voxels along x, y, z.
        per_epoch: Patches per epoch.

    Raises:
        MedvolError: `BAD_VALUE` for no patches.
    """

    def __init__(self, volumes: CachedVolumes, patch_size: Sequence[int], *, per_epoch: int) -> None:
        if per_epoch < 1:
            raise MedvolError("BAD_VALUE", found=f"{per_epoch} patches per epoch", expected="at least one")
        self.volumes = volumes
        self.patch_size = tuple(patch_size)
        self.per_epoch = per_epoch

    @property
    def data(self) -> Sequence[Any]:
        """The volumes' items, as MONAI's clients look for them."""
        return self.volumes.data

    def __len__(self) -> int:
        """Return the number of patches of an epoch."""
        return self.per_epoch

    def __getitem__(self, index: int) -> Any:
        """Return a patch: the item after all steps, its image of the patch's size."""
        return self.volumes.random_crop(index % len(self.volumes), self.patch_size)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins."""
        self.volumes.set_epoch(epoch)
