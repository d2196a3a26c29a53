"""Drawings of a report, and the markup they are written in."""

import re
from typing import Any

import numpy as np
import pytest
from hwnas.deploy.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes, Series, curves, smooth, ticks
from hwnas.deploy.report.figures import Bar, bars, chain
from hwnas.deploy.report.markup import Markup, tag


def test_tags_escape_what_is_not_markup() -> None:
    assert tag("a", "<b>", Markup("<i></i>"), title='"', class_="x") == (
        '<a title="&quot;" class="x">&lt;b&gt;<i></i></a>'
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.05, 0.31), (-3e-5, 2e-5), (0, 330), (1e6, 1.2e6)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    values = ticks(low, high)
    assert 2 <= len(values) <= 8
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)
    step = values[1] - values[0]
    assert float(f"{step:.1e}"[:3]) in (1.0, 2.0, 5.0)


def test_running_mean_keeps_a_constant_and_its_length() -> None:
    constant = [(float(x), 3.0) for x in range(100)]
    assert np.asarray(smooth(constant)) == pytest.approx(np.asarray(constant))
    rising = smooth([(float(x), float(x)) for x in range(100)])  # window 5: the mean of a line is the line
    assert rising[50] == pytest.approx((50.0, 50.0))


def test_flat_curve_and_single_point_are_drawn_inside() -> None:
    for points in ([(0.0, 0.0), (1.0, 0.0)], [(4.0, 2.0)]):
        drawing = curves([Series("flat", points)], label="Flat", x_label="step")
        numbers = [float(n) for n in re.findall(r"[ML](-?[\d.]+)", drawing)]
        assert all(0 <= number <= 400 for number in numbers)


def test_axes_put_small_values_low_and_left() -> None:
    axes = Axes((0.0, 10.0), (0.0, 1.0))
    assert axes.place((0.0, 0.0)) == (LEFT, HEIGHT - BOTTOM)
    assert axes.place((10.0, 1.0)) == (WIDTH - RIGHT, TOP)


def layer(op: str, **properties: Any) -> dict[str, Any]:
    plain = {"expansion": None, "kernel": None, "residual": False, "skipped": op == "skip", "stride": 1}
    return plain | {"name": op, "op": op, "out_shape": [8, 4, 4]} | properties


def test_layers_are_drawn_as_they_are() -> None:
    layers = [
        layer("conv", kernel=3, stride=2),
        layer("mbconv", kernel=5, expansion=6, residual=True),
        layer("mbconv", kernel=7, expansion=3, stride=2),
        layer("skip"),
    ]
    drawing = chain(layers, [3, 8, 8])
    assert [drawing.count(f'class="{mark}"') for mark in ("skipped", "residual", "box k3", "box k5", "box k7")] == [
        1
    ] * 5
    assert "mbconv: MBConv 5×5 e6, to 8 × 4×4; mbconv: MBConv 7×7 e3, stride 2, to 8 × 4×4" in drawing
    assert "skip: skipped, stays 8 × 4×4" in drawing
    widths = []
    for box in re.findall(r'class="box k\d" d="M([^"]+)Z"', drawing):
        left, right, lower_right, lower_left = (float(corner.split()[0]) for corner in box.split("L"))
        widths.append(right - left)
        assert (lower_right - lower_left < right - left) == (len(widths) in (1, 3))  # those with stride 2
    assert widths[0] < widths[2] < widths[1]  # by expansion


def test_negative_bars_end_where_positive_ones_start() -> None:
    drawing = bars([Bar("layer", 0.02), Bar("overhead", -0.05)], label="Latency", places=3)
    (start, _), (negative, width) = [
        tuple(map(float, found)) for found in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing)
    ]
    assert negative + width == pytest.approx(start, abs=0.11)  # both are rounded to 0.1
    assert negative < start
    assert "overhead −0.050\u00a0ms" in drawing


def test_long_names_are_shortened_and_kept_as_a_title() -> None:
    drawing = bars([Bar("stage10_layer100", 1.0)], label="Latency", places=1)
    assert "<title>stage10_layer100</title>stage…ayer100</text>" in drawing
