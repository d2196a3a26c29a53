"""What a search step costs beside a training step of one network: memory of activations, and time.

The network is the one of median multiply-adds among random ones of the space, and every step that runs one path runs
that very path, on the same batch: logits of 50 make its draw certain, while a second path is drawn at random. First
the space as it is, then with 2, 6 and 12 candidates a layer that differ in their kernels alone, so that only their
number varies.

Memory: the most bytes alive at one time during forward and backward pass beyond those alive before, gradients
included, optimizer not yet moved. Time: draw, passes and optimizer; all kinds take turns, and the median over the
rounds of the ratio to the network's own training step is shown. In brackets is the most that a ratio may be.

    python benchmarks/search_cost.py --space proxylessnas --resolution 64 --batch-size 32
    python benchmarks/search_cost.py --device cuda --resolution 224 --batch-size 128
    python benchmarks/search_cost.py --dry-run        # the toy space, to see that it runs
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from lines import Lines
from torch import nn
from torch.nn.functional import cross_entropy

import hwnas
from hwnas.compute import Compute
from hwnas.latency.budget import feasible_range_ms
from hwnas.latency.environment import cpu_name
from hwnas.memory import measured_peak, mib
from hwnas.search.gradients import FirstOrder
from hwnas.search.protocols import Batch, Relaxation, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import BinaryGates, Concrete, Softmax, StraightThroughGumbel
from hwnas.search.schemes import weight_step
from hwnas.search.step import SearchStep
from hwnas.space import Architecture, Choice, OpSignature, SearchSpace
from hwnas.space.cost import macs
from hwnas.supernet.supernet import Supernet, extract
from hwnas.testing.toys import toy_space, toy_table

NUM_SAMPLED = 201
CERTAIN = 50.0  # exp(-50) is never drawn, and still a number that a pair can be drawn with
FIXED = "fixed network"
ARCHITECTURE_STEPS: dict[str, tuple[Relaxation, float | None, float | None]] = {
    "straight-through Gumbel": (StraightThroughGumbel(1.0), 1.05, None),
    "two-path binary gates": (BinaryGates("two"), 1.10, 2.2),
    "all-probed binary gates": (BinaryGates("all"), 1.15, None),
    "concrete": (Concrete(1.0), None, None),
    "softmax": (Softmax(), None, None),
}
"""Name -> relaxation, bar of memory, bar of time."""

BARS = {"weight step": (1.05, 1.10), **{name: bars for name, (_, *bars) in ARCHITECTURE_STEPS.items()}}


@dataclass(frozen=True)
class Kind:
    """One kind of step: only its passes, for memory; and all of it, for time."""

    passes: Callable[[], object]
    step: Callable[[], object]


def with_candidates(space: SearchSpace, count: int) -> SearchSpace:
    """The same layers, each with ``count`` blocks of its largest expansion and kernels 3, 5 and 7 in turn."""
    layers = []
    for layer in space.layers:
        if layer.choices:
            first, expansion = layer.signatures[0], max(s.attribute("e") for s in layer.signatures)
            residual = {"r": 1} if first.attribute("r") else {}
            shapes = first.in_shape, first.out_shape[0]
            blocks = (
                OpSignature.create("mbconv", *shapes, stride=first.stride, k=(3, 5, 7)[i % 3], e=expansion, **residual)
                for i in range(count)
            )
            layer = replace(layer, signatures=tuple(blocks))
        layers.append(layer)
    options = tuple(f"block{i}" for i in range(count))
    choices = tuple(Choice(choice.name, options) for choice in space.choices)
    return replace(space, name=f"{space.name}-{count}", choices=choices, layers=tuple(layers))


def median_network(space: SearchSpace) -> Architecture:
    """Of random networks the one of median multiply-adds."""
    by_cost = sorted(space.distinct(NUM_SAMPLED, seed=0), key=lambda a: sum(map(macs, space.operators(a))))
    return by_cost[len(by_cost) // 2]


def training(network: nn.Module, compute: Compute, recipe: Recipe, batch: Batch) -> Kind:
    """A training step of one network, as plain as can be."""
    optimizer = recipe.weight_optimizer(network.parameters())

    def passes() -> None:
        for images, labels in compute.micro_batches(batch):
            with compute.autocast():
                outputs = network(images)
            cross_entropy(outputs.float(), labels).backward()

    def step() -> None:
        passes()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Kind(passes, step)


def kinds(space: SearchSpace, path: Architecture, compute: Compute, batch: Batch) -> dict[str, Kind]:
    """Every kind of step, on one supernet and one batch."""
    model = hwnas.LatencyModel.from_table(space, toy_table(space))
    budget = hwnas.Budget(model, sum(feasible_range_ms(model)) / 2)
    torch.manual_seed(0)
    supernet = Supernet(space)
    compute.move(supernet.train())
    recipe = replace(hwnas.create_recipe("gdas"), weight_relaxation=StraightThroughGumbel(1.0))
    optimizer = recipe.weight_optimizer(supernet.parameters())

    def prepared(relaxation: Relaxation) -> SearchStep:
        logits = {choice.name: nn.Parameter(torch.zeros(len(choice.options))) for choice in space.choices}
        if not isinstance(relaxation, Concrete | Softmax):  # those run every option, whatever the logits
            with torch.no_grad():
                for logit, index in zip(logits.values(), space.indices(path), strict=True):
                    logit[index] = CERTAIN
        generator = torch.Generator().manual_seed(0)
        state = SearchState(supernet, logits, optimizer, recipe.arch_optimizer(logits.values()), generator)
        return SearchStep(state, replace(recipe, relaxation=relaxation), budget, compute, 0.5, batch, lambda: batch)

    def searching(relaxation: Relaxation) -> Kind:
        step = prepared(relaxation)

        def whole() -> None:
            gates = step.draw(relaxation)
            estimate = FirstOrder()(step, gates)
            step.move_logits(estimate.gradients, gates, estimate.context)

        return Kind(lambda: step.run(batch, step.draw(relaxation), arch=True), whole)

    weights = prepared(recipe.of_weights)
    return {
        FIXED: training(extract(supernet, path), compute, recipe, batch),
        "weight step": Kind(
            lambda: weights.run(batch, weights.draw(recipe.of_weights), weights=True), lambda: weight_step(weights)
        ),
        **{name: searching(relaxation) for name, (relaxation, *_) in ARCHITECTURE_STEPS.items()},
    }


def memory(kind: Kind, compute: Compute) -> int:
    """Bytes of one forward and backward pass; the step before it makes the optimizer's state and warms up."""
    kind.step()
    with measured_peak(compute.place) as peak:
        kind.passes()
    return peak.bytes


def seconds(kind: Kind, compute: Compute) -> float:
    """Time of one step."""
    start = time.perf_counter()
    kind.step()
    if compute.place.type == "cuda":
        torch.cuda.synchronize(compute.place)
    return time.perf_counter() - start


def compare(space: SearchSpace, compute: Compute, batch: Batch, rounds: int) -> Iterator[str]:
    """The lines of one table."""
    path = median_network(space)
    steps = kinds(space, path, compute, batch)
    peaks = {name: memory(kind, compute) for name, kind in steps.items()}
    for kind in steps.values():  # gradients that a measurement of memory left
        kind.step()
    times = [{name: seconds(kind, compute) for name, kind in steps.items()} for _ in range(rounds)]
    million = sum(map(macs, space.operators(path))) / 1e6
    fixed_ms = 1e3 * median(row[FIXED] for row in times)
    yield f"{space.name}: {max(space.num_options)} candidates a layer, the network has {million:.1f} million MACs"
    yield f"  {FIXED:24s}  memory {mib(peaks[FIXED]):>6s} MiB             time {fixed_ms:7.1f} ms"
    for name, (memory_bar, time_bar) in BARS.items():
        parts = [
            f"{ratio:6.2f}  {judged(ratio, bar):14s}"
            for ratio, bar in (
                (peaks[name] / peaks[FIXED], memory_bar),
                (median(row[name] / row[FIXED] for row in times), time_bar),
            )
        ]
        yield f"  {name:24s}  memory {parts[0]}  time {parts[1]}".rstrip()


def judged(ratio: float, bar: float | None) -> str:
    """Whether a ratio keeps within its bar."""
    return "" if bar is None else f"{'ok' if ratio <= bar else 'OVER'} (<= {bar:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="proxylessnas", help="one whose candidates are blocks of MobileNetV2")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, auto")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write there")
    parser.add_argument("--dry-run", action="store_true", help="the toy space, one round")
    arguments = parser.parse_args()
    compute = Compute(device=arguments.device, precision=arguments.precision)
    if arguments.dry_run:
        space, rounds, counts = toy_space(), 1, [2]
    else:
        space, rounds = hwnas.create_space(arguments.space, resolution=arguments.resolution), arguments.rounds
        counts = [2, 6, 12]
    torch.manual_seed(0)
    labels = torch.arange(arguments.batch_size) % space.num_classes
    batch = torch.randn(arguments.batch_size, *space.input_shape), labels
    on_gpu = compute.place.type == "cuda"
    device = torch.cuda.get_device_name(compute.place) if on_gpu else cpu_name()
    images = f"batch {arguments.batch_size} of {'x'.join(map(str, space.input_shape))}"
    say = Lines(arguments.output)
    say(
        f"{datetime.date.today()} {device}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{compute.precision}, {images}, {rounds} rounds"
    )
    say(f"python {' '.join(sys.argv)}")
    for variant in (space, *(with_candidates(space, count) for count in counts)):
        for line in compare(variant, compute, batch, rounds):
            say(line)


if __name__ == "__main__":
    main()
