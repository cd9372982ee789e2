"""The plan of a study as a file of a bundle: options that override those of `train.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monai.bundle import ConfigParser

from medvol.bundle.study import segmentation_study
from medvol.errors import MedvolError
from medvol.io.atomic import write_text
from medvol.training.plan import Plan, PlanOptions, make_segmentation_plan

PLAN_FILE = "plan.json"
STUDY_OPTIONS = {"split_seed": "split_seed", "split_fractions": "fractions", "label_column": "label_column"}


def plan_bundle(bundle_root: str | Path, dataset_dir: str, options: PlanOptions) -> Plan:
    """Return the plan for a study and the network of a bundle, on the training split that the bundle would train on.

    Args:
        bundle_root: Folder of a segmentation bundle; its `train.json` defines `make_network`.
        dataset_dir: Any source that `open_study` reads.
        options: What the user states.

    Raises:
        MedvolError: `NO_BUNDLE`, `WRONG_KIND` for a bundle without `make_network`, or what study and planner find.
    """
    file = Path(bundle_root) / "configs" / "train.json"
    if not file.is_file():
        raise MedvolError(
            "NO_BUNDLE",
            file=file,
            found="no such file",
            expected="the folder of a bundle",
            fix="pass -b with a bundle's folder",
        )
    parser = ConfigParser(json.loads(file.read_text()))
    if "make_network" not in parser:
        raise MedvolError(
            "WRONG_KIND",
            file=file,
            found="no 'make_network'",
            expected="a segmentation bundle, whose train.json says how its network is made",
            fix="pass -b bundles/unet_segmentation or a copy of it",
        )
    known = {argument: parser[name] for name, argument in STUDY_OPTIONS.items() if name in parser}
    with TemporaryDirectory() as folder:  # for the case table, which is the training's to write
        study = segmentation_study(str(dataset_dir), folder, **known)
        return make_segmentation_plan(study, parser.get_parsed_content("make_network"), options)


def write_plan(plan: Plan, file: str | Path, options: PlanOptions) -> None:
    """Write a plan as options of its bundle, with the names of structures that the user gave.

    It is used as `--config_file "['B/configs/train.json','B/configs/plan.json']"`.

    Raises:
        MedvolError: When the folder cannot be written to.
    """
    values = plan.options()
    if options.structures:
        values["structures"] = options.structures
    write_text(Path(file), json.dumps(values, indent=4, ensure_ascii=False))


def plan_rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and reason of each number of a plan."""
    values = plan.options()
    shown: dict[str, Any] = {
        "structures": len(plan.facts.classes) - 1,
        "memory": f"{plan.predicted_memory_gb:.1f} GB",
        "network": "",
        **values,
    }
    for name, reason in plan.reasons.items():
        yield name, _words(shown.get(name, "")), reason
        if name == "intensity" and values["window_hu"]:
            yield "window_hu", _words(values["window_hu"]), "what 0 and 1 stand for"
    if plan.minutes is not None:
        yield "time", f"{plan.minutes:g} min", "predicted from one measured step, validation included"


def _words(value: Any) -> str:
    return (" ".join(f"{one:g}" for one in value) or "none") if isinstance(value, list) else str(value)
