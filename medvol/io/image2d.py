"""PNG and JPEG images.

Axis 0 is x (the image column), axis 1 is y (the row), axis 2 the colour channels where there are any. Rules: an EXIF
orientation is applied; a palette of greys becomes grey, another palette RGB; an alpha channel is dropped with a note;
16-bit grey stays 16-bit; what Pillow would quietly cut to 8 bits, and print colours (CMYK), are refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.io.npy import array_volume
from medvol.io.options import ReadOptions
from medvol.io.reference import Reference
from medvol.io.voxels import Array, require_size

MOST_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs: 256 MiB as RGB

_ORIENTATION_TAG = 0x0112
_ENDS = {"PNG": (b"IEND\xaeB`\x82", 12), "JPEG": (b"\xff\xd9", 4096)}


def read_image2d(reference: Reference, options: ReadOptions) -> Volume:
    """Read a PNG or JPEG image.

    Returns:
        Volume of shape (x, y), or (x, y, 3) with the channel axis named, uint8 or uint16.

    Raises:
        MedvolError: `TOO_LARGE`, `TRUNCATED`, `CORRUPT`, `BAD_DTYPE` or `WRONG_DIMS`.
    """
    from PIL import Image

    path = reference.path
    try:
        array, notes = _decode(path, options)
    except MedvolError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(path, f"more than {2 * MOST_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise _damaged(path, error) from error
    if array.dtype == np.int32:
        array = array.astype(np.uint16)
    array = array.transpose(1, 0, 2) if array.ndim == 3 else array.T
    volume = array_volume(
        np.ascontiguousarray(array), reference, ReadOptions(assume_spacing_mm=options.assume_spacing_mm)
    )
    channel_axis = 2 if array.ndim == 3 else None
    return Volume(volume.array, volume.affine, volume.has_geometry, reference.text, channel_axis, volume.notes + notes)


def _decode(path: Path, options: ReadOptions) -> tuple[Array, tuple[str, ...]]:
    """Return the pixels as Pillow orders them, shape (row, column) or (row, column, 3), and notes."""
    from PIL import Image, ImageOps

    with path.open("rb") as stream:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning: the limit is checked before decoding
            image = Image.open(stream, formats=("PNG", "JPEG"))
        _check_head(image, path, options)
        if image.format == "PNG":
            image.verify()  # compares the checksum of every chunk; the image has to be opened anew
    with path.open("rb") as stream:
        image = Image.open(stream, formats=("PNG", "JPEG"))
        image.load()
        plain, notes = _plain(ImageOps.exif_transpose(image), path)
        if image.getexif().get(_ORIENTATION_TAG, 1) != 1:
            notes += ("turned as its EXIF orientation says",)
        return np.asarray(plain), notes


def _check_head(image: Any, path: Path, options: ReadOptions) -> None:
    width, height = image.size
    require_size(width * height * len(image.getbands()), path, options)
    if width * height > MOST_PIXELS:
        raise _too_many_pixels(path, f"{width} x {height} pixels")
    if getattr(image, "n_frames", 1) > 1:
        raise MedvolError(
            "WRONG_DIMS", file=path, found=f"{image.n_frames} frames", expected="one image", fix="save one frame of it"
        )
    with path.open("rb") as stream:
        head = stream.read(26)
    # Bytes 24 and 25 of a PNG are bit depth and colour type; type 0 is grey, which Pillow keeps at 16 bits.
    if image.format == "PNG" and len(head) == 26 and head[24] == 16 and head[25] != 0:
        raise MedvolError(
            "BAD_DTYPE",
            file=path,
            found="16-bit colour or alpha, of which only 8 bits would be read",
            expected="8-bit colour or 16-bit grey",
            fix="convert it first, or save it as npy",
        )


def _too_many_pixels(path: Path, found: str) -> MedvolError:
    expected = f"at most {MOST_PIXELS:,} pixels"
    return MedvolError("TOO_LARGE", file=path, found=found, expected=expected, fix="cut it into tiles")


def _plain(image: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return the image as grey (8 or 16 bit) or RGB, and notes."""
    mode = image.mode
    if mode in ("L", "RGB") or mode.startswith("I"):
        return image, ()
    if mode == "1":
        return image.convert("L"), ("1-bit image read as 0 and 255",)
    if mode in ("LA", "RGBA"):
        return image.convert(mode[:-1]), ("alpha channel dropped",)
    if mode in ("P", "PA"):
        colours = image.convert("RGB")
        bands = [np.asarray(band) for band in colours.split()]
        is_grey = np.array_equal(bands[0], bands[1]) and np.array_equal(bands[0], bands[2])
        return (colours.getchannel(0) if is_grey else colours), ("palette replaced by its colours",)
    raise MedvolError(
        "BAD_DTYPE", file=path, found=f"colours of mode {mode}", expected="grey or RGB", fix="convert it to RGB first"
    )


def _damaged(path: Path, error: Exception) -> MedvolError:
    data = path.read_bytes()
    ends = [(mark, within) for name, (mark, within) in _ENDS.items() if (data[:1] == b"\x89") == (name == "PNG")]
    mark, within = ends[0]
    if not data:
        return MedvolError("NOT_IMAGE", file=path, found="an empty file", expected="a PNG or JPEG image")
    if mark not in data[-within:]:
        return MedvolError(
            "TRUNCATED",
            file=path,
            found=f"{len(data):,} bytes without the end of the image",
            expected="a complete image",
            fix="copy or download the file again",
        )
    return MedvolError(
        "CORRUPT",
        file=path,
        found=f"an image that cannot be decoded ({type(error).__name__})",
        expected="a PNG or JPEG image",
        fix="copy or download the file again",
    )
