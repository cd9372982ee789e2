"""`medvol push`: send DICOM files to a PACS."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvol.commands.pull import access_of, add_access, print_outcome
from medvol.commands.shared import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("push", help="send DICOM files to a PACS, confirmed one by one")
    parser.add_argument("target", help="https://host/dicom-web or dicom://AETITLE@host:port (dicoms:// with TLS)")
    parser.add_argument("sources", type=Path, nargs="+", metavar="FILES_OR_FOLDER")
    parser.add_argument("--again", action="store_true", help="send also what a folder's journal knows as sent")
    add_access(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Send, print a row per series; return 3 when the PACS did not take everything."""
    from medvol.io.pacs_address import parse_address
    from medvol.io.pacs_push import push
    from medvol.io.pacs_transfer import connect

    address, access = parse_address(options.target), access_of(options)
    outcome = push(
        connect(address, access), address, options.sources, access=access, again=options.again, show_progress=True
    )
    return print_outcome(outcome, "in the PACS", "files")
