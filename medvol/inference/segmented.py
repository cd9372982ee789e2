"""A preprocessed volume to labels on its source's grid, with memory that does not grow with the volume."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
from monai.data.meta_tensor import MetaTensor

from medvol.errors import MedvolError, is_full
from medvol.geometry import Affine
from medvol.inference.sliding_window import SlidingWindow
from medvol.inference.source_grid import SourceGrid, label_dtype, labels_on_source
from medvol.io.write_nifti import write_mask

_ZEROS = bytes(2**20)


@final
@dataclass(frozen=True)
class SegmentedVolume:
    """Labels of a volume on the grid that it was read from.

    Args:
        labels: Shape `grid.shape`, uint8 or uint16; a memmap of a file without a name, which vanishes with the array.
        grid: Where the voxels are.
        voxels_per_label: Voxels of each class, background first.
        probabilities: Of the structures asked for, float16, shape (structures, *grid.shape), or None.
    """

    labels: npt.NDArray[Any]
    grid: SourceGrid
    voxels_per_label: tuple[int, ...]
    probabilities: npt.NDArray[Any] | None = None

    @property
    def affine(self) -> Affine:
        """Voxel index to RAS+ millimetres."""
        return self.grid.affine

    @property
    def volumes_ml(self) -> tuple[float, ...] | None:
        """Volume of each class in millilitres; None for a volume without geometry."""
        if not self.grid.has_geometry:
            return None
        return tuple(count * self.grid.voxel_ml for count in self.voxels_per_label)

    def write(self, path: str | Path, structures: Sequence[str] = ()) -> None:
        """Write the labels as .nii.gz; see `medvol.io.write_nifti.write_mask`."""
        write_mask(path, self.labels, self.affine, structures, has_geometry=self.grid.has_geometry)


def predict_labels(
    image: MetaTensor,
    network: Any,
    window: SlidingWindow,
    *,
    folder_for_memmap: str | Path,
    structures: Sequence[int] = (),
) -> SegmentedVolume:
    """Return the labels of a preprocessed volume on the grid that it was read from.

    Args:
        image: Shape (channel, x, y, z), with its metadata; see `SourceGrid.of`.
        network: A network, or a sequence of them (folds).
        window: How it is run.
        folder_for_memmap: Folder in which labels and probabilities lie meanwhile, in files without names: they go away
            with the result, and with the process whatever ends it. The output folder is the place that has the room.
        structures: Classes whose probabilities are kept too.

    Raises:
        MedvolError: `DISK_FULL` or `CANNOT_WRITE`, and what `SourceGrid.of`, `SlidingWindow.slabs` and
            `labels_on_source` raise.
    """
    grid = SourceGrid.of(image)
    slabs = window.slabs(image, network)
    first = next(slabs)
    classes = len(first.logits)
    if any(not 0 <= label < classes for label in structures):
        raise MedvolError("UNKNOWN_OPTION", found=f"structures {list(structures)}"[:80], expected=f"0 to {classes - 1}")
    labels = _scratch_array(folder_for_memmap, grid.shape, label_dtype(classes))
    probabilities = None
    if structures:
        # Structures last, so that each one's values lie together.
        scratch = _scratch_array(folder_for_memmap, (*grid.shape, len(structures)), np.float16)
        probabilities = np.moveaxis(scratch, -1, 0)
    counts = labels_on_source(
        chain([first], slabs),
        image.shape[1:],
        grid,
        out=labels,
        probabilities=probabilities,
        structures=structures,
    )
    return SegmentedVolume(labels, grid, tuple(int(count) for count in counts), probabilities)


def _scratch_array(folder: str | Path, shape: Sequence[int], dtype: Any) -> npt.NDArray[Any]:
    """Return an array of zeros in a file without a name, laid out as NIfTI files are.

    The zeros are written: a file with holes would end the process with SIGBUS, not with an error, on a full disk.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            for start in range(0, size, len(_ZEROS)):
                stream.write(_ZEROS[: size - start])
            stream.flush()
            return np.memmap(stream, dtype=dtype, mode="r+", shape=tuple(shape), order="F")
    except OSError as error:
        raise MedvolError(
            "DISK_FULL" if is_full(error) else "CANNOT_WRITE",
            file=folder,
            found=f"no room for {size:,} bytes of labels" if is_full(error) else error.strerror or str(error),
            fix="free space, or name another output folder",
        ) from error
