"""The sections of a report below its summary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hwnas.space import NONE

from .candidates import candidates_section
from .cells import cell, genotype, titled
from .charts import Series, scatter
from .figures import Bar, bars, chain
from .learning import probabilities_section, search_section, training_section
from .markup import Markup, figure, legend, section, table, tag
from .numbers import decimals, fixed, large, ms, percent
from .provenance import provenance, reproduction

Document = Mapping[str, Any]


_ERRORS: dict[str, Callable[[Document], str]] = {
    "MAPE": lambda error: percent(error["mape"] / 100),
    "within 5 %": lambda error: percent(error["within_5"], 0),
    "within 10 %": lambda error: percent(error["within_10"], 0),
    "bias": lambda error: percent(error["bias"] / 100),
    "Spearman": lambda error: fixed(error["spearman"], 2),
    "networks": lambda error: str(error["num_networks"]),
}


def sections(report: Document) -> list[Markup]:
    """All of them, in the order of the page; those about a search only where there was one."""
    searched = not report["adopted"]
    return [
        _derivation(report),
        *([candidates_section(report)] if searched else []),
        _network(report),
        *([search_section(report)] if searched else []),
        *([probabilities_section(report["probabilities"], report["history"])] if searched else []),
        _prediction(report),
        training_section(report),
        provenance(report),
        reproduction(report["commands"]),
    ]


def _derivation(report: Document) -> Markup:
    places = decimals(report["latency"]["target_ms"])
    low, high = (ms(value, places) for value in report["reachable_ms"])
    adopted = report["adopted"]
    how = (
        "This one was given, and no other tried."
        if adopted
        else "Each round derives the best architecture under an internal limit and measures it; a miss tightens the "
        "limit, and what a network leaves of the target may loosen it."
    )
    intro = f"Networks of this space are predicted to take {low} to {high}. {how}"
    rows = [
        (
            str(number),
            ms(each["limit_ms"], places),
            ms(each["predicted_ms"], places),
            "not measured" if each["measured_ms"] is None else ms(each["measured_ms"], places),
            "✓ met" if each["met"] else "✗ missed",
            each["id"],
        )
        for number, each in enumerate(report["rounds"], start=1)
    ]
    header = ("#", "limit", "predicted", "measured", "target", "architecture")
    title, caption = ("Limit", "The network against the limit") if adopted else ("Derivation", "Derivation rounds")
    return section(title, intro, table(caption, header, rows))


def _network(report: Document) -> Markup:
    overhead = report["overhead_ms"]
    layers = [each for each in report["layers"] if each["op"] != NONE or each["predicted_ms"]]
    shares = [*(layer["predicted_ms"] for layer in layers), overhead]
    places = min(4, decimals(max(map(abs, shares))))
    rows = [_bar([*some]) for _, some in itertools.groupby(layers, lambda layer: layer["part"])]
    rows.append(Bar("overhead", overhead))
    total = f"Predicted shares; they add up to {ms(sum(shares), places)}. "
    sign = (
        "The overhead is negative: a whole network runs faster than its blocks timed one by one."
        if overhead < 0
        else "The overhead is what a network costs beyond its blocks."
    )
    drawn = _cells(report["cells"]) if report["cells"] else _chain(report)
    timed = figure(
        bars(rows, label="Predicted latency by layer", places=places),
        "Latency by layer",
        *_measured_layers(layers, places),
        total,
        sign,
    )
    pair = tag("div", drawn, timed, class_="columns")
    return section("Network", "", pair, _layer_table(report["layers"], places))


def _bar(layers: Sequence[Document]) -> Bar:
    """The bar of a layer, or of a cell's layers together."""
    told = [layer["measured_ms"] for layer in layers if layer["measured_ms"] is not None]
    tone = "c" if all(layer["skipped"] for layer in layers) else "a"
    predicted = math.fsum(layer["predicted_ms"] for layer in layers)
    return Bar(layers[0]["part"], predicted, tone, math.fsum(told) if told else None)


def _chain(report: Document) -> Markup:
    return figure(chain(report["layers"], report["input_shape"]), "Architecture", _key(report["layers"]))


def _cells(cells: Document) -> Markup:
    """A drawing of every kind of cell, and how others print them."""
    key = "A line down is a node; what enters it is added up. Stronger colour: larger kernel. Dashed: skip or noise."
    drawn = [figure(cell(kind, edges), titled(kind), key) for kind, edges in cells["edges"].items()]
    return tag("div", *drawn, *([genotype(cells["genotype"])] if cells["genotype"] else []))


def _measured_layers(layers: Sequence[Document], places: int) -> list[str]:
    """What the thin bars are, where the runtime told what every layer took."""
    told = [layer["measured_ms"] for layer in layers if layer["measured_ms"] is not None]
    if not told:
        return []
    words = f"Measured node by node, which costs time itself; these add up to {ms(sum(told), places)}. "
    return [legend(("a", "predicted"), ("b", "measured")), words]


def _key(layers: Sequence[Document]) -> str:
    """How to read the drawing; what is not in it is not explained."""
    grouped = " g: groups of its pointwise convolutions." if any(layer["groups"] for layer in layers) else ""
    chained = all(layer["inputs"] == [position - 1] for position, layer in enumerate(layers))
    lines = "" if chained else " Lines at the left: outputs that are added up, and with a dot the layers they enter."
    return (
        f"e: how much a block expands its channels inside.{grouped} Stronger colour: larger kernel. Wider: larger "
        "expansion. Tapered: strided. Dashed: skipped or none. Line around a box: residual connection. Right: output "
        f"channels × height × width.{lines}"
    )


def _layer_table(layers: Sequence[Document], places: int) -> Markup:
    edges = [layer for layer in layers if layer["op"] == NONE]
    nodes = [layer for layer in layers if layer["node"]]
    rows = [
        (
            layer["name"],
            ms(layer["predicted_ms"], places),
            "–" if layer["measured_ms"] is None else ms(layer["measured_ms"], places),
            large(layer["macs"]),
            fixed(layer["parameters"], 0),
            layer["operator"],
        )
        for layer in layers
        if layer["op"] != NONE and not layer["node"]
    ]
    header = ("layer", "predicted", "measured", "MACs", "parameters", "operator")
    took = ms(math.fsum(layer["predicted_ms"] for layer in [*edges, *nodes]), places)
    said = f"Not listed: {len(nodes)} nodes, which add up or join, and {len(edges)} edges of none, together {took}."
    more = [tag("p", said)] if edges or nodes else []
    return tag("details", tag("summary", "All layers as a table"), table("Layers", header, rows), *more)


def _prediction(report: Document) -> Markup:
    prediction, latency = report["prediction"], report["latency"]
    errors = [("this table", prediction["error"]), *prediction["baselines"].items()]
    known = [(name, error) for name, error in errors if error]
    rows = ((title, *(text(error) for _, error in known)) for title, text in _ERRORS.items())
    header = ("", *(name for name, _ in known))
    intro = (
        "How sums of table entries predict whole networks that were measured with the table. Held out: each "
        "network is predicted by a fit to others; the plain sum has nothing to fit."
    )
    if not known:
        return section("Prediction", "No whole network was measured with the table: its error is unknown.")
    drawn = [_scatter(prediction["networks"], latency)] if prediction["networks"] else []
    side = tag("div", tag("h3", "Held-out error"), table("Held-out error", header, tuple(rows)))
    return section("Prediction", intro, tag("div", *drawn, side, class_="columns"))


def _scatter(networks: Sequence[Document], latency: Document) -> Markup:
    places = decimals(latency["target_ms"])
    points = [(each["measured_ms"], each["predicted_ms"]) for each in networks]
    groups = [Series("calibration network", points)]
    said = f"Predicted against measured latency of {len(points)} networks, {_range(points, places)}"
    if latency["measured_ms"] is not None:
        result = (latency["measured_ms"], latency["predicted_ms"])
        groups.append(Series("result", [result], "b"))
        said += f"; the result predicted {ms(result[1], places)}, measured {ms(result[0], places)}"
    drawing = scatter(groups, label=said + ".", x_label="measured, ms")
    return figure(
        drawing,
        "Predicted against measured, ms",
        legend(*((group.tone, group.name) for group in groups), ("line", "equal")),
        "The model was fitted to these very networks; its held-out error is in the table.",
    )


def _range(points: Sequence[tuple[float, float]], places: int) -> str:
    measured = [x for x, _ in points]
    return f"measured {ms(min(measured), places)} to {ms(max(measured), places)}"
