"""Which array of a stack holds what, by its name: `train_images`, `y_val`, `subject_ids`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medvol.data.build import SPLIT_WORDS
from medvol.errors import MedvolError

_IMAGE_WORDS = ("images", "image", "data", "x", "imgs", "volumes", "scans")
# One case saved as `image` and `label` (its mask) is not a stack, so the singular needs a split beside it.
_SINGULAR = ("image", "label", "target")
_LABEL_WORDS = ("labels", "label", "y", "targets", "target", "masks")
_PATIENT = re.compile(r"(patient|subject)(s|ids?)?")


@dataclass(frozen=True)
class Pair:
    """The arrays of one split: names of images, labels and patients; the latter two may be absent."""

    images: str
    labels: str | None
    patients: str | None = None

    @property
    def read(self) -> tuple[str, ...]:
        """The arrays that are read when the study is opened; images stay where they are."""
        return tuple(name for name in (self.labels, self.patients) if name)


def role(name: str) -> tuple[str | None, str] | None:
    """Return the split and content (`images`, `labels` or `patients`) that an array's name says, or None."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    if words and words[0] in ("xtrain", "ytrain", "xtest", "ytest", "xval", "yval"):
        words = [words[0][1:], words[0][0], *words[1:]]
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    content = [word for word in words if word not in SPLIT_WORDS]
    split = splits[0] if splits else None
    numbered = any(letter.isdigit() for letter in name)  # `patient_12` is one of them
    if len(splits) < 2 and not numbered and _PATIENT.fullmatch("".join(content)):
        return split, "patients"
    if len(content) != 1 or len(splits) > 1:
        return None
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
    if splits and None not in splits and (None, "patients") in found:
        raise MedvolError(
            "AMBIGUOUS_SOURCE",
            file=source,
            found=f"'{found[None, 'patients']}' belongs to no split, the images do",
            expected="patients of each split",
            fix="save them as train_patients and so on",
        )
    order = [split for split in ("train", "val", "test", None) if split in splits]
    return {
        split: Pair(found[split, "images"], found.get((split, "labels")), found.get((split, "patients")))
        for split in order
    }
