"""`medvol check`: open every file of a study before a training does."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medvol.commands.shared import Commands, print_columns


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    check = commands.add_parser("check", help="open every file of a study and list all that training would refuse")
    check.add_argument("source", help="any study that `medvol table` reads")
    check.add_argument("--label-column", default="label")
    check.add_argument("--resample-labels", action="store_true", help="as --resample_labels True of the training")
    check.add_argument("--json", type=Path, help="JSON file to write, with all findings")
    check.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a row per finding; return 1 when one of them would be refused."""
    from medvol.bundle.check import REFUSED, WARNING, check_table, finding_rows, summary

    checked = check_table(
        options.source, label_column=options.label_column, resample_labels=options.resample_labels, show_progress=True
    )
    if checked.findings:
        print_columns(finding_rows(checked))
    for line in summary(checked):
        print(line)
    if options.json is not None:
        from medvol.io.atomic import write_text

        write_text(options.json, json.dumps(checked.as_dict(), indent=4, ensure_ascii=False))
    print(f"{checked.count(REFUSED)} refused, {checked.count(WARNING)} to be aware of")
    return 1 if checked.count(REFUSED) else 0
