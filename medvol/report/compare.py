"""Two evaluations of the same cases: what the second model has more than the first, with an interval.

Two intervals that overlap say little about two models that saw the same cases. What is compared here is paired: the
difference of each metric, patients resampled; with one case per patient also DeLong's test of a binary AUC and
McNemar's exact test of the accuracy, which take cases as independent.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.errors import MedvolError
from medvol.metrics.paired import paired_differences
from medvol.metrics.segmentation import SUMMARISED
from medvol.metrics.statistics import Intervals, bootstrap_intervals, bootstrap_means, delong_test, mcnemar_test
from medvol.report.log_words import interval_text
from medvol.report.outdated import require_current

Row = dict[str, str]
Floats = npt.NDArray[np.float64]

PREDICTIONS_FILE = "predictions.csv"
PROBABILITY = "prob_"
SCORES = tuple(name for name in SUMMARISED if name != "iou")
"""Scores that predictions.csv has of each structure."""


def compare_evaluations(first: str | Path, second: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Return the metrics of two evaluations and the differences, second minus first, each with its 95 % interval.

    Args:
        first: Output folder of an evaluation, or its predictions.csv.
        second: Of another model, on the same cases.
        seed: Of the resampling of patients.

    Returns:
        `task`, `split`, `n_cases`, `n_patients`; `metrics`, by name `first`, `second` (values) and `difference`
        (`value`, `ci95`); classification: `tests` with `delong` and `mcnemar` where they apply.

    Raises:
        MedvolError: `NOT_FOUND`, `BAD_TABLE` for a file that no evaluation wrote, `NO_LABEL` for cases without a truth,
            `OTHER_CASES` when the two do not hold the same cases, patients and truth, `OTHER_CLASSES`, `OUTDATED`
            where the model was trained anew since.
    """
    paths = [_predictions_file(path) for path in (first, second)]
    for path in paths:
        require_current(path)
    tables = [_read(path) for path in paths]
    a, b = tables[0], _in_order(tables[1], tables[0], paths[1])
    patients = [row["patient"] for row in a]
    kinds = [any(name.startswith(PROBABILITY) for name in table[0]) for table in (a, b)]
    if kinds[0] != kinds[1]:
        raise MedvolError("OTHER_CASES", file=paths[1], found="another task", expected="the task of the first file")
    compared = (
        _classifications(a, b, patients, paths, seed) if kinds[0] else _segmentations(a, b, patients, paths, seed)
    )
    return {"split": a[0]["split"], "n_cases": len(a), "n_patients": len(set(patients)), **compared}


def comparison_table(compared: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table: metric, first, second, difference with interval; then the tests."""
    head = f"{compared['n_cases']} cases of {compared['n_patients']} patients, split {compared['split'] or 'unknown'}"
    width = max(len("metric"), *map(len, compared["metrics"]))
    lines = [
        f"{head}; difference is second minus first",
        f"  {'metric':<{width}}{'first':>9}{'second':>9}{'difference':>12}   95 % interval",
    ]
    for name, row in compared["metrics"].items():
        low, high = row["difference"]["ci95"]
        clear = "  *" if low > 0 or high < 0 else ""
        lines.append(
            f"  {name:<{width}}{row['first']:>9.3f}{row['second']:>9.3f}{row['difference']['value']:>+12.3f}"
            f"   {interval_text((low, high), signed=True)}{clear}"
        )
    if any(line.endswith("*") for line in lines):
        lines.append("  * the interval leaves out zero; of models that are equal, one in twenty does")
    return lines + _test_lines(compared.get("tests", {}))


def _test_lines(tests: Mapping[str, Any]) -> list[str]:
    lines = []
    if "delong" in tests:
        lines.append(f"DeLong's test of the AUC: p = {tests['delong']['p_value']:.3f}")
    if "mcnemar" in tests:
        found = tests["mcnemar"]
        lines.append(
            f"McNemar's exact test of the accuracy: only the first is right in {found['only_first']} cases, only "
            f"the second in {found['only_second']}, p = {found['p_value']:.3f}"
        )
    return lines


def _predictions_file(path: str | Path) -> Path:
    path = Path(path)
    file = path / PREDICTIONS_FILE if path.is_dir() else path
    if not file.is_file():
        raise MedvolError(
            "NOT_FOUND",
            file=file,
            found="no such file",
            expected="the output folder of an evaluation, or its predictions.csv",
            fix="run `medvol evaluate` first",
        )
    return file


def _read(path: Path) -> list[Row]:
    """Return the rows of the cases that could be read, in order of their names."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise MedvolError(
            "BAD_TABLE", file=path, found=str(error), expected="predictions.csv of an evaluation"
        ) from error
    if not rows or not {"case", "patient", "split"} <= rows[0].keys() or any(None in row.values() for row in rows):
        raise MedvolError(
            "BAD_TABLE",
            file=path,
            found=f"{len(rows)} rows with columns {', '.join(list(rows[0])[:5]) if rows else 'none'}",
            expected="case, patient, split and what an evaluation writes of each case",
            fix="pass predictions.csv of `medvol evaluate`",
        )
    return sorted((row for row in rows if not row.get("error")), key=lambda row: row["case"])


def _in_order(second: Sequence[Row], first: Sequence[Row], path: Path) -> list[Row]:
    """Return the rows of `second` that belong to those of `first`, one by one."""
    there = {row["case"]: row for row in second}
    known = {row["case"] for row in first}
    lacking, further = sorted(known - set(there)), sorted(set(there) - known)
    if lacking or further or not known:
        names = (lacking or further)[:3]
        raise MedvolError(
            "OTHER_CASES",
            file=path,
            found=f"{len(lacking)} cases are only in the first and {len(further)} only here, as {', '.join(names)}",
            expected="the same cases",
            fix="evaluate both models on one split of one case table",
            details=[*lacking, *further],
        )
    for row in first:
        other = there[row["case"]]
        for name in ("patient", "label"):
            if row.get(name) != other.get(name):
                found = f"{name} '{other.get(name)}', and '{row.get(name)}' in the first"
                raise MedvolError("OTHER_CASES", case=row["case"], file=path, found=found, expected="the same of both")
    return [there[row["case"]] for row in first]


def _classifications(
    a: Sequence[Row], b: Sequence[Row], patients: Sequence[str], paths: Sequence[Path], seed: int
) -> dict[str, Any]:
    classes = [name.removeprefix(PROBABILITY) for name in a[0] if name.startswith(PROBABILITY)]
    theirs = [name.removeprefix(PROBABILITY) for name in b[0] if name.startswith(PROBABILITY)]
    if set(classes) != set(theirs):
        raise MedvolError("OTHER_CLASSES", file=paths[1], found=", ".join(theirs), expected=", ".join(classes))
    unknown = next((row for row in a if row["label"] not in classes), None)
    if unknown is not None:
        raise MedvolError(
            "NO_LABEL",
            case=unknown["case"],
            file=paths[0],
            found=f"label '{unknown['label']}'",
            expected="a true class for each case",
            fix="run `medvol evaluate`, which needs labels, and not `medvol predict`",
        )
    labels = np.array([classes.index(row["label"]) for row in a])
    scores = [
        _numbers(table, [PROBABILITY + name for name in classes], path)
        for table, path in zip((a, b), paths, strict=True)
    ]
    values = [bootstrap_intervals(labels, score, patients, seed=seed) for score in scores]
    differences = paired_differences(labels, scores[1], scores[0], patients, seed=seed)
    tests = _independent_tests(labels, scores) if len(set(patients)) == len(patients) else {}
    return {"task": "classification", "metrics": _rows(values, differences), "tests": tests}


def _independent_tests(labels: npt.NDArray[np.int64], scores: Sequence[Floats]) -> dict[str, Any]:
    chosen = [score.argmax(axis=1) for score in scores]
    mcnemar = mcnemar_test(labels, *chosen)
    tests: dict[str, Any] = {
        "mcnemar": {"only_first": mcnemar.only_a, "only_second": mcnemar.only_b, "p_value": mcnemar.p_value}
    }
    if scores[0].shape[1] == 2 and len(set(labels.tolist())) == 2:
        delong = delong_test(labels, scores[1][:, 1], scores[0][:, 1])
        tests["delong"] = {"difference": delong.difference, "ci95": list(delong.ci95), "p_value": delong.p_value}
    return tests


def _segmentations(
    a: Sequence[Row], b: Sequence[Row], patients: Sequence[str], paths: Sequence[Path], seed: int
) -> dict[str, Any]:
    structures = [name.removeprefix("dice_") for name in a[0] if name.startswith("dice_")]
    theirs = [name.removeprefix("dice_") for name in b[0] if name.startswith("dice_")]
    if not structures or not theirs:
        raise MedvolError(
            "NO_LABEL",
            file=paths[0] if not structures else paths[1],
            found="no Dice in it",
            expected="predictions.csv of cases with a true mask",
            fix="run `medvol evaluate`",
        )
    if set(structures) != set(theirs):
        raise MedvolError("OTHER_CLASSES", file=paths[1], found=", ".join(theirs), expected=", ".join(structures))
    columns = []
    for table, path in zip((a, b), paths, strict=True):
        per_score = {name: _numbers(table, [f"{name}_{one}" for one in structures], path) for name in SCORES}
        means = {name: values.mean(axis=1) for name, values in per_score.items()}
        each = {f"{name}_{one}": per_score[name][:, place] for place, one in enumerate(structures) for name in SCORES}
        columns.append({**means, **each})
    values = [bootstrap_means(scores, patients, seed=seed) for scores in columns]
    differences = bootstrap_means(
        {name: columns[1][name] - columns[0][name] for name in columns[0]}, patients, seed=seed
    )
    return {"task": "segmentation", "metrics": _rows(values, differences)}


def _rows(values: Sequence[Intervals], differences: Intervals) -> dict[str, Any]:
    return {
        name: {"first": values[0][name]["value"], "second": values[1][name]["value"], "difference": difference}
        for name, difference in differences.items()
    }


def _numbers(table: Sequence[Row], columns: Sequence[str], path: Path) -> Floats:
    """Return the values of columns, shape (rows, columns)."""
    try:
        return np.array([[float(row[name]) for name in columns] for row in table])
    except (KeyError, ValueError) as error:
        raise MedvolError(
            "BAD_TABLE", file=path, found=str(error), expected=f"numbers in {', '.join(columns[:3])}"
        ) from error
