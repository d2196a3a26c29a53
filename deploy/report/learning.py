"""The sections of a report about what was learned: search, probabilities, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Series, Text, curves
from .markup import Markup, commands_of, figure, legend, section, table, tag
from .numbers import fixed, percent

Document = Mapping[str, Any]


def search_section(report: Document) -> Markup:
    """Curves of the search."""
    log, target = report["search"], report["latency"]["target_ms"]
    if not log.get("step"):
        return section("Search", "The log of the search is not in the run folder.")
    two = {"weight": ("weights", "a"), "arch": ("architecture", "b")}
    charts = []
    for figure_name, title in (("loss", "Loss"), ("accuracy", "Accuracy of batches")):
        series = [_series(log, f"{half}_{figure_name}", *named) for half, named in two.items()]
        text = fixed if figure_name == "loss" else _share
        charts.append(_chart(title, series, text))
    expected = _series(log, "expected_ms", "expected", "a")
    charts.append(_chart("Expected latency, ms", [expected], fixed, target))
    charts.append(_chart("Multiplier of the latency", [_series(log, "multiplier", "multiplier", "a", False)]))
    words = "Thin: single steps. Thick: running mean. The architecture starts to move after its warm-up."
    shown = [chart for chart in charts if chart]
    return section("Search", words, tag("div", *shown, class_="columns"))


def _series(log: Document, column: str, name: str, tone: str, noisy: bool = True) -> Series:
    pairs = zip(log["step"], log.get(column, ()), strict=False)
    return Series(name, [(x, y) for x, y in pairs if y is not None], tone, noisy)


def _chart(
    title: str,
    series: list[Series],
    text: Text = fixed,
    target: float | None = None,
    *,
    x_label: str = "step",
) -> Markup:
    """One figure of curves, empty where nothing was logged."""
    if not any(each.points for each in series):
        return Markup()
    drawing = curves(series, label=title, x_label=x_label, y_text=text, reference=target)
    keys = [(each.tone, each.name) for each in series if each.points]
    keys += [] if target is None else [("line", "target")]
    return figure(drawing, title, *([legend(*keys)] if len(keys) > 1 else []))


def _share(value: float, places: int) -> str:
    return percent(value, max(0, places - 2))


def probabilities_section(choices: Sequence[Document]) -> Markup:
    """Heat map of what every choice ended with, the chosen option marked."""
    names = list(dict.fromkeys(option["name"] for choice in choices for option in choice["options"]))
    rows = []
    for choice in choices:
        options = {option["name"]: option for option in choice["options"]}
        rows.append([choice["choice"], *(_heat(options.get(name)) for name in names)])
    told = "; ".join(
        f"{choice['choice']} {option['name']} {percent(option['probability'], 0)}"
        for choice in choices
        for option in choice["options"]
        if option["chosen"]
    )
    heat = table(f"Option probabilities; chosen: {told}", ("choice", *names), rows, class_="heat")
    words = (
        "Probability of every option at the end of the search, in percent. Framed and bold: chosen. The "
        "choice is the most probable architecture within the limit, so a single option need not be the most "
        "probable of its row."
    )
    return section("Option probabilities", words, heat)


def _heat(option: Document | None) -> Markup:
    if option is None:
        return tag("td", class_="none")
    shown = fixed(100 * option["probability"], 0) + (" ✓" if option["chosen"] else "")
    style = f"--share:{100 * option['probability']:.1f}"
    return tag("td", shown, style=style, **({"class_": "chosen"} if option["chosen"] else {}))


def training_section(report: Document) -> Markup:
    """Curves of the training, or the command that trains."""
    training = report["training"]
    if not training:
        return section("Training", "", commands_of("Not trained yet. Run:", report["missing"]["training"]))
    log = training["curve"]
    epochs = {**log, "step": list(range(1, len(log.get("step", ())) + 1))}
    loss = _chart("Loss of the last batch", [_series(epochs, "loss", "loss", "a", False)], x_label="epoch")
    top1 = _series(epochs, "accuracy", "accuracy", "a", False)
    accuracy = _chart("Accuracy on held-out images", [top1], _share, x_label="epoch")
    about = (
        f"{training['data']}: {training['num_train']:,} training and {training['num_val']:,} held-out "
        f"images, {training['epochs']} epochs, {percent(training['accuracy'])} at the end."
    )
    return section("Training", about, tag("div", loss, accuracy, class_="columns"))
