"""Which layout the folders of a study have: classes, also below splits, or patients, or something else."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvol.data.build import SPLIT_WORDS
from medvol.data.labels import MOST_NUMBER_CLASSES, sorted_classes
from medvol.data.paths import has_image_suffix, without_suffix
from medvol.data.study import SPLITS
from medvol.errors import MedvolError
from medvol.io.files import DICOM_SUFFIXES

NOT_CLASSES = frozenset(
    (
        *("image", "images", "imagestr", "imagests", "imagesval", "img", "imgs", "scans", "volumes", "data", "raw"),
        *("label", "labels", "labelstr", "labelsts", "labelsval", "mask", "masks", "seg", "segs", "segmentation"),
        *("segmentations", "annotation", "annotations", "nifti", "dicom", "dcm", "derivatives", "lists"),
    )
)
"""Folder names, in lower case, that say what files are and not what they show."""

FEW_FILES = 10  # per subfolder: below this, more than twenty subfolders are patients rather than classes

_NO_SUFFIX_IS_DICOM = 132  # bytes: a preamble of 128, then the letters DICM


@dataclass(frozen=True)
class ClassFolders:
    """Folders of classes: for each split (None when there is no such level) the folder of each class."""

    by_split: Mapping[str | None, Mapping[str, Path]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes, in index order."""
        return sorted_classes([name for folders in self.by_split.values() for name in folders])

    @property
    def is_dicom(self) -> bool:
        """Whether any class holds DICOM files, which may be slices of one case."""
        folders = [folder for folders in self.by_split.values() for folder in folders.values()]
        return any(_is_dicom(path) for folder in folders for path in files_below(folder))


def find_class_folders(folder: Path) -> ClassFolders | None:
    """Return the class folders under a folder, or None when its layout is another one.

    At least two subfolders must hold image files, and none may lie beside them. Folders of train and test may hold the
    classes; a third folder beside them is in none of the splits, and no class either. Subfolders named `images`,
    `labels`, `masks` and the like are not classes, and one of them is enough to say that none is. Nor are those of
    patients: many with few files each, or each with the same file names (`t1.nii.gz`), unless these lie below folders
    that are patients themselves.

    Raises:
        MedvolError: `AMBIGUOUS_SOURCE` for two folders of one split, or a third folder beside train and test.
    """
    children = {child.name: child for child in _subfolders(folder) if _holds_images(child)}
    splits = {SPLIT_WORDS[name.lower()] for name in children if name.lower() in SPLIT_WORDS}
    foreign = [name for name in children if name.lower() not in SPLIT_WORDS]
    # Beside train alone, others may be classes (`bus`, `train`); beside train and test they are not.
    are_splits = bool(splits) and (not foreign or ("train" in splits and len(splits) > 1))
    by_split: Mapping[str | None, Mapping[str, Path]] = {None: children}
    if are_splits:
        by_split = _by_split(folder, children)
    names = {name for folders in by_split.values() for name in folders}
    if len(names) < 2 or any(name.lower() in NOT_CLASSES for name in names) or _images_in(folder):
        return None
    levels = [list(folders.values()) for folders in by_split.values()]
    if any(map(_are_many_with_few, levels)) or (
        any(map(_have_the_same_files, levels)) and not _hold_patients(by_split)
    ):
        return None
    if are_splits and foreign:
        raise MedvolError(
            "AMBIGUOUS_SOURCE",
            file=folder,
            found=f"'{foreign[0][:40]}' beside folders for {', '.join(split for split in SPLITS if split in splits)}",
            expected="no other folder of images than train, val and test",
            fix="rename it to train, val or test, or move it away",
            details=foreign,
        )
    return ClassFolders(by_split)


def holds_nothing(folder: Path) -> bool:
    """Tell whether a folder has no visible file at any depth."""
    return next(files_below(folder), None) is None


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the visible files below a folder, in order."""
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(top, name)


def _by_split(folder: Path, children: Mapping[str, Path]) -> dict[str | None, Mapping[str, Path]]:
    by_split: dict[str | None, Mapping[str, Path]] = {}
    for name, child in children.items():
        split = SPLIT_WORDS.get(name.lower())
        if split in by_split:
            raise MedvolError(
                "AMBIGUOUS_SOURCE",
                file=folder,
                found=f"two folders for the split {split}",
                expected="one",
                fix="merge them",
            )
        if split:
            by_split[split] = {one.name: one for one in _subfolders(child) if _holds_images(one)}
    return by_split


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _holds_images(folder: Path) -> bool:
    return any(has_image_suffix(path.name) or _is_dicom(path) for path in files_below(folder))


def _images_in(folder: Path) -> bool:
    return any(has_image_suffix(entry.name) and not entry.name.startswith(".") for entry in folder.iterdir())


def _are_many_with_few(folders: Sequence[Path]) -> bool:
    return len(folders) > MOST_NUMBER_CLASSES and sum(map(len, _image_names(folders))) < FEW_FILES * len(folders)


def _have_the_same_files(folders: Sequence[Path]) -> bool:
    names = _image_names(folders)
    unnumbered = any(not any(letter.isdigit() for letter in without_suffix(name)) for name in set().union(*names))
    return len(folders) > 1 and unnumbered and all(one == names[0] for one in names)


def _image_names(folders: Sequence[Path]) -> list[set[str]]:
    return [{path.name for path in files_below(folder) if has_image_suffix(path.name)} for folder in folders]


def _hold_patients(by_split: Mapping[str | None, Mapping[str, Path]]) -> bool:
    """Tell whether folders with the same file names are classes and the folders below them patients.

    The other reading are patients and their visits: these are often the same for all, and fewer than patients are.
    """
    below: dict[str, set[str]] = {}
    for folders in by_split.values():
        for name, folder in folders.items():
            places = [path.relative_to(folder).parts for path in files_below(folder) if has_image_suffix(path.name)]
            if any(len(place) < 2 for place in places):
                return False
            below.setdefault(name, set()).update(place[0] for place in places)
    times = Counter(one for names in below.values() for one in names)
    if 2 * sum(count > 1 for count in times.values()) > len(times):
        return False
    numbered = any(letter.isdigit() for name in below for letter in name)
    return min(map(len, below.values())) >= (max(2, len(below)) if numbered else 2)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if has_image_suffix(path.name) or path.suffix.lower() in (".csv", ".txt", ".json", ".md", ".xml", ".html"):
        return False
    if not path.is_file():  # a link that leads nowhere
        return False
    with path.open("rb") as stream:
        return stream.read(_NO_SUFFIX_IS_DICOM)[128:] == b"DICM"
