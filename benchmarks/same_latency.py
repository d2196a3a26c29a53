"""Is the searched network better than others of the same latency? Trained alike, three seeds.

    python benchmarks/same_latency.py RUN --data npz:cifar10.npz --epochs 10 [--device cpu]

RUN is a finished search. Its network is held against MobileNetV2, whose width is scaled until it measures the same
latency on the device of the run's table, and against random networks of the space that the table predicts within two
percent of it. Latency jumps where a width reaches the next multiple of eight channels, so that two MobileNetV2 are
compared: the widest that is not slower, and the next one, which is. Every training's accuracy is kept in
``RUN/same-latency-*.jsonl``, so that the command goes on where it stopped. Leave the machine alone while latency is
measured, which comes first.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from rows import Rows
from torch import nn
from torchvision.models import mobilenet_v2

from hwnas.compute import Compute
from hwnas.console import Reporter
from hwnas.errors import HwnasError
from hwnas.files import read_json, write_json
from hwnas.latency.measure import measure
from hwnas.plugins import Profiler
from hwnas.run import RunFolder
from hwnas.search.sampling import BandSampler
from hwnas.space import SearchSpace, Shape
from hwnas.steps import matching_data, profiler_of
from hwnas.supernet.supernet import Network
from hwnas.training import TrainingOptions, train

NUM_RANDOM = 5
NUM_MEASUREMENTS = 3
BAND = 0.02
WIDTHS = np.arange(0.05, 2.5, 0.025)
SMALL_IMAGES = [
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
"""Expansion, channels, repeats, stride: MobileNetV2 (arXiv 1801.04381, table 2) for images of at most 64 pixels, with
the first two strides left out, as is usual for CIFAR."""

Build = Callable[[], nn.Module]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="that of the search if not given")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    run = RunFolder.open(arguments.run)
    settings = f"{run.architecture().id}-epochs{arguments.epochs}-batch{arguments.batch_size}"
    kept = Rows(run.file(f"same-latency-{settings}.jsonl"))
    for seed, (name, ms, build) in itertools.product(range(arguments.seeds), rivals(run)):
        if not kept.all(network=name, seed=seed):
            torch.manual_seed(seed)
            row = {
                "network": name,
                "ms": ms,
                "seed": seed,
                **trained(build(), run, arguments, f"{settings}-{name}", seed),
            }
            kept.add(row)
    print(f"{datetime.date.today()} {run.table().environment}, torch {torch.__version__}, {arguments}")  # noqa: T201
    found = pd.DataFrame(kept.all())
    found["kind"] = found.network.str.replace(r" \d+$", "", regex=True)
    print(found.groupby("kind").agg({"ms": "mean", "accuracy": ["mean", "std", "count"]}).to_string())  # noqa: T201


def rivals(run: RunFolder) -> list[tuple[str, float, Build]]:
    """Name, measured latency and builder of every network; measured once, then kept beside the run."""
    path, space = run.file(f"rivals-{run.architecture().id}.json"), run.space()
    if not path.exists():
        write_json(path, list(measured_rivals(run)))
    return [(name, ms, builder(space, described)) for name, ms, described in read_json(path)]


def builder(space: SearchSpace, described: Any) -> Build:
    """Makes a network from a width of MobileNetV2 or from the options of an architecture."""
    if isinstance(described, float):
        return lambda: mobilenet(described, space.input_shape, space.num_classes)
    return lambda: Network(space, space.architecture(described))


def measured_rivals(run: RunFolder) -> Iterator[tuple[str, float, Any]]:
    """Name, measured latency, and the width or the options."""
    space, model, profiler, chosen = run.space(), run.budget().model, profiler_of(run.table()), run.architecture()
    target = settled_ms(profiler, Network(space, chosen), space.input_shape)
    yield "searched", target, space.indices(chosen)
    for width, ms in fitted_widths(profiler, space.input_shape, space.num_classes, target):
        yield f"MobileNetV2 x{width:.3f}", ms, width
    low, high = ((1 + sign * BAND) * model.exact_ms(chosen) for sign in (-1, 1))
    uniform = [np.zeros(count) for count in space.num_options]
    others = (a for a in BandSampler(model, uniform, min_ms=low, max_ms=high).distinct(0) if a.id != chosen.id)
    for number, other in enumerate(itertools.islice(others, NUM_RANDOM), 1):
        ms = settled_ms(profiler, Network(space, other), space.input_shape)
        yield f"random {number}", ms, space.indices(other)


def settled_ms(profiler: Profiler, network: nn.Module, shape: Shape) -> float:
    """Median latency of some measurements, as another program may disturb one."""
    return median(measure(profiler, network.eval(), shape).ms for _ in range(NUM_MEASUREMENTS))


def fitted_widths(
    profiler: Profiler, shape: Shape, num_classes: int, target_ms: float
) -> Iterator[tuple[float, float]]:
    """Width and latency of the widest MobileNetV2 not slower than the target, found by halving, and of the next."""
    low, high, found = 0, len(WIDTHS) - 1, dict[int, float]()
    while low <= high:
        middle = (low + high) // 2
        found[middle] = settled_ms(profiler, mobilenet(WIDTHS[middle], shape, num_classes), shape)
        low, high = (middle + 1, high) if found[middle] <= target_ms * (1 + BAND / 2) else (low, middle - 1)
    if not low:
        raise HwnasError(f"no MobileNetV2 is as fast as {target_ms:.4g} ms here. Search at a higher target.")
    for number in (low - 1, low):
        if number in found:
            yield float(WIDTHS[number]), found[number]


def mobilenet(width: float, shape: Shape, num_classes: int) -> nn.Module:
    """MobileNetV2, with fewer strides where images are small."""
    if shape[1] > 64:
        return mobilenet_v2(width_mult=float(width), num_classes=num_classes, dropout=0.0)
    network = mobilenet_v2(
        width_mult=float(width), num_classes=num_classes, inverted_residual_setting=SMALL_IMAGES, dropout=0.0
    )
    network.features[0][0].stride = (1, 1)
    return network


def trained(
    network: nn.Module, run: RunFolder, arguments: argparse.Namespace, name: str, seed: int
) -> dict[str, float]:
    """Trains a network like every other; returns its accuracy."""
    space, folder = run.space(), RunFolder(run.file(f"same-latency/{name.replace(' ', '-')}-{seed}"))
    folder.path.mkdir(parents=True, exist_ok=True)
    data = matching_data(arguments.data or run.config["data"], space, seed, run.config["classes"])
    options = TrainingOptions(num_epochs=arguments.epochs, batch_size=arguments.batch_size)
    compute = Compute(device=arguments.device, num_workers=arguments.workers)
    with Reporter() as reporter:
        scores = train(
            network, data, folder, options=options, compute=compute, seed=seed, identity=name, progress=reporter
        )
    return {"accuracy": scores.top1}


if __name__ == "__main__":
    main()
