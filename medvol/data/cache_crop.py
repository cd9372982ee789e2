"""Crops out of a cached item, without touching the voxels around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.utils import TraceKeys

from medvol.data import cache_entry
from medvol.data.cache_codec import Inline, Slot, build
from medvol.data.cache_entry import Array, Header
from medvol.errors import MedvolError

_TRACE = {
    TraceKeys.CLASS_NAME.value: "SpatialCrop",
    TraceKeys.ID.value: TraceKeys.NONE.value,
    TraceKeys.TRACING.value: True,
    TraceKeys.DO_TRANSFORM.value: True,
    TraceKeys.LAZY.value: False,
}
_NOTHING = np.empty(0)
_ORIG_SIZE, _EXTRA_INFO = TraceKeys.ORIG_SIZE.value, TraceKeys.EXTRA_INFO.value


@dataclass(frozen=True)
class Source:
    """The arrays of an entry, wherever they lie.

    Args:
        shapes: Of each array.
        whole: Returns a copy of the array of that number.
        crop: Returns a copy of a part of it, given its start and size after the first axis.
    """

    shapes: tuple[tuple[int, ...], ...]
    whole: Callable[[int], Array]
    crop: Callable[[int, Sequence[int], Sequence[int]], Array]


def from_memory(arrays: Sequence[Array]) -> Source:
    """Return arrays in memory as a source."""

    def crop(index: int, start: Sequence[int], size: Sequence[int]) -> Array:
        return np.array(arrays[index][_where(start, size)], order="C")

    return Source(tuple(array.shape for array in arrays), lambda index: arrays[index].copy(), crop)


def from_file(descriptor: int, header: Header) -> Source:
    """Return the arrays of an open entry as a source; reading raises `EntryDamaged` when the file was cut."""
    places = header.places

    def whole(index: int) -> Array:
        return cache_entry.read_array(descriptor, places[index])

    def crop(index: int, start: Sequence[int], size: Sequence[int]) -> Array:
        return cache_entry.read_crop(descriptor, places[index], start, size)

    return Source(tuple(place.shape for place in places), whole, crop)


StartOf = Callable[[Sequence[int], Mapping[str, Any]], Sequence[int]]
"""First voxel of a crop, given the image's lengths and the fields of the item that are not cropped."""


def build_crop(node: Any, source: Source, draw_start: StartOf, size: Sequence[int], *, case: str) -> Any:
    """Return a fresh item in which every image is cropped.

    Images are the arrays and tensors directly in the item (or the item itself) that have one axis, the channel, more
    than `size` has numbers. All must have the same spatial shape. The rest of the item is returned whole.

    Args:
        node: Template of the item.
        source: The entry's arrays.
        draw_start: Returns the first voxel of the crop along each axis after the channel.
        size: Voxels along each axis after the channel.
        case: For messages.

    Raises:
        MedvolError: `BAD_CROP` when there is nothing to crop, shapes differ, or the crop is not inside.
    """
    fields = node if isinstance(node, dict) else {"item": node}
    shapes = {name: _shape(value, source) for name, value in fields.items()}
    images = {name: shape[1:] for name, shape in shapes.items() if shape is not None and len(shape) == len(size) + 1}
    shape = _common_shape(images, case)
    cropped = {fields[name].index for name in images if isinstance(fields[name], Slot)}
    arrays = [_NOTHING if index in cropped else source.whole(index) for index in range(len(source.shapes))]
    item = {name: build(value, arrays) for name, value in fields.items() if name not in images}
    start = draw_start(shape, item)
    _require_inside(shape, start, size, case)
    for index in cropped:
        arrays[index] = source.crop(index, start, size)
    # In the order of the cached item, as a whole one has it.
    item = {name: item[name] if name in item else build(value, arrays) for name, value in fields.items()}
    for name in images:
        value = fields[name]
        if isinstance(value, Inline):
            part = item[name][_where(start, size)]
            item[name] = part.copy() if value.kind == "ndarray" else part.clone()
        if isinstance(item[name], MetaTensor):
            _shift(item[name], shape, start, size)
    return item if isinstance(node, dict) else item["item"]


def _where(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), *(slice(first, first + length) for first, length in zip(start, size, strict=True)))


def _shape(value: Any, source: Source) -> tuple[int, ...] | None:
    if isinstance(value, Slot):
        return source.shapes[value.index]
    return value.array.shape if isinstance(value, Inline) else None


def _common_shape(shapes: dict[str, tuple[int, ...]], case: str) -> tuple[int, ...]:
    different = sorted(set(shapes.values()))
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
    # The item's own affine, changed in place; NumPy is four times as fast as torch on so few numbers.
    affine = image.affine.numpy()
    affine[:-1, -1] += affine[:-1, :axes] @ np.array(start[:axes])
    cropped = [
        edge for side, first, length in zip(shape, start, size, strict=True) for edge in (first, side - first - length)
    ]
    image.push_applied_operation({**_TRACE, _ORIG_SIZE: tuple(shape), _EXTRA_INFO: {"cropped": cropped}})
