"""The steps of a run, each from one folder state to the next: search, train, export."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hwnas.accuracy import PathAccuracy
from hwnas.checkpoint import load_checkpoint
from hwnas.compute import Compute
from hwnas.data import ImageData, load_data
from hwnas.distributed import barrier, process_group, rank, world_size
from hwnas.errors import EnvironmentMismatchError, RunError, UsageError
from hwnas.files import read_json, write_atomic, write_json
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.metrics import Progress, no_progress
from hwnas.plugins import create_exporter, create_profiler
from hwnas.recipes import create_recipe, recipe_origin
from hwnas.run import RunFolder, origin, table_hash
from hwnas.search.loop import SearchResult, search
from hwnas.search.protocols import Finished
from hwnas.search.target import DerivationRound, meet_target, settled
from hwnas.space import SearchSpace, macs, parameters
from hwnas.supernet.supernet import Network
from hwnas.training import Scores, TrainingOptions, train

if TYPE_CHECKING:
    from hwnas.plugins import Profiler

log = logging.getLogger("hwnas")

DEFAULT_TARGET = 0.5
"""Position of the default target between the fastest (0) and the slowest (1) network."""


def default_target_ms(model: LatencyModel) -> float:
    """A limit in the middle of the reachable range, to three digits."""
    low, high = feasible_range_ms(model)
    return float(f"{low + DEFAULT_TARGET * (high - low):.3g}")


def search_run(
    space: SearchSpace,
    table: LatencyTable,
    output: Path | str,
    *,
    data: str = "digits",
    classes: int | None = None,
    max_ms: float | None = None,
    recipe: str = "gumbel",
    recipe_arguments: dict[str, Any] | None = None,
    seed: int = 0,
    compute: Compute = Compute(),
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
        weights_from: Another run of this space, whose supernet to start from.
        resume: Go on with an interrupted run.
        other_device: Accept a table of another device; nothing is then measured here.
        checkpoint_seconds: Time between checkpoints.
        progress: Told about every step.
        say: Told what memory a step is predicted to need, and what it needed.

    Returns:
        The derivation's rounds; the last one is the result. Empty on ranks other than 0.

    Raises:
        InfeasibleBudgetError: The limit is below the fastest network.
        EnvironmentMismatchError: The table is of another device and ``other_device`` is not set.
        HwnasError: Any other error of the parts; see ``hwnas.errors``.
    """
    budget = _budget(LatencyModel.from_table(space, table), max_ms)
    chosen = create_recipe(recipe, **(recipe_arguments or {}))
    images = matching_data(data, space, seed, classes)
    profiler = None if other_device else profiler_of(table)
    config = {
        "space": space.describe(),
        "table": {"path": str(Path(table.path or "").resolve()), "sha256": table_hash(table)},
        "max_ms": budget.max_ms,
        "recipe": {"name": recipe, "arguments": recipe_arguments or {}, **recipe_origin(recipe)},
        "weights_from": None if weights_from is None else str(Path(weights_from).resolve()),
        "data": data,
        "classes": classes,
        "seed": seed,
        "other_device": other_device,
    }
    with process_group(compute.place):
        run = _shared_folder(output, config, resume)
        result = search(
            budget, images, chosen, run, seed=seed, compute=compute, weights=supernet_weights(space, weights_from),
            checkpoint_seconds=checkpoint_seconds, progress=progress, say=say,
        )  # fmt: skip
        if rank() != 0:
            return []
    rounds = settled(meet_target(chosen.derivation, _finished(result, compute, seed), budget, profiler))
    write_derivation(run, budget, rounds, result, images, compute)
    return rounds


def _budget(model: LatencyModel, max_ms: float | None) -> Budget:
    return Budget(model, default_target_ms(model) if max_ms is None else max_ms)


def _shared_folder(output: Path | str, config: dict[str, Any], resume: bool) -> RunFolder:
    """Rank 0 makes the run's folder, then all open it."""
    if rank() == 0:
        RunFolder.create(output, config, resume=resume)
    barrier()
    return RunFolder.open(output)


def supernet_weights(space: SearchSpace, path: Path | str | None) -> dict[str, Tensor] | None:
    """The supernet of another run.

    Raises:
        RunError: There is none, or it is of another space.
    """
    if path is None:
        return None
    other = RunFolder.open(path)
    snapshot = load_checkpoint(other.file("search.pt"))
    if snapshot["space"] != space.fingerprint:
        raise RunError(
            f"the supernet of {path} is of another space ({snapshot['space']}, here {space.fingerprint}). "
            "Start from a run of this space, with the same resolution, width and classes."
        )
    weights: dict[str, Tensor] = snapshot["supernet"]
    return weights


def _finished(result: SearchResult, compute: Compute, seed: int) -> Finished:
    """Scores paths on the images of the architecture half; where there is none, on those that trained the weights."""
    held_out = result.weight_images if result.arch_images is None else result.arch_images
    accuracy = PathAccuracy(result.supernet, result.weight_images, held_out, compute, seed)
    return Finished(result.probabilities, accuracy, seed)


def tighten_run(run: RunFolder, measured_ms: float, *, num_rounds: int = 1) -> list[DerivationRound]:
    """Derives again after the trained and exported network missed the target.

    Args:
        run: A searched run; keeps its earlier rounds, the last of them with what the exported file measured.
        measured_ms: What the exported file measured.
        num_rounds: Derivations at most.

    Returns:
        The new rounds; empty where nothing faster can be derived.
    """
    budget, config = run.budget(), run.config
    recipe = create_recipe(config["recipe"]["name"], **config["recipe"]["arguments"])
    images = matching_data(config["data"], budget.model.space, config["seed"], config["classes"])
    compute = Compute()
    result = search(budget, images, recipe, run, seed=config["seed"], compute=compute)  # finished: only restores
    finished = _finished(result, compute, config["seed"])
    limit = budget.max_ms * budget.model.exact_ms(run.architecture()) / measured_ms
    rounds = settled(
        meet_target(
            recipe.derivation, finished, budget, profiler_of(run.table()), num_rounds=num_rounds, limit_ms=limit
        )
    )
    if rounds:
        earlier = read_json(run.file("derivation.json"))["rounds"]
        earlier[-1] |= {"measured_ms": measured_ms, "met": False}
        write_derivation(run, budget, rounds, result, images, compute, earlier=earlier)
        run.file("training.pt").unlink(missing_ok=True)
    return rounds


def train_run(
    run: RunFolder,
    *,
    data: str | None = None,
    options: TrainingOptions | None = None,
    compute: Compute | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Progress = no_progress,
) -> float:
    """Trains the run's architecture from scratch; writes ``weights.safetensors`` and ``training.json``.

    Under ``torchrun`` all processes train together; rank 0 writes.

    Returns:
        Top-1 accuracy on the held-out images.
    """
    from safetensors.torch import save

    options, compute = options or TrainingOptions(), compute or Compute()
    space, architecture, seed = run.space(), run.architecture(), run.config["seed"]
    images = matching_data(data or run.config["data"], space, seed, run.config["classes"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(space, architecture)
    with process_group(compute.place):
        scores = train(
            network, images, run, options=options, compute=compute, seed=seed, identity=architecture.id,
            checkpoint_seconds=checkpoint_seconds, progress=progress,
        )  # fmt: skip
        if rank() != 0:
            return scores.top1
        ranks = world_size()
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomic(run.file("weights.safetensors"), save(weights, {"architecture": architecture.to_json()}))
    document = _training_document(network, images, scores)
    how = {"options": asdict(options), "compute": asdict(compute), "ranks": ranks, "epochs": options.num_epochs}
    write_json(run.file("training.json"), document | how | {"origin": origin()})
    return scores.top1


def _training_document(network: Network, images: ImageData, scores: Scores) -> dict[str, Any]:
    operators = network.space.operators(network.architecture)
    return {
        "accuracy": scores.top1,
        "top5": scores.top5,
        "loss": scores.loss,
        "data": images.spec,
        "classes": list(images.classes),
        "mean": list(images.mean),
        "std": list(images.std),
        "num_train": len(images.train),
        "num_val": len(images.val),
        "architecture": network.architecture.id,
        "parameters": sum(map(parameters, operators)),
        "macs": sum(map(macs, operators)),
    }


def trained_network(run: RunFolder) -> Network:
    """The run's network with its trained weights, in evaluation mode.

    Raises:
        RunError: The run is not trained, or its weights belong to another architecture.
    """
    from safetensors import SafetensorError, safe_open

    path, architecture = run.file("weights.safetensors"), run.architecture()
    if not path.exists():
        raise RunError(f"{run.path} has no trained weights. Run 'hwnas train {run.path}' first.")
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("architecture") != architecture.to_json():
                raise RunError(f"{path} belongs to another architecture. Run 'hwnas train {run.path}' again.")
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RunError(f"{path} cannot be read ({error}). Run 'hwnas train {run.path}' again.") from error
    network = Network(run.space(), architecture)
    network.load_state_dict(weights)
    return network.eval()


def export_run(run: RunFolder, *, exporter: str = "onnx", precision: str = "fp32") -> Path:
    """Exports the trained network with everything needed to use it in the file's metadata."""
    plugin = create_exporter(exporter)
    network, training = trained_network(run), read_json(run.file("training.json"))
    architecture, table, model = run.architecture(), run.table(), run.budget().model
    metadata = {
        "hwnas": origin()["hwnas"],
        "space": model.space.name,
        "architecture": architecture.to_json(),
        "architecture_id": architecture.id,
        "classes": "\n".join(training["classes"]),
        "input_range": "0 1",
        "mean": " ".join(map(repr, training["mean"])),
        "std": " ".join(map(repr, training["std"])),
        "predicted_ms": repr(model.exact_ms(architecture)),
        "latency_table": table.name,
        "environment": str(table.environment),
    }
    path = run.file(f"model{plugin.suffix}")
    return plugin.export(network, path, input_shape=model.space.input_shape, precision=precision, metadata=metadata)


def matching_data(spec: str, space: SearchSpace, seed: int, classes: int | None = None) -> ImageData:
    """A data set at the space's resolution, or that many classes of it.

    Raises:
        UsageError: It has another number of classes than the space.
    """
    images = load_data(spec, resolution=space.input_shape[1], seed=seed, num_classes=classes)
    if len(images.classes) != space.num_classes:
        raise UsageError(
            f"data set '{spec}' has {len(images.classes)} classes, space '{space.name}' was built for "
            f"{space.num_classes}. Pass --num-classes {len(images.classes)} when profiling and searching; "
            "to search on some of the classes, --num-classes with fewer."
        )
    return images


def profiler_of(table: LatencyTable) -> Profiler:
    """The profiler that measures what the table measured.

    Raises:
        EnvironmentMismatchError: This machine is not where the table was measured.
    """
    environment = table.environment
    try:
        profiler = create_profiler(
            environment.runtime,
            precision=environment.precision,
            batch=environment.batch,
            threads=environment.threads,
            **environment.arguments,
        )
    except UsageError as error:
        raise EnvironmentMismatchError(
            f"latency table {table.name} ({environment}) cannot be measured here: {error} "
            "Pass --other-device to search for that device all the same."
        ) from error
    table.require_environment(profiler.environment())
    return profiler


def write_derivation(
    run: RunFolder,
    budget: Budget,
    rounds: list[DerivationRound],
    result: SearchResult,
    data: ImageData,
    compute: Compute,
    *,
    earlier: Sequence[dict[str, Any]] = (),
) -> None:
    """Records how the limit was met, and the architecture that did."""
    model, chosen = budget.model, rounds[-1].architecture
    operators = model.space.operators(chosen)
    paths = PathAccuracy(result.supernet, result.weight_images, data.val, compute, run.config["seed"])
    write_json(
        run.file("derivation.json"),
        {
            "target_ms": budget.max_ms,
            "reachable_ms": list(feasible_range_ms(model)),
            "met": rounds[-1].met,
            "rounds": [*earlier, *(each.to_dict() for each in rounds)],
            "prediction": {
                "error": model.error.to_dict() if model.error else None,
                "baselines": {name: error.to_dict() for name, error in (model.baselines or {}).items()},
                "poor": model.poor,
            },
            "layers": [
                {
                    "name": name,
                    "operator": str(op),
                    "predicted_ms": ms,
                    "macs": macs(op),
                    "parameters": parameters(op),
                }
                for (name, ms), op in zip(model.layers_ms(chosen), operators, strict=False)
            ],
            "overhead_ms": model.overhead_ms,
            "probabilities": {name: p.tolist() for name, p in result.probabilities.items()},
            "accuracy": {"inherited": paths.as_trained(chosen), "recalibrated": paths(chosen)},
        },
    )
    run.save_architecture(chosen)
