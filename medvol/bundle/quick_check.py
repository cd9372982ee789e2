"""What a bundle looks at before it reads a study: the headers alone, no voxel.

Opening a study already refuses a table that is wrong, a file that is not there and a split without cases, and notes a
class that a split lacks. Preparing the training and validation cases refuses what is wrong in their voxels, and making
the network a size below its smallest. What is left, and would be met late or only in the evaluation, are files
of any split that end early or have no header, and masks on another grid than their image: told here, as warnings, for
whether a mask may be resampled is an option of the training. `medvol check` reads everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medvol.data.study import Case, Study
from medvol.errors import MedvolError
from medvol.geometry import Affine, same_grid
from medvol.io.nifti import read_nifti_layout
from medvol.io.nifti_affine import nifti_affine
from medvol.io.options import ReadOptions

logger = logging.getLogger(__name__)

NIFTI = (".nii", ".nii.gz")
NAMED = 3  # findings that are named one by one


def quick_check(study: Study) -> tuple[str, ...]:
    """Return a sentence for each case whose headers say that training or evaluation will refuse it.

    Only NIfTI and npy files are looked at, about a millisecond each; other formats have no header that is as cheap.

    Args:
        study: Opened and split.
    """
    return tuple(finding for case in study.cases for finding in _findings(case, study))


def warn_of_headers(study: Study) -> None:
    """Log what `quick_check` finds, the first cases by name."""
    found = quick_check(study)
    for finding in found[:NAMED]:
        logger.warning("%s", finding)
    if len(found) > NAMED:
        logger.warning("and %d more; `medvol check` reads every file and lists them", len(found) - NAMED)


def _findings(case: Case, study: Study) -> Iterator[str]:
    names = [*case.image, *([str(case.label)] if study.task == "segmentation" and case.label is not None else [])]
    grids: list[tuple[tuple[int, ...], Affine | None] | None] = []
    for name in names:
        try:
            grids.append(_grid(Path(name)))
        except (OSError, ValueError, EOFError, MedvolError) as error:
            grids.append(None)
            told = error.found if isinstance(error, MedvolError) else " ".join(str(error).split())[:100]
            yield f"case {case.case} of {case.split}: {name}: {told}"
    image, mask = (grids[0], grids[-1]) if len(names) > len(case.image) and grids else (None, None)
    if image is None or mask is None:
        return
    (shape, affine), (mask_shape, mask_affine) = image, mask
    where = f"case {case.case} of {case.split}: its mask"
    if shape[-3:] != mask_shape[-3:] and shape[:3] != mask_shape[:3]:
        yield f"{where} has {_words(mask_shape)} voxels, its image {_words(shape)}"
    elif affine is not None and mask_affine is not None and not same_grid(affine, mask_affine, shape[:3]):
        yield f"{where} lies elsewhere than its image, of the same {_words(shape)} voxels"


def _grid(path: Path) -> tuple[tuple[int, ...], Affine | None] | None:
    """Return shape and affine from a file's header; None for a format that is not looked at.

    Raises:
        MedvolError: For a NIfTI header that reading would refuse.
        OSError: And others of NumPy, for an npy header that cannot be read.
        ValueError: For a file that is shorter than its header says.
    """
    name = path.name.lower()
    if name.endswith(".npy"):
        return np.load(path, mmap_mode="r", allow_pickle=False).shape, None  # refuses a file that ends early
    if not name.endswith(NIFTI):
        return None
    layout = read_nifti_layout(path)
    if name.endswith(".nii") and path.stat().st_size < layout.total_bytes:
        raise ValueError(f"{path.stat().st_size} bytes, {layout.total_bytes} expected: the file ends early")
    return layout.shape, nifti_affine(layout.header, path, ReadOptions())[0]


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
