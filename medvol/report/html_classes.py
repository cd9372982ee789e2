"""What a report of a classification shows: curves, calibration, confusion, and the cases worth looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.metrics.classification import classification_metrics, confusion_matrix, reliability_bins, roc_curve
from medvol.report.html_charts import Axis, Series, axis_over, bars, chart
from medvol.report.html_page import long_table, note, number, paragraph, plural, table, text
from medvol.report.html_pictures import CasePicture, case_card
from medvol.report.html_run import RunFiles

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

MOST_CURVES = 6
MOST_CLASSES_IN_MATRIX = 20
MOST_WRONG = 100


def labels_and_probabilities(run: RunFiles) -> tuple[Labels, Floats]:
    """Return class indices (n,) and probabilities (n, classes) of predictions.csv."""
    classes = list(run.metrics["classes"])
    labels = [classes.index(row["label"]) for row in run.predictions]
    probabilities = [[float(row[f"prob_{name}"]) for name in classes] for row in run.predictions]
    return np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)


def curves(run: RunFiles) -> str:
    """Return the chapter of ROC, precision and recall, and calibration."""
    labels, probabilities = labels_and_probabilities(run)
    classes = list(run.metrics["classes"])
    asked = [1] if len(classes) == 2 else list(range(len(classes)))
    there = [index for index in asked if 0 < int((labels == index).sum()) < len(labels)]
    absent = [classes[index] for index in range(len(classes)) if not (labels == index).any()]
    body = (
        note(f"No case of {', '.join(absent)} in this split: no curve for it, and means leave it out.")
        if absent
        else ""
    )
    shown = there[:MOST_CURVES]
    charts = [_roc(labels, probabilities, classes, shown), _precision(labels, probabilities, classes, shown)]
    charts = [*charts, _reliability(labels, probabilities)] if there else [_reliability(labels, probabilities)]
    if len(there) > len(shown):
        body += paragraph(f"Curves of the first {len(shown)} of {len(there)} classes.", "soft")
    return f'{body}<div class="grid">{"".join(charts)}</div>'


def confusion(run: RunFiles) -> str:
    """Return the chapter of the confusion matrix: rows are the truth, shade the share of the row."""
    labels, probabilities = labels_and_probabilities(run)
    classes = list(run.metrics["classes"])
    counts = confusion_matrix(labels, probabilities)
    says = "Rows are the truth, columns what was predicted (the class of highest probability); shares are of the row."
    if len(classes) > MOST_CLASSES_IN_MATRIX:
        return paragraph(says) + _most_confused(counts, classes)
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in classes)
    rows = []
    for name, row in zip(classes, counts.tolist(), strict=True):
        shares = [count / sum(row) if sum(row) else 0.0 for count in row]
        cells = "".join(
            f'<td style="background:rgba(var(--shade),{0.65 * share:.2f})">{count:,}<small>{share:.0%}</small></td>'
            for count, share in zip(row, shares, strict=True)
        )
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    corner = '<th scope="col">true \\ predicted</th>'
    return (
        f'{paragraph(says)}<div class="scroll"><table class="confusion"><thead><tr>{corner}{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def cases(run: RunFiles, pictures: Sequence[CasePicture]) -> str:
    """Return the chapter of single cases: pictures, then a table of the wrong answers, the surest first."""
    labels, probabilities = labels_and_probabilities(run)
    classes = list(run.metrics["classes"])
    predicted = probabilities.argmax(axis=1)
    wrong = [
        int(index)
        for index in np.argsort(-probabilities.max(axis=1), kind="stable")
        if predicted[index] != labels[index]
    ]
    body = "".join(case_card(picture) for picture in pictures)
    if body:
        words = (
            "Best: the right class with the highest probability. Uncertain: the two likeliest classes nearly tie. "
            "Worst: the true class with the least probability. The warm colours of a heat map show where the image "
            "spoke for the predicted class: it tells where the network looked, not whether that is a finding."
        )
        body = f'{paragraph(words)}<div class="grid cases">{body}</div>'
    rows = [
        [
            text(run.predictions[index]["case"]),
            text(classes[labels[index]]),
            text(classes[predicted[index]]),
            number(probabilities[index, predicted[index]]),
            number(probabilities[index, labels[index]]),
        ]
        for index in wrong[:MOST_WRONG]
    ]
    body += f"<h3>{plural(len(wrong), 'wrong answer')} of {plural(len(labels), 'case')}</h3>"
    if rows:
        head = ["Case", "True", "Predicted", "Its probability", "That of the true class"]
        body += long_table(head, rows, caption="The surest mistakes first.", numbers=(3, 4))
    more = f"And {len(wrong) - len(rows)} more: " if len(wrong) > len(rows) else "All cases: "
    return body + f'<p class="soft">{more}<a href="predictions.csv">predictions.csv</a></p>'


def importances(drops: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the chapter of the columns: the AUC that is lost when one is shuffled.

    Args:
        drops: From `medvol.explain.permutation.auc_drops`.
    """
    rows = {name: (drop["value"], drop["ci95"]) for name, drop in drops.items() if _is_number(drop["value"])}
    if not rows:
        return ""
    bounds = [bound for _, ci in rows.values() for bound in ci if _is_number(bound)] + [0.0]
    shown = dict(list(rows.items())[:30])
    says = (
        "How much AUC is lost when the column is shuffled between the cases, with its 95 % interval (patients "
        "resampled). A column whose interval holds 0 is not shown to matter. Of two columns that say the same, either "
        "looks unimportant; none is shown to be a cause."
    )
    drawn = bars("Loss of AUC without the column", shown, axis_over("loss of AUC", bounds))
    listed = [[text(name), number(value), f"{number(ci[0])} to {number(ci[1])}"] for name, (value, ci) in shown.items()]
    numbers = table(["Column", "Loss of AUC", "95 % interval"], listed, numbers=(1,))
    return f'{paragraph(says)}<div class="grid">{drawn}{numbers}</div>'


def _roc(labels: Labels, probabilities: Floats, classes: Sequence[str], shown: Sequence[int]) -> str:
    series = [Series("guessing", [(0, 0), (1, 1)], "x")]
    for colour, index in enumerate(shown):
        curve = roc_curve(labels == index, probabilities[:, index])
        points = list(zip(curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist(), strict=True))
        series.append(Series(classes[index], points, colour))
    if len(classes) == 2:
        at = classification_metrics(labels, probabilities)
        point = (1 - at["specificity"], at["sensitivity"])
        series.append(Series("where the class of highest probability is taken", [point], 1, line=False, radii=[5]))
    says = "The further to the upper left, the better the classes are told apart, whatever the threshold."
    return chart("ROC", series, Axis("1 − specificity", 0, 1), Axis("sensitivity", 0, 1), says=says)


def _precision(labels: Labels, probabilities: Floats, classes: Sequence[str], shown: Sequence[int]) -> str:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    series = []
    if len(shown) == 1:
        share = float((labels == shown[0]).mean())
        series.append(Series("guessing", [(0, share), (1, share)], "x"))
    for colour, index in enumerate(shown):
        precision, recall, _ = precision_recall_curve(labels == index, probabilities[:, index])
        mean = average_precision_score(labels == index, probabilities[:, index])
        points = list(zip(recall[::-1].tolist(), precision[::-1].tolist(), strict=True))
        series.append(Series(f"{classes[index]}, average precision {mean:.3f}", points, colour))
    says = "How many of the calls are right, at each share found. It falls where the class is rarer than here."
    return chart("Precision and recall", series, Axis("recall (sensitivity)", 0, 1), Axis("precision", 0, 1), says=says)


def _reliability(labels: Labels, probabilities: Floats) -> str:
    found = reliability_bins(labels, probabilities)
    filled = found.count > 0
    points = list(zip(found.confidence[filled].tolist(), found.accuracy[filled].tolist(), strict=True))
    radii = (3 + 11 * np.sqrt(found.count[filled] / found.count.sum())).tolist()
    series = [Series("calibrated", [(0, 0), (1, 1)], "x"), Series("model", points, 0, radii=radii)]
    says = (
        "Of the answers given with a confidence of 0.8, 80 % should be right. Below the line the model is too sure of "
        "itself. The area of a dot is its number of cases: small dots say little."
    )
    return chart("Calibration", series, Axis("confidence", 0, 1), Axis("share that is right", 0, 1), says=says)


def _most_confused(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> str:
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:MOST_CLASSES_IN_MATRIX]
    pairs = [divmod(int(place), len(classes)) for place in order]
    rows = [[text(classes[row]), text(classes[column]), str(mistakes[row, column])] for row, column in pairs]
    return table(["True", "Predicted", "Cases"], rows, caption="The most frequent mistakes", numbers=(2,))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))
