"""Labels on the grid that a volume was read from, straight from streamed logits.

Preprocessing turns the source's axes to RAS order and resizes along them; it neither crops nor turns. So each plane of
the source needs at most two planes of logits, and labels can be made as the logits arrive: interpolate linearly, take
the largest, write into the source's own axis order. Logits are interpolated and not labels, because the border between
two structures is where their logits are equal, not where a nearest voxel happens to change.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from medvol.data.loading import without_metadata
from medvol.errors import MedvolError
from medvol.geometry import Affine, same_grid, voxel_ml
from medvol.inference.interpolate import TargetBlock, target_blocks
from medvol.inference.windows import Slab, stream_axis

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class SourceGrid:
    """The grid that a volume was read from, and how its axes lie to the RAS-ordered ones.

    Args:
        shape: Voxels along the source's axes.
        affine: Source voxel index to RAS+ millimetres; identity without geometry.
        has_geometry: False for npy and the like.
    """

    shape: Shape
    affine: Affine
    has_geometry: bool = True

    @classmethod
    def of(cls, image: MetaTensor) -> SourceGrid:
        """Return the grid from which a preprocessed image, shape (channel, x, y, z), was made.

        Raises:
            MedvolError: `NO_SOURCE_GRID` for an image without the metadata, `MOVED_GRID` when the image does not cover
                exactly the source's field of view, as after a crop or a rotation.
        """
        meta = getattr(image, "meta", {})
        if "spatial_shape" not in meta or "original_affine" not in meta or image.dim() != 4:
            raise MedvolError(
                "NO_SOURCE_GRID",
                found=f"an image of shape {tuple(image.shape)} and metadata of {len(meta)} fields",
                expected="(channel, x, y, z) with spatial_shape and original_affine",
                fix="load it with LoadVolumed and keep the MetaTensor",
            )
        x, y, z = (int(length) for length in np.asarray(meta["spatial_shape"]).ravel())
        affine = np.asarray(meta["original_affine"], dtype=np.float64)
        grid = cls((x, y, z), affine, bool(meta.get("has_geometry", True)))
        working = tuple(int(length) for length in image.shape[1:])
        expected, found = grid.working_affine(working), np.asarray(image.affine, dtype=np.float64)
        if grid.has_geometry and not same_grid(expected, found, working, tolerance_voxels=0.01):
            raise MedvolError(
                "MOVED_GRID",
                found=f"an image of {working} voxels that does not cover the source's {grid.shape} voxels exactly",
                expected="axes permuted and flipped to RAS, and a resize of the whole field of view",
                fix="predict before any crop, padding or rotation",
            )
        return grid

    @property
    def orientation(self) -> npt.NDArray[np.float64]:
        """RAS axis and direction (1 or -1) of each source axis, shape (3, 2)."""
        return np.asarray(nib.orientations.io_orientation(self.affine))

    @property
    def ras_shape(self) -> Shape:
        """Voxels along the source's axes in RAS order."""
        x, y, z = (self.shape[axis] for axis in self._source_axes)
        return x, y, z

    @property
    def voxel_ml(self) -> float:
        """Volume of one source voxel in millilitres."""
        return voxel_ml(self.affine)

    def working_affine(self, working_shape: Sequence[int]) -> Affine:
        """Return the affine of the RAS-ordered grid after a resize of the whole field of view."""
        ras = self.affine @ nib.orientations.inv_ornt_aff(self.orientation, self.shape)
        resize = np.eye(4)
        for axis, (source, working) in enumerate(zip(self.ras_shape, working_shape, strict=True)):
            resize[axis, axis] = source / working
            resize[axis, 3] = 0.5 * source / working - 0.5
        return np.asarray(ras @ resize)

    def ras_view(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view in RAS order of an array in source order; writing to it writes to the array."""
        view = np.transpose(array, self._source_axes)
        flips = tuple(slice(None, None, int(self.orientation[axis, 1])) for axis in self._source_axes)
        return view[flips]

    @property
    def _source_axes(self) -> list[int]:
        return [int(axis) for axis in np.argsort(self.orientation[:, 0])]


def label_dtype(classes: int) -> type[np.uint8] | type[np.uint16]:
    """Return the smallest type that holds the labels 0 to `classes` - 1."""
    return np.uint8 if classes <= 256 else np.uint16


def labels_on_source(
    slabs: Iterable[Slab],
    working_shape: Sequence[int],
    grid: SourceGrid,
    *,
    out: npt.NDArray[Any],
    probabilities: npt.NDArray[Any] | None = None,
    structures: Sequence[int] | None = None,
) -> npt.NDArray[np.int64]:
    """Write each source voxel's most likely class, the lowest of equals, and return the voxels of each class.

    Args:
        slabs: Logits on the working grid, following one another along one axis.
        working_shape: Shape of the whole volume of logits without the classes.
        grid: Where to write.
        out: Array or memmap of shape `grid.shape` and a type that holds all labels.
        probabilities: Array or memmap, shape (structures, *grid.shape), float16 or float32, for the softmax of the
            interpolated logits; they are then interpolated three times.
        structures: Classes whose probabilities are written; all when None.

    Returns:
        Voxels per class, shape (classes,).

    Raises:
        MedvolError: `WRONG_ARRAY` when the arrays do not fit, `NONFINITE_LOGITS`.
    """
    view = grid.ras_view(_fitting(out, grid.shape))
    counts = np.zeros(0, dtype=np.int64)
    for block in target_blocks(slabs, working_shape, grid.ras_shape):
        if counts.size == 0:
            counts = np.zeros(block.classes, dtype=np.int64)
            _require_range(out, block.classes)
            chosen = list(range(block.classes) if structures is None else structures)
        best, labels = _most_likely(block)
        _write(view, block, labels)
        counts += np.bincount(labels.cpu().numpy().ravel(), minlength=len(counts))
        if probabilities is not None:
            _write_probabilities(block, best, chosen, [grid.ras_view(one) for one in probabilities])
    return counts


def _most_likely(block: TargetBlock) -> tuple[Tensor, Tensor]:
    """Return the largest logit and its class, both (planes, a, b)."""
    best, labels = None, None
    for first, logits in block.parts():
        top, index = logits.max(dim=0)
        if not bool(torch.isfinite(top).all()):
            raise MedvolError(
                "NONFINITE_LOGITS",
                found="NaN or infinite logits",
                expected="finite numbers",
                fix="check the weights and the intensities, or run with precision float32",
            )
        if best is None or labels is None:
            best, labels = top, index.int()
        else:
            labels = torch.where(top > best, index.int() + first, labels)
            best = torch.maximum(best, top)
    if best is None or labels is None:
        raise ValueError("logits without classes")
    return best, labels


def _write_probabilities(
    block: TargetBlock, best: Tensor, chosen: Sequence[int], views: Sequence[npt.NDArray[Any]]
) -> None:
    total = torch.zeros_like(best)
    for _, logits in block.parts():
        total += logits.sub_(best).exp_().sum(dim=0)
    for first, logits in block.parts():
        for label, view in zip(chosen, views, strict=True):
            if first <= label < first + len(logits):
                _write(view, block, (logits[label - first] - best).exp() / total)


def _write(view: npt.NDArray[Any], block: TargetBlock, values: Tensor) -> None:
    planes: list[slice] = [slice(None)] * 3
    planes[block.axis] = slice(block.start, block.start + len(values))
    view[tuple(planes)] = np.moveaxis(values.cpu().numpy(), 0, block.axis)


def _fitting(array: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    if array.shape != tuple(shape):
        raise MedvolError("WRONG_ARRAY", found=f"an array of shape {array.shape}", expected=f"shape {tuple(shape)}")
    return array


def _require_range(array: npt.NDArray[Any], classes: int) -> None:
    if not np.issubdtype(array.dtype, np.integer) or np.iinfo(array.dtype).max < classes - 1:
        raise MedvolError(
            "WRONG_ARRAY",
            found=f"type {array.dtype} for {classes} labels",
            expected=np.dtype(label_dtype(classes)).name,
        )


@final
class LabelsOnSourced(MapTransform):
    """Replace logits on the working grid by labels on the source's, for clients that know `postprocessing` alone.

    Args:
        keys: Item key of the logits, (classes, x, y, z); afterwards of the labels, (1, x, y, z) in the source's axis
            order, a MetaTensor with the source's affine.
        image_key: Item key of the preprocessed image.
    """

    def __init__(self, keys: KeysCollection = "pred", image_key: Hashable = "image") -> None:
        super().__init__(keys)  # MONAI Deploy hands a dictionary to map transforms only
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its logits replaced.

        Raises:
            MedvolError: What `SourceGrid.of` and `labels_on_source` raise, with the item's `case` named.
        """
        item = dict(data)
        try:
            for key in self.keys:
                item[key] = self._labels(item[key], item[self.image_key])
        except MedvolError as error:
            raise error.for_case(str(data.get("case", ""))) from error
        return item

    def _labels(self, logits: Tensor, image: MetaTensor) -> MetaTensor:
        grid = SourceGrid.of(image)
        values = without_metadata(logits)
        labels = np.empty(grid.shape, dtype=label_dtype(len(values)))
        # Streamed as `SlidingWindow` streams, so that both ways give the same labels to the bit.
        whole = Slab(stream_axis(values.shape[1:]), 0, values.detach().float())
        labels_on_source([whole], values.shape[1:], grid, out=labels)
        meta = {**image.meta, "affine": torch.as_tensor(grid.affine), "original_channel_dim": 0}
        return MetaTensor(torch.from_numpy(labels)[None], meta=meta)
