"""The cohort: how many cases of how many patients, which classes, what the covariates are like, and who is missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from medvol.report.html_page import note, paragraph, plural, table, text
from medvol.report.html_run import Row, RunFiles

SPLITS = {"train": "training", "val": "validation", "test": "test"}
MOST_CLASSES = 25
MOST_COVARIATES = 25
MOST_FAILURES = 200


def cohort(run: RunFiles, notes: Sequence[str] = ()) -> str:
    """Return the chapter about the study.

    Args:
        run: What the run has left.
        notes: What was assumed or left out when the study was opened, one sentence each.
    """
    body = paragraph(
        "Whole patients were split: no patient is on two sides. What holds here may not hold for other scanners, "
        "protocols or hospitals."
    )
    splits = [name for name in SPLITS if any(row["split"] == name for row in run.cases)]
    if splits:
        body += _table(run, splits)
    body += "".join(paragraph(sentence, "soft") for sentence in notes)
    return body + _failures(run)


def _table(run: RunFiles, splits: Sequence[str]) -> str:
    groups = [[row for row in run.cases if row["split"] == name] for name in splits]
    rows = [
        ["Cases", *[f"{len(group):,}" for group in groups]],
        ["Patients", *[f"{len({row['patient'] for row in group}):,}" for group in groups]],
    ]
    if "classes" in run.metrics:
        counts = [Counter(row["label"] for row in group) for group in groups]
        for name in run.metrics["classes"][:MOST_CLASSES]:
            rows.append([text(name), *[_share(count[name], count.total()) for count in counts]])
        more = len(run.metrics["classes"]) - MOST_CLASSES
        if more > 0:
            rows.append([f"and {plural(more, 'further class').replace('classs', 'classes')}", *[""] * len(groups)])
    covariates = [name for name in run.cases[0] if _is_covariate(name)]
    for name in covariates[:MOST_COVARIATES]:
        rows.append([text(name.removeprefix("covariate_")), *[_described(group, name) for group in groups]])
    if len(covariates) > MOST_COVARIATES:
        rows.append([f"and {len(covariates) - MOST_COVARIATES} more columns in cases.csv", *[""] * len(groups)])
    about = "Covariates: mean ± standard deviation, or share of each value." if covariates else ""
    return table(["", *[SPLITS[name] for name in splits]], rows, caption=about)


def _failures(run: RunFiles) -> str:
    if not run.failed:
        return paragraph("Every case of the split was read and evaluated.", "soft")
    share = len(run.failed) / (len(run.failed) + len(run.predictions))
    warning = note(
        f"{plural(len(run.failed), 'case')} ({share:.0%} of the split) could not be evaluated and "
        f"{'is' if len(run.failed) == 1 else 'are'} not in the numbers below. If such cases are harder than others, "
        "the numbers are too good."
    )
    rows = [[text(case), text(reason)] for case, reason in run.failed[:MOST_FAILURES]]
    more = len(run.failed) - MOST_FAILURES
    rest = paragraph(f"And {more} more in predictions.csv.", "soft") if more > 0 else ""
    return warning + table(["Left out", "Reason"], rows) + rest


def _is_covariate(name: str) -> bool:
    return name not in ("case", "patient", "image", "label", "split") and not name.startswith("image:")


def _share(count: int, total: int) -> str:
    return f"{count:,} <small>({count / total:.0%})</small>" if total else "0"


def _described(group: Sequence[Row], name: str) -> str:
    cells = [row[name] for row in group]
    known = [cell for cell in cells if cell != ""]
    missing = f" <small>({len(cells) - len(known)} missing)</small>" if len(known) < len(cells) else ""
    values = _numbers(known)
    if values is not None and len(set(known)) > 2:
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return f'<span class="whole">{_rounded(float(np.mean(values)), spread)}</span>{missing}'
    counts = Counter(known).most_common(4)
    shares = ", ".join(f"{text(value)} {count / len(known):.0%}" for value, count in sorted(counts))
    return shares + (", …" if len(set(known)) > 4 else "") + missing


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return None
    return values if values and all(map(math.isfinite, values)) else None


def _rounded(mean: float, spread: float) -> str:
    """Return mean and deviation with two digits of the deviation."""
    digits = max(0, 1 - math.floor(math.log10(spread))) if spread > 0 else 2
    return f"{mean:,.{min(digits, 6)}f} ± {spread:,.{min(digits, 6)}f}"
