"""The `medvol` command: arguments to one library call each. The only module that prints.

Heavy libraries are imported inside the commands, so that `medvol --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medvol import __version__
from medvol.errors import MedvolError

EPILOG = """examples:
  medvol table my_study.csv -o cases.csv      check a study, split it by patient, write its case table
  medvol table adrenalmnist3d.npz -o cases.csv
  medvol cohort demo_cohort                   make a synthetic study with a known difficulty

train, evaluate and predict with MONAI's own command:
  python -m monai.bundle run --bundle_root B --config_file B/configs/train.json --dataset_dir D --output_dir O

Not for clinical use."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, or 1 after a refusal, which is printed as one line."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except MedvolError as error:
        print(f"medvol: {error}", file=sys.stderr)
        for detail in error.details[:10]:
            print(f"    {detail}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medvol",
        description="From a folder of scans and a table of cases to an honestly measured MONAI bundle.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medvol {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    table = commands.add_parser("table", help="read a study from any source, check and split it, write its case table")
    table.add_argument("source", help="CSV, JSON, MedMNIST npz, MSD folder, class-named folders, stacked npy, ...")
    table.add_argument("-o", "--output", type=Path, required=True, help="CSV file to write")
    table.add_argument("--label-column", default="label")
    table.add_argument("--seed", type=int, default=0, help="seed of the split, where the source brings none")
    table.set_defaults(run=_write_table)

    cohort = commands.add_parser("cohort", help="make a synthetic study with a known difficulty")
    cohort.add_argument("folder", type=Path)
    cohort.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    cohort.add_argument("--layout", default="nifti", help="nifti, npy, stacked, png, csv or dicom")
    cohort.add_argument("--seed", type=int, default=0)
    cohort.set_defaults(run=_make_cohort)
    return parser


def _write_table(options: argparse.Namespace) -> None:
    from medvol.data.sources import open_study
    from medvol.data.splits import assign_splits
    from medvol.data.table import write_table

    study = assign_splits(open_study(options.source, label_column=options.label_column), seed=options.seed)
    write_table(study, options.output)
    for note in study.notes:
        print(note)
    patients = {case.patient for case in study.cases}
    print(f"{options.output}: {len(study.cases)} cases of {len(patients)} patients, {study.task}")
    for split in ("train", "val", "test"):
        members = [case for case in study.cases if case.split == split]
        counts = ", ".join(f"{name} {sum(case.label == name for case in members)}" for name in study.classes)
        print(f"  {split:<6}{len(members):>6} cases   {counts if study.task == 'classification' else ''}".rstrip())


def _make_cohort(options: argparse.Namespace) -> None:
    from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

    make = classification_cohort if options.task == "classification" else segmentation_cohort
    print(make(options.folder, seed=options.seed, layout=options.layout))


if __name__ == "__main__":
    sys.exit(main())
