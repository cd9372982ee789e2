"""Pictures of a classification: confusion matrix, ROC and reliability, training curves. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.io.atomic import write_atomically
from medvol.metrics.classification import confusion_matrix, reliability_bins, roc_curve

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers."""


def blank_figure(width: float, height: float) -> Any:
    """Return a figure without axes, sizes in inches.

    The object interface needs no display and leaves no figure behind in pyplot's list.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    image = BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomically(path, lambda stream: stream.write(image.getvalue()))
    return path


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = blank_figure(width, height)
    return figure, figure.add_subplot()


def draw_confusion(path: Path, labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Path:
    """Write the confusion matrix: rows are the truth, columns the prediction, shade the share of the row."""
    counts = confusion_matrix(labels, probabilities)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 0.6 * len(classes) + 2)
    figure, axes = _figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45 if len(classes) > 3 else 0)
    axes.set_yticks(ticks, classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row in ticks:
        for column in ticks:
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{counts[row, column]}\n{shares[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_title(f"Confusion matrix, {len(labels)} cases")
    return save_figure(figure, path)


def draw_roc(path: Path, labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Path:
    """Write the ROC curve of the positive class, or one curve per class against the rest."""
    figure, axes = _figure(4.4, 4.4)
    positives = [1] if len(classes) == 2 else range(len(classes))
    for number, index in enumerate(positives):
        truth = labels == index
        if truth.all() or not truth.any():
            continue
        curve = roc_curve(truth, probabilities[:, index])
        axes.plot(
            curve.false_positive_rate,
            curve.true_positive_rate,
            color=COLOURS[number % len(COLOURS)],
            label=classes[index],
        )
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right")
    return save_figure(figure, path)


def draw_reliability(path: Path, labels: Labels, probabilities: Probabilities) -> Path:
    """Write accuracy against confidence in ten bins; the area of a point is its number of cases."""
    bins = reliability_bins(labels, probabilities)
    figure, axes = _figure(4.4, 4.4)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfectly calibrated")
    filled = bins.count > 0
    area = 20 + 300 * bins.count[filled] / bins.count.sum()
    axes.scatter(bins.confidence[filled], bins.accuracy[filled], s=area, color=COLOURS[0], alpha=0.8)
    axes.plot(bins.confidence[filled], bins.accuracy[filled], color=COLOURS[0], label="model")
    axes.set(xlabel="confidence", ylabel="share that is right", title="Reliability", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")
    return save_figure(figure, path)


def draw_training(path: Path, history: Sequence[Mapping[str, float]], metric: str = "auc") -> Path:
    """Write training and validation loss by epoch, and a validation metric on an axis of its own.

    Args:
        path: PNG file.
        history: Rows with `epoch`, `train_loss` and, where there was a validation, `metric` and `log_likelihood`.
        metric: Name of a metric between 0 and 1.
    """

    def draw(axes: Any, name: str, label: str, colour: str, sign: float = 1.0) -> None:
        points = [(row["epoch"], sign * row[name]) for row in history if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, label=label)

    figure, axes = _figure(6, 3.6)
    draw(axes, "train_loss", "training loss", COLOURS[0])
    draw(axes, "log_likelihood", "validation loss", COLOURS[1], -1.0)
    axes.set(xlabel="epoch", ylabel="loss", title="Training")
    # The first averages are far off and would hide the rest.
    axes.set_ylim(0, 1.5 * max(row["train_loss"] for row in history))
    axes.xaxis.get_major_locator().set_params(integer=True)
    other = axes.twinx()
    draw(other, metric, f"validation {metric}", COLOURS[2])
    other.set(ylabel=metric, ylim=(0.4 if metric == "auc" else 0.0, 1.0))
    figure.legend(loc="outside lower center", ncols=3)
    return save_figure(figure, path)
