"""`medvol new`: a bundle for a study of one's own."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Sequence

from medvol.commands.shared import Commands

EPILOG = """examples:
  medvol new lung_classification cases.csv                       volumes, images or features with a column of labels
  medvol new organs_segmentation Task09_Spleen --minutes 60      an MSD folder, as much as an hour trains
  medvol new ct_classification export/ --labels labels.csv       a DICOM tree; the table names patients or folders
  medvol new my_classification cases.csv --bundle vit3d_classification --classes healthy ill

Nothing is overwritten. Afterwards: medvol train FOLDER, medvol evaluate FOLDER, medvol predict FOLDER SCANS -o OUT."""


NEW_DATA = {"features": "NEW_TABLE", "images": "NEW_IMAGES"}
"""What there is to predict, by kind of study; else scans."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    new = commands.add_parser(
        "new",
        help="make a bundle for a study of your own: task, network and numbers are inferred and told",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("folder", help="folder to make, or a name; the task is appended where it is missing")
    new.add_argument("source", help="any study that `medvol table` reads; with --labels a folder of scans")
    new.add_argument("--bundle", default="", help="bundle to copy; left out: one is chosen")
    new.add_argument("--labels", default="", help="CSV with labels for the scans of a folder")
    new.add_argument("--label-column", default="label")
    new.add_argument("--series", default="", metavar="TEXT", help="only DICOM series with TEXT in their description")
    new.add_argument("--classes", nargs="+", default=(), help="names in their order, of two the positive one last")
    new.add_argument("--exclude-columns", nargs="+", default=(), help="covariates that the model must not see")
    new.add_argument("--minutes", type=float, help="budget of the whole training on this machine")
    new.add_argument("--memory-gb", type=float, help="budget of the training process, for a segmentation")
    new.add_argument("--relative", action="store_true", help="name the study relative to the bundle")
    new.add_argument("--authors", default="", help="for the bundle's metadata")
    new.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Make the bundle and print what was inferred, with reasons, and the next commands."""
    from medvol.bundle.new import NewOptions, make_bundle
    from medvol.bundle.short import in_shell

    stated = NewOptions(
        bundle=options.bundle,
        labels=options.labels,
        label_column=options.label_column,
        series=options.series,
        classes=tuple(options.classes),
        exclude_columns=tuple(options.exclude_columns),
        minutes=options.minutes,
        memory_gb=options.memory_gb,
        relative=options.relative,
        authors=options.authors,
    )
    made = make_bundle(options.folder, options.source, stated)
    folder = os.path.relpath(made.folder)
    folder = folder if len(folder) < len(str(made.folder)) else str(made.folder)
    _print("study", made.source, made.study, *made.notes)
    _print("task", *made.task)
    _print("network", f"{made.choice.folder.name}, {made.parameters:,} parameters: {made.choice.reason}")
    if made.choice.others:
        _print("", f"instead, with --bundle: {', '.join(made.choice.others)}")
    print("numbers")
    _print_numbers(made.numbers)
    _print("written", f"{folder}: configs, docs/README.md (a card to fill in), models/ (empty)")
    words, source = in_shell(folder), in_shell(made.source)
    if options.label_column != "label" and not options.labels:
        source += f" --label-column {in_shell(options.label_column)}"
    print(
        f"\nnext\n  medvol check {source}\n  medvol train {words}\n  medvol evaluate {words}\n"
        f"  medvol predict {words} {NEW_DATA.get(made.choice.kind, 'NEW_SCANS')} -o predicted"
    )


def _print_numbers(rows: Sequence[tuple[str, str, str]]) -> None:
    wide = [max(len(row[column]) for row in rows) for column in range(2)]
    before = " " * (wide[0] + wide[1] + 6)
    for name, value, reason in rows:
        start = f"  {name:<{wide[0]}}  {value:<{wide[1]}}  "
        lines = textwrap.wrap(reason, max(40, 120 - len(before)), break_long_words=False, break_on_hyphens=False)
        print(f"\n{before}".join([start + (lines or [""])[0], *lines[1:]]).rstrip())


def _print(heading: str, *lines: str) -> None:
    for line in lines:
        for part in textwrap.wrap(line, 110, break_long_words=False, break_on_hyphens=False):
            print(f"{heading:<9} {part}")
            heading = ""
