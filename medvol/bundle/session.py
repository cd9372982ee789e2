"""The start of a bundle's run: options checked, errors made short, the clock started.

`python -m monai.bundle run` accepts any option: a mistyped one is added to the configuration and ignored. So the first
expression of every medvol bundle's `initialize` compares the configuration that MONAI is about to run with the ids that
the bundle's files define.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc import locate
from types import TracebackType
from typing import Any

from monai.bundle import ComponentLocator, ConfigParser
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from medvol.bundle.clients import place_bundle, running_bundle, running_parser, take_cases
from medvol.bundle.interrupts import end_politely_on_sigterm
from medvol.bundle.option_values import require_no_hash, require_texts, require_values
from medvol.bundle.short import shown
from medvol.data.processes import Processes
from medvol.errors import INTERRUPTED, MedvolError, find_refusal, interruption_code, nearest

TRACKED_LOSS = DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"]["trainer"]["output_transform"]
PARTING = "part_ways("
"""What the run of several processes ends with; a file after theirs would replace it."""


@dataclass(frozen=True)
class Session:
    """A run of a bundle.

    Args:
        bundle: Name of the bundle's folder.
        output_dir: Where results go.
        config: The configuration as it runs, overrides included, unevaluated.
        command: The command line.
        started: Seconds since the epoch.
    """

    bundle: str
    output_dir: Path
    config: dict[str, Any] = field(repr=False)
    command: str
    started: float


def begin(bundle_root: str | Path, output_dir: str | Path, processes: Processes | None = None) -> Session:
    """Check the options of the run in progress, shorten its error messages and return its session.

    Args:
        bundle_root: Folder of the bundle, the one that holds `configs`; `.` for that of the configuration that runs.
        output_dir: Folder for results; made if absent.
        processes: Of a run in several: all but the first are silent, unless they fail.

    Raises:
        MedvolError: `NO_BUNDLE`, `UNKNOWN_OPTION` with the nearest valid name, `CANNOT_WRITE`, or `WRONG_ORDER` of
            configuration files.
    """
    sys.excepthook = _short_errors
    end_politely_on_sigterm()
    require_texts({"bundle_root": bundle_root, "output_dir": output_dir})
    require_no_hash(sys.argv[1:])
    _keep_to_oneself()
    if processes is not None and processes.rank > 0:
        sys.excepthook = _loud_errors
        logging.getLogger().setLevel(logging.ERROR)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - until the process ends; progress bars write here
    root, output, parser = Path(bundle_root).resolve(), Path(output_dir), running_parser()
    # MONAI's `load` and its federated client start a bundle before they tell it where it lies.
    found = running_bundle() if str(bundle_root) == "." else None
    if parser is not None and found not in (None, root):
        root, output = found, Path(place_bundle(parser, found))
    if not (root / "configs").is_dir():
        raise MedvolError(
            "NO_BUNDLE",
            file=root,
            found="no folder 'configs'",
            expected="the folder of a bundle",
            fix="pass --bundle_root with the bundle's folder",
        )
    if parser is not None:
        take_cases(parser, root, output)
    config, defined = _running_config(), _defined_config(root)
    check_options(config, defined)
    require_used(config, root)
    require_values(config, defined)
    if processes is not None and not any(PARTING in str(one) for one in config.get("run", [PARTING])):
        raise MedvolError(
            "WRONG_ORDER",
            found="multi_process_cpu.json or multi_gpu_train.json before another configuration file",
            expected="it as the last one",
            fix="write --config_file \"['train.json','evaluate.json','multi_process_cpu.json']\"",
        )
    if parser is not None:
        _track_whole_batches(parser)
        _end_tracked_evaluation(parser)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedvolError(
            "CANNOT_WRITE", file=output, found=str(error.strerror), fix="pass another --output_dir"
        ) from error
    return Session(root.name, output, config, shown(sys.argv[1:]), time.time())


def check_options(config: dict[str, Any], defined: Sequence[dict[str, Any]]) -> None:
    """Refuse ids that no configuration file of the bundle defines and no constructor takes.

    Args:
        config: The configuration with its overrides.
        defined: The bundle's own configuration files.

    Raises:
        MedvolError: `UNKNOWN_OPTION`, or `BAD_VALUE` for `false` and the like.
    """
    for name, value in config.items():
        # The command line takes Python's words; `false` arrives as a text, which is true.
        if isinstance(value, str) and value.lower() in ("true", "false", "null"):
            raise MedvolError(
                "BAD_VALUE",
                found=f"--{name} {value}, which is a text",
                expected="True, False or None",
                fix=f"write --{name} {'None' if value.lower() == 'null' else value.capitalize()}",
            )
    if "save_execute_config" in config:  # of `--tracking`, which adds ids of its own to the configuration
        defined = [*defined, *(one["configs"] for one in DEFAULT_EXP_MGMT_SETTINGS.values())]
    if "run_name" in config:  # of MONAI's federated client, which names its runs whether or not anything tracks them
        defined = [*defined, {"run_name": ""}]
    for path, known in _unknown_ids(config, defined):
        *parents, name = path
        raise MedvolError(
            "UNKNOWN_OPTION",
            found=f"--{'#'.join(path)}",
            expected="an option of this bundle",
            fix=nearest(name, known).replace("'", "'--" + "".join(f"{one}#" for one in parents), 1)
            or "see the options at the top of configs/train.json",
            details=sorted(known),
        )


def require_used(config: dict[str, Any], bundle_root: Path) -> None:
    """Refuse an option of an override file that is not among the files of this run, as nothing would read it.

    Args:
        config: The configuration with its overrides.
        bundle_root: Folder of the bundle.

    Raises:
        MedvolError: `UNKNOWN_OPTION`, naming the file to add.
    """
    files = {file.stem: _nested(json.loads(file.read_text())) for file in _config_files(bundle_root)}
    modes = set().union(*(files.get(mode, {}) for mode in ("train", "inference")))
    # A mode's own options stay legal beside it, as those of the fit in an evaluation of what was fitted.
    suspects = set(config) - modes
    idle = suspects - _references(config) if suspects else suspects
    for name in sorted(idle):
        homes = [stem for stem, ids in files.items() if name in ids]
        if homes:
            raise MedvolError(
                "UNKNOWN_OPTION",
                found=f"--{name}, which nothing in this run reads",
                expected="an option of its configuration files",
                fix=f"add configs/{homes[0]}.json to --config_file",
            )


def _references(node: Any) -> set[str]:
    """Return the top-level ids that references and expressions name."""
    if isinstance(node, dict):
        return set().union(*(_references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(_references(value) for value in node))
    return set(re.findall(r"@(\w+)", node)) if isinstance(node, str) and node[:1] in ("@", "$") else set()


def _short_errors(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a refusal or an interruption as one line; leave every other error as Python prints it."""
    code = interruption_code(error)
    if code == 130:
        sys.stderr.write(f"\n{INTERRUPTED}\n")
    if isinstance(error, KeyboardInterrupt):
        return  # Python itself ends as one that was interrupted
    if code is not None:
        sys.exit(code)
    refusal = find_refusal(error)
    if refusal is None:
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"\nmedvol: {refusal}\n")
    for detail in refusal.details[:10]:
        sys.stderr.write(f"    {detail}\n")


def _loud_errors(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what ends a process that was silent until now."""
    sys.stderr = sys.__stderr__
    _short_errors(kind, error, trace)


def _keep_to_oneself() -> None:
    """Stop MLflow, where it is installed, from sending what it is used for to its makers; MONAI imports it unasked."""
    if "mlflow" in sys.modules:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow.telemetry import set_telemetry_client

        set_telemetry_client()  # once more, now that it is told so


def _running_config() -> dict[str, Any]:
    parser = running_parser()
    return {} if parser is None else {key: value for key, value in parser.get().items() if key != parser.meta_key}


def _track_whole_batches(parser: ConfigParser) -> None:
    """Let the handler of `--tracking mlflow` read what a bundle gives it.

    It expects a batch split into cases, and ours are not, and an `output_dir` that is an expression: of a plain one
    MONAI makes a file name with a plus in it, and the configuration would not be kept.
    """
    for index, handler in enumerate(parser.get("train#handlers") or []):
        if not isinstance(handler, dict) or handler.get("output_transform") != TRACKED_LOSS:
            continue
        place = f"train::handlers::{index}"
        loss, whole = parser.ref_resolver.get_item(f"{place}::output_transform"), parser.ref_resolver.get_item(place)
        loss.update_config("$lambda output: (output[0] if isinstance(output, list) else output)['loss']")
        folder, _, name = str(parser["save_execute_config"]).rpartition(" + '/")
        if folder and not folder.startswith("$"):
            whole.update_config({**whole.get_config(), "artifacts": str(Path(folder) / name.rstrip("'"))})


def _end_tracked_evaluation(parser: ConfigParser) -> None:
    """Let MLflow's run end with an evaluation: MONAI leaves a validator's open for its trainer, and here is none."""
    if "train::trainer" in str(parser.get("run", "")).replace("#", "::"):
        return
    for index, handler in enumerate(parser.get("validate#handlers") or []):
        if isinstance(handler, dict) and handler.get("_target_") == "MLFlowHandler":
            tracked = parser.ref_resolver.get_item(f"validate::handlers::{index}")
            tracked.update_config({**tracked.get_config(), "close_on_complete": True})


def _defined_config(root: Path) -> list[dict[str, Any]]:
    return [_nested(json.loads(file.read_text())) for file in _config_files(root)]


def _config_files(root: Path) -> list[Path]:
    return [file for file in sorted((root / "configs").glob("*.json")) if file.name != "metadata.json"]


def _nested(config: dict[str, Any]) -> dict[str, Any]:
    """Return an override file's `a#b#c` ids as nested ones, the way MONAI merges them."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        *parents, name = key.replace("::", "#").split("#")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return result


def _unknown_ids(
    config: dict[str, Any], defined: Sequence[dict[str, Any]], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Yield each unknown id with the names that would have been known in its place."""
    known: set[str] = set().union(*defined) if defined else set()
    if "_target_" in config:
        known |= _parameters(config["_target_"])
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if key not in known:
            yield (*path, key), known
        elif isinstance(value, dict):
            inner = [one[key] for one in defined if isinstance(one.get(key), dict)]
            # A block that the user replaced as a whole (other _target_) is theirs; its constructor will judge it.
            if any(one.get("_target_") == value.get("_target_") for one in inner):
                yield from _unknown_ids(value, inner, (*path, key))


def _parameters(target: Any) -> set[str]:
    """Return the argument names of a `_target_`: a dotted path, or the bare name of a MONAI component."""
    if not isinstance(target, str):
        return set()
    module = "" if "." in target else ComponentLocator().get_component_module_name(target)
    called = locate(f"{module}.{target}" if isinstance(module, str) and module else target)
    if not callable(called):
        return set()
    try:
        return set(inspect.signature(called).parameters)
    except ValueError:  # some built-in types do not tell; only the ids in the files are known then
        return set()
