"""Training what was found, and exporting it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwnas.compute import Compute
from hwnas.data import ImageData, ImageDataset, evaluation_batches
from hwnas.distributed import process_group, rank, world_size
from hwnas.documents import Training, read_document
from hwnas.errors import RunError
from hwnas.files import write_atomic, write_json
from hwnas.metrics import Progress, no_progress
from hwnas.plugins import create_exporter
from hwnas.run import RunFolder, origin
from hwnas.space import macs, parameters
from hwnas.steps.inputs import left_out, matching_data
from hwnas.supernet.supernet import Network
from hwnas.training import Scores, TrainingOptions, train

NUM_CALIBRATION = 128
"""Training images that fix the ranges of 8-bit activations."""


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
        "num_unreadable": left_out(images),
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
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"{path} does not fit its architecture ({error}). Run 'hwnas train {run.path}' again."
        ) from error
    return network.eval()


def training_data(run: RunFolder) -> ImageData:
    """The images that the run's network was trained and judged on."""
    spec, config = read_document(run.file("training.json"), Training)["data"], run.config
    return matching_data(spec, run.space(), config["seed"], config["classes"])


def sample(images: ImageDataset, num_images: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of images and labels, spread evenly over a data set; all of it if there are fewer."""
    return [*evaluation_batches(images.spread(num_images), 32)]


def export_run(run: RunFolder, *, exporter: str = "onnx", precision: str = "fp32", **options: Any) -> Path:
    """Exports the trained network with everything needed to use it in the file's metadata.

    Args:
        run: Trained.
        exporter: Its name.
        precision: It is part of the name, see ``exported_name``. For ``int8``, training images
            fix the ranges of activations.
        options: Of the exporter; an ONNX file takes as many images a run as the table says, unless told otherwise.

    Raises:
        RunError: The run is not trained.
        UsageError: The exporter has no such precision or option.
    """
    if exporter == "onnx" and not options.get("dynamic_batch"):
        options = {"batch": run.table().environment.batch, **options}
    plugin = create_exporter(exporter, precision=precision, **options)
    network = trained_network(run)
    images = sample(training_data(run).train, NUM_CALIBRATION) if precision == "int8" else None
    return plugin.export(
        network,
        run.file(exported_name(precision, plugin.suffix)),
        input_shape=network.space.input_shape,
        metadata=_metadata(run),
        calibration=None if images is None else [batch.numpy() for batch, _ in images],
    )


def exported_name(precision: str, suffix: str) -> str:
    """Name of an exported file.

    Example:
        >>> exported_name("fp32", ".onnx"), exported_name("int8", ".engine")
        ('model.onnx', 'model-int8.engine')
    """
    return f"model{'' if precision == 'fp32' else f'-{precision}'}{suffix}"


def weights_hash(run: RunFolder) -> str:
    """Says from which weights a file was exported."""
    return hashlib.sha256(run.file("weights.safetensors").read_bytes()).hexdigest()


def _metadata(run: RunFolder) -> dict[str, str]:
    """What there is to know about an exported file."""
    training, config = read_document(run.file("training.json"), Training), run.config
    architecture, table, model = run.architecture(), run.table(), run.budget().model
    return {
        "hwnas": origin()["hwnas"],
        "space": model.space.name,
        "architecture": architecture.to_json(),
        "architecture_id": architecture.id,
        "classes": "\n".join(training["classes"]),
        "input_range": "0 1",
        "mean": " ".join(map(repr, training["mean"])),
        "std": " ".join(map(repr, training["std"])),
        "resolution": str(model.space.input_shape[1]),
        "predicted_ms": repr(model.exact_ms(architecture)),
        "latency_table": table.name,
        "latency_table_sha256": config["table"]["sha256"],
        "environment": str(table.environment),
        "weights_sha256": weights_hash(run),
    }
