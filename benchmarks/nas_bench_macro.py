"""Does a search find good networks? Judged by NAS-Bench-Macro, 6561 networks trained on CIFAR-10.

    python benchmarks/nas_bench_macro.py supernet --data cifar10.npz --seed 0     # uniform paths, once a seed
    python benchmarks/nas_bench_macro.py ranking --data cifar10.npz --seed 0      # against the table's accuracy
    python benchmarks/nas_bench_macro.py search --data cifar10.npz --seed 0 --recipes proxylessnas,spos --limits 40,60
    python benchmarks/nas_bench_macro.py summary

The supernet and the searches see images of 16 pixels, a quarter of the arithmetic of the space's 32; networks are
ranked as well as after ``--phases 16:10,32:2`` (ten epochs at 16, then two, and all that follows, at 32). Every recipe
starts from the uniformly trained weights of its seed, goes on for ``--steps`` (those that run all options for a third)
with a step of the logits for each of the weights, and looks no accuracy up; rows with ``+scored`` compare the most
probable networks within the limit by the accuracy that the supernet of the seed gives them. Limits are millions of
multiply-adds, which take the place of milliseconds, or with ``--table FILE`` milliseconds of that table. Everything is
kept in ``runs/nas-bench-macro`` and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rows import Rows, parsed
from scipy.stats import kendalltau, spearmanr
from torch.optim import SGD

import hwnas
from hwnas.accuracy import PathAccuracy
from hwnas.checkpoint import load_checkpoint
from hwnas.compute import Compute
from hwnas.console import Reporter
from hwnas.data import ImageData, load_data, split_stratified
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.derivations import Evolution, SampleAndScore
from hwnas.search.loop import search
from hwnas.search.protocols import Finished
from hwnas.search.recipe import Recipe
from hwnas.search.schedules import Cosine, Linear
from hwnas.search.schemes import Alternating, Reinforce
from hwnas.space import Architecture, SearchSpace, macs
from hwnas.supernet.supernet import Supernet

FOLDER = Path("runs/nas-bench-macro")
RESULTS = Rows(FOLDER / "results.jsonl")
TRUTH = Path(__file__).parent.parent.parent / "shared/data/nas-bench-macro/nas_bench_macro.csv"
NUM_DRAWS = 5000
"""Repetitions behind the mean best of some random networks."""
WEIGHT_SHARE = 0.9
WARM_UP_RATE = 0.2
"""Learning rate of the supernet, a quarter of it in later phases."""
SEARCH_BATCH = 64
NUM_SCORED = 30
OPTIONS_RUN = {
    "gdas": 1,
    "proxylessnas": 1,
    "proxylessnas:mode=reinforce": 4,
    "fbnet": 3,
    "snas": 3,
    "darts": 3,
    "darts:order=2": 9,
    "spos": 0,
    "random": 0,
}
"""Recipe, with an argument after a colon -> options that one of its steps runs at each choice; 0: it only derives.

The default recipe, ``gates``, would be ``proxylessnas`` here, where all have the same pace.
"""
FARTHEST = 5.0
"""Learning rate of the logits times steps: with Adam, about as far as a logit can move."""
EVOLUTION = Evolution(
    population=20, generations=4, num_parents=5, num_mutations=10, num_crossovers=10, mutation_rate=0.1, floor=0.95
)
"""Smaller than the published one, for a processor."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, help="npz file of CIFAR-10")
    parser.add_argument("--truth", type=Path, default=TRUTH, help="the benchmark as CSV")
    parser.add_argument("--table", type=Path, help="latency table; limits are then milliseconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phases", default="16:14", help="of the supernet: resolution:epochs,...")
    parser.add_argument("--batch-size", type=int, default=64, help="of the supernet")
    parser.add_argument("--steps", type=int, default=200, help="of a search that runs one option a choice")
    parser.add_argument("--recipes", default=",".join(OPTIONS_RUN))
    parser.add_argument("--limits", default="40,60,80")
    parser.add_argument("--networks", type=int, default=200, help="of the ranking")
    parser.add_argument("--images", type=int, default=1500, help="held-out images that paths are compared on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    STAGES[arguments.stage](arguments)


def supernet(arguments: argparse.Namespace) -> Trained:
    """The supernet of a seed; trains it first, or goes on with it, where that has not been done."""
    run, weights = RunFolder(FOLDER / f"supernet-batch{arguments.batch_size}-seed{arguments.seed}"), None
    for phase in arguments.phases.split(","):
        resolution, _, epochs = phase.partition(":")
        run = RunFolder(run.path.with_name(f"{run.path.name}-{resolution}x{epochs}"))
        data = load_data(f"npz:{arguments.data}", resolution=int(resolution), seed=arguments.seed)
        if not run.file("done").exists():
            warmed_up(run, data, float(epochs), weights, arguments)
        weights = load_checkpoint(run.file("search.pt"))["supernet"]
    found = Supernet(hwnas.create_space("nas-bench-macro"))
    found.load_state_dict(weights)
    weight_images, arch_images = split_stratified(data.train, WEIGHT_SHARE, seed=arguments.seed)
    judge = PathAccuracy(
        found, weight_images, arch_images, compute_of(arguments), arguments.seed,
        num_batches=4, max_images=arguments.images,
    )  # fmt: skip
    return Trained(data, found, Kept(judge, Rows(run.file(f"scores-{arguments.images}.jsonl"))), run.path)


def warmed_up(
    run: RunFolder, data: ImageData, epochs: float, weights: dict[str, torch.Tensor] | None, args: argparse.Namespace
) -> None:
    """Trains the weights on uniform paths, at the resolution of the images; the test images stay unseen."""
    run.path.mkdir(parents=True, exist_ok=True)
    rate = WARM_UP_RATE if weights is None else WARM_UP_RATE / 4
    recipe = replace(
        create_recipe("spos", batch_size=args.batch_size), num_epochs=epochs, weight_share=WEIGHT_SHARE,
        weight_optimizer=partial(SGD, lr=rate, momentum=0.9, weight_decay=4e-5, nesterov=True),
        weight_lr=Linear(rate, 0.0), grad_clip=5.0,
    )  # fmt: skip
    model = mac_model(data.resolution)
    with Reporter() as reporter:
        search(
            Budget(model, feasible_range_ms(model)[1]), data, recipe, run,
            seed=args.seed, compute=compute_of(args), weights=weights, progress=reporter,
        )  # fmt: skip
    run.file("done").touch()


def ranking(arguments: argparse.Namespace) -> None:
    """Accuracy with the supernet's weights against the table's, on random distinct networks."""
    trained, truth = supernet(arguments), read_truth(arguments.truth)
    chosen = truth.drop_duplicates(["params", "macs", "mean_acc"]).sample(arguments.networks, random_state=0)
    space = trained.supernet.space
    with Reporter() as reporter:
        found = []
        for number, code in enumerate(chosen.arch, 1):
            found.append(trained.accuracy(space.architecture([int(digit) for digit in code])))
            reporter("ranking", number, len(chosen))
    RESULTS.add(
        {
            "stage": "ranking", "seed": arguments.seed, "networks": len(chosen), "images": arguments.images,
            "phases": arguments.phases,
            "kendall": float(kendalltau(found, chosen.mean_acc)[0]),
            "spearman": float(spearmanr(found, chosen.mean_acc)[0]),
            "kendall_of_macs": float(kendalltau(chosen.macs, chosen.mean_acc)[0]),
            "mean_supernet_accuracy": float(np.mean(found)),
        }
    )  # fmt: skip


def searches(arguments: argparse.Namespace) -> None:
    """What each recipe returns at each limit."""
    trained, truth = supernet(arguments), read_truth(arguments.truth).set_index("arch")
    space = trained.supernet.space
    model = mac_model()
    if arguments.table:
        model = LatencyModel.from_table(space, hwnas.LatencyTable.load(arguments.table))
    unit = "ms" if arguments.table else "M MACs"
    done = partial(RESULTS.all, stage="search", seed=arguments.seed, steps=arguments.steps, phases=arguments.phases)
    for limit, name in itertools.product(map(float, arguments.limits.split(",")), arguments.recipes.split(",")):
        started, budget = time.monotonic(), Budget(model, limit)
        recipe = short(name, arguments, len(trained.data.train))
        earlier = done(recipe=name, limit=limit, unit=unit)
        if earlier:
            probabilities = {each: torch.tensor(p) for each, p in earlier[0]["probabilities"].items()}
            took = earlier[0]["seconds"]
        else:
            probabilities = searched(trained, name, recipe, budget, arguments)
            took = time.monotonic() - started
        found = {name: recipe.derivation}
        if recipe.num_epochs:
            found |= {f"{name}+scored": SampleAndScore(NUM_SCORED, num_likely=NUM_SCORED)}
        for label, derivation in found.items():
            if done(recipe=label, limit=limit, unit=unit):
                continue
            best = next(derivation(Finished(probabilities, trained.accuracy, arguments.seed), budget))
            code = code_of(space, best)
            RESULTS.add(
                {
                    "stage": "search", "seed": arguments.seed, "recipe": label, "limit": limit, "unit": unit,
                    "steps": arguments.steps, "phases": arguments.phases, "architecture": code,
                    "cost": model.exact_ms(best), "accuracy": truth.mean_acc[code], "seconds": took,
                    "probabilities": {each: p.tolist() for each, p in probabilities.items()},
                }
            )  # fmt: skip


def searched(
    trained: Trained, label: str, recipe: Recipe, budget: Budget, arguments: argparse.Namespace
) -> dict[str, torch.Tensor]:
    """Final probabilities of a search that starts from the trained supernet; uniform ones without a step."""
    if not recipe.num_epochs:
        return {
            choice.name: torch.full((len(choice.options),), 1 / len(choice.options))
            for choice in budget.model.space.choices
        }
    folder = RunFolder(
        trained.folder / f"search-{arguments.seed}-{label.replace(':', '-')}-{budget.max_ms:g}-{arguments.steps}"
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    data = trained.data
    if recipe.weight_share == 1:  # even so it must not see the images that judge
        data = replace(data, train=trained.accuracy.accuracy.weight_images)
    with Reporter() as reporter:
        found = search(
            budget, data, recipe, folder, seed=arguments.seed, compute=compute_of(arguments),
            weights=trained.supernet.state_dict(), progress=reporter,
        )  # fmt: skip
    shutil.rmtree(folder.path)
    return found.probabilities


def summary(arguments: argparse.Namespace) -> None:
    """Tables of everything recorded, beside the mean best of random networks."""
    print(pd.DataFrame(RESULTS.all(stage="ranking", phases=arguments.phases)).to_string(index=False))  # noqa: T201
    found = pd.DataFrame(RESULTS.all(stage="search", phases=arguments.phases))
    truth, space, model = read_truth(arguments.truth), hwnas.create_space("nas-bench-macro"), mac_model()
    for (unit, limit), group in found[found.steps == arguments.steps].groupby(["unit", "limit"]):
        if unit == "ms":
            model = LatencyModel.from_table(space, hwnas.LatencyTable.load(arguments.table))
        cost = model.exact_ms_many([[int(digit) for digit in code] for code in truth.arch])
        feasible = truth[cost <= limit].drop_duplicates(["params", "macs", "mean_acc"]).mean_acc.to_numpy()
        best = "; ".join(f"random {n} {random_best(feasible, n):.2f}" for n in (10, 50, 200))
        print(f"\nlimit {limit:g} {unit}: best {feasible.max():.2f}; {best}")  # noqa: T201
        table = group.groupby("recipe").accuracy.agg(["mean", "std", "min", "max", "count"])
        print(table.sort_values("mean", ascending=False).round(2).to_string())  # noqa: T201


def mac_model(resolution: int = 32) -> LatencyModel:
    """Predicts millions of multiply-adds where others predict milliseconds."""
    return LatencyModel.counting(hwnas.create_space("nas-bench-macro", resolution=resolution), lambda s: macs(s) / 1e6)


def short(label: str, arguments: argparse.Namespace, num_images: int) -> Recipe:
    """A recipe for weights that are already trained; training-free ones only derive.

    Each gets the same number of passes of an image through an option, and logits that may move as far.
    """
    name, given = parsed(label)
    if not OPTIONS_RUN[label]:
        recipe = create_recipe(name, num_epochs=0)
        return replace(recipe, derivation=EVOLUTION) if isinstance(recipe.derivation, Evolution) else recipe
    steps = max(1, arguments.steps // OPTIONS_RUN[label])
    recipe = create_recipe(name, batch_size=SEARCH_BATCH, arch_lr=FARTHEST / steps, **given)
    if isinstance(recipe.scheme, Alternating | Reinforce):
        recipe = replace(recipe, scheme=replace(recipe.scheme, warm_up=0.0, every=1))
    steps_per_epoch = int(num_images * WEIGHT_SHARE) // SEARCH_BATCH
    share = WEIGHT_SHARE if recipe.scheme.needs_arch_split else 1.0
    return replace(
        recipe, num_epochs=steps / steps_per_epoch, weight_share=share, weight_lr=Cosine(0.01), grad_clip=5.0
    )


@dataclass(frozen=True)
class Kept:
    """Accuracies of paths, kept in a file, as they are asked for again and again."""

    accuracy: PathAccuracy
    kept: Rows

    def __call__(self, architecture: Architecture) -> float:
        """Accuracy with the supernet's weights."""
        if not self.kept.all(id=architecture.id):
            self.kept.add({"id": architecture.id, "accuracy": self.accuracy(architecture)})
        return float(self.kept.all(id=architecture.id)[0]["accuracy"])


@dataclass(frozen=True)
class Trained:
    """A trained supernet, its images, the accuracy of its paths on those that trained no weights, and where it is."""

    data: ImageData
    supernet: Supernet
    accuracy: Kept
    folder: Path


def compute_of(arguments: argparse.Namespace) -> Compute:
    """Where to run."""
    return Compute(device=arguments.device, num_workers=arguments.workers)


def code_of(space: SearchSpace, architecture: Architecture) -> str:
    """The benchmark's name of a network."""
    return "".join(map(str, space.indices(architecture)))


def random_best(accuracies: np.ndarray, count: int) -> float:
    """Mean best of some random networks."""
    rng = np.random.default_rng(0)
    count = min(count, len(accuracies))
    return float(np.mean([rng.choice(accuracies, count, replace=False).max() for _ in range(NUM_DRAWS)]))


def read_truth(path: Path) -> pd.DataFrame:
    """The benchmark."""
    return pd.read_csv(path, dtype={"arch": str})


STAGES = {"supernet": supernet, "ranking": ranking, "search": searches, "summary": summary}

if __name__ == "__main__":
    main()
