"""`medvol table`: read a study from any source, check and split it, write its case table."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvol.commands.shared import Commands
from medvol.errors import MedvolError


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    table = commands.add_parser("table", help="read a study from any source, check and split it, write its case table")
    table.add_argument(
        "source", help="CSV, JSON, MedMNIST npz, MSD or nnU-Net folder, class-named folders, stacked npy, ..."
    )
    table.add_argument("-o", "--output", type=Path, required=True, help="CSV file to write")
    table.add_argument("--label-column", default="label")
    table.add_argument("--seed", type=int, default=0, help="seed of the split, where the source brings none")
    table.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the case table and print what it holds."""
    from medvol.data.sources import open_study
    from medvol.data.splits import assign_splits
    from medvol.data.table import write_table

    _require_new_csv(options.output, options.source)
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


def _require_new_csv(output: Path, source: str) -> None:
    """Refuse to write over the source, or a table under a name by which it would be read as something else."""
    if output.is_dir() or output.suffix.lower() != ".csv":
        found = "a folder" if output.is_dir() else f"a file name that ends in '{output.suffix}'"
        fix = f"pass -o {output / 'cases.csv' if output.is_dir() else output.with_suffix('.csv')}"
        raise MedvolError("BAD_VALUE", file=output, found=found, expected="a CSV file", fix=fix)
    if output.exists() and Path(source).expanduser().exists() and output.samefile(Path(source).expanduser()):
        found = "the source itself, which would be replaced"
        raise MedvolError("BAD_VALUE", file=output, found=found, expected="another file", fix="pass another -o")
