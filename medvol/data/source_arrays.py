"""Studies as stacked arrays: MedMNIST's npz, and npy pairs as Keras examples save them.

An array of images has a row per case; its partner has a row per label. Both are named after their split and content in
either order, as in `train_images`, `x_train`, `val_data.npy`, or just `data.npy` and `labels.npy`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.data.array_roles import Pair, pairs_of
from medvol.data.build import lists_to_splits
from medvol.data.labels import class_name, is_missing
from medvol.data.medmnist import known_set
from medvol.data.study import Draft, Label, Options, Row
from medvol.errors import MedvolError


def read_npz(path: Path, options: Options) -> Draft | None:
    """Read an npz of stacked images and labels, or return None when it holds no such pair.

    Labels are read, images only by their headers.

    Raises:
        MedvolError: `CORRUPT`, `UNSAFE_NPY`, `ROW_MISMATCH`, `MULTI_LABEL`, `NO_LABEL`, `WRONG_DIMS`.
    """
    shapes = npz_shapes(path)
    pairs = _usable(pairs_of(shapes, path), options, lambda name: shapes[name])
    if not _is_study(pairs, options):
        return None
    with np.load(path, allow_pickle=False) as archive:
        read = {name: _texts(_load(archive, name, path), name, path) for pair in pairs.values() for name in pair.read}
    rows = _rows(pairs, shapes, read, lambda name, index: f"{path}#{name}[{index}]", path)
    return _draft(rows, path, pairs, f"npz of stacked arrays {', '.join(pair.images for pair in pairs.values())}")


def read_npy_folder(folder: Path, options: Options) -> Draft | None:
    """Read pairs of npy files in a folder, or return None when there is none. Raises as `read_npz`."""
    files = {path.stem: path for path in _npy_files(folder)}
    pairs = _usable(pairs_of(files, folder), options, lambda name: _mapped(files[name]).shape)
    if not _is_study(pairs, options):
        return None
    shapes = {pair.images: _mapped(files[pair.images]).shape for pair in pairs.values()}
    read = {name: _texts(_mapped(files[name]), name, folder) for pair in pairs.values() for name in pair.read}
    rows = _rows(pairs, shapes, read, lambda name, index: f"{files[name]}#{index}", folder)
    return _draft(rows, folder, pairs, f"stacked npy files {', '.join(pair.images for pair in pairs.values())}")


def _npy_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.npy")) if not path.name.startswith(".") and path.is_file()]


def _is_study(pairs: Mapping[str | None, Pair], options: Options) -> bool:
    """Tell whether arrays are a stack of cases; without labels only a split in the name tells one from a volume."""
    if any(pair.labels for pair in pairs.values()):
        return True
    return bool(pairs) and not options.require_label and None not in pairs


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array in an npz, from the headers alone.

    Raises:
        MedvolError: `CORRUPT`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if not member.endswith(".npy"):
                    continue
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shapes[member.removesuffix(".npy")] = read(stream)[0]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
        raise _corrupt(path, error) from None
    return shapes


def _load(archive: Any, name: str, path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        raise _unsafe(path, name, error) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise _corrupt(path, error) from None


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        raise _unsafe(path, path.stem, error) from None
    except (EOFError, OSError) as error:
        raise _corrupt(path, error) from None


def _rows(
    pairs: Mapping[str | None, Pair],
    shapes: Mapping[str, tuple[int, ...]],
    read: Mapping[str, npt.NDArray[Any]],
    refer: Any,
    source: Path,
) -> list[Row]:
    given = lists_to_splits([split for split in pairs if split is not None])
    rows: list[Row] = []
    for split, pair in pairs.items():
        shape = shapes[pair.images]
        if len(shape) < 3:
            raise MedvolError(
                "WRONG_DIMS",
                file=source,
                found=f"'{pair.images}' has shape {shape}",
                expected="a row per case and at least two axes of voxels",
                fix="write features as CSV",
            )
        values = _values(pair, read, shape[0], refer, source)
        patients = _patients(pair, read, shape[0], source)
        width = max(4, len(str(shape[0])))
        prefix = split or "case"
        rows += [
            Row(
                image=(refer(pair.images, index),),
                label=values[index],
                case=f"{prefix}_{index:0{width}d}",
                patient=patients[index],
                split=given[split] if split else None,
            )
            for index in range(shape[0])
        ]
    return rows


def _values(pair: Pair, labels: Mapping[str, npt.NDArray[Any]], count: int, refer: Any, source: Path) -> list[Label]:
    if pair.labels is None:
        return [None] * count
    array = labels[pair.labels]
    _require_rows(pair, pair.labels, array.shape, count, source)
    if array.ndim > 2:
        return [refer(pair.labels, index) for index in range(count)]
    if array.ndim == 2 and array.shape[1] > 1:
        one_hot = np.isin(array, (0, 1)).all() and bool((array.sum(axis=1) == 1).all())
        if not one_hot:
            raise MedvolError(
                "MULTI_LABEL",
                file=source,
                found=f"'{pair.labels}' has {array.shape[1]} labels per case",
                expected="one class or number per case, or one-hot rows",
                fix="choose one of them and write a case table",
            )
        array = array.argmax(axis=1)
    return list(array.reshape(-1).tolist())


def _patients(pair: Pair, read: Mapping[str, npt.NDArray[Any]], count: int, source: Path) -> list[str | None]:
    if pair.patients is None:
        return [None] * count
    array = read[pair.patients]
    _require_rows(pair, pair.patients, array.shape, count, source)
    values = array.reshape(-1).tolist()
    return [
        None if is_missing(value) else value.strip() if isinstance(value, str) else class_name(value)  # `007` stays
        for value in values
    ]


def _require_rows(pair: Pair, name: str, shape: tuple[int, ...], count: int, source: Path) -> None:
    if shape[:1] != (count,):
        raise MedvolError(
            "ROW_MISMATCH",
            file=source,
            found=f"'{pair.images}' has {count} rows, '{name}' has shape {shape}",
            expected="a row per image",
            fix="check that the arrays belong together",
        )


def _usable(pairs: Mapping[str | None, Pair], options: Options, shape_of: Any) -> dict[str | None, Pair]:
    """Return the pairs without patients that are not wanted, or that are no list: `patient.npy` may be an image."""

    def is_list(name: str) -> bool:
        shape = shape_of(name)
        return len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)

    return {
        split: pair
        if pair.patients and options.patient_column and is_list(pair.patients)
        else replace(pair, patients=None)
        for split, pair in pairs.items()
    }


def _texts(array: npt.NDArray[Any], name: str, source: Path) -> npt.NDArray[Any]:
    """Return an array of bytes as one of texts, and any other as it is."""
    if array.dtype.kind != "S":
        return array
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError:
        raise MedvolError(
            "BAD_LABEL",
            file=source,
            found=f"'{name}' holds bytes that are not UTF-8",
            expected="texts",
            fix="save it as texts in UTF-8",
        ) from None


def _draft(rows: list[Row], source: Path, pairs: Mapping[str | None, Pair], kind: str) -> Draft:
    notes = [f"read as: {kind}"]
    patients = [pair.patients for pair in pairs.values() if pair.patients]
    if patients:
        notes.append(f"patients read from {', '.join(patients)}")
    if len(pairs) == 1 and None not in pairs:
        notes.append(f"only the list '{next(iter(pairs))}' is there, so the cases are not split yet")
    known = known_set(source.stem)
    values = {row.label for row in rows if row.label is not None}
    if known is not None and values <= set(range(len(known.classes))):
        named = {float(index): name for index, name in enumerate(known.classes)}
        rows = [_named(row, named) for row in rows]
        notes.append(f"class names of {source.stem} as in MedMNIST's data card")
    else:
        known = None
    return Draft(
        rows=tuple(rows),
        source=str(source),
        folder=str(source.parent),
        classes=known.classes if known else (),
        task="classification" if known else None,
        laterality_matters=known.laterality_matters if known else None,
        notes=tuple(notes),
    )


def _named(row: Row, named: Mapping[float, str]) -> Row:
    label = named[float(row.label)] if row.label is not None else None
    return Row(row.image, label, row.case, row.patient, row.split)


def _corrupt(path: Path, error: Exception) -> MedvolError:
    return MedvolError(
        "CORRUPT",
        file=path,
        found=str(error)[:100] or "the file ends early",
        expected="a NumPy archive",
        fix="copy it again",
    )


def _unsafe(path: Path, name: str, error: Exception) -> MedvolError:
    if not any(word in str(error) for word in ("pickle", "Python objects")):
        return _corrupt(path, error)
    return MedvolError(
        "UNSAFE_NPY",
        file=path,
        found=f"'{name}' holds Python objects",
        expected="numbers or texts",
        fix="save it again as a plain array",
    )
