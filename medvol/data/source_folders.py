"""Studies as folders: one subfolder per class, or volumes without labels."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from pathlib import Path

from medvol.data.build import lists_to_splits
from medvol.data.folder_layout import ClassFolders, files_below
from medvol.data.folder_patients import PATIENTS_FILE, with_folder_patients, with_listed_patients
from medvol.data.labels import sorted_classes
from medvol.data.left_out import passed_over_notes, without_results
from medvol.data.paths import has_image_suffix, require_path, without_suffix
from medvol.data.study import Draft, Options, Row
from medvol.errors import MedvolError
from medvol.io.find import find_volumes

CJDATA_CLASSES = {1: "meningioma", 2: "glioma", 3: "pituitary"}
"""Labels within the files of the figshare brain tumour set (Cheng et al., PLoS ONE 10(10):e0140381, 2015)."""

_MASK = re.compile(r"((?P<image>.+)[ ._-])?(?P<word>mask|seg|segmentation|label|labelmap|roi)s?([ ._-]?\d+)?")
"""Stems, in lower case, of masks beside images: `x_mask`, `x-seg`, `x_mask_1`, or just `mask` in a patient's folder."""


def read_class_folders(folder: Path, found: ClassFolders, options: Options) -> Draft:
    """Read class-named subfolders; every file is a case, DICOM files are cases by series.

    `patients.csv` beside the class folders (columns `image`, relative to it, and `patient`) groups cases by patient;
    without it the folders below a class do, as in `benign/P07/t1.nii.gz`. `x_mask.nii.gz` beside `x.nii.gz` is no case.

    Raises:
        MedvolError: What `medvol.data.folder_patients` refuses `patients.csv` for.
    """
    given = lists_to_splits([split for split in found.by_split if split is not None])
    dicom = found.is_dicom
    rows = []
    tops: list[Path] = []
    masks: list[str] = []
    for split, folders in found.by_split.items():
        for name in sorted(folders):
            references, beside = _without_masks(_references(folders[name], dicom))
            masks += beside
            rows += [Row((one,), label=name, split=given[split] if split else None) for one in references]
            tops += [folders[name]] * len(references)
    notes = [f"read as: class folders {', '.join(found.classes[:8])}"]
    if masks:
        kinds = " or ".join(sorted(set(masks)))
        notes.append(f"{len(masks)} files named {kinds} beside an image of the same name were left out")
    listed = folder / PATIENTS_FILE
    if listed.is_file():
        rows, note = with_listed_patients(rows, listed, options)
        notes += note
    elif options.patient_column:
        rows, note = with_folder_patients(rows, tops)
        notes += note
    return Draft(
        tuple(rows), str(folder), str(folder), classes=found.classes, task="classification", notes=tuple(notes)
    )


def read_volumes(path: Path, options: Options) -> Draft:
    """Read a folder of volumes, or one volume file, without labels; MATLAB files of `cjdata` bring theirs.

    Raises:
        MedvolError: `NO_LABEL` when labels are required, and what `medvol.io.find_volumes` finds.
    """
    if options.require_label and path.is_dir() and _holds_only_mat(path):
        return read_cjdata(path)
    if options.require_label:
        raise _no_label(path)
    found, notes = find_volumes(path), passed_over_notes(path) if path.is_dir() else ()
    if path.is_dir():
        found, own = without_results(found, path)
        notes += own
    # A radiograph has no place in space: no volume, but an image for a 2D bundle.
    if path.is_file() and found[0].verdict not in ("", "NO_GEOMETRY"):
        raise MedvolError(
            found[0].verdict,
            file=path,
            found="it cannot be read as a volume",
            expected="a volume",
            fix="name another file",
        )
    rows = tuple(Row((os.path.abspath(one.reference),), case=one.name) for one in found)  # noqa: PTH100
    refused = [f"reading '{one.name}' will be refused: {one.verdict}" for one in found if one.verdict]
    kind = "one volume" if path.is_file() else f"folder of {len(rows)} volumes"
    return Draft(rows, str(path), str(path), notes=(f"read as: {kind}", *notes, *refused))


def names_part(source: str) -> bool:
    """Tell whether a source names one volume within a file or folder, by what stands behind `#`."""
    base, mark, _ = source.partition("#")
    return bool(mark) and not Path(source).expanduser().exists() and Path(base).expanduser().exists()


def read_part(source: str, options: Options) -> Draft:
    """Read one volume of several in a file or folder, such as `scans#EchoTime=9.2` or `pair.npz#after`, without labels.

    Raises:
        MedvolError: `NO_LABEL` when labels are required.
    """
    base, _, part = source.partition("#")
    path = require_path(base)
    if options.require_label:
        raise _no_label(path)
    row = Row((f"{path}#{part}",), case=path.name if path.is_dir() else without_suffix(path.name))
    return Draft((row,), str(path), str(path.parent), notes=("read as: one volume",))


def _no_label(path: Path) -> MedvolError:
    found = "no table, dataset.json, label array or class folders" if path.is_dir() else "a single file without labels"
    fix = "write a case table cases.csv with the columns image and label"
    return MedvolError("NO_LABEL", file=path, found=found, expected="images with labels", fix=fix)


def read_cjdata(folder: Path) -> Draft:
    """Read a folder of MATLAB files of the figshare brain tumour set, whose labels and patients stand inside them.

    Raises:
        MedvolError: `NOT_CJDATA`, `CORRUPT` or `TOO_LARGE`; `UNKNOWN_LABEL` for a number that the set does not have.
    """
    from medvol.io.mat import read_mat_fields

    rows = []
    for path in files_below(folder):
        if not path.name.lower().endswith(".mat"):
            continue
        fields = read_mat_fields(path)
        if fields.label not in CJDATA_CLASSES:
            raise MedvolError(
                "UNKNOWN_LABEL",
                file=path,
                found=f"label {fields.label}",
                expected="1, 2 or 3",
                fix="write a case table",
            )
        label, reference = CJDATA_CLASSES[fields.label], os.path.abspath(path)  # noqa: PTH100
        rows.append(Row((reference,), label=label, patient=fields.patient))
    notes = (f"read as: {len(rows)} MATLAB files with label and patient inside",)
    classes = sorted_classes(list(CJDATA_CLASSES.values()))
    # The kind of a tumour is the same in a mirror.
    return Draft(
        tuple(rows),
        str(folder),
        str(folder),
        classes=classes,
        task="classification",
        laterality_matters=False,
        notes=notes,
    )


def _holds_only_mat(folder: Path) -> bool:
    images = [path.name.lower() for path in files_below(folder) if has_image_suffix(path.name)]
    return bool(images) and all(name.endswith(".mat") for name in images)


def _references(folder: Path, dicom: bool) -> list[str]:
    if not dicom:
        return [os.path.abspath(path) for path in files_below(folder) if has_image_suffix(path.name)]  # noqa: PTH100
    return [os.path.abspath(one.reference) for one in find_volumes(folder)]  # noqa: PTH100


def _without_masks(references: list[str]) -> tuple[list[str], list[str]]:
    """Return the references that are no masks of others in the same folder, and the word that says so for each mask."""
    masks: dict[str, tuple[str, str, str]] = {}
    stems: dict[str, list[str]] = {}
    for reference in references:
        folder, name = os.path.split(reference)
        stem = without_suffix(name).lower()
        found = _MASK.fullmatch(stem) if has_image_suffix(name) else None
        if found:
            masks[reference] = (folder, found["image"] or "", found["word"])
        else:
            stems.setdefault(folder, []).append(stem)
    for names in stems.values():
        names.sort()
    words: dict[str, str] = {}
    for reference, (folder, image, word) in masks.items():
        beside = stems.get(folder, [])
        first = bisect_left(beside, image)  # the first name that may begin so
        if beside[first : first + 1] and beside[first].startswith(image):
            words[reference] = word
    return [reference for reference in references if reference not in words], list(words.values())
