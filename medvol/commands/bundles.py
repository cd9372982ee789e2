"""`medvol list`: the shipped bundles and what each expects."""

from __future__ import annotations

import argparse

from medvol.commands.shared import Commands, print_columns


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    commands.add_parser("list", help="list the shipped bundles and what each expects").set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print a row per bundle."""
    from medvol.bundle.short import describe_bundles

    rows = describe_bundles()
    if len(rows) == 1:
        print("no bundles here: this installation has none")
        return
    print_columns(rows)
    print(
        "\nmedvol train NAME DATA -o OUT trains one, without DATA on synthetic cases. More: bundles/NAME/docs/README.md"
    )
