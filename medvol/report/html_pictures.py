"""Slices of a case as the report shows them: pixels as a data URI, and over them outlines, letters and a scale bar."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol.report.html_page import text
from medvol.report.views import View, bar_length_mm

Array = npt.NDArray[Any]

LONG_SIDE = 200.0
"""Units of a picture's side; letters and lines are sized in them."""

MOST_PIXELS = 384
"""Along a side of an embedded picture: six cases of six pictures stay below 3 MB."""

STRUCTURE_COLOURS = ("#56B4E9", "#E69F00", "#3fd0a2", "#F0E442", "#CC79A7", "#ff7a45")
"""Okabe and Ito's palette, the darker ones lightened to show on a grey image."""

_HEAT = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)
"""matplotlib's inferno at eight places: lightness rises evenly, so that it reads without colours too."""

_LARGEST_OPACITY = 0.7


@dataclass(frozen=True)
class CasePicture:
    """A case with its slices.

    Args:
        kind: `best`, `median`, `uncertain` or `worst`.
        case: Name.
        says: What the numbers of the case are.
        views: Slices.
        heats: Heat of each slice from 0 to 1, shape of its grey values; empty without a heat map.
        about: What the pictures show: window, method, class.
    """

    kind: str
    case: str
    says: str
    views: tuple[View, ...]
    heats: tuple[Array, ...] = ()
    about: str = ""


def slice_figure(
    view: View, side_mm: float, *, heat: Array | None = None, structures: Mapping[str, int] | None = None
) -> str:
    """Return one slice in the middle of a black square, so that the slices of a case share their scale.

    Args:
        view: Grey values of shape (rows, columns), or colours (rows, columns, 3); its labels are outlined.
        side_mm: Side of the square.
        heat: From 0 to 1, laid over the slice.
        structures: Name to label of what is outlined.
    """
    rows, columns = view.grey.shape[:2]
    scale = LONG_SIDE / side_mm
    width, height = columns * view.column_mm * scale, rows * view.row_mm * scale
    left, top = (LONG_SIDE - width) / 2, (LONG_SIDE - height) / 2
    pixels = view.grey if heat is None else _heated(view.grey, heat)
    parts = [
        f'<g transform="translate({left:.1f} {top:.1f})"><image href="{_data_uri(pixels)}" width="{width:.1f}" '
        f'height="{height:.1f}" preserveAspectRatio="none" image-rendering="pixelated"/>',
        *_outlines(view, structures or {}, width / columns, height / rows),
        "</g>",
        *_letters(view.letters),
    ]
    if view.letters:
        parts.append(_scale_bar(scale))
    name = text(f"{view.plane}, heat map" if heat is not None else view.plane)
    drawing = f'<svg viewBox="0 0 {LONG_SIDE:g} {LONG_SIDE:g}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return f"<figure>{drawing}<figcaption>{name}</figcaption></figure>"


def case_card(picture: CasePicture, structures: Mapping[str, int] | None = None) -> str:
    """Return the frame of a case: its name, what its numbers say, its slices, and the same with the heat map."""
    kinds = {"best": "good", "median": "mid", "uncertain": "mid", "worst": "bad"}
    tag = f'<span class="tag {kinds.get(picture.kind, "mid")}">{text(picture.kind)}</span>'
    sides = [max(v.grey.shape[0] * v.row_mm, v.grey.shape[1] * v.column_mm) for v in picture.views]
    side_mm = max(sides, default=1.0)
    figures = [slice_figure(view, side_mm, structures=structures) for view in picture.views]
    figures += [
        slice_figure(view, side_mm, heat=heat) for view, heat in zip(picture.views, picture.heats, strict=False)
    ]
    shape = "slices one" if len(picture.views) == 1 else "slices"
    shown = f'<div class="{shape}">{"".join(figures)}</div>' if figures else ""
    return (
        f'<article class="case"><h3>{tag}{text(picture.case)}</h3><p>{text(picture.says)}</p>{shown}'
        f"<small>{text(picture.about)}</small></article>"
    )


def structure_legend(structures: Sequence[str]) -> str:
    """Return the list of structures with the colours of their outlines; solid is the prediction, dashed the truth."""
    items = [_legend_item("currentColor", "prediction"), _legend_item("currentColor", "truth", "4 3")]
    items += [_legend_item(_colour(index), name) for index, name in enumerate(structures)]
    return f'<ul class="key">{"".join(items)}</ul>'


def outline_path(mask: npt.NDArray[np.bool_]) -> str:
    """Return the border of a mask along the edges of its pixels as an SVG path, unit = pixel, closed loops.

    Nothing is smoothed: what is outlined is what was measured.
    """
    onwards: dict[tuple[int, int], list[tuple[int, int]]] = {}
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # Walked with the mask on the right, so that the loops close: neighbour outside, start and end of the edge.
    for outside, start, end in (
        (~padded[:-2, 1:-1], (0, 0), (0, 1)),
        (~padded[1:-1, 2:], (0, 1), (1, 1)),
        (~padded[2:, 1:-1], (1, 1), (1, 0)),
        (~padded[1:-1, :-2], (1, 0), (0, 0)),
    ):
        for row, column in np.argwhere(inside & outside).tolist():
            onwards.setdefault((row + start[0], column + start[1]), []).append((row + end[0], column + end[1]))
    loops = []
    while onwards:
        point = next(iter(onwards))
        loop = [point]
        while point in onwards:
            ends = onwards[point]
            following = ends.pop()
            if not ends:
                del onwards[point]
            point = following
            loop.append(point)
        loops.append("M" + "L".join(f"{column} {row}" for row, column in _corners(loop)) + "Z")
    return "".join(loops)


def _corners(loop: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out the points in the middle of straight lines."""
    closed = loop[:-1]
    return [
        point
        for before, point, after in zip([closed[-1], *closed[:-1]], closed, [*closed[1:], closed[0]], strict=True)
        if not (before[0] == point[0] == after[0] or before[1] == point[1] == after[1])
    ]


def _outlines(view: View, structures: Mapping[str, int], across: float, down: float) -> list[str]:
    parts = []
    for index, label in enumerate(structures.values()):
        for labels, dashes in ((view.truth, ' stroke-dasharray="4 3"'), (view.pred, "")):
            mask = labels == label
            if mask.any():
                parts.append(
                    f'<path d="{outline_path(mask)}" transform="scale({across:.4f} {down:.4f})" fill="none" '
                    f'stroke="{_colour(index)}" stroke-width="1.6" vector-effect="non-scaling-stroke"{dashes}/>'
                )
    return parts


def _letters(letters: str) -> list[str]:
    middle, end = LONG_SIDE / 2, LONG_SIDE - 4
    places = (
        (4.0, middle + 6, "start"),
        (end, middle + 6, "end"),
        (middle, 16.0, "middle"),
        (middle, end - 1, "middle"),
    )
    return [
        f'<text class="letter" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(letter)}</text>'
        for letter, (x, y, anchor) in zip(letters, places, strict=False)
    ]


def _scale_bar(scale: float) -> str:
    length_mm = bar_length_mm(LONG_SIDE / scale)
    end, floor = 6 + length_mm * scale, LONG_SIDE - 6
    return (
        f'<path d="M6 {floor:.1f}H{end:.1f}" stroke="#000" stroke-width="5"/>'
        f'<path d="M6 {floor:.1f}H{end:.1f}" stroke="#fff" stroke-width="3"/>'
        f'<text class="letter small" x="6" y="{floor - 5:.1f}">{length_mm} mm</text>'
    )


def _heated(grey: Array, heat: Array) -> Array:
    """Return colours: the hotter, the less of the image is left."""
    base = (grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)).astype(np.float64)
    share = np.clip(np.nan_to_num(heat), 0, 1)
    places = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(share, places, _HEAT[:, channel]) for channel in range(3)], axis=2)
    opacity = _LARGEST_OPACITY * np.sqrt(share)[..., None]
    return np.asarray((base * (1 - opacity) + colours * opacity).round().astype(np.uint8))


def _data_uri(pixels: Array) -> str:
    from PIL import Image

    step = -(-max(pixels.shape[:2]) // MOST_PIXELS)
    image, stream = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step])), BytesIO()
    # A photograph of many pixels is a tenth of the size as JPEG; few pixels, shown enlarged, stay exact.
    kind = "jpeg" if pixels.ndim == 3 and pixels[::step, ::step].size > 60_000 else "png"
    image.save(stream, format=kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _colour(index: int) -> str:
    return STRUCTURE_COLOURS[index % len(STRUCTURE_COLOURS)]


def _legend_item(colour: str, name: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    line = f'<path d="M0 6H24" stroke="{colour}" stroke-width="3"{dashed}/>'
    return f'<li><svg viewBox="0 0 24 11" aria-hidden="true">{line}</svg>{text(name)}</li>'
