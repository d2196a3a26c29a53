"""Drawings of derived cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hwnas.space.genotype import ONLY

from .markup import Markup, join, tag
from .svg import dot, line, rect, svg, text

TOP, ROW, BOX = 34, 26, 18
"""Where the first edge is drawn, from one to the next, height of an operator's box."""

FIRST, COLUMN, NARROW = 30, 76, 62
"""First node, from one to the next, width of a box that fits between neighbours."""

NAMES = {0: "cell −2", 1: "cell −1"}
"""Nodes from outside a cell of DARTS; others have their number."""

OUTSIDE = {0: "the cell before the last", 1: "the last cell"}
"""The same in a sentence."""

INPUT = {0: "input"}
"""The node from outside the only cell of a space."""

SHORT = {
    "skip_connect": "skip",
    "sep_conv": "sep",
    "dil_conv": "dil",
    "max_pool": "max",
    "avg_pool": "avg",
    "nor_conv": "conv",
}

Edge = Mapping[str, Any]


def titled(kind: str) -> str:
    """What a kind of cell is called, or a cell that shares nothing with others."""
    if kind == ONLY:
        return "The cell"
    return f"Cell {kind.removeprefix('cell')}" if kind.startswith("cell") else f"The {kind} cell"


def cell(kind: str, edges: Sequence[Edge]) -> Markup:
    """One cell as a graph: a line down a node, from where its edges are added up to where it is used last.

    Every edge has a row, from a dot on its source to its target, with its operator in between; a larger kernel has
    the stronger colour. At the bottom comes out the only cell's last node, or of others all nodes that have edges of
    their own, joined.

    Args:
        kind: Of the cell.
        edges: With ``source``, ``target`` and ``option``, by target.
    """
    inner, names = sorted({edge["target"] for edge in edges}), INPUT if kind == ONLY else NAMES
    joined = inner[-1:] if kind == ONLY else inner
    bottom = TOP + ROW * len(edges)
    marks, width = list[Markup](), FIRST + COLUMN * max(inner) + FIRST
    for node in sorted({edge["source"] for edge in edges} | {*inner}):
        rows = [TOP + ROW * row for row, edge in enumerate(edges) if node in (edge["source"], edge["target"])]
        first, last = (rows[0] if node in inner else TOP - 14), (bottom if node in joined else rows[-1])
        marks.append(line((_x(node), first), (_x(node), last), "flow"))
        named = ((_x(node) + 5, first + 4), str(node), "name")
        marks.append(text(*named) if node in inner else text((_x(node), first - 8), names[node], "name middle"))
    for row, edge in enumerate(edges):
        marks += _edge(edge, TOP + ROW * row)
    marks.append(line((_x(joined[0]), bottom), (_x(joined[-1]), bottom), "flow"))
    marks += [dot((_x(node), bottom), "c", radius=2.5) for node in joined]
    marks.append(text((_x(joined[-1]), bottom + 18), "output" if kind == ONLY else "joined", "name end"))
    return svg(f"{titled(kind)}: {'; '.join(_said(edge, kind) for edge in edges)}.", width, bottom + 26, *marks)


def genotype(printed: str) -> Markup:
    """The cells as the literature prints them."""
    return tag("pre", tag("code", *(join([tag("span", part), " "]) for part in _parts(printed))))


def _edge(edge: Edge, y: float) -> list[Markup]:
    start, end = _x(edge["source"]), _x(edge["target"])
    middle = end - COLUMN / 2  # next to the target, where no line of an earlier node is in the way
    kernel = edge["option"].rpartition("_")[2][:1]
    look = f"box k{kernel}" if kernel.isdigit() else "skipped"
    return [
        line((start, y), (end, y), "flow"),
        dot((start, y), "c", radius=2.5),
        rect((middle - NARROW / 2, y - BOX / 2), NARROW, BOX, "page"),
        rect((middle - NARROW / 2, y - BOX / 2), NARROW, BOX, look),
        text((middle, y + 4), _words(edge), "op middle"),
    ]


def _words(edge: Edge) -> str:
    name, _, size = edge["option"].rpartition("_")
    if size[:1].isdigit():
        return f"{SHORT.get(name, name)} {size.replace('x', '×')}"
    return SHORT.get(edge["option"], str(edge["option"]))


def _said(edge: Edge, kind: str) -> str:
    source = ({0: "the input"} if kind == ONLY else OUTSIDE).get(edge["source"], f"node {edge['source']}")
    return f"node {edge['target']} adds {_words(edge)} of {source}"


def _x(node: int) -> float:
    return FIRST + COLUMN * node


def _parts(printed: str) -> list[str]:
    """Pieces that stay together when the line breaks."""
    pieces = printed.replace("), (", "),\n(").replace("], ", "],\n").split("\n")
    return [piece.strip() for piece in pieces]
