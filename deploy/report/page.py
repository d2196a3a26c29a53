"""The page of a report: verdict and summary first, then how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import Bar, bars
from .markup import Markup, commands_of, exact, facts, figure, section, table, tag
from .numbers import decimals, fixed, large, ms, percent, scientific
from .sections import sections
from .style import CSS

Document = Mapping[str, Any]

NOT_YET = "not yet"

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser lets the page do, whatever a run has put into it: show its own styles, and nothing else."""

_BASIS = {
    "verification": "measured with the exported network",
    "derivation": "measured before training",
    "prediction": "predicted; not measured on the device",
}


def page(report: Document) -> str:
    """One self-contained HTML page: no script, nothing loaded from elsewhere."""
    title = f"{report['space']['name']} {report['architecture']['id']}"
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
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
    gist = tag("p", _gist(report["accuracy"], report["size"]))
    return tag("header", tag("h1", title), tag("p", device), _verdict(report["latency"]), gist, *failures, *notes)


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


def _gist(accuracy: Document, size: Document) -> str:
    """How exact and how large, as far as it is known."""
    states = {"exported": "as exported", "trained": "trained", "recalibrated": "with the supernet's weights"}
    known = [f"Top-1 {percent(accuracy[key])} {words}" for key, words in states.items() if accuracy[key] is not None]
    parts = [*known[:1], *([large(size["bytes"], "B")] if size["bytes"] else [])]
    return ", ".join([*parts, f"{large(size['parameters'])} parameters."])


def _summary(report: Document) -> Markup:
    accuracy = facts("Accuracy, top-1 on held-out images", _accuracy(report["accuracy"], report["adopted"]))
    size = facts("Size", _size(report["size"]))
    error = facts("Held-out error of the table", _prediction(report["prediction"]))
    boxes = tag("div", _latency(report), _files(report)), tag("div", accuracy, size, error)
    missing = report["missing"].get("verification")
    hint = [commands_of("Not verified yet. Run:", missing)] if missing else []
    return section("Summary", "", tag("div", *boxes, class_="columns"), *hint)


def _latency(report: Document) -> Markup:
    latency = report["latency"]
    places, target = decimals(latency["target_ms"]), latency["target_ms"]
    named = (("predicted", "a"), ("measured", "b"), ("p50", "c"), ("p90", "c"), ("p99", "c"))
    rows = [Bar(name, latency[f"{name}_ms"], tone) for name, tone in named if latency[f"{name}_ms"] is not None]
    drawing = bars(rows, label="Latency", places=places, target_ms=target)
    caption = []
    if latency["measured_ms"] is not None:
        off = exact(latency["relative_error"], percent(latency["relative_error"]))
        caption = [f"Measured: {latency['statistic']}. Prediction against measurement: ", off, "."]
    return figure(drawing, "Latency", *caption)


def _accuracy(accuracy: Document, adopted: bool) -> list[tuple[str, str]]:
    inherited = {"inherited": "inherited from the supernet", "recalibrated": "batch-norm recalibrated"}
    names = ({} if adopted else inherited) | {
        "trained": "trained",
        "pytorch": "PyTorch, compared images",
        "exported": "exported, compared images",
    }
    return [
        (name, NOT_YET if accuracy[key] is None else exact(accuracy[key], percent(accuracy[key])))
        for key, name in names.items()
    ]


def _files(report: Document) -> Markup:
    """How exact, how large and how fast every exported file is."""
    files = report["files"]
    if not files:
        return facts("Exported file against PyTorch", [("numerics", NOT_YET)])
    numerics, places = [each["numerics"] for each in files], decimals(report["latency"]["target_ms"])
    rows: dict[str, list[Markup]] = {
        "size": [exact(each["bytes"], large(each["bytes"], "B")) for each in files],
        "largest difference": [exact(n["max_difference"], scientific(n["max_difference"])) for n in numerics],
        "mean difference": [exact(n["mean_difference"], scientific(n["mean_difference"])) for n in numerics],
        "1 − least cosine": [exact(n["min_cosine"], scientific(1 - n["min_cosine"])) for n in numerics],
        "top-1 agreement": [exact(n["top1_agreement"], percent(n["top1_agreement"], 2)) for n in numerics],
        "top-1 accuracy": [exact(n["accuracy_exported"], percent(n["accuracy_exported"])) for n in numerics],
        **{
            name: [exact(each["latency"][f"{key}_ms"], ms(each["latency"][f"{key}_ms"], places)) for each in files]
            for name, key in (("measured", "measured"), ("median", "p50"), ("p90", "p90"), ("p99", "p99"))
        },
        "bounds": [_kept(each["failures"]) for each in files],
    }
    header = ("", *(each["precision"] + (" engine" if each["file"].endswith(".engine") else "") for each in files))
    grid = table("Exported files against PyTorch", header, [(name, *cells) for name, cells in rows.items()])
    words = (
        f"{numerics[0]['num_images']} held-out images. The target is for {files[0]['file']}, in the precision of "
        f"the latency table. Measured: {files[0]['latency']['statistic']}."
    )
    said = [f"{each['file']}: {remark}" for each in files for remark in _timed(each, files[0])]
    said += [f"{each['file']}, not run: {each['reason']}" for each in report["not_run"]]
    remarks = (tag("p", remark, class_="remark") for remark in (words, *said))
    return tag("div", tag("h3", "Exported files against PyTorch"), grid, *remarks)


def _timed(file: Document, judged: Document) -> list[str]:
    """What to know before comparing a file's latency with that of the file with the verdict."""
    fields = ("device", "runtime", "runtime_version")
    where, usual = ([each["environment"][name] for name in fields] for each in (file, judged))
    elsewhere = [] if where == usual else [f"timed on {where[0]}, {where[1]} {where[2]}."]
    return [*elsewhere, *([file["note"]] if file["note"] else [])]


def _kept(failures: Sequence[str]) -> Markup:
    return tag("strong", "✗ broken", class_="missed") if failures else tag("strong", "✓ kept", class_="met")


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
