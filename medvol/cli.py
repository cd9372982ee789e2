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
  medvol scan export --csv cases.csv          list every DICOM series of a tree, write a case table to start from
  medvol table my_study.csv -o cases.csv      check a study, split it by patient, write its case table
  medvol table adrenalmnist3d.npz -o cases.csv
  medvol cohort demo_cohort                   make a synthetic study with a known difficulty
  medvol plan cases.csv -b B                  plan a segmentation: spacing, patch, batch, with reasons and memory

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

    scan = commands.add_parser("scan", help="list every DICOM series below a folder and whether it can be read")
    scan.add_argument("folder", type=Path)
    scan.add_argument("--json", type=Path, help="JSON file to write, with the reason of every refusal")
    scan.add_argument("--csv", type=Path, help="case table to write, with the volumes that can be read")
    scan.add_argument("--key-file", type=Path, help="file with a secret that the patients' pseudonyms depend on")
    scan.set_defaults(run=_scan)

    cohort = commands.add_parser("cohort", help="make a synthetic study with a known difficulty")
    cohort.add_argument("folder", type=Path)
    cohort.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    cohort.add_argument("--layout", default="nifti", help="nifti, npy, stacked, png, csv or dicom")
    cohort.add_argument("--seed", type=int, default=0)
    cohort.set_defaults(run=_make_cohort)

    _add_plan(commands.add_parser("plan", help="plan the training of a segmentation from its training split"))
    return parser


def _add_plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("dataset", help="any study that `medvol table` reads, with masks")
    plan.add_argument("-b", "--bundle", type=Path, required=True, help="folder of a segmentation bundle")
    plan.add_argument("-o", "--output", type=Path, help="JSON file to write; default: configs/plan.json of the bundle")
    plan.add_argument(
        "--memory-gb", type=float, help="budget of the training process; default: 8, or half of what is free"
    )
    plan.add_argument("--minutes", type=float, help="budget of the whole training")
    plan.add_argument("--spacing-mm", type=float, nargs=3, metavar=("X", "Y", "Z"))
    plan.add_argument("--patch-size", type=int, nargs=3, metavar=("X", "Y", "Z"))
    plan.add_argument("--batch-size", type=int)
    plan.add_argument("--window-hu", type=float, nargs=2, metavar=("LOW", "HIGH"))
    plan.add_argument("--structures", nargs="+", default=(), help="names, in the order of their mask values")
    plan.set_defaults(run=_plan)


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


def _scan(options: argparse.Namespace) -> None:
    from medvol.io.dicom_scan import describe_rows, scan_tree, write_scan, write_scan_table
    from medvol.io.files import existing

    key = b"" if options.key_file is None else existing(options.key_file).read_bytes()
    result = scan_tree(options.folder, key=key)
    table = describe_rows(result.rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
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


def _make_cohort(options: argparse.Namespace) -> None:
    from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

    make = classification_cohort if options.task == "classification" else segmentation_cohort
    print(make(options.folder, seed=options.seed, layout=options.layout))


def _plan(options: argparse.Namespace) -> None:
    from medvol.bundle.plan_file import PLAN_FILE, plan_bundle, plan_rows, write_plan
    from medvol.training.plan import PlanOptions

    stated = PlanOptions(
        spatial_size=options.patch_size or "auto",
        spacing_mm=options.spacing_mm or "auto",
        batch_size="auto" if options.batch_size is None else options.batch_size,
        window_hu=options.window_hu,
        structures=options.structures,
        memory_gb="auto" if options.memory_gb is None else options.memory_gb,
        minutes=options.minutes,
        measure_time=True,
    )
    plan = plan_bundle(options.bundle, options.dataset, stated)
    file = options.output or options.bundle / "configs" / PLAN_FILE
    write_plan(plan, file, stated)
    for name, value, reason in plan_rows(plan):
        print(f"{name:<18} {value:<22} {reason}")
    for note in plan.notes:
        print(f"note: {note}")
    train = options.bundle / "configs" / "train.json"
    print(f"written to {file}; train with --config_file \"['{train}','{file}']\"")


if __name__ == "__main__":
    sys.exit(main())
