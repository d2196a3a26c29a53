"""What else could have been: accuracy against latency of every architecture that was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hwnas.documents import Derivation, ScoredPath
from hwnas.latency.model import LatencyModel
from hwnas.space import SearchSpace

from .charts import Series, tradeoff
from .markup import Markup, figure, legend, section, tag
from .numbers import decimals, ms, percent

MOST_DRAWN = 1500
"""Points besides the front; more make a page slow and hide each other."""


def candidates(
    space: SearchSpace, model: LatencyModel | None, derivation: Derivation, scores: Sequence[ScoredPath]
) -> list[dict[str, Any]]:
    """Architectures with predicted latency and accuracy; those of the rounds where the derivation asked for no scores.

    Returns:
        ``front`` marks those that none beats in one and equals in the other; ``result`` what was derived last.
        Empty where there is no latency model, or nothing but the result.
    """
    rounds = derivation["rounds"]
    chosen = space.architecture(rounds[-1]["architecture"])
    if scores:
        known = {space.architecture(each["architecture"]): each["accuracy"] for each in scores}
    else:
        known = {space.architecture(each["architecture"]): each["accuracy"] for each in rounds if "accuracy" in each}
    if model is None or not set(known) - {chosen}:
        return []
    predicted = model.exact_ms_many([space.indices(architecture) for architecture in known])
    found: list[dict[str, Any]] = [
        {"id": a.id, "predicted_ms": float(ms), "accuracy": accuracy, "front": False, "result": a == chosen}
        for (a, accuracy), ms in zip(known.items(), predicted, strict=True)
    ]
    found.sort(key=lambda each: (each["predicted_ms"], -each["accuracy"]))
    best = -1.0
    for each in found:
        each["front"] = each["accuracy"] > best
        best = max(best, each["accuracy"])
    return found


def candidates_section(report: Mapping[str, Any]) -> Markup:
    """All of them, the Pareto front and the result; a sentence where there is nothing to compare."""
    found, target = report["candidates"], report["latency"]["target_ms"]
    if not found:
        return section(
            "Candidates",
            "No other architecture was scored: this recipe takes the most probable one that keeps the limit.",
        )
    places = decimals(target)
    front = [each for each in found if each["front"]]
    others = [each for each in found if not each["front"] and not each["result"]]
    shown = others[:: -(-len(others) // MOST_DRAWN) or 1]
    result = [each for each in found if each["result"]]
    groups = [
        Series("candidate", [_point(each) for each in shown], "d"),
        Series("Pareto front", [_point(each) for each in front], "a"),
        Series("result", [_point(each) for each in result], "b"),
    ]
    said = "; ".join(f"{ms(each['predicted_ms'], places)} {percent(each['accuracy'])}" for each in front)
    label = f"Accuracy against predicted latency of {len(found)} architectures. Pareto front: {said}."
    if result:
        label += f" Result: {ms(result[0]['predicted_ms'], places)} {percent(result[0]['accuracy'])}."
    drawing = tradeoff(groups, label=label, x_label="predicted, ms", target=target)
    left_out = f" {len(others) - len(shown)} of them are not drawn." if len(shown) < len(others) else ""
    intro = (
        f"{len(found)} architectures with the weights of the supernet, not trained on their own.{left_out} "
        "Nothing here is both faster and more accurate than an architecture of the Pareto front."
    )
    keys = legend(*((each.tone, each.name) for each in groups if each.points), ("line", "target"))
    drawn = tag("div", figure(drawing, "Accuracy against latency", keys), class_="half")
    return section("Candidates", intro, drawn)


def _point(candidate: Mapping[str, Any]) -> tuple[float, float]:
    return candidate["predicted_ms"], candidate["accuracy"]
