"""What a report of a segmentation shows: numbers and volumes by structure, and the cases worth looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvol.metrics.segmentation import SUMMARISED, mean_of_structures
from medvol.metrics.statistics import bootstrap_means
from medvol.report.html_charts import Axis, Series, axis_over, chart, strips
from medvol.report.html_metrics import interval_cells
from medvol.report.html_page import interval, long_table, note, number, paragraph, table, text
from medvol.report.html_pictures import CasePicture, case_card, structure_legend
from medvol.report.html_run import Row, RunFiles
from medvol.report.html_words import NAMES
from medvol.report.segmented_cases import SegmentedCases

MOST_STRIPS = 24
MOST_AGREEMENTS = 6
MOST_CASES = 100


def by_structure(run: RunFiles) -> str:
    """Return the chapter of the scores of each structure, with the Dice of every case."""
    structures = list(run.metrics["structures"])
    empty = run.metrics.get("empty_masks", {})
    rows = []
    for name in structures:
        counts = empty.get(name, {})
        missed = f"{counts.get('missed', 0)} / {counts.get('invented', 0)}"
        rows.append([text(name), *interval_cells(run.metrics["metrics"], [f"{m}_{name}" for m in SUMMARISED]), missed])
    head = ["Structure", *[NAMES[name] for name in SUMMARISED], "Missed / invented"]
    says = (
        "Means over the cases with their 95 % intervals. Missed: cases with the structure in which none was found. "
        "Invented: cases without it in which some was."
    )
    dice = {name: [float(row[f"dice_{name}"]) for row in run.predictions] for name in structures[:MOST_STRIPS]}
    drawn = strips("Dice of every case", dice, Axis("Dice, with median and middle half", 0.0, 1.0))
    return paragraph(says) + table(head, rows) + f'<div class="grid">{drawn}</div>' + _lesions(run)


def volumes(run: RunFiles) -> str:
    """Return the chapter of how well volumes agree (Bland and Altman, Lancet 1986)."""
    structures = list(run.metrics["structures"])
    patients = [row["patient"] for row in run.predictions]
    rows, charts = [], []
    for index, name in enumerate(structures):
        found, true = (_column(run.predictions, f"{kind}_{name}") for kind in ("volume_ml", "true_volume_ml"))
        difference = found - true
        mean = bootstrap_means({"difference": difference}, patients)["difference"]
        spread = 1.96 * float(np.std(difference, ddof=1)) if len(difference) > 1 else float("nan")
        digits = 1 if float(true.mean()) >= 10 else 3
        rows.append(
            [
                text(name),
                number(float(true.mean()), digits),
                number(float(found.mean()), digits),
                f"{number(mean['value'], digits)} <small>({interval(mean['ci95'], digits)})</small>",
                interval((mean["value"] - spread, mean["value"] + spread), digits),
            ]
        )
        if index < MOST_AGREEMENTS:
            charts.append(_agreement(name, (found + true) / 2, difference, mean["value"], spread))
    head = ["Structure", "True mean, ml", "Predicted mean, ml", "Difference, ml", "Limits of agreement, ml"]
    says = (
        "Difference: predicted minus true, so a negative one means volumes come out too small. 95 % of cases lie "
        "within the limits of agreement: that is how wrong the volume of a single patient may be."
    )
    without = run.metrics.get("rules", {}).get("cases_without_geometry", 0)
    warning = note(f"{without} cases have no spacing: their voxels count as 1 mm, so ml are not ml.") if without else ""
    listed = table(head, rows, numbers=(1, 2))
    return f'{warning}{paragraph(says)}{listed}<div class="grid">{"".join(charts)}</div>'


def cases(run: RunFiles, pictures: Sequence[CasePicture], structures: Mapping[str, int]) -> str:
    """Return the chapter of single cases: pictures, then a table, the lowest Dice first."""
    names = list(run.metrics["structures"])
    body = ""
    if pictures:
        words = (
            "Slices through the middle of the largest structure. Solid: the prediction, dashed: the truth, along the "
            "edges of the voxels. Look at the worst case first: it says more than the mean."
        )
        cards = "".join(case_card(picture, structures) for picture in pictures)
        body = f'{paragraph(words)}{structure_legend(list(structures))}<div class="grid cases">{cards}</div>'
    rows = sorted(run.predictions, key=lambda row: _mean_dice(row, names))
    lines = [
        [_linked(row), number(_mean_dice(row, names)), *[number(float(row[f"dice_{name}"])) for name in names[:8]]]
        for row in rows[:MOST_CASES]
    ]
    head = ["Case", "Mean Dice", *[f"Dice of {name}" if len(names) > 1 else "Dice" for name in names[:8]]]
    body += "<h3>Cases by Dice</h3>"
    body += long_table(head, lines, caption="The lowest first.", numbers=range(1, len(head)))
    more = f"And {len(rows) - len(lines)} more: " if len(rows) > len(lines) else "All numbers: "
    return body + f'<p class="soft">{more}<a href="predictions.csv">predictions.csv</a></p>'


def segmented_pictures(segmented: SegmentedCases) -> list[CasePicture]:
    """Return the best, the median and the worst case with their slices."""
    pictures = []
    for heading, shown in segmented.shown():
        low, high = shown.window
        says = f"Mean {heading.rsplit(', ', 1)[1]}"
        about = f"Grey values {low:.4g} to {high:.4g}, cropped to the structures and their surroundings."
        pictures.append(CasePicture(heading.split(":", 1)[0], shown.case, says, shown.views, about=about))
    return pictures


def _agreement(name: str, middle: Any, difference: Any, mean: float, spread: float) -> str:
    x = axis_over("mean of predicted and true volume, ml", middle.tolist())
    bounds = [mean - spread, mean + spread]
    y = axis_over("difference, ml", [*difference.tolist(), *bounds, 0.0])
    points = list(zip(middle.tolist(), difference.tolist(), strict=True))
    lines = [
        Series("mean difference", [(x.low, mean), (x.high, mean)], 1),
        Series("limits of agreement", [(x.low, bounds[0]), (x.high, bounds[0])], "x"),
        Series("", [(x.low, bounds[1]), (x.high, bounds[1])], "x"),
    ]
    return chart(f"Volume of {name}", [*lines, Series("", points, 0, line=False, radii=[3.0] * len(points))], x, y)


def _lesions(run: RunFiles) -> str:
    """Return the lesions found and missed, of the structures that are counted as lesions."""
    counted = run.metrics.get("lesions", {})
    rows = [
        [
            text(name),
            *[str(found[key]) for key in ("true_positives", "false_negatives", "false_positives")],
            *interval_cells(found["metrics"], list(found["metrics"])),
        ]
        for name, found in counted.items()
    ]
    if not rows:
        return ""
    first = next(iter(counted.values()))["metrics"]
    head = ["Lesions of", "Found", "Missed", "Invented", *[NAMES.get(name, name) for name in first]]
    return table(head, rows, caption="Connected components, matched by overlap; means over cases.", numbers=(1, 2, 3))


def _linked(row: Row) -> str:
    from medvol.report.html_environment import link

    return link(row["output"], row["case"]) if row.get("output") else text(row["case"])


def _column(rows: Sequence[Row], name: str) -> Any:
    return np.asarray([float(row[name]) for row in rows], dtype=np.float64)


def _mean_dice(row: Row, names: Sequence[str]) -> float:
    return mean_of_structures({name: {"dice": float(row[f"dice_{name}"])} for name in names}, "dice")
