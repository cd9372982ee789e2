"""The `medvol` command: arguments to one library call each. The only module that prints.

Heavy libraries are imported inside the commands, so that `medvol --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from medvol import __version__
from medvol.errors import find_refusal

EPILOG = """examples:
  medvol list                                 the bundles, and what each expects
  medvol scan export --csv cases.csv          list every DICOM series of a tree, write a case table to start from
  medvol check my_study.csv                   open every file and list all that training would refuse
  medvol table my_study.csv -o cases.csv      check a study, split it by patient, write its case table
  medvol plan cases.csv -b B                  plan a segmentation: spacing, patch, batch, with reasons and memory
  medvol cohort demo_cohort                   make a synthetic study with a known difficulty

  medvol train resnet3d_classification cases.csv -o out --max_epochs 40
  medvol evaluate resnet3d_classification cases.csv -o out
  medvol predict resnet3d_classification new_scans/ -o predicted --model_dir out/models

The last three print the `python -m monai.bundle run` command that they stand for; any option of it may follow.

Not for clinical use."""

SHORT = ("train", "evaluate", "predict")
SHORT_EPILOG = """Every further option goes on to MONAI as it is: the ids at the top of the bundle's train.json, such as
--max_epochs 40, --class_weights balanced, --window_hu '[-1000,400]' or --optimizer#weight_decay 0.05. A mistyped one is
refused with the nearest name. Exit code: 1 after a refusal, 3 when some cases could not be read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    It is 0; or 1 after a refusal, which is printed as one line, and for a study in which `check` finds one; or 3 when
    `predict` could not read some of the cases.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    further: list[str] = []
    if words[:1] and words[0] in SHORT:
        from medvol.bundle.short import split_options

        own, further = split_options(words[1:])
        words = [words[0], *own]
    options = _parser().parse_args(words)
    options.further = further
    try:
        return options.run(options) or 0
    except Exception as error:
        # MONAI wraps what a run raises; anything that is not a refusal is a defect and keeps its traceback.
        refusal = find_refusal(error)
        if refusal is None:
            raise
        print(f"medvol: {refusal}", file=sys.stderr)
        for detail in refusal.details[:10]:
            print(f"    {detail}", file=sys.stderr)
        return 1


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

    check = commands.add_parser("check", help="open every file of a study and list all that training would refuse")
    check.add_argument("source", help="any study that `medvol table` reads")
    check.add_argument("--label-column", default="label")
    check.add_argument("--resample-labels", action="store_true", help="as --resample_labels True of the training")
    check.add_argument("--json", type=Path, help="JSON file to write, with all findings")
    check.set_defaults(run=_check)

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
    commands.add_parser("list", help="list the shipped bundles and what each expects").set_defaults(run=_list_bundles)
    _add_short(commands, "train", "train a bundle; weights go to OUT/models")
    _add_short(commands, "evaluate", "measure the model in OUT/models on the test split of its study")
    _add_short(commands, "predict", "predict with the weights in the bundle, or those of --model_dir")
    return parser


def _add_short(commands: argparse._SubParsersAction[argparse.ArgumentParser], mode: str, words: str) -> None:
    data = "INPUT" if mode == "predict" else "[DATA]"
    short = commands.add_parser(
        mode,
        help=words,
        description=f"{words[0].upper()}{words[1:]}.",
        usage=f"medvol {mode} BUNDLE {data} -o OUT [--option value ...]",
        epilog=SHORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    short.add_argument("bundle", help="folder of a bundle, or the name of a shipped one (`medvol list`)")
    if mode == "predict":
        short.add_argument("dataset", metavar="input", help="a table, a folder, a DICOM tree or one file")
    else:
        kinds = "any study that `medvol table` reads; left out: a synthetic cohort"
        short.add_argument("dataset", metavar="data", nargs="?", default="", help=kinds)
    short.add_argument("-o", "--output", required=True, help="folder for results")
    short.set_defaults(run=_run_short, mode=mode)


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


def _run_short(options: argparse.Namespace) -> int:
    from medvol.bundle.short import bundle_command, run_bundle, shown

    command = bundle_command(options.mode, options.bundle, options.dataset, options.output, options.further)
    print(shown(command), flush=True)
    try:
        run_bundle(command)
    except SystemExit as end:  # a run in which some cases could not be read
        return end.code if isinstance(end.code, int) else 1
    return 0


def _list_bundles(options: argparse.Namespace) -> None:
    from medvol.bundle.short import describe_bundles

    rows = describe_bundles()
    if len(rows) == 1:
        print("no bundles here: the package is installed without the repository")
        return
    _print_columns(rows)
    print(
        "\nmedvol train NAME DATA -o OUT trains one, without DATA on synthetic cases. More: bundles/NAME/docs/README.md"
    )


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


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


def _check(options: argparse.Namespace) -> int:
    from medvol.bundle.check import REFUSED, WARNING, check_table, finding_rows, summary

    checked = check_table(
        options.source, label_column=options.label_column, resample_labels=options.resample_labels, show_progress=True
    )
    if checked.findings:
        _print_columns(finding_rows(checked))
    for line in summary(checked):
        print(line)
    if options.json is not None:
        from medvol.io.atomic import write_text

        write_text(options.json, json.dumps(checked.as_dict(), indent=4, ensure_ascii=False))
    print(f"{checked.count(REFUSED)} refused, {checked.count(WARNING)} to be aware of")
    return 1 if checked.count(REFUSED) else 0


def _scan(options: argparse.Namespace) -> None:
    from medvol.io.dicom_scan import describe_rows, scan_tree, write_scan, write_scan_table
    from medvol.io.files import existing

    key = b"" if options.key_file is None else existing(options.key_file).read_bytes()
    result = scan_tree(options.folder, key=key)
    _print_columns(describe_rows(result.rows))
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
