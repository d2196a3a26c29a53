"""Marks of a drawing, as SVG that takes its colours from the page."""

from __future__ import annotations

from collections.abc import Sequence

from .markup import Markup, tag

Point = tuple[float, float]


def svg(label: str, width: float, height: float, *marks: Markup) -> Markup:
    """A drawing that scales with its column, with its alternative text."""
    return tag("svg", *marks, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)


def line(start: Point, end: Point, class_: str) -> Markup:
    """A straight line."""
    return path([start, end], class_)


def path(points: Sequence[Point], class_: str, *, closed: bool = False) -> Markup:
    """Straight pieces through points."""
    drawn = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", class_=class_, d=f"M{drawn}{'Z' if closed else ''}")


def text(at: Point, words: str, class_: str) -> Markup:
    """Words; ``end`` and ``middle`` in the class anchor them."""
    return tag("text", words, x=f"{at[0]:.1f}", y=f"{at[1]:.1f}", class_=class_)


def rect(at: Point, width: float, height: float, class_: str) -> Markup:
    """A box by its upper left corner."""
    return tag(
        "rect",
        x=f"{at[0]:.1f}",
        y=f"{at[1]:.1f}",
        width=f"{width:.1f}",
        height=f"{height:.1f}",
        class_=class_,
    )


def dot(at: Point, tone: str, title: str = "", *, radius: float = 4) -> Markup:
    """A point, with a title to hover over."""
    inside = [tag("title", title)] if title else []
    return tag("circle", *inside, cx=f"{at[0]:.1f}", cy=f"{at[1]:.1f}", r=f"{radius:g}", class_=f"dot {tone}")
