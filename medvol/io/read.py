"""One function for every format: the content decides which reader is used, and no other is tried after it."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path

from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.io.dicom_header import is_dicom
from medvol.io.files import cannot_read, existing
from medvol.io.nifti_layout import header_kind, looks_like
from medvol.io.options import ReadOptions
from medvol.io.reference import Reference, parse_reference

NIFTI, NPY, NPZ, ITK, MAT, IMAGE, DICOM = "NIfTI", "npy", "npz", "NRRD or MetaImage", "mat", "image", "DICOM"

SUFFIXES = {
    ".nii": NIFTI,
    ".nii.gz": NIFTI,
    ".npy": NPY,
    ".npz": NPZ,
    ".nrrd": ITK,
    ".nhdr": ITK,
    ".mha": ITK,
    ".mhd": ITK,
    ".mat": MAT,
    ".png": IMAGE,
    ".jpg": IMAGE,
    ".jpeg": IMAGE,
    ".dcm": DICOM,
    ".dicom": DICOM,
    ".ima": DICOM,
}
"""Lower-case file endings and the format that they announce."""

PAIR = (".hdr", ".img")
"""Endings of the two files of an ANALYZE or NIfTI pair, which is not read."""

_STARTS = (
    (b"\x1f\x8b", NIFTI),
    (b"\x93NUMPY", NPY),
    (b"PK\x03\x04", NPZ),
    (b"PK\x05\x06", NPZ),
    (b"NRRD000", ITK),
    (b"MATLAB 5.0", MAT),
    (b"MATLAB 7.", MAT),
    (b"\x89HDF\r\n\x1a\n", MAT),
    (b"\x89PNG\r\n\x1a\n", IMAGE),
    (b"\xff\xd8\xff", IMAGE),
)
_HEAD_BYTES = 544
_KEYED = (NPY, NPZ, MAT)


def read_volume(ref: str | PathLike[str], *, options: ReadOptions | None = None) -> Volume:
    """Read the voxels that a reference names.

    The format is recognised by the file's first bytes, by its suffix only where these say nothing. A folder is a DICOM
    series.

    Args:
        ref: A path or `path#fragment`, see `medvol.io.reference`.
        options: What may be assumed; by default nothing.

    Raises:
        MedvolError: With the code and the file, whatever is wrong; no other exception is part of the contract.
    """
    options = options or ReadOptions()
    reference = parse_reference(ref)
    path = existing(reference.path)
    try:
        if path.is_dir():
            _check_index(reference)
            return replace(_read(DICOM, reference, options), source=reference.text)
        kind, note = file_kind(path)
        _check_fragment(kind, reference)
        volume = _read(kind, reference, options)
    except OSError as error:
        raise cannot_read(path, error) from error
    except MemoryError as error:
        raise MedvolError(
            "TOO_LARGE",
            file=path,
            found="not enough memory for it",
            expected="a smaller volume",
            fix="close other programs",
        ) from error
    return replace(volume, source=reference.text, notes=(note, *volume.notes) if note else volume.notes)


def read_channels(ref: str | PathLike[str]) -> Volume:
    """Read a volume whose file may hold several channels as a fourth axis; one without them is read as it is.

    Raises:
        MedvolError: As `read_volume`.
    """
    volume = read_volume(ref, options=ReadOptions(channels=True))
    # The last of three axes of an npy array would be taken for channels of a 2D image.
    return volume if volume.channel_axis is None or volume.array.ndim > 3 else read_volume(ref)


def suffix_kind(name: str) -> str:
    """Return the format that a file name announces, or an empty string."""
    lower = name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if lower.endswith(suffix)), "")


def file_kind(path: Path) -> tuple[str, str]:
    """Return the format of a file and a note where name and content differ.

    Raises:
        MedvolError: `UNKNOWN_FORMAT`.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    by_name, by_content = suffix_kind(path.name), _content_kind(head)
    if by_content and by_name and by_content != by_name:
        return by_content, f"named like {by_name}, read as {by_content} by its content"
    if by_content or by_name:
        return by_content or by_name, ""
    raise MedvolError(
        "UNKNOWN_FORMAT",
        file=path,
        found=looks_like(head),
        expected="NIfTI, DICOM, npy, npz, NRRD, MetaImage, mat, PNG or JPEG",
        fix="convert the ANALYZE or NIfTI pair to .nii.gz" if path.suffix.lower() in PAIR else "convert it to NIfTI",
    )


def _content_kind(head: bytes) -> str:
    if head[128:132] == b"DICM":
        return DICOM
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if header_kind(head) is not None:
        return NIFTI
    if b"NDims" in head and (b"ObjectType" in head or b"ElementType" in head or b"DimSize" in head):
        return ITK
    return DICOM if is_dicom(head) else ""


def _check_fragment(kind: str, reference: Reference) -> None:
    if kind == DICOM:
        _check_index(reference)
        return
    if (reference.key is None and reference.index is None) or kind in _KEYED:
        return
    raise MedvolError(
        "BAD_REFERENCE",
        file=reference.text,
        found=f"a fragment behind a {kind} file",
        expected="the path alone",
        fix="remove the part from '#' on",
    )


def _check_index(reference: Reference) -> None:
    if reference.index is not None:
        raise MedvolError(
            "BAD_REFERENCE",
            file=reference.text,
            found=f"an index [{reference.index}] behind DICOM",
            expected="the folder or file, or folder#SeriesInstanceUID",
            fix="remove the index; `medvol scan` lists the series and their volumes",
        )


def _read(kind: str, reference: Reference, options: ReadOptions) -> Volume:
    """Call the reader of a format; each is imported when first used, so that `import medvol` stays quick."""
    path = reference.path
    if kind == NIFTI:
        from medvol.io.nifti import read_nifti

        return read_nifti(path, options)
    if kind == DICOM:
        from medvol.io.dicom_series import read_series

        return read_series(path, reference.key, options)
    if kind == ITK:
        from medvol.io.itk import read_itk

        return read_itk(path, options)
    return _read_array(kind, reference, options)


def _read_array(kind: str, reference: Reference, options: ReadOptions) -> Volume:
    """Call the reader of a format without a geometry."""
    if kind == NPY:
        from medvol.io.npy import read_npy

        return read_npy(reference, options)
    if kind == NPZ:
        from medvol.io.npz import read_npz

        return read_npz(reference, options)
    if kind == MAT:
        from medvol.io.mat import read_mat

        return read_mat(reference, options)
    from medvol.io.image2d import read_image2d

    return read_image2d(reference, options)
