"""Lists of images and labels as JSON: the `dataset.json` of the Medical Segmentation Decathlon and MONAI's datalist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medvol.data.build import SPLIT_WORDS, lists_to_splits
from medvol.data.declared import names_by_value, structures_by_value
from medvol.data.labels import as_number
from medvol.data.paths import has_image_suffix, resolve
from medvol.data.study import Draft, Label, Options, Row, Task
from medvol.errors import MedvolError, nearest

LISTS = ("training", "train", "validation", "val", "test", "testing")


def is_datalist(document: Any) -> bool:
    """Tell whether a JSON document holds named lists of cases, or was meant to: nnU-Net's without its folder is not."""
    return isinstance(document, dict) and any(name in document for name in (*LISTS, "file_ending", "numTraining"))


def read_datalist(path: Path, document: dict[str, Any], options: Options) -> Draft:
    """Read `training`, `validation` and `test` lists of `{"image", "label", "fold"?}` or plain image paths.

    Paths are relative to the file. Entries whose file name starts with `._` (left by macOS) are ignored. A list gives
    its split only when another list has labelled cases too; a fold becomes the covariate `fold`.

    Raises:
        MedvolError: `BAD_TABLE`, `EMPTY_DATASET`, and later what `build_study` finds.
    """
    lists = {name: document[name] for name in LISTS if document.get(name)}
    if not lists:
        known = ", ".join(str(name)[:20] for name in list(document)[:6])
        raise MedvolError(
            "EMPTY_DATASET",
            file=path,
            found=f"no list with cases among: {known}",
            expected="a list 'training' of images and labels",
            fix=next((hint for name in document if name not in LISTS and (hint := nearest(str(name), LISTS))), "")
            or "write a case table",
        )
    splits = lists_to_splits(list(lists))
    rows: list[Row] = []
    hidden = 0
    for name, entries in lists.items():
        if not isinstance(entries, list):
            raise _bad(path, f"'{name}' is a {type(entries).__name__}")
        for index, entry in enumerate(entries):
            row = _row(entry, path, splits[name], f"{name}[{index}]", options)
            if any(Path(image).name.startswith("._") for image in row.image):
                hidden += 1
            else:
                rows.append(row)
    segmentation = _holds_masks(rows)
    declared = document.get("labels")
    names = structures_by_value(declared, path, options) if segmentation else names_by_value(declared)
    if names and not segmentation:
        found = {int(number) for row in rows if (number := as_number(row.label)) is not None and number.is_integer()}
        names = {value: names.get(value, str(value)) for value in sorted({*names, *found})}
        rows = [_named(row, names) for row in rows]
    channels = _channels(document, rows)
    task: Task | None = "segmentation" if segmentation else None
    kind = "MSD dataset.json" if "modality" in document or "numTraining" in document else "MONAI datalist"
    notes = [f"read as: {kind} with {', '.join(f'{name} ({len(entries)})' for name, entries in lists.items())}"]
    if hidden:
        notes.append(f"{hidden} entries that name hidden files were left out")
    if any("fold" in row.covariates for row in rows):
        notes.append("the source's folds are the covariate 'fold'")
    return Draft(
        rows=tuple(rows),
        source=str(path),
        folder=str(path.parent),
        channels=channels,
        classes=tuple(names.values()),
        mask_values=tuple(names) if segmentation else (),
        task=task,
        drop_unlabelled=any(SPLIT_WORDS[name] == "test" for name in lists),
        notes=tuple(notes),
    )


def _row(entry: Any, path: Path, split: str | None, where: str, options: Options) -> Row:
    if isinstance(entry, str):
        entry = {"image": entry}
    images = entry.get(options.image_column) if isinstance(entry, dict) else None
    images = [images] if isinstance(images, str) else images
    if not images or not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        found = f"{where} names no image"
        keys = list(entry) if isinstance(entry, dict) else []
        raise _bad(path, found, nearest(options.image_column, keys) or "write {'image': path, 'label': ...}")
    fold = as_number(entry.get("fold"))
    return Row(
        image=tuple(resolve(image, str(path.parent)) for image in images),
        label=_label(entry.get(options.label_column), where, path),
        case=_text(entry.get("case")),
        patient=_text(entry.get(options.patient_column)),
        split=split,
        covariates={} if fold is None else {"fold": fold},
        where=where,
    )


def _label(value: Any, where: str, path: Path) -> Label:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, str | int | float):
        return value
    raise _bad(path, f"{where} has a label of type {type(value).__name__}", "give each case one class, number or mask")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _holds_masks(rows: list[Row]) -> bool:
    labels = [row.label for row in rows if row.label is not None]
    return bool(labels) and all(isinstance(label, str) and has_image_suffix(label) for label in labels)


def _named(row: Row, names: dict[int, str]) -> Row:
    number = as_number(row.label)
    if number is None or number not in names:
        return row
    return Row(row.image, names[int(number)], row.case, row.patient, row.split, row.covariates, row.where)


def _channels(document: dict[str, Any], rows: list[Row]) -> tuple[str, ...]:
    """Return the channel names; one 4-D file per case may hold several, which the source then names."""
    named = document.get("modality", document.get("channel_names"))
    count = max((len(row.image) for row in rows), default=1)
    if isinstance(named, dict) and named and len(named) >= count and (count > 1 or len(named) > 1):
        return tuple(str(name) for _, name in sorted(named.items(), key=lambda item: as_number(item[0]) or 0.0))
    return ("image",) if count == 1 else tuple(str(index) for index in range(count))


def _bad(path: Path, found: str, fix: str = "correct the file") -> MedvolError:
    return MedvolError("BAD_TABLE", file=path, found=found, expected="a list of cases", fix=fix)
