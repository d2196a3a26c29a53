"""Which repairs of DARTS hold, and what do they cost? The whole family on one skeleton, trained alike.

    python benchmarks/darts_family.py costs --space darts-cell:channels=16,num_cells=8       # against first-order DARTS
    python benchmarks/darts_family.py search --data npz:cifar10.npz --seed 0 --space robust-darts:subspace=2,channels=8
    python benchmarks/darts_family.py summary --space robust-darts:subspace=2,channels=8
    python benchmarks/darts_family.py regret --nb201 FILE --space nas-bench-201             # of what was searched there

``costs``: activations and gradients of a step, and its time, as ratios to DARTS in the same run; the memory of one
sampled operator an edge among 2, 4 and 8. ``search``: every method starts from the same weights, goes over the same
images equally often, and its logits may move as far. Then come the accuracy of the supernet, of the derived network
with inherited weights, after batch-norm recalibration, and trained anew; all on the same test images. No multiply-adds
are too many unless ``--limit`` says so; only GOLD-NAS, which prunes to a limit, then keeps that of the largest network
of the common space. ``summary``: means and spreads over the seeds, and costs if they were measured with the same
settings; ``skips`` is their share of the edges of the normal cells. Everything is kept in ``runs/darts-family`` and
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pandas as pd
import torch
from darts_methods import METHODS, WEIGHT_SHARE, budget_of, methods, recipe_of
from lines import Lines
from nb201 import accuracies, regret_of
from rows import Rows

from hwnas.accuracy import PathAccuracy
from hwnas.checkpoint import load_checkpoint
from hwnas.cli_options import built_space
from hwnas.compute import Compute
from hwnas.console import Reporter
from hwnas.data import BatchStream, ImageData, ImageDataset, load_data
from hwnas.latency.budget import Budget
from hwnas.latency.environment import cpu_name
from hwnas.memory import measured_peak, mib
from hwnas.run import RunFolder
from hwnas.search.hessian import dominant_eigenvalue
from hwnas.search.loop import SearchResult, search
from hwnas.search.protocols import Finished
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import Softmax, StraightThroughGumbel
from hwnas.search.sampling import BandSampler
from hwnas.search.state import initial_state
from hwnas.search.step import SearchStep
from hwnas.space import Architecture, SearchSpace
from hwnas.supernet.supernet import Network
from hwnas.training import TrainingOptions, train

FOLDER = Path("runs/darts-family")
RESULTS, COSTS = Rows(FOLDER / "results.jsonl"), Rows(FOLDER / "costs.jsonl")
ACCURACIES = "supernet", "inherited", "recalibrated", "retrained"

CERTAIN = 50.0
MAX_IMAGES, NUM_BATCHES = 2000, 8
"""Test images that supernets and their paths are judged by, and batches that they are cut into."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", help="images, such as npz:cifar10.npz")
    parser.add_argument("--space", default="darts-cell:channels=8,num_cells=5,resolution=16", help="with its options")
    parser.add_argument("--methods", default=",".join(name for name in METHODS if "," not in name))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30, help="of a search")
    parser.add_argument("--train-epochs", type=int, default=3, help="of the derived network")
    parser.add_argument("--images", type=int, default=0, help="training images, spread over the classes; 0: all")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--limit", type=float, default=1.0, help="share of the largest network's multiply-adds")
    parser.add_argument("--nb201", type=Path, help="accuracies of NAS-Bench-201: CSV with columns arch, accuracy")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="of the costs")
    parser.add_argument("--output", type=Path, help="also write there")
    arguments = parser.parse_args()
    if arguments.stage == "search" and arguments.data is None:
        parser.error("searches need images: --data npz:cifar10.npz, say")
    say = Lines(arguments.output)
    for line in STAGES[arguments.stage](arguments):
        say(line)


# --- what a step costs


def costs(arguments: argparse.Namespace) -> Iterator[str]:
    """Lines about memory and time."""
    compute = Compute(device=arguments.device)
    yield f"{datetime.date.today()} {arguments}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    names, refused = methods(arguments)
    yield from refused
    steps = {name: step_of(name, arguments, compute) for name in dict.fromkeys(["darts", *names]) if name != "drawn"}
    peaks = {name: peak_of(step) for name, step in steps.items()}
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(arguments.rounds)]
    base = peaks["darts"], median(row["darts"] for row in rounds)
    yield f"darts: {mib(base[0])} MiB, {1e3 * base[1]:.0f} ms"
    for name in steps:
        time_ratio, ratio = median(row[name] / row["darts"] for row in rounds), peaks[name] / base[0]
        yield f"{name:28s} memory {ratio:5.2f}   time {time_ratio:5.2f}"
        COSTS.add({**of_costs(arguments), "method": name, "memory": ratio, "time": time_ratio})
    most = len(steps["darts"].state.supernet.space.choices[0].candidates)
    for count in (n for n in (2, 4, 8) if n <= most):
        found = [peak_of(among(count, relaxation, arguments, compute)) for relaxation in (Softmax(), GUMBEL)]
        yield f"{count} candidates an edge: softmax {mib(found[0])} MiB, sampled {found[1] / found[0]:.2f} of that"


GUMBEL = StraightThroughGumbel(1.0)


def step_of(name: str, arguments: argparse.Namespace, compute: Compute) -> SearchStep:
    """A step of a method, past its warm-up; of several searches, one of the last, among the options left to it."""
    recipe, budget = recipe_of(name, arguments, 1000.0), budget_of(name, arguments)
    step = prepared(recipe, budget, arguments, compute)
    if recipe.stages:
        left = {each.name: each.candidates[: recipe.stages[-1].keep] for each in budget.model.space.choices}
        step.state.candidates = left
    return step


def prepared(recipe: Recipe, budget: Budget, arguments: argparse.Namespace, compute: Compute) -> SearchStep:
    """A step on random images."""
    space = budget.model.space
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(arguments.batch_size, *space.input_shape, generator=generator),
        torch.arange(arguments.batch_size) % space.num_classes,
    )
    state = initial_state(space, recipe, 0, compute)
    return SearchStep(state, recipe, budget, compute, 0.9, batch, lambda: batch)


def among(count: int, relaxation: Any, arguments: argparse.Namespace, compute: Compute) -> SearchStep:
    """A step of some candidates an edge, of which 3x3 separable convolutions are drawn where one is."""
    recipe = replace(recipe_of("darts", arguments, 1000.0), relaxation=relaxation)
    step = prepared(recipe, budget_of("darts", arguments), arguments, compute)
    for choice in step.state.supernet.space.choices:
        heavy = choice.options.index("sep_conv_3x3")
        others = [k for k in choice.candidates if k != heavy]
        step.state.candidates = {**step.state.candidates, choice.name: tuple(sorted([heavy, *others[: count - 1]]))}
        step.state.logits[choice.name].data[heavy] = CERTAIN
    return step


def peak_of(step: SearchStep) -> int:
    """Bytes that a step needs beyond those before it, optimizers' state made before."""
    step.recipe.scheme(step)
    with measured_peak(step.compute.place) as peak:
        step.recipe.scheme(step)
    return peak.bytes


def seconds(step: SearchStep) -> float:
    """Time of one step."""
    started = time.perf_counter()
    step.recipe.scheme(step)
    if step.compute.place.type == "cuda":
        torch.cuda.synchronize(step.compute.place)
    return time.perf_counter() - started


# --- what a search finds


def searches(arguments: argparse.Namespace) -> Iterator[str]:
    """Searches with every method and keeps what was found."""
    data = images(arguments)
    steps = len(data.train) * WEIGHT_SHARE // arguments.batch_size * arguments.epochs
    names, refused = methods(arguments)
    yield from refused
    for name in names:
        if RESULTS.all(**identity(name, arguments)):
            continue
        started, budget = time.monotonic(), budget_of(name, arguments)
        if name == "drawn":
            best, row = drawn(budget, arguments.seed), {}
        else:
            best, row = searched(name, recipe_of(name, arguments, steps), budget, data, arguments)
        took = time.monotonic() - started
        retrained_to = retrained(best, budget.model.space, data, folder_of(name, arguments), arguments)
        RESULTS.add(
            {
                **identity(name, arguments), **row, "retrained": retrained_to, "seconds": took,
                "million_macs": budget.model.exact_ms(best), "architecture": dict(best.options),
            }
        )  # fmt: skip
        yield name


def drawn(budget: Budget, seed: int) -> Architecture:
    """A random network within the limit."""
    even = [np.zeros(count) for count in budget.model.space.num_options]
    return next(BandSampler(budget.model, even, max_ms=budget.max_ms).distinct(seed))


def searched(
    name: str, recipe: Recipe, budget: Budget, data: ImageData, arguments: argparse.Namespace
) -> tuple[Architecture, dict[str, float]]:
    """What a search derives, and what its supernet says."""
    folder, compute = folder_of(name, arguments), Compute(device=arguments.device)
    with Reporter() as reporter:
        found = search(budget, data, recipe, folder, seed=arguments.seed, compute=compute, progress=reporter)
    held_out = data.val.spread(MAX_IMAGES)
    chooser, judge = (
        PathAccuracy(found.supernet, found.weight_images, unseen, compute, arguments.seed, max_images=MAX_IMAGES)
        for unseen in (found.arch_images or held_out, held_out)
    )
    best = next(recipe.derivation(Finished(found.probabilities, chooser, arguments.seed), budget))
    step = finished_step(found, recipe, budget, held_out, folder, compute)
    return best, {
        "supernet": mean(
            step.run(step.arch_batch(), step.draw(recipe.relaxation)).accuracy for _ in range(NUM_BATCHES)
        ),
        "inherited": judge.as_trained(best),
        "recalibrated": judge(best),
        "eigenvalue": dominant_eigenvalue(step, step.arch_batch()) if recipe.relaxation.differentiable else math.nan,
    }


def finished_step(
    found: SearchResult, recipe: Recipe, budget: Budget, held_out: ImageDataset, folder: RunFolder, compute: Compute
) -> SearchStep:
    """A step at the end of a search, on images that trained nothing; nothing is dropped any more."""
    kept, quiet = load_checkpoint(folder.file("search.pt")), replace(recipe, drop_path=0.0, skip_dropout=0.0)
    state = initial_state(budget.model.space, recipe, 0, compute, candidates=found.candidates)
    state.supernet.load_state_dict(found.supernet.state_dict())
    for name, values in kept["logits"].items():
        state.logits[name].data.copy_(values)
    batches = BatchStream(held_out, len(held_out) // NUM_BATCHES, seed=0, augment=False).batches(0)
    return SearchStep(state, quiet, budget, compute, 1.0, next(batches), lambda: next(batches))


def retrained(
    best: Architecture, space: SearchSpace, data: ImageData, folder: RunFolder, arguments: argparse.Namespace
) -> float:
    """Top-1 of the derived network, trained anew."""
    torch.manual_seed(arguments.seed)
    options = TrainingOptions(num_epochs=arguments.train_epochs, batch_size=arguments.batch_size)
    with Reporter() as reporter:
        return train(
            Network(space, best), data, folder, options=options, compute=Compute(device=arguments.device),
            seed=arguments.seed, identity=f"{best.id}-{arguments.train_epochs}", progress=reporter,
        ).top1  # fmt: skip


def of_costs(arguments: argparse.Namespace) -> dict[str, Any]:
    """What costs are about."""
    return {key: getattr(arguments, key) for key in ("space", "batch_size", "limit", "device")}


def identity(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a row is about."""
    keys = "seed", "space", "epochs", "train_epochs", "images", "batch_size", "limit"
    data = Path((arguments.data or "").rpartition(":")[2]).name  # wherever it lies
    return {"method": name, "data": data, **{key: getattr(arguments, key) for key in keys}}


def folder_of(name: str, arguments: argparse.Namespace) -> RunFolder:
    """Where checkpoints of a search and of its training lie."""
    text = "-".join(str(value) for value in identity(name, arguments).values())
    folder = RunFolder(FOLDER / "".join(c if c.isalnum() or c in "-._" else "_" for c in text))
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


# --- of both


def images(arguments: argparse.Namespace) -> ImageData:
    """Training images, as many as asked for, and test images."""
    resolution = int(built_space(arguments.space, None, None, None).input_shape[1])
    data = load_data(arguments.data, resolution=resolution, seed=arguments.seed)
    return replace(data, train=data.train.spread(arguments.images)) if arguments.images else data


def summary(arguments: argparse.Namespace) -> Iterator[str]:
    """Means and spreads over the seeds."""
    wanted = {key: value for key, value in identity("", arguments).items() if key != "seed" and value != ""}
    rows = RESULTS.all(**wanted)
    if not rows:
        yield "nothing was kept with these settings"
        return
    yield f"{datetime.date.today()} {cpu_name()}, torch {torch.__version__}: {wanted}"
    found = pd.DataFrame(rows).join(pd.DataFrame([chosen(row["architecture"]) for row in rows]))
    shown = [key for key in (*ACCURACIES, "edges", "skips", "eigenvalue") if key in found]
    groups = found.groupby(["method", "data"])
    table = groups[shown].agg(["mean", "std"])
    table.insert(0, ("seeds", ""), groups.seed.count())
    yield table.sort_values(("retrained", "mean"), ascending=False).round(3).to_string()
    for row in {row["method"]: row for row in COSTS.all(**of_costs(arguments))}.values():  # the latest of each
        yield f"{row['method']:28s} peak memory {row['memory']:5.2f}   seconds a step {row['time']:5.2f}   of DARTS"


def chosen(options: dict[str, str]) -> dict[str, float]:
    """Edges that a network has, and share of skips among them: of normal cells, or where they have no kinds, of all."""
    kept = [option for choice, option in options.items() if "reduce" not in choice and option != "none"]
    return {"edges": len(kept), "skips": kept.count("skip_connect") / max(1, len(kept))}


def regret(arguments: argparse.Namespace) -> Iterator[str]:
    """How far the networks found in nas-bench-201 are from its best."""
    if built_space(arguments.space, None, None, None).name != "nas-bench-201":
        raise SystemExit(f"regret is known in nas-bench-201, not in {arguments.space}: give --space nas-bench-201")
    rows, truth = RESULTS.all(space=arguments.space), accuracies(arguments.nb201)
    if not rows:
        raise SystemExit(f"no search of --space {arguments.space} is kept in {RESULTS.path}: run 'search' first")
    for row in rows:
        yield f"{row['method']:28s} seed {row['seed']}: {regret_of(row['architecture'], truth)}"


STAGES = {"costs": costs, "search": searches, "summary": summary, "regret": regret}

if __name__ == "__main__":
    main()
