"""The deterministic chain of volumes without masks on a segmentation's working grid, for pretraining on patches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, final

from monai.transforms import Compose, Transform

from medvol.data.facts import Facts
from medvol.transforms.preprocess import FitSized
from medvol.transforms.segmentation import image_preprocessing


def patch_source(facts: Facts, *, patch_size: Sequence[int], key: str = "image") -> Compose:
    """Return the chain to volumes that patches are cut from: as for a segmentation, padded up to a patch.

    Args:
        facts: What was planned on the training split.
        patch_size: Voxels of a patch along x, y, z.
        key: Item key of the reference and, afterwards, of the image: (channel, x, y, z), float32.
    """
    return _before_normalising(image_preprocessing(facts, key=key), PadUpToSized(key, patch_size))


def middle_patch(facts: Facts, *, patch_size: Sequence[int], key: str = "image") -> Compose:
    """Return the chain to the patch in the middle of each volume: the same one in every epoch, for validation.

    Args:
        facts: What was planned on the training split.
        patch_size: Voxels of a patch along x, y, z.
        key: As in `patch_source`.
    """
    return _before_normalising(image_preprocessing(facts, key=key), FitSized(key, patch_size))


def _before_normalising(chain: Compose, step: Transform) -> Compose:
    *others, normalise = chain.transforms
    return Compose([*others, step, normalise])


@final
class PadUpToSized(Transform):
    """Pad around the centre with the volume's minimum where a volume is smaller than a size; crop nothing."""

    def __init__(self, key: Hashable, spatial_size: Sequence[int]) -> None:
        self.key = key
        self.spatial_size = tuple(spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with an image of at least the spatial size, its affine moved along."""
        lengths = data[self.key].shape[1:]
        size = [max(want, length) for want, length in zip(self.spatial_size, lengths, strict=True)]
        return FitSized(self.key, size)(data)
