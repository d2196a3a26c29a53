"""The sections of a report about what was learned: search, probabilities, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Series, Text, curves
from .figures import strips
from .markup import Markup, commands_of, figure, legend, section, table, tag
from .numbers import fixed, percent

Document = Mapping[str, Any]


def search_section(report: Document) -> Markup:
    """Curves of the search; a figure that the recipe does not have is left out."""
    log, target = report["search"], report["latency"]["target_ms"]
    if log is None:
        return section("Search", "The log of the search is not in the run folder.")
    if not log:
        return section("Search", "The recipe trains nothing: architectures were derived at once.")
    losses = (("weight_loss", "weights", "a"), ("arch_loss", "architecture", "b"))
    scores = (("weight_accuracy", "weights", "a"), ("arch_accuracy", "architecture", "b"))
    latencies = (("sampled_ms", "drawn", "b"), ("expected_ms", "expected", "a"))
    whole = log["step"][0], log["step"][-1]
    steady = {"entropy": "Mean entropy of a choice, nats", "multiplier": "Multiplier of the latency"}
    charts = [
        _chart("Loss", [_series(log, *each) for each in losses]),
        _chart("Accuracy of batches", [_series(log, *each) for each in scores], _share),
        _chart("Latency, ms", [_series(log, *each) for each in latencies], target=target, also_x=whole),
        *(
            _chart(title, [_steady(log, name, name)], also_x=whole)
            for name, title in steady.items()
            if _moves(log, name)
        ),
        *_speed(report["search_speed"]),
    ]
    shown = [chart for chart in charts if chart]
    return section("Search", _about(log), tag("div", *shown, class_="columns"))


def _about(log: Document) -> str:
    moved = [step for step, loss in zip(log["step"], log.get("arch_loss", ()), strict=False) if loss is not None]
    words = "Thin: single steps. Thick: running mean. "
    if not moved:
        return words + "Only weights were trained; the probabilities stayed as they were."
    return words + ("The architecture starts to move after its warm-up." if moved[0] else "")


def _moves(log: Document, name: str) -> bool:
    """Whether a figure is anything but a constant; nothing moves without architecture steps."""
    return "arch_loss" in log and len({value for value in log.get(name, ()) if value is not None}) > 1


def _speed(costs: Document, x_label: str = "step") -> list[Markup]:
    """How fast the work was, and what memory it took."""
    kinds = (
        ("images_per_second", "speed", "Images per second"),
        ("memory_mib", "memory", "Most memory so far, MiB"),
    )
    return [_chart(title, [_steady(costs, column, name)], x_label=x_label) for column, name, title in kinds]


def _steady(log: Document, column: str, name: str, tone: str = "a") -> Series:
    return _series(log, column, name, tone, noisy=False)


def _series(log: Document, column: str, name: str, tone: str, noisy: bool = True) -> Series:
    pairs = zip(log.get("step", ()), log.get(column, ()), strict=False)
    return Series(name, [(x, y) for x, y in pairs if y is not None], tone, noisy)


def _chart(
    title: str,
    series: Sequence[Series],
    text: Text = fixed,
    target: float | None = None,
    *,
    x_label: str = "step",
    also_x: Sequence[float] = (),
) -> Markup:
    """One figure of curves, empty where nothing was logged."""
    if not any(each.points for each in series):
        return Markup()
    drawing = curves(series, label=title, x_label=x_label, y_text=text, reference=target, also_x=also_x)
    keys = [(each.tone, each.name) for each in series if each.points]
    keys += [] if target is None else [("line", "target")]
    return figure(drawing, title, *([legend(*keys)] if len(keys) > 1 else []))


def _share(value: float, places: int) -> str:
    return percent(value, max(0, places - 2))


def probabilities_section(choices: Sequence[Document], history: Document | None) -> Markup:
    """Heat maps of what every choice ended with, the chosen option marked, and of how it came there."""
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
        "Probability of every option at the end of the search, in percent. Framed and bold: chosen. The network as "
        "a whole has to keep the limit, so a single option need not be the most probable of its row."
    )
    return section("Option probabilities", words, heat, *([_history(history)] if history else []))


def _history(history: Document) -> Markup:
    rows = [(each["choice"], each["probability"]) for each in history["choices"]]
    most = max(share for _, shares in rows for share in shares)
    drawing = strips(rows, history["step"], label="Probability of the chosen option over the search")
    key = f"Full colour: {percent(most, 0)}. Fainter: less probable."
    return tag("div", figure(drawing, "Chosen options over the search", key), class_="half")


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
    log, costs = (
        {**columns, "step": range(1, len(columns.get("step", ())) + 1)}
        for columns in (training["curve"], training["speed"])
    )
    losses = (("loss", "training, as regularized", "a"), ("val_loss", "held-out", "b"))
    scores = (("accuracy", "top-1", "a"), ("top5", "top-5", "b"))
    charts = [
        _chart("Loss", [_steady(log, *each) for each in losses], x_label="epoch"),
        _chart("Accuracy on held-out images", [_steady(log, *each) for each in scores], _share, x_label="epoch"),
        _chart("Learning rate", [_steady(log, "lr", "learning rate")], x_label="epoch"),
        *_speed(costs, "epoch"),
    ]
    top5 = "" if training["top5"] is None else f", top-5 {percent(training['top5'])}"
    about = (
        f"{training['data']}: {training['num_train']:,} training and {training['num_val']:,} held-out "
        f"images, {training['epochs']} epochs, top-1 {percent(training['accuracy'])}{top5} at the end."
    )
    return section("Training", about, tag("div", *(chart for chart in charts if chart), class_="columns"))
