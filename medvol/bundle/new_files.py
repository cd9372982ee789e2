"""The files of a new bundle: a shipped one copied, its configuration made this study's, a card to be filled in."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.bundle.new_numbers import Numbers
from medvol.data.facts import Facts
from medvol.data.study import SPLITS
from medvol.errors import MedvolError

METADATA = "metadata.json"
LEFT_BEHIND = (METADATA, "plan.json")
"""Configuration of a shipped bundle that is not copied: facts of another study."""

AUTHORS = "unnamed; state the authors here"


@dataclass(frozen=True)
class Contents:
    """What is written.

    Args:
        folder: Where the bundle will stand.
        copied: The bundle that it is made from.
        dataset_dir: What its configuration trains on unless told otherwise: a path, or an expression of MONAI's.
        label_column: Column of the label.
        numbers: What was fitted on the study.
        stated: Further options of train.json that the user stated.
        authors: For the metadata.
        kind: What the study holds, in words.
    """

    folder: Path
    copied: Path
    dataset_dir: str
    label_column: str
    numbers: Numbers
    stated: Mapping[str, Any]
    authors: str
    kind: str


def write_bundle(contents: Contents) -> None:
    """Write a bundle, as a whole or not at all.

    Raises:
        MedvolError: `FOLDER_IN_USE`, or `CANNOT_WRITE`.
    """
    folder = contents.folder
    require_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            draft = Path(place) / folder.name
            for name in ("configs", "docs", "models"):
                (draft / name).mkdir(parents=True)
            for name, text in _texts(contents).items():
                (draft / name).write_text(text, encoding="utf-8")
            for file in (contents.copied / "configs").glob("*.conf"):
                shutil.copyfile(file, draft / "configs" / file.name)
            shutil.copyfile(contents.copied / "LICENSE", draft / "LICENSE")
            require_free(folder)
            os.rename(draft, folder)  # noqa: PTH104 - fails where a folder with files has come to be in the meantime
    except OSError as error:
        raise MedvolError(
            "CANNOT_WRITE", file=folder, found=str(error.strerror or error), fix="name a folder that you may write to"
        ) from error


def require_free(path: Path) -> None:
    """Refuse a place where something is.

    Raises:
        MedvolError: `FOLDER_IN_USE`.
    """
    if path.exists() or path.is_symlink():
        raise MedvolError(
            "FOLDER_IN_USE",
            file=path,
            found="something is there already",
            expected="a new name; nothing is overwritten",
            fix="name another, or remove it",
        )


def _texts(contents: Contents) -> dict[str, str]:
    texts = {"docs/README.md": _card(contents)}
    for file in sorted((contents.copied / "configs").glob("*.json")):
        values = json.loads(file.read_text())
        if file.name == METADATA:
            texts[f"configs/{METADATA}"] = _json(_metadata(values, contents))
        elif file.name not in LEFT_BEHIND:
            texts[f"configs/{file.name}"] = _json(_configuration(values, contents, file.stem))
    return texts


def _configuration(values: dict[str, Any], contents: Contents, mode: str) -> dict[str, Any]:
    """Return a configuration with this study's defaults in place of the shipped ones."""
    record = values.get("record")
    if isinstance(record, dict) and "shipped" in record:
        record["shipped"] = contents.numbers.facts.as_dict()
        if not contents.numbers.facts.columns:
            record["shipped"].pop("columns")
    if mode in ("train", "inference"):
        values["dataset_dir"] = contents.dataset_dir
    if mode == "train":
        options = {"label_column": contents.label_column, **contents.numbers.options, **contents.stated}
        unknown = sorted(set(options) - set(values))
        if unknown:
            raise MedvolError(
                "UNKNOWN_OPTION",
                file=contents.copied,
                found=f"train.json has no {', '.join(unknown)}",
                expected="an option of this bundle",
                fix="leave the option out",
            )
        values.update(options)
    return values


def _metadata(values: dict[str, Any], contents: Contents) -> dict[str, Any]:
    facts = contents.numbers.facts
    authors = contents.authors or AUTHORS
    classes = ", ".join(facts.classes)
    kept = ("schema", "monai_version", "pytorch_version", "numpy_version", "required_packages_version")
    further = ("task", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use", "references")
    made = {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"made by `medvol new` from {contents.copied.name}"},
        "name": contents.folder.name.replace("_", " "),
        "description": f"{_task(contents)} into {classes}.",
        "authors": authors,
        "copyright": f"Copyright {datetime.date.today().year} {contents.authors or 'the authors'}",
        "data_source": f"A study of {_cohort(contents)}",
        "network_data_format": _formats(values["network_data_format"], facts, contents.numbers.outputs),
    }
    kept_values = {name: values[name] for name in (*kept, *further) if name in values}
    order = list(dict.fromkeys([*values, *made]))
    return {name: {**kept_values, **made}[name] for name in order if name in made or name in kept_values}


def _formats(formats: dict[str, Any], facts: Facts, outputs: int) -> dict[str, Any]:
    """Return the inputs and outputs with the classes, channels and sizes of this study."""
    size = list(facts.spatial_size)
    features = [name for column in facts.columns for name in column.features]
    for name, entry in formats["inputs"].items():
        channels = list(facts.channels) if name == "image" and size else features
        entry.update(num_channels=len(channels), channel_def=_numbered(channels))
        if entry["type"] == "image":
            entry["spatial_shape"] = size
            if facts.intensity in ("scaled", "ct", "zero_one"):
                entry["value_range"] = [0.0, 1.0]
            elif facts.intensity == "mr":
                entry["value_range"] = [-10.0, 10.0]
    for entry in formats["outputs"].values():
        entry.update(num_channels=outputs, channel_def=_numbered(facts.classes))
        if entry["spatial_shape"]:
            entry["spatial_shape"] = size
    return formats


def _numbered(names: Sequence[str]) -> dict[str, str]:
    return {str(index): name for index, name in enumerate(names)}


def _task(contents: Contents) -> str:
    task = "Segmentation" if contents.numbers.study.task == "segmentation" else "Classification"
    return f"{task} of {contents.kind}"


def _cohort(contents: Contents) -> str:
    cases = contents.numbers.study.cases
    return f"{len(cases)} cases of {len({case.patient for case in cases})} patients"


def _card(contents: Contents) -> str:
    """Return a model card: what is known of the study and the numbers, and places for what is not."""
    numbers, name = contents.numbers, contents.folder.name
    rows = [f"| {option} | {value} | {reason} |" for option, value, reason in numbers.rows if option != "time"]
    options = "\n".join(["| option | value | reason |", "|---|---|---|", *rows])
    return f"""# {name.replace("_", " ")}

{_task(contents)} into {", ".join(numbers.facts.classes)}. Made by `medvol new` from
{contents.copied.name}; {numbers.parameters:,} parameters. **To be filled in** marks what only you can say.

## Data

{_cohort(contents)}:

{_cohort_table(contents)}

To be filled in: where the scans come from, scanners and protocols, years, how patients were chosen and left out, who
labelled them and by which standard, ethics approval, licence of the data.

Splits are by patient. What the network must know of the study is fitted on the training split and stored in
`models/model.json`. The test split is for the last look: choose options on validation.

## Training

{options}

Every id at the top of `configs/train.json` is an option on the command line as well, and may be edited there.

## Performance

Not measured yet. Evaluation writes `metrics.json`, every metric with its 95 % interval beside a baseline; copy them
here together with the command that gave them.

## Commands

From any folder, `B` being this bundle's folder:

    python -m monai.bundle run --bundle_root B --config_file B/configs/train.json
    python -m monai.bundle run --bundle_root B --config_file "['B/configs/train.json','B/configs/evaluate.json']"
    python -m monai.bundle run --bundle_root B --config_file B/configs/inference.json --dataset_dir D --output_dir O

Short for them: `medvol train B`, `medvol evaluate B`, `medvol predict B D -o O`. The first two work on
the study named as `dataset_dir` in `configs/train.json` and leave weights in `models`, results in `eval`.

## Limits

Research use only. **Not for clinical use.** A model is valid for the scanners, protocols and population of its study at
most. To be filled in: whom the study does not represent, known failures, harm of a wrong answer.

## References and licence

Code and configuration come from {contents.copied.name} of medvol, Apache-2.0 (see LICENSE).
To be filled in: licence of the weights.
"""


def _cohort_table(contents: Contents) -> str:
    study, classes = contents.numbers.study, contents.numbers.facts.classes
    counted = classes if study.task == "classification" else ()
    lines = ["| split | cases | patients |" + "".join(f" {name} |" for name in counted)]
    lines.append("|---|---|---|" + "---|" * len(counted))
    for split in SPLITS:
        cases = [case for case in study.cases if case.split == split]
        counts = Counter(str(case.label) for case in cases)
        patients = len({case.patient for case in cases})
        lines.append(f"| {split} | {len(cases)} | {patients} |" + "".join(f" {counts[one]} |" for one in counted))
    return "\n".join(lines)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=4) + "\n"
