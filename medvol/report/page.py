"""A predicted case as one picture for a hospital's archive: three slices with outlines, volumes, and no names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.geometry import Affine
from medvol.report.overlays import STRUCTURES_IN_LEGEND, draw_view, outline_colours
from medvol.report.pictures import blank_figure
from medvol.report.views import cut_views

NOTICE = "Research use only. Not for clinical use."

_DPI = 120


def segmentation_page(
    title: str,
    image: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    affine: Affine,
    volumes_ml: Mapping[str, float],
) -> npt.NDArray[np.uint8]:
    """Return a page, shape (rows, columns, 3), without name or number of the case or the patient.

    Args:
        title: What made the labels.
        image: Shape (x, y, z).
        labels: Same shape; the n-th structure of `volumes_ml` is n.
        affine: Voxel index to RAS+ millimetres.
        volumes_ml: Millilitres by structure.
    """
    from matplotlib.lines import Line2D

    structures = {name: label for label, name in enumerate(volumes_ml, start=1)}
    nothing = np.broadcast_to(np.uint8(0), labels.shape)  # there is no truth to draw
    views = cut_views("", image, labels, nothing, affine, structures)
    names = list(structures)[:STRUCTURES_IN_LEGEND]
    colours = outline_colours(structures)
    figure = blank_figure(9.6, 4.2 + 0.2 * -(-len(names) // 4))
    for axes, view in zip(figure.subplots(1, 3), views.views, strict=True):
        draw_view(axes, view, structures, colours)
    low, high = views.window
    figure.suptitle(f"{title}    grey values {low:.4g} to {high:.4g}\n{NOTICE}", fontsize=10, x=0.01, ha="left")
    handles = [Line2D([], [], color=colours[name], lw=3, label=f"{name} {volumes_ml[name]:.4g} ml") for name in names]
    if len(structures) > len(names):
        handles.append(Line2D([], [], ls="", label=f"and {len(structures) - len(names)} more"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8)
    return _pixels(figure)


def _pixels(figure: Any) -> npt.NDArray[np.uint8]:
    figure.set_dpi(_DPI)
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[:, :, :3]
