"""Drawings of the network and bars of latency."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .markup import Markup, tag
from .numbers import decimals, ms, percent
from .svg import dot, line, path, rect, svg, text

WIDTH = 400
ROW, BOX = 30, 22
NAMES, CENTRE, ARC = 92, 200, 306
"""Columns of the drawing: names end, middle of the boxes, residual connections."""

NARROW, WIDE, TAPER = 168, 200, 7
"""Width of a box without and with the largest expansion; how much a strided box tapers on each side."""

ROOM = 130
"""Width that the name of the target needs to the left of its line."""

LANE, LANES = 6, 4
"""Distance between lines beside the boxes, and how many have room beside the names."""

LONGEST_NAME = 13

NAMED_OPS = {"mbconv": "MBConv", "skip": "skipped"}


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: its name, its milliseconds and the CSS class that colours it; below it what was measured."""

    name: str
    ms: float
    tone: str = "a"
    measured_ms: float | None = None


def bars(rows: Sequence[Bar], *, label: str, places: int, target_ms: float | None = None) -> Markup:
    """Bars from zero, to the left where negative, with a line at the target if there is one."""
    measured = [row.measured_ms for row in rows if row.measured_ms is not None]
    values = [0.0, *(row.ms for row in rows), *measured, *([] if target_ms is None else [target_ms])]
    low, high = min(values), max(values)
    left, right = NAMES + 12, WIDTH - 82

    def at(value: float) -> float:
        return left + (right - left) * (value - low) / ((high - low) or 1.0)

    height = ROW * (len(rows) + 1)
    marks = [line((at(0), ROW - 4), (at(0), height), "axis"), text((at(0), 18), "0", "tick middle")]
    for number, row in enumerate(rows, start=1):
        y, thick = number * ROW, 14 if row.measured_ms is None else 9
        drawn = [(row.ms, row.tone), *([] if row.measured_ms is None else [(row.measured_ms, "b")])]
        for below, (value, tone) in enumerate(drawn):
            start, end = sorted((at(0), at(value)))
            marks.append(rect((start, y + 6 + below * thick), max(end - start, 0.5), thick, f"bar {tone}"))
        marks += [_name(row.name, y), text((WIDTH, y + 17), ms(row.ms, places), "value end")]
    if target_ms is not None:
        x = at(target_ms)
        said = f"target {ms(target_ms, decimals(target_ms))}"
        placed = ((x, 18), said, "value") if x < left + ROOM else ((min(x, right), 18), said, "value end")
        marks += [line((x, ROW - 6), (x, height), "target"), text(*placed)]
    said = "; ".join(f"{row.name} {ms(row.ms, places)}{_also(row, places)}" for row in rows)
    return svg(f"{label}: {said}.", WIDTH, height, *marks)


def _also(row: Bar, places: int) -> str:
    return "" if row.measured_ms is None else f", measured {ms(row.measured_ms, places)}"


def strips(rows: Sequence[tuple[str, Sequence[float]]], steps: Sequence[int], *, label: str) -> Markup:
    """Shares over time as a heat map: a row a name, a column a step, in full colour the largest share of all.

    Args:
        rows: Names, and a share from 0 to 1 for every step.
        steps: In order; the first and the last are named.
        label: Begins the alternative text.
    """
    left, high = NAMES + 12, 22
    width = (WIDTH - left) / len(steps)
    most = max((share for _, shares in rows for share in shares), default=0) or 1
    marks = []
    for number, (name, shares) in enumerate(rows):
        y = number * high
        marks += [_name(name, y - 2), rect((left, y + 2), WIDTH - left, high - 4, "wash")]
        for share, first, count in _runs(shares):
            at = (left + first * width, y + 2)
            marks.append(tag("g", rect(at, count * width, high - 4, "bar a"), fill_opacity=f"{share / most:.2f}"))
    base = len(rows) * high
    marks += [
        text((left, base + 14), f"step {steps[0]:,}", "tick"),
        text((WIDTH, base + 14), f"step {steps[-1]:,}", "tick end"),
    ]
    said = "; ".join(f"{name} from {percent(shares[0], 0)} to {percent(shares[-1], 0)}" for name, shares in rows)
    return svg(f"{label}: {said}.", WIDTH, base + 20, *marks)


def _runs(shares: Sequence[float]) -> Iterator[tuple[float, int, int]]:
    """Share, first column and number of columns of neighbours that look alike."""
    first = 0
    for share, alike in itertools.groupby(round(share, 2) for share in shares):
        count = len(list(alike))
        yield share, first, count
        first += count


def chain(layers: Sequence[Mapping[str, Any]], input_shape: Sequence[int]) -> Markup:
    """The network from top to bottom, one row a layer; see ``_joined`` for what does not simply follow the layer above.

    A box is a layer: stronger in colour with a larger kernel, wider with a larger expansion, tapering where it strides.
    A skipped layer is an empty, dashed box with the line going through; a line around a box is its
    residual connection. The shape to the right is that of the output.
    """
    most = max([layer["expansion"] or 1 for layer in layers], default=1)
    marks = [_name("input", 0), text((WIDTH, 17), _shape(input_shape), "value end")]
    marks.append(line((CENTRE, 11), (CENTRE, ROW + 4), "flow"))
    for number, layer in enumerate(layers, start=1):
        y = number * ROW
        marks += [_name(layer["name"], y), *_box(layer, y, most)]
        marks.append(text((WIDTH, y + 17), _shape(layer["out_shape"]), "value end"))
    marks += _flow([layer["inputs"] for layer in layers])
    said = "; ".join(f"{layer['name']}: {describe(layer)}" for layer in layers)
    label = f"Network of {len(layers)} layers, input {_shape(input_shape)}. {said}."
    return svg(label, WIDTH, ROW * (len(layers) + 1), *marks)


def _flow(inputs: Sequence[Sequence[int]]) -> list[Markup]:
    """What connects the layers: from box to box, or beside them where outputs meet or one goes several ways."""
    followers_of, meeting = defaultdict[int, list[int]](list), defaultdict[tuple[int, ...], list[int]](list)
    for target, feeding in enumerate(inputs):
        for source in feeding:
            followers_of[source].append(target)
    for source, some in followers_of.items():
        if source >= 0:
            meeting[tuple(some)].append(source)
    marks, ends = list[Markup](), list[int]()
    for followers, sources in sorted(meeting.items(), key=lambda item: min(item[1])):
        if followers == (sources[0] + 1,) and len(inputs[followers[0]]) == 1:
            y = followers[0] * ROW
            marks.append(line((CENTRE, y + 4 + BOX), (CENTRE, y + ROW + 4), "flow"))
        else:
            lane = next((n for n, end in enumerate(ends) if end <= min(sources)), len(ends))
            ends[lane : lane + 1] = [max(followers)]
            marks += _joined(sources, followers, lane)
    return marks


def _joined(sources: Sequence[int], followers: Sequence[int], lane: int) -> list[Markup]:
    """A line beside the boxes that adds up outputs, below, and feeds the sum into layers, above, with a dot."""
    x, edge = CENTRE - NARROW / 2 - 4 - LANE * min(lane, LANES - 1), CENTRE - NARROW / 2
    leave, enter = ([(row + 1) * ROW + offset for row in rows] for rows, offset in ((sources, 21), (followers, 9)))
    marks = [line((x, min(leave)), (x, max(enter)), "flow")]
    marks += [line((x, y), (edge, y), "flow") for y in (*leave, *enter)]
    return [*marks, *(dot((edge, y), "c", radius=2.5) for y in enter)]


def describe(layer: Mapping[str, Any]) -> str:
    """A layer in words, for those who do not see the drawing."""
    stays = layer["skipped"] and layer["in_shape"] == layer["out_shape"]
    return f"{_words(layer)}, {'stays' if stays else 'to'} {_shape(layer['out_shape'])}"


def _box(layer: Mapping[str, Any], y: float, most: int) -> list[Markup]:
    top, bottom = y + 4, y + 4 + BOX
    share = ((layer["expansion"] or 1) - 1) / max(1, most - 1)
    half = (NARROW + share * (WIDE - NARROW)) / 2
    words = text((CENTRE, y + 19), _words(layer), "op middle")
    if layer["skipped"] or layer["op"] == "none":
        through = [line((CENTRE, top), (CENTRE, bottom), "flow")] if layer["skipped"] else []
        return [*through, rect((CENTRE - half, top), 2 * half, BOX, "skipped"), words]
    end = half - (TAPER if layer["stride"] > 1 else 0)
    corners = [(CENTRE - half, top), (CENTRE + half, top), (CENTRE + end, bottom), (CENTRE - end, bottom)]
    kernel = min(7, layer["kernel"] or 1)
    around = [(CENTRE, top - 3), (ARC, top - 3), (ARC, bottom + 3), (CENTRE, bottom + 3)]
    arc = [path(around, "residual")] if layer["residual"] else []
    return [*arc, path(corners, f"box k{kernel}", closed=True), words]


def _words(layer: Mapping[str, Any]) -> str:
    kernel = f" {layer['kernel']}×{layer['kernel']}" if layer["kernel"] else ""
    expansion = f" e{layer['expansion']}" if layer["expansion"] else ""
    groups = f" g{layer['groups']}" if layer["groups"] else ""
    stride = f", stride {layer['stride']}" if layer["stride"] > 1 else ""
    return NAMED_OPS.get(layer["op"], str(layer["op"])) + kernel + expansion + groups + stride


def _shape(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{channels} × {height}×{width}"


def _name(name: str, y: float) -> Markup:
    if len(name) <= LONGEST_NAME:
        return text((0, y + 17), name, "name")
    short = re.sub(r"([a-z])[a-z]+(?=\d+_)", r"\1", name)  # stage1_cell2_edge01: s1_c2_edge01
    if len(short) > LONGEST_NAME:
        short = f"{name[:5]}…{name[-(LONGEST_NAME - 6) :]}"
    return tag("text", tag("title", name), short, x=0, y=y + 17, class_="name")
