"""`medvol plan`: the numbers of a segmentation training, with their reasons."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvol.commands.shared import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    plan = commands.add_parser("plan", help="plan the training of a segmentation from its training split")
    plan.add_argument("dataset", help="any study that `medvol table` reads, with masks")
    kinds = "folder of a segmentation bundle, or the name of a shipped one, with -o"
    plan.add_argument("-b", "--bundle", required=True, help=kinds)
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
    plan.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Plan, write the plan into the bundle and print it."""
    from medvol.bundle.plan_file import PLAN_FILE, plan_bundle, plan_rows, write_plan
    from medvol.bundle.short import find_bundle
    from medvol.errors import MedvolError
    from medvol.training.plan import PlanOptions

    folder = find_bundle(options.bundle)
    if options.output is None and folder != Path(options.bundle):
        raise MedvolError(
            "MISSING_OPTION",
            file=folder,
            found="no file for the plan",
            expected="-o FILE, for a shipped bundle is not written into",
            fix="pass -o, or make a bundle of your own with `medvol new`",
        )
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
    plan = plan_bundle(folder, options.dataset, stated)
    file = options.output or folder / "configs" / PLAN_FILE
    write_plan(plan, file, stated)
    for name, value, reason in plan_rows(plan):
        print(f"{name:<18} {value:<22} {reason}")
    for note in plan.notes:
        print(f"note: {note}")
    train = folder / "configs" / "train.json"
    print(f"written to {file}; train with --config_file \"['{train}','{file}']\"")
