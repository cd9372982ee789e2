"""Cleaning of predicted masks by anatomy: no specks, no holes, one piece where there is one organ.

A *component* is 26-connected: voxels that touch at a corner are one piece. A *hole* is background that the object
encloses, 6-connected as the counterpart demands; a cavity that reaches the edge of the image is open, not a hole.
Everything here is NumPy and scipy.ndimage; `CleanStructuresd` is the adapter for a MONAI chain.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type

from medvol.errors import MedvolError
from medvol.metrics.masks import components
from medvol.metrics.masks import voxel_volume_ml as volume_of_voxel_ml

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[Any]

VOLUME_SLACK = 1e-6
"""Relative; rounding must not decide about a component of exactly the smallest volume."""


@dataclass(frozen=True)
class Cleaning:
    """What is done to one structure: holes are filled first, then components are removed.

    Args:
        keep_largest: Whether only the largest component stays.
        min_volume_ml: Smallest component that stays, in millilitres; 0 keeps all. Removes the last one too.
        fill_holes: Whether enclosed background is filled.

    Raises:
        MedvolError: BAD_ARGUMENT for a volume below 0 or not finite.
    """

    keep_largest: bool = False
    min_volume_ml: float = 0.0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min_volume_ml) and self.min_volume_ml >= 0):
            raise MedvolError("BAD_ARGUMENT", found=f"min_volume_ml {self.min_volume_ml}", expected="0 or more")

    @property
    def does_something(self) -> bool:
        """Whether any step is switched on."""
        return self.keep_largest or self.fill_holes or self.min_volume_ml > 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> Cleaning:
        """Return the cleaning of a JSON object; fields that are left out do nothing.

        Raises:
            MedvolError: UNKNOWN_OPTION for a field that does not exist, BAD_ARGUMENT for a bad value.
        """
        unknown = sorted(set(fields) - set(Cleaning.__dataclass_fields__))
        if unknown:
            known = ", ".join(Cleaning.__dataclass_fields__)
            raise MedvolError("UNKNOWN_OPTION", found=f"cleaning step '{unknown[0]}'", expected=f"one of {known}")
        return Cleaning(**fields)


def keep_largest(mask: Mask) -> Mask:
    """Return the largest component; of equally large ones the first in array order.

    Args:
        mask: Shape (x, y, z), bool.
    """
    numbers, sizes = components(mask)
    if len(sizes) < 3:
        return mask
    return np.asarray(numbers == 1 + int(sizes[1:].argmax()))


def drop_small(mask: Mask, voxel_volume_ml: float, *, min_volume_ml: float) -> Mask:
    """Return the mask without components below a physical volume; one of exactly that volume stays.

    Args:
        mask: Shape (x, y, z), bool.
        voxel_volume_ml: Millilitres per voxel.
        min_volume_ml: Smallest volume that stays, in millilitres.
    """
    numbers, sizes = components(mask)
    stays = is_large_enough(sizes, voxel_volume_ml, min_volume_ml)
    stays[0] = False
    return np.asarray(stays[numbers])


def is_large_enough(voxels: npt.NDArray[np.int64], voxel_volume_ml: float, min_volume_ml: float) -> Mask:
    """Return which numbers of voxels reach a volume."""
    return np.asarray(voxels * voxel_volume_ml >= min_volume_ml * (1 - VOLUME_SLACK))


def fill_holes(mask: Mask) -> Mask:
    """Return the mask with the background that it encloses.

    Args:
        mask: Shape (x, y, z), bool.
    """
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(mask))


def clean_labels(labels: Labels, cleanings: Mapping[int, Cleaning], voxel_volume_ml: float) -> Labels:
    """Return a label map with each structure cleaned; the map given stays as it is.

    Holes of all structures are filled before anything is removed, so the order of the structures does not matter; where
    one encloses another, the inner one fills its holes first. Only background is filled, never another structure.
    Removed voxels become 0. Work is done in the bounding box of each structure.

    Args:
        labels: Shape (x, y, z), integers.
        cleanings: Label to what is done to it; labels that are absent are left out.
        voxel_volume_ml: Millilitres per voxel.
    """
    from scipy import ndimage

    result = labels.copy()
    wanted = {label: cleaning for label, cleaning in cleanings.items() if cleaning.does_something}
    found = ndimage.find_objects(result, max_label=max(wanted, default=1))
    boxes = {label: found[label - 1] for label in wanted if found[label - 1] is not None}
    for label in sorted(boxes, key=lambda label: math.prod(side.stop - side.start for side in boxes[label])):
        if wanted[label].fill_holes:
            part = result[boxes[label]]
            part[with_holes_filled(part, label)] = label
    for label, box in boxes.items():
        part = result[box]
        mask = part == label
        part[mask & ~_without_pieces(mask, wanted[label], voxel_volume_ml)] = 0
    return result


def with_holes_filled(labels: Labels, label: int) -> Mask:
    """Return a structure's voxels and the background that it encloses; other structures in its holes stay theirs."""
    mask = labels == label
    return np.asarray(fill_holes(mask) & (mask | (labels == 0)))


@final
class CleanStructuresd(Transform):
    """Clean a label map under `key`; see `clean_labels`.

    Args:
        key: Item key of the label map, shape (1, x, y, z): MetaTensor, tensor or NumPy array of whole numbers.
        cleanings: Label to what is done to it.
        voxel_volume_ml: Millilitres per voxel; that of the label map's affine when None.
    """

    def __init__(self, key: Hashable, cleanings: Mapping[int, Cleaning], voxel_volume_ml: float | None = None) -> None:
        self.key = key
        self.cleanings = dict(cleanings)
        self.voxel_volume_ml = voxel_volume_ml

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the cleaned map, in the type, on the device and with the metadata of the one given.

        Raises:
            MedvolError: NO_GEOMETRY for a map without an affine when no volume was given.
        """
        labels = data[self.key]
        if not any(cleaning.does_something for cleaning in self.cleanings.values()):
            return dict(data)
        voxel_ml = self.voxel_volume_ml
        if voxel_ml is None:
            if not isinstance(labels, MetaTensor):
                raise MedvolError(
                    "NO_GEOMETRY",
                    case=str(data.get("case", "")),
                    found=f"a {type(labels).__name__} without an affine",
                    expected="a MetaTensor",
                    fix="pass voxel_volume_ml",
                )
            voxel_ml = volume_of_voxel_ml(np.asarray(labels.affine, dtype=np.float64))
        array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
        whole = array if np.issubdtype(array.dtype, np.integer) else array.astype(np.int32)
        cleaned = clean_labels(whole[0], self.cleanings, voxel_ml)[None]
        return {**data, self.key: convert_to_dst_type(cleaned, labels)[0]}


def _without_pieces(mask: Mask, cleaning: Cleaning, voxel_volume_ml: float) -> Mask:
    if cleaning.keep_largest:
        mask = keep_largest(mask)
    if cleaning.min_volume_ml > 0:
        mask = drop_small(mask, voxel_volume_ml, min_volume_ml=cleaning.min_volume_ml)
    return mask
