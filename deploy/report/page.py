"""The page of a report: verdict and summary first, then how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figures import Bar, bars
from .markup import Markup, commands_of, exact, facts, figure, section, tag
from .numbers import decimals, fixed, large, ms, near_one, percent, scientific
from .sections import sections
from .style import CSS

Document = Mapping[str, Any]

NOT_YET = "not yet"

_BASIS = {
    "verification": "measured with the exported network",
    "derivation": "measured with the derived network, before training",
    "prediction": "predicted; not measured on the device",
}


def page(report: Document) -> str:
    """One self-contained HTML page: no script, nothing loaded from elsewhere."""
    title = f"{report['space']['name']} {report['architecture']['id']}"
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", f"hwnas report: {title}"),
        tag("style", Markup(CSS)),
    )
    main = tag("main", _header(report, title), _summary(report), *sections(report))
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", main), lang="en") + "\n"


def _header(report: Document, title: str) -> Markup:
    environment = report["provenance"]["environment"]
    device = (
        f"{environment['device']}, {environment['runtime']} {environment['runtime_version']}, "
        f"{environment['precision']}, batch {environment['batch']}"
        if environment
        else "device unknown: the latency table could not be read"
    )
    failures = [tag("p", f"Verification failed: {text}.", class_="missed") for text in report["failures"]]
    notes = [tag("ul", *(tag("li", note) for note in report["notes"]), class_="notes")] if report["notes"] else []
    return tag("header", tag("h1", title), tag("p", device), _verdict(report["latency"]), *failures, *notes)


def _verdict(latency: Document) -> Markup:
    target, measured = latency["target_ms"], latency["measured_ms"]
    value = latency["predicted_ms"] if measured is None else measured
    places = decimals(target)
    words, tone = ("✓ Target met", "met") if latency["met"] else ("✗ Target missed", "missed")
    share = value / target - 1
    against = f"{percent(abs(share), 1 if abs(share) < 0.1 else 0)} {'below' if share <= 0 else 'above'}"
    if latency["met"] and share > 0:
        against += f", within the {percent(latency['tolerance'], 0)} allowed for noise"
    taken, allowed = (exact(number, ms(number, places)) for number in (value, target))
    said = f" allowed, {against}; {_BASIS[latency['basis']]}."
    return tag("p", tag("strong", words, class_=tone), ": ", taken, " of ", allowed, said, class_="verdict")


def _summary(report: Document) -> Markup:
    accuracy = facts("Accuracy, top-1 on held-out images", _accuracy(report["accuracy"]))
    boxes = (
        _latency(report),
        tag("div", accuracy, facts("Size", _size(report["size"]))),
        facts("Exported file against PyTorch", _numerics(report)),
        facts("Held-out error of the table", _prediction(report["prediction"])),
    )
    missing = report["missing"].get("verification")
    hint = [commands_of("Not verified yet. Run:", missing)] if missing else []
    return section("Summary", "", tag("div", *boxes, class_="columns"), *hint)


def _latency(report: Document) -> Markup:
    latency = report["latency"]
    places, target = decimals(latency["target_ms"]), latency["target_ms"]
    named = (("predicted", "b"), ("measured", "a"), ("p50", "c"), ("p90", "c"), ("p99", "c"))
    rows = [Bar(name, latency[f"{name}_ms"], tone) for name, tone in named if latency[f"{name}_ms"] is not None]
    drawing = bars(rows, label="Latency", places=places, target_ms=target)
    caption = []
    if latency["measured_ms"] is not None:
        off = exact(latency["relative_error"], percent(latency["relative_error"]))
        caption = [f"Measured: {latency['statistic']}. Prediction against measurement: ", off, "."]
    return figure(drawing, "Latency", *caption)


def _accuracy(accuracy: Document) -> list[tuple[str, str]]:
    names = {
        "inherited": "inherited from the supernet",
        "recalibrated": "batch-norm recalibrated",
        "trained": "trained",
        "pytorch": "PyTorch, compared images",
        "exported": "exported, compared images",
    }
    return [
        (name, NOT_YET if accuracy[key] is None else exact(accuracy[key], percent(accuracy[key])))
        for key, name in names.items()
    ]


def _numerics(report: Document) -> list[tuple[str, str]]:
    numerics = report["numerics"]
    if not numerics:
        return [("numerics", NOT_YET)]
    largest, mean = numerics["max_difference"], numerics["mean_difference"]
    return [
        ("images compared", exact(numerics["num_images"], str(numerics["num_images"]))),
        ("largest difference", exact(largest, scientific(largest))),
        ("mean difference", exact(mean, scientific(mean))),
        ("least cosine", exact(numerics["min_cosine"], near_one(numerics["min_cosine"]))),
        ("top-1 agreement", exact(numerics["top1_agreement"], percent(numerics["top1_agreement"], 2))),
    ]


def _size(size: Document) -> list[tuple[str, str]]:
    return [
        ("parameters", exact(size["parameters"], fixed(size["parameters"], 0))),
        ("multiply-adds (MACs)", exact(size["macs"], large(size["macs"]))),
        (
            size["file"] or "exported file",
            exact(size["bytes"], large(size["bytes"], "B")) if size["bytes"] else NOT_YET,
        ),
    ]


def _prediction(prediction: Document) -> list[tuple[str, str]]:
    rows = [("this table", prediction["error"]), *prediction["baselines"].items()]
    return [(name, exact(error["mape"], percent(error["mape"] / 100)) if error else "unknown") for name, error in rows]
