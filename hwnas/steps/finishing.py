"""Training what was found, and exporting it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwnas.compute import Compute
from hwnas.data import ImageData
from hwnas.distributed import process_group, rank, world_size
from hwnas.errors import RunError
from hwnas.files import read_json, write_atomic, write_json
from hwnas.metrics import Progress, no_progress
from hwnas.plugins import create_exporter
from hwnas.run import RunFolder, origin
from hwnas.space import macs, parameters
from hwnas.steps.inputs import matching_data
from hwnas.supernet.supernet import Network
from hwnas.training import Scores, TrainingOptions, train


def train_run(
    run: RunFolder,
    *,
    data: str | None = None,
    options: TrainingOptions | None = None,
    compute: Compute | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Progress = no_progress,
    say: Callable[[str], None] | None = None,
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
            checkpoint_seconds=checkpoint_seconds, progress=progress, say=say,
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
