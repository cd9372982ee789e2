"""`medvol pull`: fetch series from a PACS."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medvol.commands.shared import Commands, print_columns

if TYPE_CHECKING:
    from medvol.io.pacs_address import Access
    from medvol.io.pacs_transfer import Outcome

EPILOG = """FOLDER then holds STUDY/SERIES/INSTANCE.dcm, named by hashes of UIDs, whole series only, and `medvol scan`
lists them. What is cut short stays in FOLDER/.pacs: the same command again fetches the rest. A query is a CSV, a row
per request, with columns of StudyInstanceUID, SeriesInstanceUID, PatientID, AccessionNumber, StudyDate (YYYYMMDD or
YYYYMMDD-YYYYMMDD) and Modality. Exit code: 1 after a refusal, 3 when something is missing."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "pull",
        help="fetch series from a PACS into a folder",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="https://host/dicom-web or dicom://AETITLE@host:port (dicoms:// with TLS)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the series")
    parser.add_argument("--study", default="", metavar="UID", help="Study Instance UID")
    parser.add_argument("--series", default="", metavar="UID", help="Series Instance UID, best beside its study")
    parser.add_argument("--query", type=Path, metavar="CSV", help="table of requests")
    add_access(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fetch, print a row per series; return 3 when something is missing."""
    from medvol.errors import MedvolError
    from medvol.io.pacs_address import parse_address
    from medvol.io.pacs_pull import pull
    from medvol.io.pacs_query import read_requests, uid_request
    from medvol.io.pacs_transfer import connect

    address = parse_address(options.source)
    if (options.query is None) == (not options.study and not options.series):
        raise MedvolError(
            "BAD_QUERY",
            found="both UIDs and a table" if options.query else "nothing to ask for",
            expected="--study and --series, or --query",
        )
    requests = read_requests(options.query) if options.query else [uid_request(options.study, options.series)]
    access = access_of(options)
    outcome = pull(connect(address, access), requests, options.output, access=access, show_progress=True)
    return print_outcome(outcome, f"in {options.output}", "requests")


def add_access(parser: argparse.ArgumentParser) -> None:
    """Add the options of a connection; there is none for a password, which every user of the machine could read."""
    parser.add_argument("--credentials", type=Path, help="file with USER:PASSWORD or Bearer TOKEN; default: netrc")
    parser.add_argument("--ca-file", type=Path, help="PEM file of the authority that signed the PACS's certificate")
    parser.add_argument("--certificate", type=Path, help="PEM file of the own certificate")
    parser.add_argument("--key", type=Path, help="PEM file of its key")
    parser.add_argument("--own-title", default="MEDVOL", help="own AE title for DICOM addresses (default: MEDVOL)")
    parser.add_argument("--retries", type=int, default=3, help="after a dropped connection, waiting 1, 2, 4 s")
    parser.add_argument("--timeout", type=float, default=60.0, help="longest silence of the PACS in seconds")


def access_of(options: argparse.Namespace) -> Access:
    """Return the options of a connection."""
    from medvol.io.pacs_address import Access

    return Access(
        own_title=options.own_title,
        ca_file=options.ca_file,
        certificate=options.certificate,
        key=options.key,
        credentials=options.credentials,
        retries=options.retries,
        timeout_s=options.timeout,
    )


def print_outcome(outcome: Outcome, where: str, unit: str) -> int:
    """Print the closing table and return the exit code."""
    from medvol.io.pacs_transfer import describe_rows

    print_columns(describe_rows(outcome))
    files = sum(row.moved + row.before for row in outcome.rows)
    now = sum(row.moved for row in outcome.rows)
    size = sum(row.bytes for row in outcome.rows) / 1e6
    series = sum(bool(row.study) for row in outcome.rows)
    print(f"{series} series, {files:,} files, {size:,.1f} MB {where}; {now:,} of them now")
    if outcome.others:
        print(f"{outcome.others} other files, no DICOM instances, were not sent")
    for row in outcome.rows:
        if row.reason:
            print(f"{row.series}: {row.reason}", file=sys.stderr)
    if outcome.untried:
        print(f"{outcome.untried} {unit} were not tried; run the same command again", file=sys.stderr)
    return 0 if outcome.is_whole else 3
