"""What a run of a bundle takes over from the program that started it.

MONAI's clients tell a bundle things in ways of their own, and some only after they have started it: where it lies is
known to the workflow that read its configuration, and MONAI Label hands over its cases as lists.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from medvol.io.atomic import write_text
from medvol.training.finetune import record_beside

HANDED_FILE = "handed_cases.json"
LISTS = {"training": "train", "validation": "validate"}
"""MONAI Label's lists of cases: the name in a datalist, and the block whose `dataset#data` they arrive in."""


def running_parser() -> ConfigParser | None:
    """Return the MONAI parser that is evaluating this very call.

    MONAI hands it to nobody; it is found as `self` of a calling frame, or as its `parser`. Without one, as when the
    library is called directly, there is nothing to check.
    """
    for owner in _callers():
        # A parser takes the name of an attribute for that of an id.
        parser = owner if isinstance(owner, ConfigParser) else getattr(owner, "parser", None)
        if isinstance(parser, ConfigParser):
            return parser
    return None


def running_bundle() -> Path | None:
    """Return the folder of the bundle whose configuration the MONAI workflow in progress has read, or None."""
    for owner in _callers():
        if isinstance(owner, ConfigWorkflow):
            root = Path(owner.config_root_path).resolve().parent
            return root if (root / "configs").is_dir() else None
    return None


def _callers() -> Iterator[Any]:
    frame = inspect.currentframe()
    while frame is not None:
        if "self" in frame.f_locals:
            yield frame.f_locals["self"]
        frame = frame.f_back


def place_bundle(parser: ConfigParser, root: Path) -> str:
    """Tell a running configuration where its bundle lies and return its `output_dir` there."""
    _amend(parser, {"bundle_root": str(root)}, outdated={"output_dir", "session"})
    return str(parser.get_parsed_content("output_dir"))


def take_cases(parser: ConfigParser, root: Path, output_dir: str | Path) -> None:
    """Make a study of the lists of images and masks that MONAI Label hands over; do nothing where there are none.

    They are written to `output_dir/handed_cases.json`, which becomes `dataset_dir`. Label's choice to start from the
    model that is there, a handler of its own, becomes the fine-tuning of `finetune.json`, in place.

    Args:
        parser: The running configuration.
        root: Folder of the bundle.
        output_dir: Folder of the run.
    """
    handed = {name: parser.get(f"{block}#dataset#data") for name, block in LISTS.items()}
    lists = {name: cases for name, cases in handed.items() if isinstance(cases, list) and cases}
    if "training" not in lists:
        return
    outputs = json.loads((root / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]
    path = Path(output_dir) / HANDED_FILE
    write_text(path, json.dumps({**lists, "labels": outputs["pred"]["channel_def"]}, indent=4))
    changes: dict[str, Any] = {"dataset_dir": str(path.resolve())}
    own = json.loads((root / "configs" / "train.json").read_text())
    for block in LISTS.values():
        dataset = {key: value for key, value in parser[f"{block}#dataset"].items() if key != "data"}
        kept = {key: value for key, value in own[block]["dataset"].items() if key == "data"}
        changes[f"{block}#dataset"] = {**dataset, **kept}
    epochs = parser.get("train#trainer#max_epochs")
    if isinstance(epochs, int):
        changes["max_epochs"] = epochs  # what plan and learning rate are made for
    _amend(parser, {**changes, **_start_from_model(parser, root)})


def _start_from_model(parser: ConfigParser, root: Path) -> dict[str, Any]:
    """Return what replaces the loader that MONAI Label puts before the trainer's handlers."""
    handlers = parser["train#handlers"]
    loaders = [one for one in handlers if isinstance(one, dict) and one.get("_target_") == "CheckpointLoader"]
    if not loaders:
        return {}
    weights = Path(loaders[0]["load_path"])
    changes = json.loads((root / "configs" / "finetune.json").read_text())
    del changes["model_dir"]  # the model that the client serves is the one that it trains further
    record = record_beside(weights)
    for name in ("spatial_size", "spacing_mm"):  # of which the network's depth may follow
        value = getattr(record.facts, name) if record else None
        if parser.get(name) == "auto" and value is not None:
            changes[name] = list(value)
    return {**changes, "pretrained": str(weights), "train#handlers": [one for one in handlers if one not in loaders]}


def _amend(parser: ConfigParser, changes: Mapping[str, Any], outdated: Collection[str] = ()) -> None:
    """Change a configuration while it is being evaluated.

    Args:
        parser: Whose it is.
        changes: New values of ids.
        outdated: Top-level ids that may have been evaluated with old values.
    """
    stale = {name.split("#")[0] for name in (*changes, *outdated)}
    evaluated = parser.ref_resolver.resolved_content
    kept = {name: value for name, value in evaluated.items() if name.partition("::")[0] not in stale}
    for name, value in changes.items():
        parser[name] = value
    parser.parse()
    parser.ref_resolver.resolved_content.update(kept)
