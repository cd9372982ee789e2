"""`medvol cohort`: a synthetic study with a known difficulty."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvol.commands.shared import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    cohort = commands.add_parser("cohort", help="make a synthetic study with a known difficulty")
    cohort.add_argument("folder", type=Path)
    cohort.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    cohort.add_argument("--layout", default="nifti", help="nifti, npy, stacked, png, csv or dicom")
    cohort.add_argument("--seed", type=int, default=0)
    cohort.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the study and print where."""
    from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

    make = classification_cohort if options.task == "classification" else segmentation_cohort
    print(make(options.folder, seed=options.seed, layout=options.layout))
