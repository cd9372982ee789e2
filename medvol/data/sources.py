"""Open any study as a case table. This module holds the one place where the layout of a source is recognised.

The first line that fits decides, by content and layout rather than by options; the choice is the first of the notes.

| source | condition | read as |
|---|---|---|
| file | `.csv`, `.tsv`, `.txt` | case table; a table of features when no column holds images |
| | `.json` with `file_ending` and no list, beside `imagesTr` | raw folder of nnU-Net |
| | other `.json` | named lists: MSD `dataset.json` or MONAI datalist; else rows of a case table |
| | `.npz` with a stack of images and one of labels | MedMNIST and the like, the official split kept |
| | `.npy` named as such a stack, with its partner beside it | stacked arrays of its folder |
| | any other | one volume, without label |
| folder | `dataset.json` or `datalist.json` | as that file |
| | `cases.csv` or `cases.json` | as that file |
| | exactly one CSV with an image column (but `patients.csv`) | as that file |
| | stacked npy files | stacked arrays |
| | exactly one npz with stacks | as that file |
| | two or more subfolders with images, also below train, val, test | class folders |
| | exactly one CSV and no image | features |
| | images | volumes without labels; only with `require_label=False` |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from medvol.data.array_roles import role
from medvol.data.build import build_study
from medvol.data.columns import SPREADSHEETS, read_delimited
from medvol.data.folder_layout import find_class_folders, holds_nothing
from medvol.data.folder_patients import PATIENTS_FILE
from medvol.data.left_out import unlisted_notes
from medvol.data.paths import has_image_suffix, require_path
from medvol.data.source_arrays import read_npy_folder, read_npz
from medvol.data.source_datalist import is_datalist, read_datalist
from medvol.data.source_folders import names_part, read_class_folders, read_part, read_volumes
from medvol.data.source_nnunet import is_nnunet, read_nnunet
from medvol.data.source_table import read_csv, read_json, read_json_rows
from medvol.data.study import TASKS, Draft, Options, Study, Task, raise_refusal
from medvol.errors import MedvolError, nearest

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")


def open_study(  # noqa: PLR0913 - one keyword per fact that a user may state about a source
    source: str,
    *,
    label_column: str = "label",
    image_column: str = "image",
    patient_column: str = "patient",
    split_column: str = "split",
    task: Task | None = None,
    classes: Sequence[str] = (),
    laterality_matters: bool | None = None,
    require_label: bool = True,
    require_image: bool = True,
    for_prediction: bool = False,
    report: Callable[[MedvolError], None] = raise_refusal,
) -> Study:
    """Read a study from whatever holds it and check it at the border.

    Args:
        source: Path of a file or folder; the module's table says what is recognised.
        label_column: Column of the label; '' for none. Also the key in a datalist.
        image_column: Column of the image, or the part before the colon of `image:t1`; '' for a table of features.
        patient_column: Column that groups cases for splits; '' for none.
        split_column: Column of train, val, test; '' for none.
        task: What the labels are; inferred by the rules of `medvol.data.labels` when None.
        classes: Class names in index order, when the order or the set must be that of a trained model.
        laterality_matters: Whether mirroring could change the label; None for what the source says, else True.
        require_label: Refuse cases without a label, and sources without labels.
        require_image: Refuse rows of a table whose image cell is empty; else such cases have no image.
        for_prediction: Whether each case stands for itself: no split is looked at, a missing file fails its own case
            unless all are missing, and images beside the table of a folder are told.
        report: Takes what the checks of a source that could be read refuse; by default the first is raised. A study
            with refusals is for `medvol check` alone.

    Raises:
        MedvolError: `NOT_FOUND`, `EMPTY_DATASET`, `AMBIGUOUS_SOURCE`, `BAD_TABLE`, `MISSING_COLUMN`, `NO_LABEL`,
            what the readers name, and what `medvol.data.checks.check_study` names.
    """
    if task is not None and task not in TASKS:
        raise MedvolError(
            "UNKNOWN_OPTION", found=f"task '{task}'", expected=", ".join(TASKS), fix=nearest(str(task), TASKS)
        )
    options = Options(
        label_column=label_column,
        image_column=image_column,
        patient_column=patient_column,
        split_column=split_column,
        task=task,
        classes=tuple(classes),
        laterality_matters=laterality_matters,
        require_label=require_label,
        require_image=require_image,
        for_prediction=for_prediction,
        report=report,
    )
    if names_part(source):
        return build_study(read_part(source, options), options)
    path = require_path(source)
    draft = _read_folder(path, options) if path.is_dir() else _read_file(path, options)
    return build_study(draft, options)


def _read_file(path: Path, options: Options) -> Draft:
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        raise MedvolError(
            "EMPTY_DATASET", file=path, found="a file of 0 bytes", expected="a study", fix="copy it again"
        )
    if suffix in TABLE_SUFFIXES or suffix in SPREADSHEETS:  # the latter are refused by name
        return read_csv(path, options)
    if suffix == ".json":
        document = read_json(path)
        if is_nnunet(path, document):
            return read_nnunet(path, document, options)
        return (
            read_datalist(path, document, options) if is_datalist(document) else read_json_rows(path, document, options)
        )
    stacked = None
    if suffix == ".npz":
        stacked = read_npz(path, options)
    elif suffix == ".npy" and role(path.stem):
        stacked = read_npy_folder(path.parent, options)
    return stacked or read_volumes(path, options)


def _read_folder(folder: Path, options: Options) -> Draft:
    if holds_nothing(folder):
        raise MedvolError(
            "EMPTY_DATASET",
            file=folder,
            found="an empty folder",
            expected="a study",
            fix="check the path, or unpack the data",
        )
    for name in ("dataset.json", "datalist.json", "cases.csv", "cases.json"):
        if (folder / name).is_file():
            return _beside(folder, _read_file(folder / name, options), options)
    tables = [path for path in sorted(folder.glob("*.csv")) if not path.name.startswith(".") and path.is_file()]
    with_images = [path for path in tables if path.name != PATIENTS_FILE and _has_images(path, options)]
    if with_images:
        chosen = _only(with_images, folder, "tables with an image column")
        return _beside(folder, read_csv(chosen, options), options)
    stacked = read_npy_folder(folder, options)
    if stacked:
        return stacked
    files = [path for path in sorted(folder.glob("*.npz")) if path.is_file()]
    archives = [draft for path in files if (draft := read_npz(path, options))]
    if archives:
        chosen = _only([Path(draft.source) for draft in archives], folder, "npz files of stacked arrays")
        return next(draft for draft in archives if Path(draft.source) == chosen)
    return _read_layout(folder, tables, options)


def _read_layout(folder: Path, tables: Sequence[Path], options: Options) -> Draft:
    layout = find_class_folders(folder)
    if layout and not options.require_label:
        # For prediction the subfolders may as well be hospitals, or the series of one DICOM study.
        declared_otherwise = bool(options.classes) and not set(layout.classes) <= set(options.classes)
        layout = None if declared_otherwise or layout.is_dicom else layout
    if layout:
        return read_class_folders(folder, layout, options)
    if tables and not any(has_image_suffix(path.name) for path in folder.rglob("*")):
        return read_csv(_only(tables, folder, "tables"), options)
    return read_volumes(folder, options)


def _beside(folder: Path, draft: Draft, options: Options) -> Draft:
    """Note, of a prediction, which images a folder holds that its table does not list."""
    if not options.for_prediction:
        return draft
    return replace(draft, notes=(*draft.notes, *unlisted_notes(folder, draft)))


def _has_images(path: Path, options: Options) -> bool:
    columns = read_delimited(path).columns
    wanted = options.image_column
    return bool(wanted) and any(name == wanted or name.startswith(f"{wanted}:") for name in columns)


def _only(paths: Sequence[Path], folder: Path, kind: str) -> Path:
    if len(paths) > 1:
        raise MedvolError(
            "AMBIGUOUS_SOURCE",
            file=folder,
            found=f"{len(paths)} {kind}: {', '.join(path.name for path in paths[:4])}",
            expected="one",
            fix="name the file instead of the folder",
            details=[path.name for path in paths],
        )
    return paths[0]
