"""A run of a network that is known already."""

from __future__ import annotations

from pathlib import Path

from hwnas.latency.budget import Budget, rounded_up
from hwnas.latency.device import Device
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.run import ADOPTED, RunFolder
from hwnas.search.target import DerivationRound, held_against
from hwnas.space import SearchSpace
from hwnas.space.written import read_network
from hwnas.steps.inputs import matching_data, profiler_of
from hwnas.steps.recording import described, write_rounds

ALLOWED = 1.05
"""Limit where none is given, as a share of the prediction: beyond, a table predicts poorly."""


def adopt_run(
    space: SearchSpace,
    table: LatencyTable,
    output: Path | str,
    network: str,
    *,
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
        max_ms: The limit; five percent above the prediction if not given.
        seed: Of its training.
        other_device: Accept a table of another device; nothing is then measured here.

    Returns:
        The network against the limit.

    Raises:
        ArchitectureError: It is no network of the space.
        InfeasibleBudgetError: The limit is below the fastest network.
        EnvironmentMismatchError: The table is of another device and ``other_device`` is not set.
        HwnasError: Any other error of the parts; see ``hwnas.errors``.
    """
    model, architecture = LatencyModel.from_table(space, table), read_network(network, space)
    budget = Budget(model, rounded_up(ALLOWED * model.exact_ms(architecture)) if max_ms is None else max_ms)
    images = matching_data(data, space, seed, classes)
    device = None if other_device else Device(profiler_of(table), table)
    config = {
        **described(budget, table, images),
        "recipe": {"name": ADOPTED, "arguments": {"network": architecture.to_json()}},
        "data": data,
        "classes": classes,
        "seed": seed,
        "other_device": other_device,
    }
    run = RunFolder.create(output, config, resume=True)
    found = held_against(budget, architecture, device, limit_ms=budget.max_ms)
    write_rounds(run, budget, [found.to_dict()], images, probabilities={}, accuracy={})
    return found
