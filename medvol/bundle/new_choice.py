"""What a study is, and which bundle fits it, with the reasons in words for the person who asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvol.bundle.kind import kind_of
from medvol.bundle.short import find_bundle, shipped_bundles
from medvol.data.study import Study
from medvol.errors import MedvolError

TAKES = {
    "segmentation_study": ("segmentation", "volumes"),
    "classification_study": ("classification", "volumes"),
    "fusion_study": ("classification", "volumes and covariates"),
    "tabular_study": ("classification", "features"),
}
"""Task and kind of data by what a bundle's train.json opens its study with; one that fits images reads images."""

DEFAULTS = {
    "unet_segmentation": "residual U-Net, the steadiest choice for structures in volumes",
    "fusion_classification": "volume and covariates together; evaluation says whether the image adds to the covariates",
    "resnet3d_classification": "0.9 million parameters, as good as the larger networks here or better on 1188 volumes",
    "cnn2d_classification": "small and trained from a random start; resnet50_2d and vit2d want published weights",
    "mlp_tabular_classification": "dense network; logistic regression and gradient boosting are measured beside it",
}
"""The bundle of each kind of study, and why."""

FEW_CASES = 50  # in training: below it, intervals are so wide that no two networks can be told apart


@dataclass(frozen=True)
class Choice:
    """A bundle to copy.

    Args:
        folder: Where it is shipped.
        kind: What the study holds: `volumes`, `volumes and covariates`, `images` or `features`.
        reason: Why this one.
        others: Names of the bundles that would take the study as well.
    """

    folder: Path
    kind: str
    reason: str
    others: tuple[str, ...]


def choose_bundle(study: Study, *, covariates: Sequence[str] = (), named: str = "") -> Choice:
    """Return the shipped bundle for a study.

    Args:
        study: Read and labelled.
        covariates: Columns beside the images that a model may learn from.
        named: Name of the bundle that the user wants.

    Raises:
        MedvolError: `WRONG_KIND` for a task that no bundle does, or a named bundle for other data; `NO_BUNDLE`.
    """
    require_trainable(study)
    kind = kind_of(study)
    wanted = {(study.task, kind)}
    if kind == "volumes" and covariates and study.task == "classification":
        wanted.add((study.task, "volumes and covariates"))
    fitting = {folder.name: folder for folder in shipped_bundles() if bundle_takes(folder) in wanted}
    if named:
        folder = find_bundle(named)
        if bundle_takes(folder) not in wanted:
            raise MedvolError(
                "WRONG_KIND",
                file=named,
                found=f"a bundle for {' of '.join(bundle_takes(folder))}",
                expected=f"one for {study.task} of {kind}{'' if covariates else ' without covariates'}",
                fix=f"name one of {', '.join(fitting)}, or leave --bundle out",
            )
        reason = "as you asked"
    else:
        folder, reason = _default(study, fitting, covariates)
    others = tuple(name for name in fitting if name != folder.name)
    return Choice(folder, bundle_takes(folder)[1], reason, others)


def bundle_takes(folder: Path) -> tuple[str, str]:
    """Return the task of a bundle and the kind of data that it reads, off its train.json; blanks for another's."""
    file = folder / "configs" / "train.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    opened = str(config.get("study", {}).get("_target_", "")).rsplit(".", 1)[-1]
    task, kind = TAKES.get(opened, ("", ""))
    fitted = str(config.get("facts", {}).get("_target_", "") if isinstance(config.get("facts"), dict) else "")
    return task, "images" if fitted.endswith("fit_image_facts") else kind


def task_in_words(study: Study, kind: str) -> list[str]:
    """Return sentences that say what a study asks for, the classes with their numbers of cases."""
    if study.task == "segmentation":
        masks = sum(case.label is not None for case in study.cases)
        return [f"segmentation of {kind}: {masks} masks"]
    counts = Counter(str(case.label) for case in study.cases)
    named = ", ".join(f"{name} ({counts[name]})" for name in study.classes)
    if len(study.classes) != 2:
        return [f"classification of {kind}, {len(study.classes)} classes: {named}"]
    first, positive = study.classes
    return [
        f"classification of {kind}, binary: {named}",
        f"sensitivity and AUC are those of '{positive}'; --classes '{positive}' '{first}' turns it round",
    ]


def _default(study: Study, fitting: Mapping[str, Path], covariates: Sequence[str]) -> tuple[Path, str]:
    name = next((name for name in DEFAULTS if name in fitting), "")
    if not name:
        raise MedvolError(
            "NO_BUNDLE",
            file=study.source,
            found="no shipped bundle takes this study; does `medvol list` show any?",
            expected="volumes for segmentation; volumes, images or a table for classification",
            fix="install from the repository; `medvol list` prints what each bundle reads",
        )
    training = sum(case.split == "train" for case in study.cases)
    words = DEFAULTS[name]
    if name == "fusion_classification":
        words += f" ({', '.join(covariates)})"
    if training < FEW_CASES:
        words += f"; with {training} training cases no network can be shown to be better than another"
    return fitting[name], words


def require_trainable(study: Study) -> None:
    """Refuse a study for a task that no bundle does.

    Raises:
        MedvolError: `WRONG_KIND`.
    """
    if study.task in ("classification", "segmentation"):
        return
    labels = {case.label for case in study.cases if case.label is not None}
    if study.task == "regression":
        found = f"{len(labels)} different numbers as labels: a quantity to regress, which no bundle does yet"
        fix = "put classes into the label column (as 'below 50', 'above 50'), or name another by --label-column"
    else:
        found, fix = "no labels", "add a column 'label', or pass --labels with a table of them"
    raise MedvolError(
        "WRONG_KIND", file=study.source, found=found, expected="classes, or the masks of structures", fix=fix
    )
