"""MATLAB files of the figshare brain tumour set: one struct `cjdata` with image, label, patient and mask.

Version 7.3 is HDF5, whose axes come out reversed, so that a stored image has axes x y already; version 5 to 7 is
transposed to x y. Links out of an HDF5 file are not followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError, nearest
from medvol.geometry import Volume
from medvol.io.npy import array_volume
from medvol.io.options import ReadOptions
from medvol.io.reference import Reference
from medvol.io.voxels import Array, require_size

_FIELDS = ("image", "tumorMask")


@dataclass(frozen=True)
class MatFields:
    """What a `cjdata` file says beside its image.

    Args:
        label: 1 meningioma, 2 glioma, 3 pituitary tumour.
        patient: The data set's own pseudonym of the patient.
        mask: Shape (x, y), 1 inside the tumour; None when there is none.
    """

    label: int
    patient: str
    mask: npt.NDArray[np.uint8] | None


def read_mat(reference: Reference, options: ReadOptions) -> Volume:
    """Read the image, or with `#tumorMask` the mask, of a `cjdata` file.

    Returns:
        Volume of shape (x, y) without a geometry.

    Raises:
        MedvolError: `NOT_CJDATA`, `CORRUPT`, `BAD_REFERENCE`, `TOO_LARGE`, `BAD_DTYPE` or `NONFINITE`.
    """
    field = reference.key or "image"
    if field not in _FIELDS:
        raise MedvolError(
            "BAD_REFERENCE",
            file=reference.text,
            found=f"no field '{field}'",
            expected=" or ".join(_FIELDS),
            fix=nearest(field, _FIELDS),
        )
    return array_volume(_load(reference.path, (field,), options)[field], reference, options)


def read_mat_fields(path: Path | str) -> MatFields:
    """Read label, patient and mask of a `cjdata` file.

    Raises:
        MedvolError: `NOT_CJDATA`, `CORRUPT` or `TOO_LARGE`.
    """
    path = Path(path)
    found = _load(path, ("label", "PID", "tumorMask"), ReadOptions(), optional=("tumorMask",))
    label = np.asarray(found["label"]).ravel()
    if label.size != 1 or not float(label[0]).is_integer():
        raise MedvolError("NOT_CJDATA", file=path, found="a label that is no whole number", expected="1, 2 or 3")
    codes = found["PID"].ravel()[:64].tolist()
    if not all(isinstance(code, int) and 32 <= code < 127 for code in codes):
        raise MedvolError("NOT_CJDATA", file=path, found="a PID that is no plain text", expected="letters and digits")
    patient = "".join(chr(code) for code in codes).strip()
    mask = found.get("tumorMask")
    return MatFields(int(label[0]), patient, None if mask is None else (np.asarray(mask) != 0).astype(np.uint8))


def _load(path: Path, names: tuple[str, ...], options: ReadOptions, optional: tuple[str, ...] = ()) -> dict[str, Array]:
    with path.open("rb") as stream:
        is_hdf5 = b"\x89HDF\r\n\x1a\n" in stream.read(520)
    load: Callable[[Path, tuple[str, ...], ReadOptions], dict[str, Array]] = _load_hdf5 if is_hdf5 else _load_v5
    try:
        found = load(path, names, options)
    except MedvolError:
        raise
    except Exception as error:  # HDF5 meets damage with every kind of exception
        raise MedvolError(
            "CORRUPT",
            file=path,
            found=f"a MATLAB file that cannot be read ({type(error).__name__})",
            expected="a MATLAB 5 to 7.3 file",
            fix="copy or download the file again",
        ) from error
    missing = [name for name in names if name not in found and name not in optional]
    if missing:
        raise MedvolError(
            "NOT_CJDATA",
            file=path,
            found=f"no field cjdata.{missing[0]}",
            expected="the struct of the figshare brain tumour set",
            fix="save the array as npy or NIfTI",
        )
    return found


def _load_hdf5(path: Path, names: tuple[str, ...], options: ReadOptions) -> dict[str, Array]:
    import h5py

    def inside(group: Any, name: str, kind: type) -> Any:
        is_here = name in group and isinstance(group.get(name, getlink=True), h5py.HardLink)
        return group[name] if is_here and isinstance(group[name], kind) else None

    found: dict[str, Array] = {}
    with h5py.File(path, "r") as archive:
        struct = inside(archive, "cjdata", h5py.Group)
        for name in names if struct is not None else ():
            dataset = inside(struct, name, h5py.Dataset)
            if dataset is None or dataset.external or dataset.is_virtual:
                continue
            require_size(int(dataset.nbytes), path, options)
            found[name] = dataset[()]
    return found


def _load_v5(path: Path, names: tuple[str, ...], options: ReadOptions) -> dict[str, Array]:
    from medvol.io.mat5 import read_mat5_struct

    return {name: array.T for name, array in read_mat5_struct(path, "cjdata", names, options).items()}
