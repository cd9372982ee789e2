"""Crops out of a cached item, without touching the voxels around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import TraceKeys

from medvol.data.cache_codec import Array, Inline, Slot, build
from medvol.errors import MedvolError


def build_crop(
    node: Any,
    array_of: Callable[[int, bool], Array],
    count: int,
    draw_start: Callable[[Sequence[int]], Sequence[int]],
    size: Sequence[int],
    case: str,
) -> Any:
    """Return a fresh item in which every image is cropped.

    Images are the arrays and tensors directly in the item (or the item itself) that have one axis, the channel, more
    than `size` has numbers. All must have the same spatial shape. The rest of the item is returned whole.

    Args:
        node: Template of the item.
        array_of: Returns one of the entry's arrays: not to be written to when asked with True, else a copy.
        count: Number of arrays of the entry.
        draw_start: Returns the first voxel of the crop along each axis after the channel, given their lengths.
        size: Voxels along each axis after the channel.
        case: For messages.

    Raises:
        MedvolError: `BAD_CROP` when there is nothing to crop, shapes differ, or the crop is not inside.
    """
    fields = node if isinstance(node, dict) else {"item": node}
    images = {name: value for name, value in fields.items() if _spatial(value, array_of, len(size)) is not None}
    shape = _common_shape({name: _spatial(value, array_of, len(size)) for name, value in images.items()}, case)
    start = draw_start(shape)
    _require_inside(shape, start, size, case)
    where = (slice(None), *(slice(first, first + length) for first, length in zip(start, size, strict=True)))
    cropped = {value.index for value in images.values() if isinstance(value, Slot)}
    arrays = [
        np.array(array_of(index, True)[where], order="C") if index in cropped else array_of(index, False)
        for index in range(count)
    ]
    item = {name: build(value, arrays) for name, value in fields.items()}
    for name, value in images.items():
        if isinstance(value, Inline):
            item[name] = item[name][where].copy() if value.kind == "ndarray" else item[name][where].clone()
        if isinstance(item[name], MetaTensor):
            _shift(item[name], shape, start, size)
    return item if isinstance(node, dict) else item["item"]


def _spatial(value: Any, array_of: Callable[[int, bool], Array], axes: int) -> tuple[int, ...] | None:
    """Return the spatial shape of an image, or None for anything else."""
    if isinstance(value, Slot):
        shape = array_of(value.index, True).shape
    elif isinstance(value, Inline):
        shape = value.array.shape
    else:
        return None
    return tuple(shape[1:]) if len(shape) == axes + 1 else None


def _common_shape(shapes: dict[str, tuple[int, ...] | None], case: str) -> tuple[int, ...]:
    different = sorted({shape for shape in shapes.values() if shape is not None})
    if len(different) == 1:
        return different[0]
    raise MedvolError(
        "BAD_CROP",
        case=case,
        found=", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "no image",
        expected="images of one spatial shape, with as many axes after the channel as the crop has",
        fix="resample the images of a case to one grid in the cached steps",
    )


def _require_inside(shape: Sequence[int], start: Sequence[int], size: Sequence[int], case: str) -> None:
    sides = zip(shape, start, size, strict=True) if len(start) == len(size) else None
    if sides is not None and all(first >= 0 and 0 < length <= side - first for side, first, length in sides):
        return
    raise MedvolError(
        "BAD_CROP",
        case=case,
        found=f"start {tuple(start)}, size {tuple(size)}",
        expected=f"a crop inside {tuple(shape)}",
        fix="pad the images in the cached steps, or draw another start",
    )


def _shift(image: MetaTensor, shape: Sequence[int], start: Sequence[int], size: Sequence[int]) -> None:
    """Move the affine to the first voxel of the crop, and trace the crop as MONAI's `SpatialCrop` does."""
    axes = min(len(start), image.affine.shape[-1] - 1)
    affine = image.affine  # the item's own, so that it can be changed in place
    affine[:-1, -1] += affine[:-1, :axes] @ torch.tensor(start[:axes], dtype=affine.dtype)
    cropped = [
        edge for side, first, length in zip(shape, start, size, strict=True) for edge in (first, side - first - length)
    ]
    image.push_applied_operation(
        {
            TraceKeys.CLASS_NAME.value: "SpatialCrop",
            TraceKeys.ID.value: TraceKeys.NONE.value,
            TraceKeys.TRACING.value: True,
            TraceKeys.DO_TRANSFORM.value: True,
            TraceKeys.ORIG_SIZE.value: tuple(shape),
            TraceKeys.LAZY.value: False,
            TraceKeys.EXTRA_INFO.value: {"cropped": cropped},
        }
    )
