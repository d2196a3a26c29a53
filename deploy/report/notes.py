"""What a reader must know before trusting the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hwnas.latency.calibration import POOR_MAPE
from hwnas.latency.measurement import MAX_SPREAD
from hwnas.latency.table import LatencyTable

from .numbers import decimals, ms, percent


def latency_notes(
    latency: Mapping[str, Any],
    prediction: Mapping[str, Any],
    networks: Sequence[Mapping[str, float]],
    config: Mapping[str, Any],
) -> list[str]:
    """Remarks on how far target, prediction and measurement can be trusted."""
    places, notes = decimals(latency["target_ms"]), []
    if config["other_device"]:
        notes.append("The run is for another device: nothing was measured on it after the table.")
    if prediction["error"] is None:
        notes.append("The table's error is unknown: no whole networks were measured with it.")
    elif prediction["poor"]:
        notes.append(
            f"The table predicts whole networks poorly: {percent(prediction['error']['mape'] / 100)} off on "
            "average. Profile again on a quiet machine, with more rounds and networks."
        )
    off = latency["relative_error"]
    if off is not None and abs(off) > POOR_MAPE / 100:
        notes.append(
            f"The prediction is {percent(abs(off), 0)} {'below' if off < 0 else 'above'} the measurement."
            + _outside(latency["predicted_ms"], networks, places)
        )
    if latency["slowdown"] > 1:
        notes.append(
            f"The device was {latency['slowdown']:.2f} times slower than in the table's sweep, by networks of that "
            "sweep timed in between. The measured latency is given at the sweep's speed, the quantiles as they were."
        )
    median = latency["p50_ms"]
    if latency["met"] and median is not None and median > latency["target_ms"]:
        notes.append(
            f"The median run took {ms(median, places)}, longer than the target; the target is held against "
            f"the {latency['statistic']}."
        )
    return notes


def _outside(predicted: float, networks: Sequence[Mapping[str, float]], places: int) -> str:
    measured = [network["measured_ms"] for network in networks]
    if not measured or min(measured) <= predicted <= max(measured):
        return ""
    return (
        f" At {ms(predicted, places)} it lies outside the networks the table was calibrated on "
        f"({fixed_range(measured, places)})."
    )


def fixed_range(values: Sequence[float], places: int) -> str:
    """Smallest and largest latency."""
    return f"{ms(min(values), places)} to {ms(max(values), places)}"


def image_notes(**num_unreadable: int) -> list[str]:
    """Remarks on images that could not be read, by the step that read them."""
    return [
        f"The {step} left out {number} image{'' if number == 1 else 's'} that could not be read."
        for step, number in num_unreadable.items()
        if number
    ]


def table_notes(table: LatencyTable | None) -> list[str]:
    """Remarks on the table itself."""
    if table is None:
        return []
    unstable = sum(entry.status == "unstable" for entry in table.entries.values())
    if not unstable:
        return []
    return [
        f"{unstable} of {len(table.entries)} table entries are unstable: their rounds disagreed by more than "
        f"{percent(MAX_SPREAD, 0)}. A quieter machine gives a better table."
    ]
