"""Masks as training and evaluation want them: on the image's grid, class indices, places to cut patches from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch, Transform
from torch import Tensor

from medvol.data.facts import Facts
from medvol.data.mask_values import whole_numbers
from medvol.errors import MedvolError
from medvol.geometry import Volume, same_grid, share_geometry
from medvol.io.labels import read_label
from medvol.io.monai_readers import VolumeReader
from medvol.transforms.load import LoadVolumed

SITES_PER_CLASS = 500
"""Voxels remembered of each class, around which patches are placed. nnU-Net keeps 10,000, which nothing here needs."""


@final
class LoadMaskd(Transform):
    """Load the reference of a mask; a DICOM segmentation or structure set onto the grid of the image's source.

    Where one of image and mask has no geometry, their arrays go together voxel by voxel (`share_geometry`).

    Args:
        key: The reference of the mask; afterwards the mask as its file has it.
        image_key: The image, loaded already.
        facts: Which value is which structure.
        resample: Resample a segmentation whose planes are not the image's instead of refusing it.

    Raises:
        MedvolError: `BAD_LABEL` where names and values are not those of training, or what reading finds.
    """

    def __init__(self, key: Hashable, image_key: Hashable, facts: Facts, *, resample: bool = False) -> None:
        self.image_key = image_key
        self.value_of = {name.casefold(): value for value, name in zip(facts.label_values, facts.classes, strict=True)}
        self.resample = resample
        self.load = LoadVolumed(keys=key)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its mask."""
        meta = data[self.image_key].meta
        affine = np.asarray(meta["original_affine"], dtype=np.float64)
        stored = np.broadcast_to(np.zeros((), np.uint8), tuple(meta["spatial_shape"]))  # shape alone counts
        image = Volume(stored, affine, meta.get("has_geometry", True))

        def read(reference: str) -> Volume:
            label = read_label(reference, str(meta["filename_or_obj"]), resample=self.resample)
            require_structures(label.names, label.volume.array, self.value_of)
            return share_geometry(label.volume, image)

        return self.load(data, reader=VolumeReader(read))


def require_structures(names: Mapping[int, str], voxels: np.ndarray[Any, Any], value_of: Mapping[str, int]) -> None:
    """Raise `BAD_LABEL` when a mask's own names say that a value is another structure than in training.

    A mask none of whose names is a class of the study is not judged: the user named the structures otherwise.

    Args:
        names: Structure by value, as the mask names it.
        voxels: The mask.
        value_of: Value by lower-case name of the classes that were trained.
    """
    if not any(name.casefold() in value_of for name in names.values()):
        return
    for value, name in names.items():
        trained = value_of.get(name.casefold())
        if trained != value and (trained is not None or (voxels == value).any()):
            known = ", ".join(f"'{name[:32]}' {value}" for name, value in value_of.items() if value)
            raise MedvolError(
                "BAD_LABEL",
                found=f"the structure '{name[:40]}' as value {value}",
                expected=known if len(known) <= 80 else f"{known[:70]} ...",
                fix="list the structures behind the label in that order, as in seg.dcm#liver;tumour?",
            )


@final
class OntoImaged(Transform):
    """Refuse a mask that is not where its image is; both are in RAS order already.

    Args:
        key: The mask, (1, x, y, z).
        image_key: The image, (channel, x, y, z).
        resample: Resample a mask on another grid to the nearest voxel of the image's instead of refusing it.

    Raises:
        MedvolError: `WRONG_CHANNELS`, or `GEOMETRY_MISMATCH` with both grids.
    """

    def __init__(self, key: Hashable, image_key: Hashable, *, resample: bool = False) -> None:
        self.key = key
        self.image_key = image_key
        self.resample = resample

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with a mask on the image's grid."""
        mask, image, case = data[self.key], data[self.image_key], str(data.get("case", ""))
        if mask.dim() != 4 or len(mask) != 1:
            raise MedvolError(
                "WRONG_CHANNELS",
                case=case,
                found=f"a mask with axes {tuple(mask.shape)} (channel first)",
                expected="one label map, (1, x, y, z)",
                fix="merge the structures into one file with a value each",
            )
        shapes = tuple(mask.shape[1:]), tuple(image.shape[1:])
        # A format without geometry, as npy, lies on the image's grid when it has its shape: `LoadMaskd` sees to it.
        placed = mask.meta.get("has_geometry", True) and image.meta.get("has_geometry", True)
        aligned = not placed or same_grid(image.affine.numpy(), mask.affine.numpy(), shapes[1])
        if shapes[0] == shapes[1] and aligned:
            return {**data, self.key: MetaTensor(mask.as_tensor(), meta=image.meta)}
        if self.resample and placed:
            moved = ResampleToMatch(mode="nearest", padding_mode="zeros")(mask.float(), image)
            return {**data, self.key: MetaTensor(moved.as_tensor().to(mask.dtype), meta=image.meta)}
        raise MedvolError(
            "GEOMETRY_MISMATCH",
            case=case,
            found=f"a mask of {_size(shapes[0])} voxels" + ("" if aligned else " at another place in space"),
            expected=f"the image's grid, {_size(shapes[1])}",
            fix="resample the mask" + (", or pass --resample_labels True (nearest voxel)" if placed else ""),
        )


@final
class ClassIndexd(Transform):
    """Replace the values of a mask by class indices, uint8.

    Raises:
        MedvolError: `BAD_LABEL` with the values that training did not know.
    """

    def __init__(self, key: Hashable, facts: Facts) -> None:
        self.key = key
        self.values = facts.label_values

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with a mask of the class of each voxel, (1, x, y, z)."""
        mask = data[self.key]
        voxels = mask.as_tensor().numpy()
        classes = class_indices(voxels, self.values, case=str(data.get("case", "")))
        return {**data, self.key: MetaTensor(torch.from_numpy(classes), meta=mask.meta)}


def class_indices(voxels: np.ndarray[Any, Any], values: Sequence[int], *, case: str) -> np.ndarray[Any, Any]:
    """Return the index into `values` of each voxel, uint8; rounding errors do not count.

    Raises:
        MedvolError: `BAD_LABEL` with up to eight values that are not among `values`.
    """
    known = np.asarray(values)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise _bad_label(case, ["not finite"], values)
    voxels = whole_numbers(voxels)
    if tuple(values) == tuple(range(len(values))) and voxels.min() >= 0 and voxels.max() < len(values):
        classes = voxels.astype(np.uint8)
        if voxels.dtype.kind != "f" or np.array_equal(classes, voxels):
            return classes
    places = np.searchsorted(known, voxels).clip(max=len(known) - 1)
    wrong = known[places] != voxels
    if wrong.any():
        raise _bad_label(case, [f"{value:g}" for value in np.unique(voxels[wrong])], values)
    return places.astype(np.uint8)


@final
class RememberSitesd(Transform):
    """Store up to `SITES_PER_CLASS` voxels of each class under `sites`: int32 (class, site, 3), -1 where there is none.

    They are spread evenly over the class in memory order, so that a long structure is covered from end to end. The
    background's are not stored: a patch anywhere is one of it.
    """

    def __init__(self, key: Hashable, num_classes: int) -> None:
        self.key = key
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with `sites`."""
        mask = data[self.key].as_tensor()[0]
        sites = torch.full((self.num_classes - 1, SITES_PER_CLASS, 3), -1, dtype=torch.int32)
        for index in range(1, self.num_classes):
            voxels = torch.nonzero(mask == index)
            if len(voxels):
                chosen = torch.linspace(0, len(voxels) - 1, SITES_PER_CLASS, dtype=torch.float64).round().long()
                sites[index - 1] = voxels[chosen].int()
        return {**data, "sites": sites}


@final
class PadToPatchd(Transform):
    """Pad image and mask on both sides up to a patch: the image with its minimum, the mask with background.

    Small volumes must fill a patch; the padded part is background in every sense.
    """

    def __init__(self, image_key: Hashable, mask_key: Hashable, patch_size: Sequence[int]) -> None:
        self.image_key = image_key
        self.mask_key = mask_key
        self.patch_size = tuple(patch_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with images of at least the patch's size, affines moved along."""
        image, mask = data[self.image_key], data[self.mask_key]
        missing = [max(0, want - length) for want, length in zip(self.patch_size, image.shape[1:], strict=True)]
        if not any(missing):
            return dict(data)
        before = [gap // 2 for gap in missing]
        after = [gap - first for gap, first in zip(missing, before, strict=True)]
        return {
            **data,
            self.image_key: _padded(image, before, after, float(image.min())),
            self.mask_key: _padded(mask, before, after, 0.0),
        }


def _padded(image: MetaTensor, before: Sequence[int], after: Sequence[int], value: float) -> MetaTensor:
    sides = [count for pair in zip(reversed(before), reversed(after), strict=True) for count in pair]
    voxels: Tensor = F.pad(image.as_tensor(), sides, value=value)
    result = MetaTensor(voxels, meta=image.meta)
    affine = image.affine.clone()
    affine[:3, 3] -= affine[:3, :3] @ torch.as_tensor(before, dtype=affine.dtype)
    result.affine = affine
    return result


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _bad_label(case: str, wrong: Sequence[str], values: Sequence[int]) -> MedvolError:
    more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    return MedvolError(
        "BAD_LABEL",
        case=case,
        found=f"mask values {', '.join(wrong[:8])}{more}",
        expected=f"values among {', '.join(map(str, values[:12]))}{' ...' if len(values) > 12 else ''}",
        fix="correct the mask, or train on a study that has them",
    )
