"""`medvol deid`: DICOM files without their patients."""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medvol.commands.shared import Commands, print_columns
from medvol.errors import MedvolError

if TYPE_CHECKING:
    from medvol.io.deid import DeidReport

PARTLY = 3  # the exit code of a run that left files out, as of `medvol predict`

NOTES = """Attributes follow the basic profile of PS3.15 Annex E by dicom-anonymizer's newest table, at every depth;
private blocks, overlays and curves are removed. UIDs and pseudonyms are hashes with the key, the same in every run;
patients are called as by `medvol scan --key-file KEY`. Keep the key apart from the results: it lets one test a guess.

Left out, and counted by code: reports, documents, presentation states, plans and raw data (UNSAFE_OBJECT); screen
captures, ultrasound, angiography, photographs, derived images and colour, whose pixels may show a name, and radiographs
that do not state BurnedInAnnotation NO (PIXELS_AT_RISK, unless --allow-pixels). No program proves that pixels show no
text: look at the images. A head's CT or MR shows the face; deface it before you share it.

Exit code: 1 when nothing was written, 3 when some DICOM files were left out."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    deid = commands.add_parser(
        "deid",
        help="write DICOM files without what identifies their patients",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    deid.add_argument("source", type=Path, metavar="IN", help="file or folder with DICOM files")
    deid.add_argument("target", type=Path, metavar="OUT", help="folder for the results; a second run goes on in it")
    deid.add_argument("--key-file", type=Path, required=True, metavar="KEY", help="file with the project's secret")
    deid.add_argument("--new-key", action="store_true", help="make the key file, with a random secret")
    deid.add_argument(
        "--shift-dates",
        action="store_true",
        help="move the dates of each patient back by the same 1 to 365 days and keep times; default: remove them",
    )
    deid.add_argument("--allow-pixels", action="store_true", help="take images whose pixels may show a name")
    deid.add_argument("--keep-structure-names", action="store_true", help="keep names of regions of interest")
    deid.add_argument("--refused", type=Path, metavar="CSV", help="table to write, with every file that was left out")
    deid.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """De-identify a tree and print what became of it."""
    from medvol.io.deid import deidentify_tree
    from medvol.io.deid_file import DeidOptions
    from medvol.io.deid_key import create_key, is_shared, read_key
    from medvol.io.deid_profile import load_profile

    load_profile()  # before a key is made for nothing
    for name, path in (("KEY_AMONG_RESULTS", options.key_file), ("LIST_AMONG_RESULTS", options.refused)):
        _require_outside(name, path, options.target)
    key = create_key(options.key_file) if options.new_key else read_key(options.key_file)
    if is_shared(options.key_file):
        print(f"note: others may read {options.key_file}; chmod 600 it", file=sys.stderr)
    settings = DeidOptions(
        key,
        shift_dates=options.shift_dates,
        allow_pixels=options.allow_pixels,
        keep_structure_names=options.keep_structure_names,
    )
    report = deidentify_tree(options.source, options.target, settings)
    _print(report, options)
    if options.refused is not None:
        _write_refused(report, options.refused)
    if not report.series:
        return 1
    return PARTLY if report.refused else 0


def _require_outside(code: str, path: Path | None, target: Path) -> None:
    if path is not None and target.resolve() in path.resolve().parents:
        raise MedvolError(
            code, file=path, found="it lies in the folder that is to be shared", fix="name a place outside of it"
        )


def _print(report: DeidReport, options: argparse.Namespace) -> None:
    rows = [("files", "what", "for example")]
    rows.append((f"{report.written:,}", "written", ""))
    if report.present:
        rows.append((f"{report.present:,}", "there already, or copies", ""))
    for code, count in sorted(report.codes.items()):
        first = next(one for one in report.refused if one.code == code)
        place = os.path.relpath(first.file, options.source) if options.source.is_dir() else options.source.name
        rows.append((f"{count:,}", f"refused, {code}", f"{place}: {first.found}"[:90]))
    if report.others:
        rows.append((f"{report.others:,}", "no DICOM", ""))
    print_columns(rows)
    print(
        f"{options.target}: {report.patients} patients, {report.studies} studies, {len(report.series)} series"
        if report.series
        else "nothing was written"
    )
    if report.swept:
        print(f"{report.swept} texts outside the profile's table held an identifier and were replaced")
    if report.faces:
        count = len(report.faces)
        print(f"{count} series are CT or MR of a head, or do not say of what: deface them, faces can be recognised")


def _write_refused(report: DeidReport, path: Path) -> None:
    from medvol.io.atomic import write_text

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["code", "file", "found", "fix"])
    writer.writerows([one.code, one.file, one.found, one.fix] for one in report.refused)
    write_text(path, text.getvalue())
