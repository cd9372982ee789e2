"""The `medvol` command: its commands, and a refusal as one line.

Heavy libraries are imported inside the commands, so that `medvol --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from medvol import __version__
from medvol.commands import (
    bundles,
    check,
    cohort,
    compare,
    deid,
    export,
    join,
    new,
    plan,
    pull,
    push,
    scan,
    short,
    table,
)
from medvol.commands.shared import with_dashes
from medvol.errors import INTERRUPTED, find_refusal, interruption_code

EPILOG = """examples:
  medvol new my_classification my_study.csv   make a bundle for your own study; then medvol train my_classification
  medvol list                                 the bundles, and what each expects
  medvol pull https://host/dicom-web --query query.csv -o export     fetch series from a PACS, with `push` back
  medvol scan export --csv cases.csv          list every DICOM series of a tree, write a case table to start from
  medvol deid export shared --key-file KEY    write DICOM files without what identifies their patients
  medvol check my_study.csv                   open every file and list all that training would refuse
  medvol table my_study.csv -o cases.csv      check a study, split it by patient, write its case table
  medvol plan cases.csv -b B                  plan a segmentation: spacing, patch, batch, with reasons and memory
  medvol cohort demo_cohort                   make a synthetic study with a known difficulty

  medvol train resnet3d_classification cases.csv -o out --max_epochs 40
  medvol evaluate resnet3d_classification cases.csv -o out
  medvol predict resnet3d_classification new_scans/ -o predicted --model_dir out/models
  medvol compare out other_out                the same cases, two models: differences with intervals

`train`, `evaluate` and `predict` print the `python -m monai.bundle run` command that they stand for; any option of it
may follow.

Not for clinical use."""

COMMANDS = (new, table, check, pull, scan, deid, push, cohort, plan, bundles, short, compare, join, export)
"""In the order of `medvol --help`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    It is 0; or 1 after a refusal, which is printed as one line, and for a study in which `check` finds one; or 3 when
    `predict` could not read some of the cases, `pull` and `push` did not move some of the files; or 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    further: list[str] = []
    if words[:1] and words[0] in short.MODES:
        from medvol.bundle.short import split_options

        own, further = split_options(words[1:])
        words = [words[0], *own]
    else:
        words = with_dashes(words)
    options = parser().parse_args(words)
    options.further = further
    try:
        return options.run(options) or 0
    except (Exception, KeyboardInterrupt) as error:
        code = interruption_code(error)
        if code == 130:
            print(f"\n{INTERRUPTED}", file=sys.stderr)
        if code is not None:
            return code
        # MONAI wraps what a run raises; anything that is not a refusal is a defect and keeps its traceback.
        refusal = find_refusal(error)
        if refusal is None:
            raise
        print(f"medvol: {refusal}", file=sys.stderr)
        for detail in refusal.details[:10]:
            print(f"    {detail}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    command_line = argparse.ArgumentParser(
        prog="medvol",
        description="From a folder of scans and a table of cases to an honestly measured MONAI bundle.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command_line.add_argument("--version", action="version", version=f"medvol {__version__}")
    commands = command_line.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return command_line


if __name__ == "__main__":
    sys.exit(main())
