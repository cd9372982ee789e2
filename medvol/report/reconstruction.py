"""Pictures of a masked-volume pretraining: what was hidden and what was made of it, and the losses. Extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.report.pictures import COLOURS, blank_figure, save_figure

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Reconstruction:
    """A volume with what was hidden of it, each (x, y, z) of one channel, in RAS order where there is a geometry.

    Args:
        case: Name.
        volume: Normalised grey values.
        hidden: True where the encoder saw nothing.
        predicted: What the decoder made of the rest.
    """

    case: str
    volume: Array
    hidden: npt.NDArray[np.bool_]
    predicted: Array


def draw_reconstructions(path: Path, rows: Sequence[Reconstruction], *, has_geometry: bool) -> Path:
    """Write the middle slice along z of each volume: itself, what was visible, and the hidden part filled in.

    Args:
        path: PNG file.
        rows: Volumes.
        has_geometry: Whether the axes are known to run to the right, to the front and to the head.
    """
    figure = blank_figure(7.5, 2.6 * len(rows) + 0.6)
    for axes, row in zip(figure.subplots(len(rows), 3, squeeze=False), rows, strict=True):
        z = row.volume.shape[2] // 2
        low, high = (float(value) for value in np.percentile(row.volume[:, :, z], (1, 99)))
        high = high if high > low else low + 1.0
        images = {
            row.case: row.volume,
            f"visible, {1 - row.hidden.mean():.0%} of the volume": np.where(row.hidden, np.nan, row.volume),
            "hidden part filled in": np.where(row.hidden, row.predicted, row.volume),
        }
        for one, (title, image) in zip(axes, images.items(), strict=True):
            # Rows downwards, so that front is up and the patient's right at the left edge.
            one.imshow(image[::-1, ::-1, z].T, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            one.set(xticks=[], yticks=[], facecolor=COLOURS[0])
            one.set_title(title, fontsize=8)
        if has_geometry:
            axes[0].set_ylabel("R", rotation=0, labelpad=8)
            axes[0].set_xlabel("P")
        axes[2].set_xlabel(f"normalised grey values {low:.2g} to {high:.2g}", fontsize=7)
    return save_figure(figure, path)


def draw_losses(path: Path, history: Sequence[Mapping[str, float]]) -> Path:
    """Write the error on hidden voxels by epoch, in training and validation.

    Args:
        path: PNG file.
        history: Rows with `epoch`, `train_loss` and, where there was a validation, `val_loss`.
    """
    figure = blank_figure(6, 3.6)
    axes = figure.add_subplot()
    for name, label, colour in (("train_loss", "training", COLOURS[0]), ("val_loss", "validation", COLOURS[1])):
        points = [(row["epoch"], row[name]) for row in history if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, label=label)
    axes.set(xlabel="epoch", ylabel="mean squared error of hidden voxels", title="Masked-volume pretraining")
    axes.set_ylim(0, 1.2 * max(row["train_loss"] for row in history))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return save_figure(figure, path)
