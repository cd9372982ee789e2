"""`medvol train`, `evaluate` and `predict`: thin over `monai.bundle`."""

from __future__ import annotations

import argparse

from medvol.commands.shared import Commands

MODES = ("train", "evaluate", "predict")
"""Their further options go on to MONAI as they are."""

EPILOG = """Every further option goes on to MONAI as it is: the ids at the top of the bundle's train.json, such as
--max_epochs 40, --class_weights balanced, --window_hu '[-1000,400]' or --optimizer#weight_decay 0.05. A mistyped one is
refused with the nearest name. Exit code: 1 after a refusal, 3 when some cases could not be read."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    _add_short(commands, "train", "train a bundle; weights go to OUT/models, without -o to the bundle's own")
    _add_short(commands, "evaluate", "measure the model in OUT/models on the test split of its study")
    _add_short(commands, "predict", "predict with the weights in the bundle, or those of --model_dir")


def _add_short(commands: Commands, mode: str, words: str) -> None:
    data = "INPUT" if mode == "predict" else "[DATA]"
    short = commands.add_parser(
        mode,
        help=words,
        description=f"{words[0].upper()}{words[1:]}.",
        usage=f"medvol {mode} BUNDLE {data} [-o OUT] [--option value ...]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    short.add_argument("bundle", help="folder of a bundle, or the name of a shipped one (`medvol list`)")
    if mode == "predict":
        short.add_argument("dataset", metavar="input", help="a table, a folder, a DICOM tree or one file")
    else:
        kinds = "any study that `medvol table` reads; left out: the bundle's own, or a synthetic cohort"
        short.add_argument("dataset", metavar="data", nargs="?", default="", help=kinds)
    results = "folder for results; left out: `eval` and `models` of a bundle that `medvol new` made"
    short.add_argument("-o", "--output", default="", help=results)
    short.set_defaults(run=run, mode=mode)


def run(options: argparse.Namespace) -> int:
    """Print the full command, run it in this process and return its exit code."""
    from medvol.bundle.short import bundle_command, run_bundle, shown

    command = bundle_command(options.mode, options.bundle, options.dataset, options.output, options.further)
    print(shown(command), flush=True)
    try:
        run_bundle(command)
    except SystemExit as end:  # a run in which some cases could not be read
        return end.code if isinstance(end.code, int) else 1
    return 0
