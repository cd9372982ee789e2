"""`medvol scan`: every DICOM series of a tree in a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvol.commands.shared import Commands, print_columns


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    scan = commands.add_parser("scan", help="list every DICOM series below a folder and whether it can be read")
    scan.add_argument("folder", type=Path)
    scan.add_argument("--json", type=Path, help="JSON file to write, with the reason of every refusal")
    scan.add_argument("--csv", type=Path, help="case table to write, with the volumes that can be read")
    scan.add_argument("--key-file", type=Path, help="file with a secret that the patients' pseudonyms depend on")
    scan.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print a row per series and write what was asked for."""
    from medvol.io.dicom_scan import describe_rows, scan_tree, write_scan, write_scan_table
    from medvol.io.files import existing

    key = b"" if options.key_file is None else existing(options.key_file).read_bytes()
    result = scan_tree(options.folder, key=key)
    print_columns(describe_rows(result.rows))
    patients = {row.patient for row in result.rows if row.patient}
    readable = sum(len(row.references) for row in result.rows)
    print(
        f"{len(result.rows)} series of {len(patients)} patients in {result.files:,} files, "
        f"{readable} volumes can be read; "
        f"{result.skipped} DICOM files without an image and {result.others} other files skipped"
    )
    if options.json is not None:
        write_scan(result, options.json)
    if options.csv is not None:
        print(f"{options.csv}: {write_scan_table(result, options.csv)} cases; add a column label to train on it")
