"""Charts of the report as SVG text: they follow the page's colours, print sharply and need no library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medvol.report.html_page import number, text

Point = tuple[float, float]

WIDTH, HEIGHT = 330.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 10.0, 40.0
COLOURS = 6
MOST_CURVE_POINTS = 400
"""More would not be seen at this size; the ROC curve of ten thousand cases stays a few kilobytes."""


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour.

    Args:
        label: In the legend, unescaped; '' leaves it out there.
        points: In the units of the axes.
        colour: Number of the colour, or `x` for grey and dashed.
        line: Whether the points are joined.
        radii: Radius of a dot at each point; empty draws none.
    """

    label: str
    points: Sequence[Point]
    colour: int | str = 0
    line: bool = True
    radii: Sequence[float] = ()

    @property
    def name(self) -> str:
        """Suffix of the style classes."""
        return str(self.colour % COLOURS if isinstance(self.colour, int) else self.colour)


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Args:
        label: With its unit, unescaped.
        low: Value at its start.
        high: Value at its end.
        whole: Whether ticks are whole numbers.
    """

    label: str
    low: float
    high: float
    whole: bool = False

    def ticks(self) -> list[float]:
        """Return about five round values."""
        span = self.high - self.low
        raw = span / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
        if self.whole:
            step = max(1.0, float(round(step)))
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis_over(label: str, values: Sequence[float]) -> Axis:
    """Return an axis that spans the values with a margin of 5 %.

    Args:
        label: With its unit.
        values: What must fit; values that are not finite are left out.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    margin = 0.05 * (high - low) or max(0.5, 0.05 * abs(high))
    return Axis(label, low - margin, high + margin)


def chart(title: str, series: Sequence[Series], x: Axis, y: Axis, *, says: str = "") -> str:
    """Return a figure with axes, curves, dots and a legend.

    Args:
        title: Caption, unescaped; also what a screen reader says.
        series: Drawn in their order.
        x: Horizontal axis.
        y: Vertical axis.
        says: A sentence below, unescaped.
    """

    def place(point: Point) -> Point:
        across = (point[0] - x.low) / (x.high - x.low)
        up = (point[1] - y.low) / (y.high - y.low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(x, y)]
    for one in series:
        points = [place(point) for point in _thinned(one.points) if all(map(math.isfinite, point))]
        if one.line and len(points) > 1:
            path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
            parts.append(f'<polyline class="curve s{one.name}" points="{path}"/>')
        dots = zip(one.points, one.radii, strict=False)
        for across, down, radius in ((*place(point), size) for point, size in dots if all(map(math.isfinite, point))):
            circle = f'cx="{across:.1f}" cy="{down:.1f}" r="{radius:.1f}"'
            parts.append(f'<circle class="f{one.name}" fill-opacity=".75" {circle}/>')
    return _figure(title, HEIGHT, parts, legend(series) + (f"<figcaption>{text(says)}</figcaption>" if says else ""))


def legend(series: Sequence[Series]) -> str:
    """Return the list of names with their colours; nothing for a single series without a name."""
    items = []
    for one in (one for one in series if one.label):
        line = f'<path class="s{one.name}" stroke-width="3" d="M0 6H24"/>'
        dot = f'<circle class="f{one.name}" cx="12" cy="6" r="4.5"/>'
        items.append(
            f'<li><svg viewBox="0 0 24 11" aria-hidden="true">{line if one.line else dot}</svg>{text(one.label)}</li>'
        )
    return f'<ul class="key">{"".join(items)}</ul>' if items else ""


def forest(value: float | None, bounds: Sequence[float | None], baseline: float | None, axis: Axis) -> str:
    """Return a small drawing of a value with its interval, the baseline as a tick."""
    width, height = 150.0, 18.0

    def at(one: float) -> float:
        return 3 + (min(max(one, axis.low), axis.high) - axis.low) / (axis.high - axis.low) * (width - 6)

    parts = [f'<path class="axis" d="M3 9H{width - 3:g}"/>']
    low, high = bounds
    if low is not None and high is not None:
        parts.append(f'<path class="s0" stroke-width="3" d="M{at(low):.1f} 9H{at(high):.1f}"/>')
    if baseline is not None:
        parts.append(f'<path class="s1" stroke-width="2" d="M{at(baseline):.1f} 2V16"/>')
    if value is not None:
        parts.append(f'<circle class="f0" cx="{at(value):.1f}" cy="9" r="4.5"/>')
    return f'<svg class="forest" width="{width:g}" height="{height:g}" aria-hidden="true">{"".join(parts)}</svg>'


def strips(title: str, rows: Mapping[str, Sequence[float]], axis: Axis) -> str:
    """Return a row per name with a dot per value, the middle half shaded and the median marked."""
    step, left = 26.0, 118.0
    height = step * len(rows) + 34

    def at(value: float) -> float:
        return left + (value - axis.low) / (axis.high - axis.low) * (WIDTH - left - RIGHT)

    parts = []
    for tick in axis.ticks():
        parts.append(f'<path class="axis" d="M{at(tick):.1f} 2V{height - 32:.0f}"/>')
        parts.append(_word(at(tick), height - 18, f"{tick:.3g}", kind="soft"))
    for index, (name, values) in enumerate(rows.items()):
        ordered, middle = sorted(values), step * (index + 0.5) + 2
        low, median, high = (_quantile(ordered, share) for share in (0.25, 0.5, 0.75))
        parts.append(
            f'<rect class="f5" fill-opacity=".35" x="{at(low):.1f}" y="{middle - 8:.1f}" '
            f'width="{max(1.0, at(high) - at(low)):.1f}" height="16"/>'
        )
        for place, value in enumerate(values):
            # A fixed spread, so that the same numbers give the same picture.
            down = middle + 11 * ((place * 0.618) % 1 - 0.5)
            parts.append(f'<circle class="f0" fill-opacity=".6" cx="{at(value):.1f}" cy="{down:.1f}" r="2.2"/>')
        parts.append(f'<path class="s1" stroke-width="2.5" d="M{at(median):.1f} {middle - 9:.1f}v18"/>')
        shown = name if len(name) <= 18 else name[:17] + "…"
        parts.append(_word(left - 8, middle + 4, shown, "end"))
    parts.append(_word((left + WIDTH) / 2, height - 3, axis.label, kind="soft"))
    return _figure(title, height, parts)


def bars(title: str, rows: Mapping[str, tuple[float, Sequence[float]]], axis: Axis) -> str:
    """Return a horizontal bar per name with the interval as a line.

    Args:
        title: Caption, unescaped.
        rows: Name to value and bounds.
        axis: From below the lowest bound to above the highest.
    """
    step, left = 24.0, 128.0
    height = step * len(rows) + 34

    def at(value: float) -> float:
        return left + (min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low) * (
            WIDTH - left - RIGHT
        )

    parts = [f'<path class="axis" d="M{at(0):.1f} 0V{height - 32:.0f}"/>']
    for tick in axis.ticks():
        parts.append(_word(at(tick), height - 18, f"{tick:.3g}", kind="soft"))
    for index, (name, (value, bounds)) in enumerate(rows.items()):
        middle, start, end = step * (index + 0.5), min(at(0), at(value)), max(at(0), at(value))
        parts.append(
            f'<rect class="f0" fill-opacity=".55" x="{start:.1f}" y="{middle - 7:.1f}" '
            f'width="{end - start:.1f}" height="14"/>'
        )
        parts.append(f'<path class="s1" stroke-width="2" d="M{at(bounds[0]):.1f} {middle:.1f}H{at(bounds[1]):.1f}"/>')
        shown = name if len(name) <= 20 else name[:19] + "…"
        parts.append(_word(left - 8, middle + 4, shown, "end"))
    parts.append(_word((left + WIDTH) / 2, height - 3, axis.label, kind="soft"))
    return _figure(title, height, parts)


def _word(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(words)}</text>'


def _figure(title: str, height: float, parts: Sequence[str], below: str = "") -> str:
    label, inside = text(title), "".join(parts)
    drawing = f'<svg viewBox="0 0 {WIDTH:g} {height:.0f}" role="img" aria-label="{label}">{inside}</svg>'
    return f'<figure class="chart"><h3>{label}</h3>{drawing}{below}</figure>'


def _axes(x: Axis, y: Axis) -> str:
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{right}"/>']
    for tick in x.ticks():
        across = LEFT + (tick - x.low) / (x.high - x.low) * (right - LEFT)
        parts.append(
            f'<text class="soft" x="{across:.1f}" y="{floor + 15:g}" text-anchor="middle">{_tick(tick)}</text>'
        )
    for tick in y.ticks():
        down = floor - (tick - y.low) / (y.high - y.low) * (floor - TOP)
        parts.append(f'<path class="axis" stroke-opacity=".5" d="M{LEFT} {down:.1f}H{right}"/>')
        parts.append(_word(LEFT - 6, down + 4, _tick(tick), "end", "soft"))
    parts.append(_word((LEFT + right) / 2, HEIGHT - 6, x.label))
    middle = (TOP + floor) / 2
    parts.append(f'<text transform="translate(11 {middle:g}) rotate(-90)" text-anchor="middle">{text(y.label)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return number(value, 0) if abs(value) >= 1000 else f"{value:.4g}"


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= MOST_CURVE_POINTS:
        return points
    chosen = sorted({round(index * (len(points) - 1) / (MOST_CURVE_POINTS - 1)) for index in range(MOST_CURVE_POINTS)})
    return [points[index] for index in chosen]


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
