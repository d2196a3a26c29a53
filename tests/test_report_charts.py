"""Drawings of a report, and the markup they are written in."""

import re
from typing import Any

import numpy as np
import pytest
from hwnas.deploy.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes, Series, curves, smooth, ticks
from hwnas.deploy.report.figures import CENTRE, ROW, Bar, bars, chain, strips
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


def ticks_of(drawing: str) -> list[str]:
    return re.findall(r'class="tick (?:middle|end)">([^<]+)<', drawing)


def test_steps_are_whole_numbers() -> None:
    for num_epochs, expected in ((1, ["1"]), (3, ["1", "2", "3"])):
        drawing = curves([Series("a", [(x, 5.0 + x) for x in range(1, num_epochs + 1)])], label="A", x_label="epoch")
        found = ticks_of(drawing)
        assert found[found.index("epoch") - len(expected) :] == [*expected, "epoch"]


def test_tiny_values_are_powers_of_ten() -> None:
    drawing = curves([Series("rate", [(0, 0.0), (1, 5e-5)])], label="Rate", x_label="step")
    assert "2.0×10⁻⁵" in ticks_of(drawing)
    assert "0.00002" not in drawing


def test_what_hardly_changes_is_drawn_flat_between_ticks_that_differ() -> None:
    drawing = curves([Series("entropy", [(0, 2.0794), (100, 2.0793), (200, 2.07925)])], label="Entropy", x_label="step")
    shown = [tick for tick in ticks_of(drawing) if tick != "step"]
    assert len(set(shown)) == len(shown)
    (course,) = re.findall(r'class="curve a" d="M([^"]*)"', drawing)
    heights = [float(point.split()[1]) for point in course.split("L")]
    assert max(heights) - min(heights) < 1


def test_axis_holds_what_it_is_told_and_the_target_lies_on_top() -> None:
    drawing = curves([Series("a", [(50, 1.0), (100, 2.0)])], label="A", x_label="step", reference=3.0, also_x=[0, 100])
    (start, *_), (target_start, *_, target_end, _) = (
        [float(number) for number in re.findall(r"[\d.]+", path)]
        for path in re.findall(r'class="(?:curve a|target)" d="([^"]+)"', drawing)
    )
    # half of the axis, which spans 0 to 100, lies to the left of the curve
    assert start == pytest.approx((LEFT + WIDTH - RIGHT) / 2, abs=0.11)
    assert (target_start, target_end) == (LEFT, WIDTH - RIGHT)
    assert drawing.index('class="target"') > drawing.index('class="curve a"')


def test_axes_put_small_values_low_and_left() -> None:
    axes = Axes((0.0, 10.0), (0.0, 1.0))
    assert axes.place((0.0, 0.0)) == (LEFT, HEIGHT - BOTTOM)
    assert axes.place((10.0, 1.0)) == (WIDTH - RIGHT, TOP)


def layer(op: str, **properties: Any) -> dict[str, Any]:
    plain = {"expansion": None, "groups": None, "kernel": None, "residual": False, "stride": 1, "inputs": [0]}
    shapes = {"in_shape": [8, 4, 4], "out_shape": [8, 4, 4]}
    return plain | shapes | {"name": op, "op": op, "skipped": op == "skip"} | properties


def chained(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each | {"inputs": [position - 1]} for position, each in enumerate(layers)]


def lines(drawing: str) -> list[list[float]]:
    """Ends of the lines that show what flows where: x and y of the start, x and y of the end."""
    return [
        [float(number) for number in re.findall(r"[\d.]+", path)]
        for path in re.findall(r'class="flow" d="([^"]+)"', drawing)
    ]


def test_layers_are_drawn_as_they_are() -> None:
    layers = [
        layer("conv", kernel=3, stride=2),
        layer("mbconv", kernel=5, expansion=6, residual=True),
        layer("mbconv", kernel=7, expansion=3, stride=2),
        layer("skip"),
    ]
    drawing = chain(chained(layers), [3, 8, 8])
    assert [drawing.count(f'class="{mark}"') for mark in ("skipped", "residual", "box k3", "box k5", "box k7")] == [
        1
    ] * 5
    assert "mbconv: MBConv 5×5 e6, to 8 × 4×4; mbconv: MBConv 7×7 e3, stride 2, to 8 × 4×4" in drawing
    assert "skip: skipped, stays 8 × 4×4" in drawing
    # the input, between four layers, and through the skipped one; all down the middle
    assert [(x, to_x) for x, _, to_x, _ in lines(drawing)] == [(CENTRE, CENTRE)] * (1 + 3 + 1)
    widths = []
    for box in re.findall(r'class="box k\d" d="M([^"]+)Z"', drawing):
        left, right, lower_right, lower_left = (float(corner.split()[0]) for corner in box.split("L"))
        widths.append(right - left)
        assert (lower_right - lower_left < right - left) == (len(widths) in (1, 3))  # those with stride 2
    assert widths[0] < widths[2] < widths[1]  # by expansion


def test_a_graph_is_drawn_with_what_is_added_up_and_where_it_goes() -> None:
    # 0 feeds 1 and 2; their sum feeds 3, which alone feeds 4.
    inputs = [[-1], [0], [0], [1, 2], [3]]
    layers = [layer("relu_conv", name=f"node{n}", kernel=3, inputs=each) for n, each in enumerate(inputs)]
    drawing = chain(layers, [8, 4, 4])
    middle = [each for each in lines(drawing) if each[0] == each[2] == CENTRE]
    assert len(middle) == 2, "into the first layer, and from 3 to 4"
    down = [each for each in lines(drawing) if each[0] == each[2] != CENTRE]
    assert len({each[0] for each in down}) == 2, "two lines beside each other, as both pass layer 2"
    rows = {tuple(int(y // ROW) - 1 for y in (start, end)) for _, start, _, end in down}
    assert rows == {(0, 2), (1, 3)}
    assert drawing.count("<circle") == 2 + 1, "a dot where something enters: 1, 2 and 3"


def test_none_is_no_way_through() -> None:
    assert len(lines(chain(chained([layer("none")]), [8, 4, 4]))) == 1, "into the box only"
    assert len(lines(chain(chained([layer("skip")]), [8, 4, 4]))) == 2


def test_skipped_layers_that_change_the_shape_and_groups_say_so() -> None:
    layers = [layer("skip", stride=2, in_shape=[8, 8, 8]), layer("mbconv", kernel=3, expansion=1, groups=2)]
    drawing = chain(chained(layers), [8, 8, 8])
    assert "skip: skipped, stride 2, to 8 × 4×4; mbconv: MBConv 3×3 e1 g2, to 8 × 4×4." in drawing


def test_negative_bars_end_where_positive_ones_start() -> None:
    drawing = bars([Bar("layer", 0.02), Bar("overhead", -0.05)], label="Latency", places=3)
    (start, _), (negative, width) = [
        tuple(map(float, found)) for found in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing)
    ]
    assert negative + width == pytest.approx(start, abs=0.11)  # both are rounded to 0.1
    assert negative < start
    assert "overhead −0.050\u00a0ms" in drawing


def test_the_largest_share_has_the_full_colour() -> None:
    drawing = strips([("a", [0.2, 0.2, 0.4]), ("b", [0.1, 0.0, 0.0])], [0, 5, 10], label="Shares")
    # divided by 0.4, neighbours that are alike in one
    assert re.findall(r'fill-opacity="([\d.]+)"', drawing) == ["0.50", "1.00", "0.25", "0.00"]
    assert "a from 20\u00a0% to 40\u00a0%; b from 10\u00a0% to 0\u00a0%" in drawing


def test_long_names_are_shortened_and_kept_as_a_title() -> None:
    drawing = bars([Bar("stage10_layer100", 1.0)], label="Latency", places=1)
    assert "<title>stage10_layer100</title>s10_layer100</text>" in drawing
    drawing = bars([Bar("block_with_a_long_name", 1.0)], label="Latency", places=1)
    assert "<title>block_with_a_long_name</title>block…ng_name</text>" in drawing
