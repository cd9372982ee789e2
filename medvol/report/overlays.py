"""Pictures of a segmentation: outlines on slices, and the Dice of every case. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.report.pictures import COLOURS, blank_figure, save_figure
from medvol.report.views import CaseViews, View, bar_length_mm

STRUCTURES_IN_LEGEND = 18
"""More names than this would leave no room for the slices."""

_ON_GREY = tuple(colour for colour in COLOURS if colour != "#000000")  # black does not show on an image
_EDGES = (
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.98, "center", "top"),
    (0.5, 0.02, "center", "bottom"),
)
_WHITE_ON_ANYTHING: dict[str, Any] = {
    "color": "white",
    "fontsize": 9,
    "bbox": {"facecolor": "black", "alpha": 0.55, "pad": 1, "linewidth": 0},
}


def draw_overlays(path: Path, rows: Sequence[tuple[str, CaseViews]], structures: Mapping[str, int]) -> Path:
    """Write one row of three slices per case: truth dashed, prediction solid, one colour per structure.

    Args:
        path: PNG file.
        rows: Heading and slices of each case.
        structures: Name to label.
    """
    from matplotlib.lines import Line2D

    figure = blank_figure(9.6, 3.3 * len(rows) + 0.5)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0] if len(rows) > 1 else [figure]
    colours = outline_colours(structures)
    shown: set[int] = set()
    for part, (heading, case) in zip(parts, rows, strict=True):
        for axes, view in zip(part.subplots(1, 3), case.views, strict=True):
            shown |= draw_view(axes, view, structures, colours)
        low, high = case.window
        part.suptitle(f"{heading}    grey values {low:.4g} to {high:.4g}", fontsize=10, x=0.01, ha="left")
    names = [name for name, label in structures.items() if label in shown]
    handles = [Line2D([], [], color="grey", label="prediction"), Line2D([], [], color="grey", ls="--", label="truth")]
    handles += [Line2D([], [], color=colours[name], label=name, lw=3) for name in names[:STRUCTURES_IN_LEGEND]]
    if len(names) > STRUCTURES_IN_LEGEND:
        handles.append(Line2D([], [], ls="", label=f"and {len(names) - STRUCTURES_IN_LEGEND} more"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8)
    return save_figure(figure, path)


def draw_dice_by_case(path: Path, dice: Mapping[str, Sequence[float]]) -> Path:
    """Write a strip per structure: a dot per case, a bar from the first to the third quartile, a line at the median.

    Args:
        path: PNG file.
        dice: Structure to the Dice of each case.
    """
    figure = blank_figure(6.4, 1.2 + 0.42 * len(dice))
    axes = figure.add_subplot()
    for place, values in enumerate(dice.values()):
        column = np.asarray(values, dtype=np.float64)
        # A fixed spread, so that the same numbers give the same picture.
        offsets = 0.28 * (((np.arange(len(column)) * 0.618) % 1) - 0.5)
        low, middle, high = np.percentile(column, [25, 50, 75])
        axes.barh(place, high - low, left=low, height=0.5, color=COLOURS[5], alpha=0.4)
        axes.plot([middle, middle], [place - 0.25, place + 0.25], color=COLOURS[1], lw=2)
        axes.scatter(column, place + offsets, s=9, color=COLOURS[0], alpha=0.7, linewidths=0)
    cases = len(next(iter(dice.values()), ()))
    axes.set_yticks(range(len(dice)), [f"{name}  {np.median(values):.3f}" for name, values in dice.items()])
    axes.set(xlabel="Dice", title=f"Dice of {cases} cases, median beside the name", xlim=(-0.02, 1.02))
    axes.set_ylim(len(dice) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    return save_figure(figure, path)


def outline_colours(structures: Iterable[str]) -> dict[str, str]:
    """Return the colour of each structure's outline; from the seventh on they come again."""
    return {name: _ON_GREY[index % len(_ON_GREY)] for index, name in enumerate(structures)}


def draw_view(axes: Any, view: View, structures: Mapping[str, int], colours: Mapping[str, str]) -> set[int]:
    """Draw one slice with its outlines, letters and a scale bar; return the labels on it."""
    axes.imshow(view.grey, cmap="gray", vmin=0, vmax=255, aspect=view.row_mm / view.column_mm, interpolation="nearest")
    shown = set()
    for name, label in structures.items():
        for labels, style, width in ((view.pred, "solid", 1.2), (view.truth, "dashed", 1.2)):
            mask = labels == label
            if mask.any():
                shown.add(label)
                _outline(axes, mask, colours[name], style, width)
    rows, columns = view.grey.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_title(view.plane, fontsize=8)
    axes.set_anchor("N")
    for letter, (x, y, across, down) in zip(view.letters, _EDGES, strict=False):
        axes.text(x, y, letter, transform=axes.transAxes, ha=across, va=down, **_WHITE_ON_ANYTHING)
    _scale_bar(axes, view)
    return shown


def _outline(axes: Any, mask: npt.NDArray[np.bool_], colour: str, style: str, width: float) -> None:
    # Padded, because an outline along the edge of the picture would stay open.
    padded = np.pad(mask, 1).astype(np.float32)
    rows, columns = (np.arange(side) - 1 for side in padded.shape)
    axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linestyles=[style], linewidths=[width])


def _scale_bar(axes: Any, view: View) -> None:
    if not view.letters:
        return
    width_mm = view.grey.shape[1] * view.column_mm
    length_mm = bar_length_mm(width_mm)
    start, end = 0.04, 0.04 + length_mm / width_mm
    axes.plot([start, end], [0.04, 0.04], transform=axes.transAxes, color="white", lw=2)
    axes.text(start, 0.06, f"{length_mm} mm", transform=axes.transAxes, va="bottom", **_WHITE_ON_ANYTHING)
