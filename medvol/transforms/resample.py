"""Resampling along a volume's own axes: the working grid of segmentation.

The array is stretched along each index axis so that its voxels get the wanted spacing; its field of view stays
exactly what it was, and so do its direction cosines, shear included (what nnU-Net does too; MONAI's Spacing removes the
shear and moves the borders). The way back to the source grid is then a stretch as well, one axis after the other, for
every source whatever its orientation.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from medvol.geometry import Affine, spacing_mm


def stretched_shape(
    shape: Sequence[int], old_spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    """Return the number of voxels along each axis after resampling, at least one."""
    sides = zip(shape, old_spacing_mm, new_spacing_mm, strict=True)
    return tuple(max(1, round(length * old / new)) for length, old, new in sides)


def stretched_affine(affine: Affine, shape: Sequence[int], new_shape: Sequence[int]) -> Affine:
    """Return the affine of a grid with the same field of view and another number of voxels."""
    step = np.asarray(shape, dtype=np.float64) / np.asarray(new_shape, dtype=np.float64)
    result = np.array(affine, dtype=np.float64)
    # The centre of the first voxel moves when the voxel's size does and its outer border stays.
    result[:3, 3] += affine[:3, :3] @ (0.5 * step - 0.5)
    result[:3, :3] = affine[:3, :3] * step
    return result


def stretch(image: Tensor, new_shape: Sequence[int], *, nearest: bool = False) -> Tensor:
    """Return the image, (channel, x, y, z), with `new_shape` voxels over the same field of view.

    Args:
        image: Any dtype where `nearest`, else float.
        new_shape: Voxels along x, y, z.
        nearest: Take the nearest voxel, as masks must, instead of interpolating linearly.
    """
    if tuple(image.shape[1:]) == tuple(new_shape):
        return image
    if not nearest:
        return F.interpolate(image[None], size=tuple(new_shape), mode="trilinear", align_corners=False)[0]
    for axis, length in enumerate(new_shape, start=1):
        image = image.index_select(axis, _nearest_indices(image.shape[axis], length))
    return image


def _nearest_indices(old: int, new: int) -> Tensor:
    """Return the old voxel that holds the centre of each new one; in integers, since a float32 grid rounds ties."""
    return ((torch.arange(new) * 2 + 1) * old) // (2 * new)


@final
class StretchToSpacingd(Transform):
    """Resample the image under a key to a spacing along its own axes.

    Args:
        key: MetaTensor of shape (channel, x, y, z).
        new_spacing_mm: Wanted millimetres per voxel along x, y, z; met up to the rounding of the number of voxels.
        nearest: For masks.
    """

    def __init__(self, key: Hashable, new_spacing_mm: Sequence[float], *, nearest: bool = False) -> None:
        self.key = key
        self.new_spacing_mm = tuple(new_spacing_mm)
        self.nearest = nearest

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the resampled image, its affine moved along."""
        image: MetaTensor = data[self.key]
        shape, affine = tuple(image.shape[1:]), image.affine.numpy().astype(np.float64)
        new_shape = stretched_shape(shape, spacing_mm(affine).tolist(), self.new_spacing_mm)
        if new_shape == shape:
            return dict(data)
        result = MetaTensor(stretch(image.as_tensor(), new_shape, nearest=self.nearest), meta=image.meta)
        result.affine = torch.as_tensor(stretched_affine(affine, shape, new_shape))
        return {**data, self.key: result}
