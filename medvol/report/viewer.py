"""Look through a volume in a notebook: three planes, outlines of masks, and sliders where the notebook has them.

A notebook shows the richest form of an output that it understands. So one output holds both a widget, which moves
where Jupyter runs and ipywidgets is installed, and a picture, which stays in a saved, rendered or printed notebook.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any, final

import numpy as np

from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.report.overlays import draw_view, outline_colours
from medvol.report.pictures import blank_figure
from medvol.report.views import LETTERS, PLANES, Array, View, turned, turned_steps_mm, upright

SLIDERS = ("left to right", "back to front", "feet to head")

WINDOW_PERCENT = (1.0, 99.5)
"""Of the grey values, where no window is given."""

DOTS_PER_INCH = 80


@final
@dataclass(frozen=True)
class Viewer:
    """A volume ready to be shown; the last line of a cell shows it.

    Args:
        grey: Shape (x, y, z), turned to the nearest RAS+ axes.
        pred: Labels drawn solid, same shape.
        truth: Labels drawn dashed, same shape.
        structures: Name to label.
        steps_mm: Spacing along the three axes.
        has_geometry: Whether right and left are known.
        window: Grey values that are black and white.
        middle: Slice of each axis that is shown first.
    """

    grey: Array = field(repr=False)
    pred: Array = field(repr=False)
    truth: Array = field(repr=False)
    structures: Mapping[str, int]
    steps_mm: tuple[float, float, float]
    has_geometry: bool
    window: tuple[float, float]
    middle: tuple[int, int, int]

    def figure(self, place: Sequence[int] | None = None) -> Any:
        """Return a matplotlib figure of the three planes through a voxel of the turned volume; the middle if None."""
        where = self.middle if place is None else place
        figure = blank_figure(9.0, 3.4)
        colours = outline_colours(self.structures)
        shown: set[int] = set()
        width_mm, depth_mm, _ = (side * step for side, step in zip(self.grey.shape, self.steps_mm, strict=True))
        panes = figure.subplots(1, 3, width_ratios=[width_mm, width_mm, depth_mm])
        for axes, (plane, axis) in zip(panes, PLANES.items(), strict=True):
            shown |= draw_view(axes, self.view(plane, where[axis]), self.structures, colours)
        present = [name for name, label in self.structures.items() if label in shown]
        if present:
            from matplotlib.lines import Line2D

            handles = [Line2D([], [], color=colours[name], label=name, lw=3) for name in present]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8)
        return figure

    def view(self, plane: str, index: int) -> View:
        """Return one slice, upright, its grey values as bytes."""
        axis = PLANES[plane]
        across, down = (other for other in range(3) if other != axis)
        low, high = self.window
        share = (upright(self.grey, axis, index).astype(np.float64) - low) / (high - low)
        return View(
            plane=f"{plane}, {index + 1} of {self.grey.shape[axis]}",
            grey=(255 * np.nan_to_num(share).clip(0, 1)).astype(np.uint8),
            pred=upright(self.pred, axis, index),
            truth=upright(self.truth, axis, index),
            row_mm=self.steps_mm[down],
            column_mm=self.steps_mm[across],
            letters=LETTERS[plane] if self.has_geometry else "",
        )

    def png(self, place: Sequence[int] | None = None) -> bytes:
        """Return the figure as the bytes of a PNG file."""
        stream = BytesIO()
        self.figure(place).savefig(stream, format="png", dpi=DOTS_PER_INCH)
        return stream.getvalue()

    def widget(self) -> Any:
        """Return an ipywidgets box of three sliders above the picture that they move; None without ipywidgets."""
        if find_spec("ipywidgets") is None:
            return None
        widgets = import_module("ipywidgets")
        picture = widgets.Image(value=self.png(), format="png")
        sliders = [
            widgets.IntSlider(
                value=first, min=0, max=side - 1, description=name, readout=False, continuous_update=False
            )
            for name, first, side in zip(SLIDERS, self.middle, self.grey.shape, strict=True)
        ]

        def draw(*place: int) -> None:
            picture.value = self.png(place)

        for slider in sliders:
            slider.style.description_width = "initial"
            slider.observe(lambda _: draw(*(one.value for one in sliders)), names="value")
        return widgets.VBox([widgets.HBox(sliders), picture])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Return what Jupyter shows: the widget where there is one, and the picture."""
        widget = self.widget()
        words = "{} x {} x {} voxels of {:.3g} x {:.3g} x {:.3g} mm".format(*self.grey.shape, *self.steps_mm)
        forms: dict[str, Any] = {} if widget is None else dict(widget._repr_mimebundle_())
        return forms | {"image/png": b64encode(self.png()).decode("ascii"), "text/plain": words}


def view(
    volume: Volume,
    mask: Volume | None = None,
    *,
    truth: Volume | None = None,
    structures: Mapping[str, int] | None = None,
    window: tuple[float, float] | None = None,
) -> Viewer:
    """Return a viewer of a volume, in true proportions and with the letters of the patient's sides.

    Args:
        volume: Shape (x, y, z).
        mask: Labels on the volume's grid, outlined solid.
        truth: Labels on the volume's grid, outlined dashed.
        structures: Name to label; None names each label by its number.
        window: Grey values that are black and white, e.g. (-160, 240) for soft tissue in CT; None for percentiles.

    Raises:
        MedvolError: `BAD_ARGUMENT` for a volume that is not 3D, a mask of another shape or a window without width.
    """
    affine = volume.affine if volume.has_geometry else None
    if volume.array.ndim != 3:
        raise MedvolError("BAD_ARGUMENT", found=f"an array of shape {volume.array.shape}", expected="(x, y, z)")
    low, high = np.nanpercentile(volume.array.astype(np.float64), WINDOW_PERCENT) if window is None else window
    if window is not None and not high > low:
        raise MedvolError("BAD_ARGUMENT", found=f"window {window}", expected="the lower grey value first")
    labels = [_on_grid(one, volume) for one in (mask, truth)]
    known = structures
    if known is None:
        values = np.unique(np.concatenate([np.unique(one) for one in labels]))
        known = {str(value): int(value) for value in values if value}
    grey, pred, true = (turned(array, affine) for array in (np.asarray(volume.array), *labels))
    return Viewer(
        grey=grey,
        pred=pred,
        truth=true,
        structures=dict(known),
        steps_mm=turned_steps_mm(affine),
        has_geometry=volume.has_geometry,
        window=(float(low), float(high) if high > low else float(low) + 1.0),
        middle=_middle(np.where(pred != 0, pred, true)),
    )


def _on_grid(mask: Volume | None, volume: Volume) -> Array:
    """Return the labels of a mask, all 0 for None; refuse those of another grid."""
    if mask is None:
        return np.zeros(volume.array.shape, dtype=np.uint8)
    if mask.array.shape != volume.array.shape or not np.allclose(mask.affine, volume.affine, atol=1e-3):
        raise MedvolError(
            "BAD_ARGUMENT",
            found=f"a mask of shape {mask.array.shape} on another grid than the volume's {volume.array.shape}",
            expected="one grid",
            fix="resample the mask",
        )
    return np.asarray(mask.array)


def _middle(labels: Array) -> tuple[int, int, int]:
    """Return the slice of each axis with most of the largest structure; the middle one without a structure."""
    counts = np.bincount(labels.ravel().astype(np.int64))[1:]
    if not counts.any():
        x, y, z = (side // 2 for side in labels.shape)
        return x, y, z
    largest = labels == counts.argmax() + 1
    x, y, z = (int(largest.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))
    return x, y, z
