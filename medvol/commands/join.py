"""`medvol join`: trained U-Nets of one plan, such as those of five folds, as one model."""

from __future__ import annotations

import argparse

from medvol.commands.shared import Commands

EPILOG = """examples:
  medvol join fold0/models fold1/models fold2/models -o joined/models
  medvol predict unet_segmentation new_scans/ -o predicted --model_dir joined/models

The answer is the mean of the networks' logits; it takes the time of all. `predict`, `evaluate`, `export` and MONAI's
clients read the joined model as they read any other. A training makes one at once: --width '[16, 16]'.

`evaluate` refuses patients whom one of the models saw: where folds are joined, each one's validation cases were
training cases of the others. What the folds reach one by one is the estimate."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    join = commands.add_parser(
        "join",
        help="make one model of several U-Nets of one plan, such as those of five folds",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    join.add_argument("models", nargs="+", help="`models` folders of trained segmentations")
    join.add_argument("-o", "--output", required=True, help="`models` folder to write to, such as that of a bundle")
    join.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Join the models and print what came of them."""
    from medvol.bundle.join import join_models

    record = join_models(options.models, options.output)
    widths = ", ".join(map(str, record.network["width"]))
    print(f"Wrote {options.output}: the mean of {len(options.models)} models, networks of width {widths}")
