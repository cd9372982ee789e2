"""The reader as MONAI wants it. This module imports MONAI and torch; the rest of `medvol.io` does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import Any, final

import numpy as np
from monai.data import ImageReader
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys

from medvol.errors import MedvolError
from medvol.geometry import Volume, same_grid
from medvol.io.read import read_volume
from medvol.io.voxels import Array


@final
class VolumeReader(ImageReader):
    """A MONAI reader around a read function. Several references are channels and must lie on one grid.

    Args:
        read: Takes a reference and returns a volume; `functools.partial(read_volume, options=...)` sets options.
        read_alone: The same for a reference that is the only one of its item, and may hold all channels.
    """

    def __init__(
        self, read: Callable[[str], Volume] = read_volume, read_alone: Callable[[str], Volume] | None = None
    ) -> None:
        super().__init__()
        self.read_reference = read
        self.read_alone = read if read_alone is None else read_alone

    def verify_suffix(self, filename: Sequence[PathLike[str] | str] | PathLike[str] | str) -> bool:
        """Return True: the content decides, and a refusal says more than another reader's guess."""
        return True

    def read(self, data: Sequence[PathLike[str] | str] | PathLike[str] | str, **kwargs: Any) -> list[Volume]:
        """Return the volumes of one reference or of several.

        Raises:
            MedvolError: Whatever reading finds.
        """
        references = [data] if isinstance(data, str | PathLike) else list(data)
        read = self.read_alone if len(references) == 1 else self.read_reference
        return [read(fspath(reference)) for reference in references]

    def get_data(self, img: Sequence[Volume] | Volume) -> tuple[Array, dict[str, Any]]:
        """Return the array and MONAI's metadata; several volumes are stacked along a first axis.

        Raises:
            MedvolError: `GEOMETRY_MISMATCH` when channels have other shapes or lie elsewhere.
        """
        volumes = [img] if isinstance(img, Volume) else list(img)
        first = volumes[0]
        for other in volumes[1:]:
            _require_same_grid(first, other)
        if len(volumes) == 1:
            array, channel_dim = first.array, first.channel_axis
        else:
            array, channel_dim = np.concatenate([_channel_first(one) for one in volumes]), 0
        spatial_shape = _spatial_shape(first)
        meta: dict[str, Any] = {
            str(MetaKeys.AFFINE): first.affine.copy(),
            str(MetaKeys.ORIGINAL_AFFINE): first.affine.copy(),
            str(MetaKeys.SPATIAL_SHAPE): np.array(spatial_shape),
            str(MetaKeys.SPACE): str(SpaceKeys.RAS),
            str(MetaKeys.ORIGINAL_CHANNEL_DIM): "no_channel" if channel_dim is None else channel_dim,
            str(ImageMetaKey.FILENAME_OR_OBJ): first.source,
            "has_geometry": first.has_geometry,
            # One string: lists of unequal length cannot be collated into a batch.
            "notes": "\n".join(dict.fromkeys(note for one in volumes for note in one.notes)),
        }
        return array, meta


def _spatial_shape(volume: Volume) -> tuple[int, ...]:
    return tuple(length for axis, length in enumerate(volume.array.shape) if axis != volume.channel_axis)


def _channel_first(volume: Volume) -> Array:
    if volume.channel_axis is None:
        return volume.array[None]
    return np.moveaxis(volume.array, volume.channel_axis, 0)


def _require_same_grid(first: Volume, other: Volume) -> None:
    shapes = _spatial_shape(first), _spatial_shape(other)
    if shapes[0] != shapes[1]:
        found = f"shape {shapes[1]}, while {first.source[-60:]} has {shapes[0]}"
    elif first.has_geometry != other.has_geometry:
        found = f"one of it and {first.source[-60:]} has a geometry, the other has none"
    elif len(shapes[0]) == 3 and not same_grid(first.affine, other.affine, shapes[0]):
        found = f"another place in space than {first.source[-60:]}"
    else:
        return
    raise MedvolError(
        "GEOMETRY_MISMATCH",
        file=other.source,
        found=found,
        expected="channels on one grid",
        fix="resample one onto the other",
    )
