"""`medvol compare`: is the second model better than the first on the same cases?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medvol.commands.shared import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    compare = commands.add_parser("compare", help="compare two evaluations of the same cases, metric by metric")
    compare.add_argument("first", type=Path, help="output folder of `medvol evaluate`, or its predictions.csv")
    compare.add_argument("second", type=Path, help="of another model, on the same cases")
    compare.add_argument("--seed", type=int, default=0, help="seed of the resampling of patients")
    compare.add_argument("--json", type=Path, help="JSON file to write, with all metrics and tests")
    compare.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the difference of every metric with its interval."""
    from medvol.io.atomic import write_text
    from medvol.metrics.json_ready import json_ready
    from medvol.report.compare import compare_evaluations, comparison_table

    compared = compare_evaluations(options.first, options.second, seed=options.seed)
    print(f"first:  {options.first}\nsecond: {options.second}")
    for line in comparison_table(compared):
        print(line)
    if options.json is not None:
        write_text(options.json, json.dumps(json_ready(compared), indent=4))
        print(f"Wrote {options.json}")
