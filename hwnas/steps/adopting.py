"""A run of a network that is known already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hwnas.distributed import expected_ranks
from hwnas.errors import UsageError
from hwnas.latency.budget import rounded_up
from hwnas.latency.calibration import POOR_MAPE
from hwnas.latency.device import Device
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.run import ADOPTED, RunFolder
from hwnas.search.target import DerivationRound, held_against
from hwnas.space import SearchSpace
from hwnas.space.written import read_network
from hwnas.steps.inputs import matching_data, profiler_of, target_budget
from hwnas.steps.recording import described, write_rounds

ALLOWED = 1 + POOR_MAPE / 100
"""Limit where none is given, as a share of what the network takes: beyond, the table predicts it poorly."""


def adopt_run(
    space: SearchSpace,
    table: LatencyTable,
    output: Path | str,
    *,
    network: str,
    data: str = "digits",
    classes: int | None = None,
    max_ms: float | None = None,
    seed: int = 0,
    other_device: bool = False,
) -> DerivationRound:
    """Predicts and measures a network of a space, and writes the run folder as if it had been derived.

    It is then trained, exported, verified and reported like any other.

    Args:
        space: It is of.
        table: Latency of its operators; must be saved.
        output: The run folder.
        network: See ``read_network``.
        data: Data set to train it on.
        classes: Use only this many classes of it.
        max_ms: The limit; if not given, five percent above the slower of prediction and measurement.
        seed: Of its training.
        other_device: Accept a table of another device; nothing is then measured here.

    Returns:
        The network against the limit.

    Raises:
        UsageError: Several processes were started.
        ArchitectureError: It is no network of the space.
        InfeasibleBudgetError: The limit is below the fastest network.
        EnvironmentMismatchError: The table is of another device and ``other_device`` is not set.
        RunError: The folder holds a run.
        HwnasError: Any other error of the parts; see ``hwnas.errors``.
    """
    if expected_ranks() > 1:
        raise UsageError("adopting a network is work for one process. Start it without torchrun.")
    model, architecture = LatencyModel.from_table(space, table), read_network(network, space)
    budget = target_budget(model, _allowed(model.exact_ms(architecture)) if max_ms is None else max_ms)
    images = matching_data(data, space, seed, classes)
    device = None if other_device else Device(profiler_of(table), table)
    found = held_against(budget, architecture, device, limit_ms=budget.max_ms)
    if max_ms is None:
        budget = replace(budget, max_ms=_allowed(max(found.predicted_ms, found.measured_ms or 0.0)))
        found = replace(found, limit_ms=budget.max_ms, met=True)
    config = {
        **described(budget, table, images),
        "recipe": {"name": ADOPTED, "arguments": {"network": architecture.id}},
        "data": data,
        "classes": classes,
        "seed": seed,
        "other_device": other_device,
    }
    run = RunFolder.create(output, config, resume=False)
    write_rounds(run, budget, [found.to_dict()], images, probabilities={}, accuracy={})
    return found


def _allowed(ms: float) -> float:
    return rounded_up(ALLOWED * ms)
