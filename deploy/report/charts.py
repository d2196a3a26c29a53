"""Charts as SVG in the page's own colours: curves and a scatter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .markup import Markup
from .numbers import decimals, fixed, percent, scientific
from .svg import Point, dot, line, path, svg, text

Text = Callable[[float, int], str]
"""A number with that many decimal places."""

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 40

MOST_PLACES = 4
"""Decimal places that have room to the left of a chart."""

ALIKE = 1e-3
"""Share of a value that it may change by and is drawn as if it did not: no tick beside the axis would tell."""

SMOOTHING = 20
"""The thick curve is a running mean over one part in this many of the points."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Args:
        name: For the legend and the alternative text.
        points: In order of x.
        tone: CSS class that colours it.
        noisy: Draw the points thin and their running mean thick.
    """

    name: str
    points: Sequence[Point]
    tone: str = "a"
    noisy: bool = False


@dataclass(frozen=True)
class Axes:
    """From data to the drawing's coordinates, in a frame of the size of a chart."""

    x: Point
    y: Point

    @classmethod
    def around(
        cls, points: Sequence[Point], *, also_x: Sequence[float] = (), also_y: Sequence[float] = (), aside: float = 0
    ) -> Axes:
        """Axes that hold all points, with a little air above and below, and that share of the width aside."""
        xs, ys = [*(p[0] for p in points), *also_x], [*(p[1] for p in points), *also_y]
        return cls(_span(min(xs), max(xs), aside), _span(min(ys), max(ys), 0.06, alike=ALIKE))

    def place(self, point: Point) -> Point:
        """Coordinates of a point; y grows downwards."""
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def draw(self, x_label: str, y_text: Text, *, whole: bool = False) -> list[Markup]:
        """Grid, ticks and the name of the x axis, on which only whole numbers may count; y has the figure's title."""
        marks, base, right = [], HEIGHT - BOTTOM, WIDTH - RIGHT
        rows, columns = ticks(*self.y), [x for x in ticks(*self.x) if not whole or x.is_integer()]
        places = 0 if whole else _places(columns)
        for value in rows:
            _, y = self.place((self.x[0], value))
            marks += [
                line((LEFT, y), (right, y), "grid"),
                text((LEFT - 6, y + 4), _tick(value, _places(rows), y_text), "tick end"),
            ]
        for value in columns:
            x, _ = self.place((value, self.y[0]))
            anchor = "end" if x > right - 12 else "middle"
            marks += [
                line((x, base), (x, base + 4), "axis"),
                text((x, base + 17), fixed(value, places), f"tick {anchor}"),
            ]
        marks.append(line((LEFT, base), (right, base), "axis"))
        return [*marks, text(((LEFT + right) / 2, HEIGHT - 6), x_label, "tick middle")]


def curves(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_text: Text = fixed,
    reference: float | None = None,
    also_x: Sequence[float] = (),
) -> Markup:
    """Curves over steps or epochs, with a dashed line at the reference if there is one.

    Args:
        series: At least one of them with points.
        label: Begins the alternative text.
        x_label: Name of the x axis.
        y_text: Numbers of the y axis; those with many zeros after the point are written as powers of ten.
        reference: Where the line is.
        also_x: What the x axis has to hold besides the points.
    """
    drawn = [each for each in series if each.points]
    points = [p for each in drawn for p in each.points]
    axes = Axes.around(points, also_x=also_x, also_y=[] if reference is None else [reference])
    marks = axes.draw(x_label, y_text, whole=True)
    for each in drawn:
        placed = [axes.place(p) for p in each.points]
        if each.noisy:
            marks.append(path(placed, f"raw {each.tone}"))
            placed = [axes.place(p) for p in smooth(each.points)]
        marks.append(path(placed, f"curve {each.tone}"))
        if len(placed) == 1:
            marks.append(dot(placed[0], each.tone))
    if reference is not None:
        marks.append(path([axes.place((x, reference)) for x in axes.x], "target"))
    said = "; ".join(f"{each.name} {_course(each.points, y_text)}" for each in drawn)
    return svg(f"{label}: {said}.", WIDTH, HEIGHT, *marks)


def scatter(groups: Sequence[Series], *, label: str, x_label: str) -> Markup:
    """Points against the diagonal, both axes with one scale; the label says the key figures."""
    values = [v for group in groups for p in group.points for v in p]
    span = _span(min(values), max(values), 0.08)
    axes = Axes(span, span)
    marks = axes.draw(x_label, fixed)
    marks.append(line(axes.place((span[0], span[0])), axes.place((span[1], span[1])), "target"))
    for group in groups:
        for p in group.points:
            marks.append(dot(axes.place(p), group.tone, f"{group.name}: {p[0]:.4g}, {p[1]:.4g}"))
    return svg(label, WIDTH, HEIGHT, *marks)


def tradeoff(groups: Sequence[Series], *, label: str, x_label: str, target: float) -> Markup:
    """Shares against latency, each group over the one before; a line joins the group of tone ``a``.

    Args:
        groups: At least one of them with points, x in milliseconds, y from 0 to 1.
        label: The alternative text.
        x_label: Name of the x axis.
        target: Latency where the vertical line is.
    """
    axes = Axes.around([p for group in groups for p in group.points], also_x=[target], aside=0.04)
    marks = axes.draw(x_label, lambda share, places: percent(share, max(0, places - 2)))
    marks.append(path([axes.place((target, y)) for y in axes.y], "target"))
    for group in groups:
        placed = [axes.place(p) for p in group.points]
        if group.tone == "a" and placed:
            marks.append(path(placed, "curve a"))
        radius = {"d": 2.5, "b": 5}.get(group.tone, 4)
        marks += [
            dot(at, group.tone, f"{group.name}: {x:.4g} ms, {percent(y)}", radius=radius)
            for at, (x, y) in zip(placed, group.points, strict=True)
        ]
    return svg(label, WIDTH, HEIGHT, *marks)


def ticks(low: float, high: float, *, count: int = 6) -> list[float]:
    """Round values between two bounds, at most about ``count`` of them.

    Example:
        >>> ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Running mean, centred, over fewer points towards the ends."""
    window = max(1, len(points) // SMOOTHING)
    kernel, ys = np.ones(window), np.asarray([y for _, y in points])
    means = np.convolve(ys, kernel, "same") / np.convolve(np.ones_like(ys), kernel, "same")
    return [(x, float(y)) for (x, _), y in zip(points, means, strict=True)]


def _places(values: Sequence[float]) -> int:
    """Decimal places that tell ticks apart."""
    return decimals(round(values[1] - values[0], 12), digits=1) if len(values) > 1 else 3


def _tick(value: float, places: int, text: Text) -> str:
    """A number that fits beside the axis."""
    return scientific(value) if places > MOST_PLACES else text(value, places)


def _course(points: Sequence[Point], text: Text) -> str:
    """Where a curve starts and ends, in words."""
    first, last = points[0][1], points[-1][1]
    places = decimals(max(abs(first), abs(last)))
    return f"from {text(first, places)} to {text(last, places)}"


def _span(low: float, high: float, air: float, *, alike: float = 1e-9) -> Point:
    width = high - low
    if width <= alike * max(abs(low), abs(high)):
        width, air = abs(high) or 1.0, 0.5
    return low - air * width, high + air * width
