"""Studies as stacked arrays: MedMNIST's npz, and npy pairs as Keras examples save them.

An array of images has a row per case; its partner has a row per label. Both are named after their split and content in
either order, as in `train_images`, `x_train`, `val_data.npy`, or just `data.npy` and `labels.npy`.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.data.build import SPLIT_WORDS, lists_to_splits
from medvol.data.medmnist import known_set
from medvol.data.study import Draft, Label, Options, Row
from medvol.errors import MedvolError

_IMAGE_WORDS = ("images", "image", "data", "x", "imgs", "volumes", "scans")
# One case saved as `image` and `label` (its mask) is not a stack, so the singular needs a split beside it.
_SINGULAR = ("image", "label", "target")
_LABEL_WORDS = ("labels", "label", "y", "targets", "target", "masks")


@dataclass(frozen=True)
class Pair:
    """The arrays of one split: names of images and labels; labels may be absent."""

    images: str
    labels: str | None


def role(name: str) -> tuple[str | None, str] | None:
    """Return the split and content (`images` or `labels`) that an array's name says, or None."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    if words and words[0] in ("xtrain", "ytrain", "xtest", "ytest", "xval", "yval"):
        words = [words[0][1:], words[0][0], *words[1:]]
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    content = [word for word in words if word not in SPLIT_WORDS]
    if len(content) != 1 or len(splits) > 1:
        return None
    split = splits[0] if splits else None
    if split is None and content[0] in _SINGULAR:
        return None
    if content[0] in _IMAGE_WORDS:
        return split, "images"
    return (split, "labels") if content[0] in _LABEL_WORDS else None


def pairs_of(names: Iterable[str], source: Path) -> dict[str | None, Pair]:
    """Return the arrays that belong together, by split.

    Raises:
        MedvolError: `AMBIGUOUS_SOURCE` when two arrays claim one role.
    """
    found: dict[tuple[str | None, str], str] = {}
    for name in sorted(names):
        its_role = role(name)
        if its_role is None:
            continue
        if its_role in found:
            raise MedvolError(
                "AMBIGUOUS_SOURCE",
                file=source,
                found=f"'{found[its_role]}' and '{name}' could both be the {its_role[0] or ''} {its_role[1]}",
                expected="one array of each kind",
                fix="move one away",
            )
        found[its_role] = name
    splits = [split for split, content in found if content == "images"]
    if None in splits and len(splits) > 1:
        raise MedvolError(
            "AMBIGUOUS_SOURCE",
            file=source,
            found=f"'{found[None, 'images']}' belongs to no split, '{found[splits[1] or splits[0], 'images']}' to one",
            expected="a split in every name, or in none",
            fix="rename it to train_..., val_... or test_...",
        )
    order = [split for split in ("train", "val", "test", None) if split in splits]
    return {split: Pair(found[split, "images"], found.get((split, "labels"))) for split in order}


def read_npz(path: Path, options: Options) -> Draft | None:
    """Read an npz of stacked images and labels, or return None when it holds no such pair.

    Labels are read, images only by their headers.

    Raises:
        MedvolError: `CORRUPT`, `UNSAFE_NPY`, `ROW_MISMATCH`, `MULTI_LABEL`, `NO_LABEL`, `WRONG_DIMS`.
    """
    shapes = npz_shapes(path)
    pairs = pairs_of(shapes, path)
    if not _is_study(pairs, options):
        return None
    with np.load(path, allow_pickle=False) as archive:
        labels = {pair.labels: _load(archive, pair.labels, path) for pair in pairs.values() if pair.labels}
    rows = _rows(pairs, shapes, labels, lambda name, index: f"{path}#{name}[{index}]", path)
    return _draft(rows, path, pairs, f"npz of stacked arrays {', '.join(pair.images for pair in pairs.values())}")


def read_npy_folder(folder: Path, options: Options) -> Draft | None:
    """Read pairs of npy files in a folder, or return None when there is none. Raises as `read_npz`."""
    files = {path.stem: path for path in sorted(folder.glob("*.npy")) if not path.name.startswith(".")}
    pairs = pairs_of(files, folder)
    if not _is_study(pairs, options):
        return None
    shapes = {pair.images: _mapped(files[pair.images]).shape for pair in pairs.values()}
    labels = {pair.labels: _mapped(files[pair.labels]) for pair in pairs.values() if pair.labels}
    rows = _rows(pairs, shapes, labels, lambda name, index: f"{files[name]}#{index}", folder)
    return _draft(rows, folder, pairs, f"stacked npy files {', '.join(pair.images for pair in pairs.values())}")


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
    labels: Mapping[str, npt.NDArray[Any]],
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
        values = _values(pair, labels, shape[0], refer, source)
        width = max(4, len(str(shape[0])))
        prefix = split or "case"
        rows += [
            Row(
                image=(refer(pair.images, index),),
                label=values[index],
                case=f"{prefix}_{index:0{width}d}",
                split=given[split] if split else None,
            )
            for index in range(shape[0])
        ]
    return rows


def _values(pair: Pair, labels: Mapping[str, npt.NDArray[Any]], count: int, refer: Any, source: Path) -> list[Label]:
    if pair.labels is None:
        return [None] * count
    array = labels[pair.labels]
    if array.shape[:1] != (count,):
        raise MedvolError(
            "ROW_MISMATCH",
            file=source,
            found=f"'{pair.images}' has {count} rows, '{pair.labels}' has shape {array.shape}",
            expected="a label per image",
            fix="check that the arrays belong together",
        )
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


def _draft(rows: list[Row], source: Path, pairs: Mapping[str | None, Pair], kind: str) -> Draft:
    notes = [f"read as: {kind}"]
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
