"""`medvol plan`: the numbers of a segmentation training, with their reasons."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvol.commands.shared import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    plan = commands.add_parser("plan", help="plan the training of a segmentation from its training split")
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
    plan.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Plan, write the plan into the bundle and print it."""
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
