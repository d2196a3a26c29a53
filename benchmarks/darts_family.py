"""Which repairs of DARTS hold, and what do they cost? The whole family on one skeleton, trained alike.

    python benchmarks/darts_family.py costs --space darts-cell:channels=16,num_cells=8       # against first-order DARTS
    python benchmarks/darts_family.py search --data npz:cifar10.npz --seed 0 --space robust-darts:subspace=2,channels=8
    python benchmarks/darts_family.py summary --space robust-darts:subspace=2,channels=8
    python benchmarks/darts_family.py regret --nb201 FILE --space nas-bench-201             # of what was searched there

``costs``: activations and gradients of a step, and its time, as ratios to DARTS in the same run; the memory of one
sampled operator an edge among 2, 4 and 8. ``search``: every method starts from the same weights, goes over the same
images equally often, and its logits may move as far. Then come the accuracy of the supernet, of the derived network
with inherited weights, after batch-norm recalibration, and trained anew; all on the same test images. No multiply-adds
are too many unless ``--limit`` says so. Everything is kept in ``runs/darts-family`` and goes on where it stopped.
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
from lines import Lines
from nb201 import accuracies, regret_of
from rows import Rows, parsed

import hwnas
from hwnas.accuracy import PathAccuracy
from hwnas.checkpoint import load_checkpoint
from hwnas.cli_options import built_space
from hwnas.compute import Compute
from hwnas.console import Reporter
from hwnas.data import BatchStream, ImageData, ImageDataset, load_data
from hwnas.errors import UnknownNameError, UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.environment import cpu_name
from hwnas.latency.model import LatencyModel
from hwnas.memory import measured_peak, mib
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.hessian import dominant_eigenvalue
from hwnas.search.loop import SearchResult, search
from hwnas.search.protocols import Finished
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import Softmax, StraightThroughGumbel
from hwnas.search.sampling import BandSampler
from hwnas.search.state import initial_state
from hwnas.search.step import SearchStep
from hwnas.space import Architecture, SearchSpace, macs
from hwnas.supernet.supernet import Network
from hwnas.training import TrainingOptions, train

FOLDER = Path("runs/darts-family")
RESULTS = Rows(FOLDER / "results.jsonl")
METHODS = (
    "darts",
    "darts:order=2",
    "darts_plus",
    "robust_darts:mode=stop",
    "robust_darts:mode=l2",
    "robust_darts:mode=drop_path",
    "robust_darts:mode=adaptive",
    "sdarts:mode=random",
    "sdarts:mode=adversarial",
    "amended_darts",
    "milenas",
    "pc_darts",
    "p_darts",
    "snas",
    "gdas",
    "gdas:added=true",
    "fair_darts",
    "gold_nas",
    "asap",
    "cp_nas",
    "beta_darts",
    "drop_nas",
    "random",
)
"""Recipe, with arguments after a colon."""

ANY, NO_NONE = {"inputs": 0}, {"with_none": 0}
OWN_SPACES = {"asap": ANY, "beta_darts": NO_NONE, "cp_nas": ANY, "fair_darts": ANY | NO_NONE, "snas": ANY}
"""Recipe -> options of the space that it derives from, where the space has them."""

SKELETON = "channels", "num_cells", "resolution", "num_classes", "stem_stride"
"""Options that ``gold-nas`` shares with the other spaces of cells."""

ACCURACIES = "supernet", "inherited", "recalibrated", "retrained"

FARTHEST = 5.0
"""Learning rate of the logits times steps: with Adam, about as far as a logit can move; that of DARTS' 50 epochs."""
GROWTH = 5 / 17, 11 / 17
"""Depths of P-DARTS' first searches, as shares of the last one's."""
FEWEST_CELLS, CERTAIN = 3, 50.0
WEIGHT_SHARE = 0.5
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
    steps = {name: step_of(name, arguments, compute) for name in dict.fromkeys(["darts", *names]) if name != "random"}
    peaks = {name: peak_of(step) for name, step in steps.items()}
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(arguments.rounds)]
    base = peaks["darts"], median(row["darts"] for row in rounds)
    yield f"darts: {mib(base[0])} MiB, {1e3 * base[1]:.0f} ms"
    for name in steps:
        ratio = median(row[name] / row["darts"] for row in rounds)
        yield f"{name:28s} memory {peaks[name] / base[0]:5.2f}   time {ratio:5.2f}"
    for count in (2, 4, 8):
        found = [peak_of(among(count, relaxation, arguments, compute)) for relaxation in (Softmax(), GUMBEL)]
        yield f"{count} candidates an edge: softmax {mib(found[0])} MiB, sampled {found[1] / found[0]:.2f} of that"


GUMBEL = StraightThroughGumbel(1.0)


def step_of(name: str, arguments: argparse.Namespace, compute: Compute) -> SearchStep:
    """A step of a method, past its warm-up."""
    recipe, space = recipe_of(name, arguments, 1000.0), space_of(name, arguments)
    return prepared(recipe, space, arguments, compute)


def prepared(recipe: Recipe, space: SearchSpace, arguments: argparse.Namespace, compute: Compute) -> SearchStep:
    """A step on random images."""
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(arguments.batch_size, *space.input_shape, generator=generator),
        torch.arange(arguments.batch_size) % space.num_classes,
    )
    state = initial_state(space, recipe, 0, compute)
    return SearchStep(state, recipe, budget_of(space, arguments.limit), compute, 0.9, batch, lambda: batch)


def among(count: int, relaxation: Any, arguments: argparse.Namespace, compute: Compute) -> SearchStep:
    """A step of some candidates an edge, of which 3x3 separable convolutions are drawn where one is."""
    space = space_of("darts", arguments)
    recipe = replace(recipe_of("darts", arguments, 1000.0), relaxation=relaxation)
    step = prepared(recipe, space, arguments, compute)
    for choice in space.choices:
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
    most = budget_of(space_of("darts", arguments), arguments.limit).max_ms
    names, refused = methods(arguments)
    yield from refused
    for name in names:
        if RESULTS.all(**identity(name, arguments)):
            continue
        started, budget = time.monotonic(), replace(budget_of(space_of(name, arguments), 1.0), max_ms=most)
        if name == "random":
            best, row = drawn(budget, arguments.seed), {}
        else:
            best, row = searched(name, recipe_of(name, arguments, steps), budget, data, arguments)
        took = time.monotonic() - started
        retrained_to = retrained(best, budget.model.space, data, folder_of(name, arguments), arguments)
        RESULTS.add(
            {
                **identity(name, arguments), **row, "retrained": retrained_to, "seconds": took,
                "skips": sum(option == "skip_connect" for choice, option in best.options if "reduce" not in choice),
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
    judge = PathAccuracy(found.supernet, found.weight_images, held_out, compute, arguments.seed)
    best = next(recipe.derivation(Finished(found.probabilities, judge, arguments.seed), budget))
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
    """A step at the end of a search, on images that trained nothing."""
    kept = load_checkpoint(folder.file("search.pt"))
    state = initial_state(budget.model.space, recipe, 0, compute, candidates=found.candidates)
    state.supernet.load_state_dict(found.supernet.state_dict())
    for name, values in kept["logits"].items():
        state.logits[name].data.copy_(values)
    batches = BatchStream(held_out, len(held_out) // NUM_BATCHES, seed=0, augment=False).batches(0)
    return SearchStep(state, recipe, budget, compute, 1.0, next(batches), lambda: next(batches))


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


def methods(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Those that fit the space, and a line about every other one."""
    fit, refused = [], []
    for name in arguments.methods.split(","):
        try:
            if name != "random":
                recipe_of(name, arguments, 1.0).check(budget_of(space_of(name, arguments), arguments.limit))
            fit.append(name)
        except UnknownNameError as error:
            raise SystemExit(f"error: {error}") from error
        except UsageError as error:
            refused.append(f"{name} is left out: {error}")
    return fit, refused


def recipe_of(name: str, arguments: argparse.Namespace, steps: float) -> Recipe:
    """A method at the common length; its logits may move as far as those of all others."""
    recipe, given = parsed(name)
    lengths: dict[str, Any] = {"num_epochs": arguments.epochs, "batch_size": arguments.batch_size}
    rate = {} if recipe == "cp_nas" else {"arch_lr": FARTHEST / max(1.0, steps)}  # its logits are sums of accuracies
    if recipe == "p_darts":
        return growing(arguments, rate["arch_lr"])
    return create_recipe(recipe, **lengths, **rate, **given)


def growing(arguments: argparse.Namespace, rate: float) -> Recipe:
    """P-DARTS up to the depth of the common skeleton, its three searches as long together as those of the others."""
    searches = 1 + len(GROWTH)
    last = create_recipe(
        "p_darts", num_epochs=max(1, arguments.epochs // searches), batch_size=arguments.batch_size,
        arch_lr=searches * rate,
    )  # fmt: skip
    cells = int(built_space(arguments.space, None, None, None).options["num_cells"])
    depths = [max(FEWEST_CELLS, round(share * cells)) for share in GROWTH]
    stages = tuple(
        replace(stage, recipe=replace(stage.recipe, proxy={"num_cells": depth}))
        for stage, depth in zip(last.stages, depths, strict=True)
    )
    return replace(last, proxy={}, stages=stages)


def space_of(name: str, arguments: argparse.Namespace) -> SearchSpace:
    """The space with the options that a method derives from."""
    method, space = parsed(name)[0], built_space(arguments.space, None, None, None)
    if method == "gold_nas":
        if "channels" not in space.options:
            raise UsageError(f"its space is gold-nas, whose skeleton is not that of '{space.name}'.")
        return hwnas.create_space("gold-nas", **{key: space.options[key] for key in SKELETON})
    more = {key: value for key, value in OWN_SPACES.get(method, {}).items() if key in space.options}
    return hwnas.create_space(space.name, **{**space.options, **more})


def budget_of(space: SearchSpace, share: float) -> Budget:
    """Millions of multiply-adds in the place of milliseconds; a share of 1 limits nothing."""
    model = LatencyModel.counting(space, lambda s: macs(s) / 1e6)
    return Budget(model, share * feasible_range_ms(model)[1])


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
    found = pd.DataFrame(rows)
    shown = [key for key in (*ACCURACIES, "skips", "eigenvalue", "seconds") if key in found]
    groups = found.groupby(["method", "data"])
    table = groups[shown].agg(["mean", "std"])
    table.insert(0, ("seeds", ""), groups.seed.count())
    yield table.sort_values(("retrained", "mean"), ascending=False).round(3).to_string()


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
