"""A raw folder of nnU-Net: cases are named by their files, `dataset.json` says what their channels and labels are.

`imagesTr/<case>_0000.nii.gz` is the first channel of a case, `_0001` the next; `labelsTr/<case>.nii.gz` is its mask.
The format has no split of these. `imagesTs` and `labelsTs` hold test cases in the same way.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvol.data.declared import structures_by_value
from medvol.data.labels import as_number
from medvol.data.paths import existence
from medvol.data.study import Draft, Options, Row
from medvol.errors import MedvolError

IMAGES, LABELS = "imagesTr", "labelsTr"
TEST_IMAGES, TEST_LABELS = "imagesTs", "labelsTs"

_NUMBERED = re.compile(r"(.+)_(\d{4})")


def is_nnunet(path: Path, document: Any) -> bool:
    """Tell whether a JSON document describes the raw folder that it lies in."""
    return (
        isinstance(document, dict)
        and isinstance(document.get("file_ending"), str)
        and not document.get("training")
        and (path.parent / IMAGES).is_dir()
    )


def read_nnunet(path: Path, document: dict[str, Any], options: Options) -> Draft:
    """Read cases from the names of files; every channel and mask that a case should have is part of its row.

    So a file that is not there is refused like one that a table names. Test cases count where there is `labelsTs`; to
    predict, they and cases without a mask count as well.

    Raises:
        MedvolError: `EMPTY_DATASET`, `BAD_TABLE` for an image that is numbered otherwise, and what `build_study` finds.
    """
    ending = document["file_ending"]
    channels = _channels(document)
    rows = list(_rows(path.parent, IMAGES, LABELS, ending, len(channels), options))
    if not rows:
        raise MedvolError(
            "EMPTY_DATASET",
            file=path.parent / IMAGES,
            found=f"no file that ends in {ending}",
            expected=f"images such as case_0000{ending}",
            fix=f"correct file_ending in {path.name}, or copy the images",
        )
    test = list(_rows(path.parent, TEST_IMAGES, TEST_LABELS, ending, len(channels), options))
    counted = f"{IMAGES} ({len(rows)})" + (f", {TEST_IMAGES} ({len(test)})" if test else "")
    notes = [f"read as: nnU-Net raw folder with {counted}; channels {', '.join(channels)}"]
    promised = as_number(document.get("numTraining"))
    if promised is not None and promised != len(rows):
        notes.append(f"numTraining is {promised:g}, {IMAGES} holds {len(rows)} cases")
    names = structures_by_value(document.get("labels"), path, options)
    return Draft(
        rows=(*rows, *test),
        source=str(path),
        folder=str(path.parent),
        channels=channels,
        classes=tuple(names.values()),
        task="segmentation",
        drop_unlabelled=True,
        notes=tuple(notes),
        mask_values=tuple(names),
    )


def _rows(folder: Path, images: str, labels: str, ending: str, channels: int, options: Options) -> Iterator[Row]:
    """Yield a row for each case that has an image or a mask."""
    exists = existence()
    found: dict[str, set[int]] = defaultdict(set)
    for name in _names(folder / images, ending):
        match = _NUMBERED.fullmatch(name)
        if match is None or int(match[2]) >= channels:
            raise _bad_number(
                folder / images / f"{name}{ending}", name if match is None else match[1], ending, channels
            )
        found[match[1]].add(int(match[2]))
    masks = set(_names(folder / labels, ending))
    has_masks = bool(masks) or images == IMAGES
    for case in sorted(found.keys() | masks):
        mask = str(folder / labels / f"{case}{ending}")
        needed = has_masks if options.require_label else exists(mask)
        yield Row(
            image=tuple(str(folder / images / f"{case}_{number:04d}{ending}") for number in range(channels)),
            label=mask if needed else None,
            case=case,
            split="test" if images == TEST_IMAGES else None,
            where=f"{images}/{case}",
        )


def _names(folder: Path, ending: str) -> list[str]:
    """Return the names of a folder's files without their ending; none where there is no such folder."""
    if not folder.is_dir():
        return []
    names = (name for name in sorted(os.listdir(folder)) if name.endswith(ending))  # noqa: PTH208 - names only
    return [name.removesuffix(ending) for name in names if not name.startswith(".")]


def _channels(document: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels in the order of their numbers; one image per case where none is named."""
    named = document.get("channel_names", document.get("modality"))
    if not isinstance(named, dict) or not named:
        return ("image",)
    return tuple(str(name) for _, name in sorted(named.items(), key=lambda item: as_number(item[0]) or 0.0))


def _bad_number(file: Path, case: str, ending: str, channels: int) -> MedvolError:
    last = f" to {case[:30]}_{channels - 1:04d}{ending}" if channels > 1 else ""
    return MedvolError(
        "BAD_TABLE",
        file=file,
        found="an image of no channel that dataset.json names",
        expected=f"{case[:30]}_0000{ending}{last}",
        fix="rename the file, or correct channel_names",
    )
