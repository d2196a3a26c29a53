"""Searching a space under a limit, and deriving again when the exported network missed it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hwnas.accuracy import PathAccuracy
from hwnas.compute import Compute
from hwnas.data import ImageData
from hwnas.distributed import barrier, expected_ranks, process_group, rank
from hwnas.documents import Derivation, Round, read_document
from hwnas.errors import RunError
from hwnas.files import write_atomic
from hwnas.latency.budget import Budget
from hwnas.latency.device import Device
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.metrics import Progress, no_progress
from hwnas.recipes import create_recipe, recipe_origin
from hwnas.run import RunFolder
from hwnas.search.loop import SearchResult, search
from hwnas.search.protocols import Finished
from hwnas.search.recipe import Recipe
from hwnas.search.surviving import Survivor, survivors
from hwnas.search.target import DerivationRound, meet_target, moved_limit_ms, settled
from hwnas.space import SearchSpace
from hwnas.steps.inputs import matching_data, profiler_of, supernet_weights, target_budget
from hwnas.steps.recording import described, write_rounds

log = logging.getLogger("hwnas")


def search_run(
    space: SearchSpace,
    table: LatencyTable,
    output: Path | str,
    *,
    data: str = "digits",
    classes: int | None = None,
    max_ms: float | None = None,
    recipe: str = "gates",
    recipe_arguments: dict[str, Any] | None = None,
    seed: int = 0,
    compute: Compute = Compute(),
    proxy: Mapping[str, float] | None = None,
    weights_from: Path | str | None = None,
    resume: bool = False,
    other_device: bool = False,
    checkpoint_seconds: float = 60.0,
    progress: Progress = no_progress,
    say: Callable[[str], None] = log.info,
) -> list[DerivationRound]:
    """Searches a space under a limit and writes the run folder.

    Under ``torchrun`` all processes search together; rank 0 derives, measures and writes.

    Args:
        space: What to choose from.
        table: Latency of its operators; must be saved.
        output: The run folder.
        data: Data set, such as ``digits`` or ``imagenet:PATH``.
        classes: Use only this many classes of it.
        max_ms: The limit; the middle of the reachable range if not given.
        recipe: Name of the method, or ``FILE.py:FUNCTION`` for one of your own.
        recipe_arguments: Keyword arguments of the method.
        seed: Decides everything random.
        compute: Device, number format and memory savings.
        proxy: Options of the space in which the supernet differs, such as ``{"num_cells": 8}``; see ``Recipe``.
        weights_from: Another run of this space, whose supernet to start from.
        resume: Go on with an interrupted run.
        other_device: Accept a table of another device; nothing is then measured here.
        checkpoint_seconds: Time between checkpoints.
        progress: Told about every step, and about every path that is scored.
        say: Told what memory a step is predicted to need, and what it needed; and of a search that prunes the
            latencies of the networks that it went through.

    Returns:
        The derivation's rounds; the last one is the result. Empty on ranks other than 0.

    Raises:
        InfeasibleBudgetError: The limit is below the fastest network.
        EnvironmentMismatchError: The table is of another device and ``other_device`` is not set.
        HwnasError: Any other error of the parts; see ``hwnas.errors``.
    """
    budget = target_budget(LatencyModel.from_table(space, table), max_ms)
    chosen = _recipe(recipe, recipe_arguments or {}, proxy or {})
    images = matching_data(data, space, seed, classes)
    device = None if other_device else Device(profiler_of(table), table)
    config = {
        **described(budget, table, images),
        **_fixed(chosen, compute, proxy or {}),
        "recipe": {"name": recipe, "arguments": recipe_arguments or {}, **recipe_origin(recipe)},
        "weights_from": None if weights_from is None else str(Path(weights_from).resolve()),
    } | {"data": data, "classes": classes, "seed": seed, "other_device": other_device}
    with process_group(compute.place):
        run = _shared_folder(output, config, compute, resume)
        result = search(
            budget, images, chosen, run, seed=seed, compute=compute, checkpoint_seconds=checkpoint_seconds,
            weights=supernet_weights(chosen.searched(space), weights_from), progress=progress, say=say,
        )  # fmt: skip
        if rank() != 0:
            return []
    if chosen.pruner and not space.nodes:
        _keep_survivors(run, survivors(result, budget.model), say)
    if run.file("derivation.json").exists():
        return _finished_before(run)
    rounds = settled(meet_target(chosen.derivation, _finished(result, run, compute, seed, progress), budget, device))
    write_derivation(run, budget, rounds, result, images, compute)
    return rounds


def _recipe(name: str, arguments: Mapping[str, Any], proxy: Mapping[str, float]) -> Recipe:
    return create_recipe(name, **arguments).in_proxy(proxy)


def _fixed(recipe: Recipe, compute: Compute, proxy: Mapping[str, float]) -> dict[str, Any]:
    """What decides the bits of a search, and so must not change until it ends."""
    parts = compute.accumulate * expected_ranks()
    computed = {"resolved": recipe.resolved, "compute": {"precision": compute.precision, "parts": parts}}
    return computed | ({"proxy": dict(proxy)} if proxy else {})


def recorded_rounds(run: RunFolder) -> list[DerivationRound]:
    """The derivation's rounds of a finished run; the last one is the result."""
    space = run.space()
    return [
        DerivationRound(
            space.architecture(each["architecture"]),
            each["limit_ms"],
            each["predicted_ms"],
            each["measured_ms"],
            each["met"],
            each["slowdown"],
        )
        for each in read_document(run.file("derivation.json"), Derivation)["rounds"]
    ]


def _finished_before(run: RunFolder) -> list[DerivationRound]:
    """The rounds of a finished run, whose architecture may be missing still if it was killed."""
    rounds = recorded_rounds(run)
    run.save_architecture(rounds[-1].architecture)
    return rounds


def _keep_survivors(run: RunFolder, series: Sequence[Survivor], say: Callable[[str], None]) -> None:
    lines = [
        {"epoch": each.epoch, "predicted_ms": each.exact_ms, "architecture": dict(each.architecture.options)}
        for each in series
    ]
    path = write_atomic(run.file("survivors.jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
    listed = ", ".join(f"{each.exact_ms:.4g}" for each in series)
    say(f"networks that pruning left, one after the other: {listed} ms predicted; see {path}")


def _shared_folder(output: Path | str, config: dict[str, Any], compute: Compute, resume: bool) -> RunFolder:
    """Rank 0 makes the run's folder, then all open it."""
    if rank() == 0:
        how = {"compute": asdict(compute), "ranks": expected_ranks()}
        RunFolder.create(output, config, resume=resume, how=how)
    barrier()
    return RunFolder.open(output)


def _finished(result: SearchResult, run: RunFolder, compute: Compute, seed: int, progress: Progress) -> Finished:
    """Scores paths on the images of the architecture half; where there is none, on those that trained the weights."""
    held_out = result.weight_images if result.arch_images is None else result.arch_images
    accuracy = PathAccuracy(
        result.supernet, result.weight_images, held_out, compute, seed, path=run.file("scores.jsonl")
    )
    return Finished(result.probabilities, accuracy, seed, progress)


def tighten_run(
    run: RunFolder,
    measured_ms: float,
    *,
    slowdown: float = 1.0,
    num_rounds: int = 1,
    progress: Progress = no_progress,
) -> list[DerivationRound]:
    """Derives again after the trained and exported network missed the target.

    Args:
        run: A searched run; keeps its earlier rounds, the last of them with what the exported file measured.
        measured_ms: What the exported file measured.
        slowdown: Of the device meanwhile; see ``Timed``.
        num_rounds: Derivations at most.
        progress: Told about every path that is scored.

    Returns:
        The new rounds; empty where nothing faster can be derived.
    """
    budget, config = run.budget(), run.config
    if run.adopted:
        raise RunError(f"the network of {run.path} was given, not searched; no other can be derived. Search for one.")
    recipe = _recipe(config["recipe"]["name"], config["recipe"]["arguments"], config.get("proxy", {}))
    if recipe.resolved != config["resolved"]:
        raise RunError(f"recipe '{recipe.name}' has changed since {run.path} was searched. Search again.")
    images = matching_data(config["data"], budget.model.space, config["seed"], config["classes"])
    compute = Compute()
    result = search(budget, images, recipe, run, seed=config["seed"], compute=compute)  # finished: only restores
    finished = _finished(result, run, compute, config["seed"], progress)
    limit = moved_limit_ms(budget, budget.model.exact_ms(run.architecture()), measured_ms)
    device = Device(profiler_of(run.table()), run.table())
    rounds = settled(meet_target(recipe.derivation, finished, budget, device, num_rounds=num_rounds, limit_ms=limit))
    if rounds:
        earlier = read_document(run.file("derivation.json"), Derivation)["rounds"]
        earlier[-1].update({"measured_ms": measured_ms, "met": False, "slowdown": slowdown})
        run.file("training.pt").unlink(missing_ok=True)
        write_derivation(run, budget, rounds, result, images, compute, earlier=earlier)
    return rounds


def write_derivation(
    run: RunFolder,
    budget: Budget,
    rounds: list[DerivationRound],
    result: SearchResult,
    data: ImageData,
    compute: Compute,
    *,
    earlier: Sequence[Round] = (),
) -> None:
    """Records how the limit was met, and the architecture that did."""
    chosen = rounds[-1].architecture
    paths = PathAccuracy(result.supernet, result.weight_images, data.val, compute, run.config["seed"])
    judged = [{**each.to_dict(), "accuracy": paths(each.architecture)} for each in rounds]
    write_rounds(
        run,
        budget,
        [*earlier, *judged],
        data,
        probabilities={name: p.tolist() for name, p in result.probabilities.items()},
        accuracy={"inherited": paths.as_trained(chosen), "recalibrated": paths(chosen)},
    )
