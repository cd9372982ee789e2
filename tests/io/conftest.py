"""Small, oblique, anisotropic volumes written by the libraries that own the formats, and ways to damage them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvol.errors import MedvolError


@pytest.fixture
def affine() -> np.ndarray:
    """Spacing (1.0, 1.5, 3.0), turned 20 degrees about z and 10 about x, x flipped: left-handed and oblique."""
    a, b = np.radians([20.0, 10.0])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    result = np.eye(4)
    result[:3, :3] = about_z @ about_x @ np.diag([-1.0, 1.5, 3.0])
    result[:3, 3] = (-12.5, 33.0, 7.25)
    return result


@pytest.fixture
def right_affine(affine: np.ndarray) -> np.ndarray:
    """The same grid with its first axis turned round: right-handed, as slices sorted along row x column are."""
    return affine @ np.diag([-1.0, 1.0, 1.0, 1.0])


@pytest.fixture
def voxels() -> np.ndarray:
    """Every voxel another number, so that any exchange of axes shows."""
    return np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9) - 100


@pytest.fixture
def refused() -> Callable[..., Any]:
    """Expect a refusal with a code; its message must fit a terminal and hold the given words."""

    @contextmanager
    def expect(code: str, *words: str) -> Iterator[None]:
        with pytest.raises(MedvolError) as caught:
            yield
        message = str(caught.value)
        assert caught.value.code == code, message
        assert len(message) <= 300, message
        for word in words:
            assert word in message, message

    return expect


@pytest.fixture
def write_nifti(affine: np.ndarray) -> Callable[..., Path]:
    """Write a NIfTI by nibabel, both codes 1, then overwrite header fields given as offset=(format, value)."""
    import nibabel as nib

    def write(
        path: Path, array: np.ndarray, at: dict[int, tuple[str, Any]] | None = None, kind: Any = nib.Nifti1Image
    ) -> Path:
        image = kind(array, affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        image.header.set_xyzt_units("mm")
        data = bytearray(image.to_bytes())
        for offset, (form, value) in (at or {}).items():
            values = value if isinstance(value, tuple) else (value,)
            struct.pack_into(form, data, offset, *values)
        if path.name.endswith(".gz"):
            import gzip

            path.write_bytes(gzip.compress(bytes(data), mtime=0))
        else:
            path.write_bytes(bytes(data))
        return path

    return write


@pytest.fixture
def write_series(right_affine: np.ndarray) -> Callable[..., list[Path]]:
    """Write a CT series whose voxel (x, y, z) of `array` lies where the RAS affine says; return its files in order.

    `edit(dataset, index)` may change a dataset before it is written. File names and instance numbers run against the
    order of the positions, as a reader that trusts them deserves.
    """
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    def write(
        folder: Path,
        array: np.ndarray,
        *,
        matrix: np.ndarray | None = None,
        series: str = "1.2.3.4",
        edit: Callable[[Any, int], None] | None = None,
        syntax: Any = ExplicitVRLittleEndian,
    ) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (right_affine if matrix is None else matrix)
        steps = np.linalg.norm(lps[:3, :3], axis=0)
        paths = []
        count = array.shape[2]
        for index in range(count):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID = CTImageStorage
            meta.MediaStorageSOPInstanceUID = f"{series}.{index + 1}"
            meta.TransferSyntaxUID = syntax
            path = folder / f"{count - index:03d}.dcm"
            dataset = FileDataset(
                str(path),
                {},
                file_meta=meta,
                preamble=b"\0" * 128,
                is_implicit_VR=syntax.is_implicit_VR,
                is_little_endian=syntax.is_little_endian,
            )
            dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
            dataset.PatientName, dataset.PatientID = "SECRETX^NAME", "SECRETX"
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", series
            dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 7, count - index
            dataset.SeriesDescription = "phantom"
            dataset.Rows, dataset.Columns = array.shape[1], array.shape[0]
            dataset.PixelSpacing = [float(steps[1]), float(steps[0])]
            dataset.SliceThickness = float(steps[2])
            dataset.ImageOrientationPatient = [float(f"{one:.9f}") for one in (lps[:3, :2] / steps[:2]).T.ravel()]
            dataset.ImagePositionPatient = [float(f"{one:.6f}") for one in lps[:3, 3] + index * lps[:3, 2]]
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
            order = ">i2" if syntax == pydicom.uid.ExplicitVRBigEndian else "<i2"
            dataset.PixelData = np.ascontiguousarray(array[:, :, index].T).astype(order).tobytes()
            dataset["PixelData"].VR = "OW"
            if edit is not None:
                edit(dataset, index)
            dataset.save_as(path, enforce_file_format=True)
            paths.append(path)
        return paths

    return write


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is absent")
    return folder.resolve()


FRAME = "1.2.9"
"""UID of the frame of reference that images and what is drawn on them share."""


@pytest.fixture
def framed_series(tmp_path: Path, voxels: np.ndarray, write_series: Callable[..., Any]) -> str:
    """Write a CT series with a frame of reference, `FRAME`, and return its folder."""

    def edit(dataset: Any, index: int) -> None:
        dataset.FrameOfReferenceUID = FRAME

    write_series(tmp_path / "ct", voxels, edit=edit)
    return str(tmp_path / "ct")
