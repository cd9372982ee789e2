"""The short commands: `medvol train`, `evaluate` and `predict` each stand for one `python -m monai.bundle run`.

The command is put together here and run in the same process by the same parser, so that an option means what it means
behind `python -m monai.bundle run`, and run.json holds the command that anyone can repeat without medvol's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import medvol
from medvol.bundle.config_text import config_text
from medvol.bundle.interrupts import end_at_once_on_sigterm
from medvol.errors import MedvolError, find_refusal, nearest

MODES = {"train": ("train",), "evaluate": ("train", "evaluate"), "predict": ("inference",)}
"""The configuration files of each command, in the order in which MONAI merges them."""

OWN = ("-o", "--output", "-h", "--help")
"""Options of the short commands themselves; all others go on to MONAI."""

PROGRAM = "python -m monai.bundle"


def shipped_bundles() -> tuple[Path, ...]:
    """Return the folders of the bundles that come with medvol: of the repository, or within an installed package."""
    package = Path(medvol.__file__).resolve().parent
    installed = package / "shipped"  # where the wheel holds them
    root = installed if installed.is_dir() else package.parent / "bundles"
    return tuple(sorted(file.parent.parent for file in root.glob("*/configs/metadata.json")))


def find_bundle(name: str) -> Path:
    """Return the folder of a bundle: a path, or the name of a shipped one.

    Raises:
        MedvolError: `NO_BUNDLE` with the nearest name.
    """
    if (Path(name) / "configs").is_dir():
        return Path(name)
    shipped = {folder.name: folder for folder in shipped_bundles()}
    if name in shipped:
        folder = shipped[name]
        here = Path.cwd()
        return folder.relative_to(here) if folder.is_relative_to(here) else folder
    without = "; this installation has no bundles, so that none has a name" if not shipped else ""
    raise MedvolError(
        "NO_BUNDLE",
        file=name,
        found=f"neither the folder of a bundle nor a bundle's name{without}",
        expected="a folder that holds 'configs'" + (", or a name that `medvol list` prints" if shipped else ""),
        fix=nearest(name, shipped),
        details=sorted(shipped),
    )


def describe_bundles() -> list[tuple[str, ...]]:
    """Return a row per shipped bundle: name, task, whether weights are there, what it reads; headings first."""
    rows: list[tuple[str, ...]] = [("bundle", "task", "weights", "reads")]
    for folder in shipped_bundles():
        facts = json.loads((folder / "configs" / "metadata.json").read_text())
        rows.append((folder.name, facts["task"], _weights(folder), facts["data_type"]))
    return rows


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the words behind a short command into its own and the options that go on to MONAI.

    An option takes the next word as its value unless that is an option too, as MONAI's command line has it; so a flag
    before a file name is written `--tensorboard True`.
    """
    own: list[str] = []
    further: list[str] = []
    waiting: list[str] | None = None
    for word in arguments:
        if _is_option(word):
            waiting = own if word.split("=")[0] in OWN else further
            waiting.append(word)
            waiting = None if "=" in word or word in ("-h", "--help") else waiting
        else:
            (own if waiting is None else waiting).append(word)
            waiting = None
    return own, further


def bundle_command(mode: str, bundle: str, dataset: str, output: str, options: Sequence[str] = ()) -> list[str]:
    """Return the words behind `python -m monai.bundle` that a short command stands for.

    Weights are kept in and taken from `output/models` in training and evaluation, and from the bundle's `models` in
    prediction. Without `output` the bundle's own folders `eval` and `models` are used, which is for a bundle of the
    user's: a shipped one would be changed. An option that is given replaces the one that would stand here.

    Args:
        mode: `train`, `evaluate` or `predict`.
        bundle: Folder or name of a bundle.
        dataset: What it works on; empty for what the bundle names: its study, or a synthetic cohort.
        output: Folder for results; may be empty for a bundle that is not a shipped one.
        options: Further options, passed on as they are.

    Raises:
        MedvolError: `NO_BUNDLE`; `MISSING_OPTION` for a shipped bundle without an output; `BAD_VALUE` for an option
            without its path.
    """
    from medvol.bundle.option_values import require_texts  # imports torch, which `medvol list` does without

    root = find_bundle(bundle)
    if not output and root.resolve() in shipped_bundles():
        raise MedvolError(
            "MISSING_OPTION",
            file=root,
            found="no folder for results",
            expected="-o OUT, for a shipped bundle is not trained in its place",
            fix="pass -o, or make a bundle of your own with `medvol new`",
        )
    files = [str(root / "configs" / f"{name}.json") for name in MODES[mode]]
    for file in files:
        if not Path(file).is_file():
            raise MedvolError(
                "NO_BUNDLE",
                file=file,
                found="no such file",
                expected=f"a bundle for `medvol {mode}`",
                fix="name another",
            )
    chosen = {
        "bundle_root": _as_text(str(root)),
        "config_file": _as_word(files[0]) if len(files) == 1 else "[" + ",".join(map(repr, files)) + "]",
        "dataset_dir": _as_text(dataset) if dataset else "",
        "output_dir": _as_text(output) if output else "",
        "model_dir": "" if mode == "predict" or not output else _as_text(os.path.join(output, "models")),  # noqa: PTH118 - a text
    }
    given = {_option_name(word) for word in options if _is_option(word)}
    require_texts(dict.fromkeys(_without_value(options) & set(chosen), True))
    words = [word for name, value in chosen.items() if value and name not in given for word in (f"--{name}", value)]
    return ["run", *words, *options]


def shown(command: Sequence[str]) -> str:
    """Return a command as a shell takes it."""
    return " ".join([PROGRAM, *map(_quoted, command)])


def in_shell(word: str) -> str:
    """Return a word as a shell takes it."""
    return _quoted(word)


def run_bundle(command: Sequence[str]) -> None:
    """Run a command in this process as `python -m monai.bundle` would.

    Raises:
        MedvolError: `NO_WEIGHTS` with where the short commands keep them.
        Exception: Whatever the run raises; a refusal may be wrapped, see `medvol.errors.find_refusal`.
        SystemExit: With 3 when some cases could not be read.
    """
    # MONAI imports MLflow where it is installed, which asks its makers at once what to report.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

    import fire
    from monai.bundle.scripts import run

    before = sys.argv, sys.excepthook
    sys.argv = [PROGRAM, *command]
    try:
        fire.Fire({"run": run}, name=PROGRAM)
    except Exception as error:
        if isinstance(error, FileNotFoundError) and "config file" in str(error):
            fix = "name files of the bundle's `configs`"
            raise MedvolError(
                "NOT_FOUND", found=str(error).rstrip("."), expected="configuration files", fix=fix
            ) from error
        refusal = find_refusal(error)
        if refusal is None or refusal.code != "NO_WEIGHTS":
            raise
        fix = "`medvol train BUNDLE DATA -o OUT` writes them to OUT/models; pass that as --model_dir"
        raise MedvolError(refusal.code, file=refusal.file, found=refusal.found, fix=fix) from error
    finally:
        sys.argv, sys.excepthook = before
        end_at_once_on_sigterm()


def _is_option(word: str) -> bool:
    return re.match("--|-[a-zA-Z]", word) is not None


def _without_value(words: Sequence[str]) -> set[str]:
    """Return the names of options behind which no value stands."""
    followed = pairwise([*words, "--"])
    return {
        _option_name(word) for word, after in followed if _is_option(word) and "=" not in word and _is_option(after)
    }


def _option_name(word: str) -> str:
    return word.lstrip("-").split("=")[0].replace("-", "_")


def _as_text(value: str) -> str:
    """Return a path so that MONAI reads it as the text that it is: `2024` and `a#b` are not."""
    return _as_word(config_text(value))


def _as_word(value: str) -> str:
    """Return a text as a word of the command line: Python Fire takes one for a Python literal where it can."""
    from fire.parser import DefaultParseValue

    parsed: Any = DefaultParseValue(value)
    return value if parsed == value else repr(value)


def _quoted(word: str) -> str:
    """Quote a word for a shell; one with single quotes in double ones, where nothing in it means something there."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)


def _weights(folder: Path) -> str:
    if not (folder / "models" / "model.pt").is_file():
        return "none"
    record = folder / "models" / "model.json"
    classes = json.loads(record.read_text())["facts"]["classes"] if record.is_file() else []
    return ", ".join(classes[1:] if classes[:1] == ["background"] else classes) or "yes"
