"""Does a search find good networks? Judged by NAS-Bench-Macro, 6561 networks trained on CIFAR-10.

    python benchmarks/nas_bench_macro.py supernet --data cifar10.npz --seed 0     # uniform paths, once a seed
    python benchmarks/nas_bench_macro.py ranking --data cifar10.npz --seed 0      # against the table's accuracy
    python benchmarks/nas_bench_macro.py search --data cifar10.npz --seed 0 --recipes gumbel,spos --limits 40,60
    python benchmarks/nas_bench_macro.py summary

Every recipe starts from the uniformly trained weights of its seed, goes on for ``--search-epochs`` at a learning rate
of at most 0.01 and 0.05 for the logits, and looks no accuracy up. Limits are millions of multiply-adds, which take the
place of milliseconds, or with ``--table FILE`` milliseconds of that table. Everything is kept in
``runs/nas-bench-macro`` and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr

import hwnas
from hwnas.accuracy import PathAccuracy
from hwnas.compute import Compute
from hwnas.console import Reporter
from hwnas.data import ImageData, load_data
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.metrics import Progress
from hwnas.recipes import create_recipe, recipe_names
from hwnas.run import RunFolder
from hwnas.search.derivations import SampleAndScore
from hwnas.search.loop import SearchResult, search
from hwnas.search.protocols import Finished
from hwnas.search.recipe import Recipe
from hwnas.search.schedules import Cosine
from hwnas.space import Architecture, SearchSpace, macs

FOLDER = Path("runs/nas-bench-macro")
TRUTH = Path(__file__).parent.parent.parent / "shared/data/nas-bench-macro/nas_bench_macro.csv"
NUM_DRAWS = 5000
"""Repetitions behind the mean best of some random networks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, help="npz file of CIFAR-10")
    parser.add_argument("--truth", type=Path, default=TRUTH, help="the benchmark as CSV")
    parser.add_argument("--table", type=Path, help="latency table; limits are then milliseconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8, help="of the supernet")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--search-epochs", type=int, default=1)
    parser.add_argument("--recipes", default=",".join(recipe_names()))
    parser.add_argument("--limits", default="40,60,80")
    parser.add_argument("--networks", type=int, default=200, help="of the ranking")
    parser.add_argument("--images", type=int, default=2000, help="held-out images that paths are compared on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    STAGES[arguments.stage](arguments)


def supernet(arguments: argparse.Namespace) -> SearchResult:
    """The supernet of a seed; trains it first where that has not been done."""
    model = mac_model()
    recipe = create_recipe("spos", num_epochs=arguments.epochs, batch_size=arguments.batch_size)
    with Reporter() as reporter:
        return run(arguments, Budget(model, feasible_range_ms(model)[1]), recipe, "supernet", progress=reporter)


def ranking(arguments: argparse.Namespace) -> None:
    """Accuracy with the supernet's weights against the table's, on random distinct networks."""
    result, truth = supernet(arguments), read_truth(arguments.truth)
    chosen = truth.drop_duplicates(["params", "macs", "mean_acc"]).sample(arguments.networks, random_state=0)
    accuracy = path_accuracy(arguments, result)
    space = result.supernet.space
    with Reporter() as reporter:
        found = []
        for number, code in enumerate(chosen.arch, 1):
            found.append(accuracy(space.architecture([int(digit) for digit in code])))
            reporter("ranking", number, len(chosen))
    record(
        {
            "stage": "ranking", "seed": arguments.seed, "networks": len(chosen), "images": arguments.images,
            "epochs": arguments.epochs,
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
    weights = trained.supernet.state_dict()
    model = mac_model()
    if arguments.table:
        model = LatencyModel.from_table(space, hwnas.LatencyTable.load(arguments.table))
    known = {(row["seed"], row["recipe"], row["limit"], row["unit"]) for row in rows("search")}
    unit = "ms" if arguments.table else "M MACs"
    accuracy = path_accuracy(arguments, trained)
    for limit in map(float, arguments.limits.split(",")):
        for name in arguments.recipes.split(","):
            if (arguments.seed, name, limit, unit) in known:
                continue
            started, recipe, budget = time.monotonic(), short(name, arguments), Budget(model, limit)
            with Reporter() as reporter:
                result = run(
                    arguments, budget, recipe, f"{name}-{limit:g}{unit.split()[0]}", weights=weights, progress=reporter
                )
            judge = accuracy if recipe.num_epochs == 0 else path_accuracy(arguments, result)
            found = {"": recipe.derivation, "+scored": SampleAndScore(num_samples=30)}
            for suffix, derivation in found.items() if recipe.num_epochs else [("", recipe.derivation)]:
                best = next(derivation(Finished(result.probabilities, judge, arguments.seed), budget))
                code = code_of(space, best)
                record(
                    {
                        "stage": "search", "seed": arguments.seed, "recipe": name + suffix,
                        "limit": limit, "unit": unit,
                        "architecture": code, "cost": model.exact_ms(best), "accuracy": truth.mean_acc[code],
                        "seconds": time.monotonic() - started,
                    }
                )  # fmt: skip


def summary(arguments: argparse.Namespace) -> None:
    """Tables of everything recorded, beside the mean best of random networks."""
    print(pd.DataFrame(rows("ranking")).to_string(index=False))  # noqa: T201
    found = pd.DataFrame(rows("search"))
    truth, space, model = read_truth(arguments.truth), hwnas.create_space("nas-bench-macro"), mac_model()
    for (unit, limit), group in found.groupby(["unit", "limit"]):
        if unit == "ms":
            model = LatencyModel.from_table(space, hwnas.LatencyTable.load(arguments.table))
        cost = model.exact_ms_many([[int(digit) for digit in code] for code in truth.arch])
        feasible = truth[cost <= limit].drop_duplicates(["params", "macs", "mean_acc"]).mean_acc.to_numpy()
        best = "; ".join(f"random {n} {random_best(feasible, n):.2f}" for n in (10, 50, 200))
        print(f"\nlimit {limit:g} {unit}: best {feasible.max():.2f}; {best}")  # noqa: T201
        table = group.groupby("recipe").accuracy.agg(["mean", "std", "min", "max", "count"])
        print(table.sort_values("mean", ascending=False).round(2).to_string())  # noqa: T201


def mac_model() -> LatencyModel:
    """Predicts millions of multiply-adds where others predict milliseconds."""
    space = hwnas.create_space("nas-bench-macro")
    return LatencyModel(space, tuple(np.asarray([macs(s) / 1e6 for s in layer.signatures]) for layer in space.layers))


def short(name: str, arguments: argparse.Namespace) -> Recipe:
    """A recipe for weights that are already trained; training-free ones only derive."""
    takes = inspect.signature(getattr(import_module(f"hwnas.recipes.{name}"), name)).parameters
    settings: dict[str, Any] = {"num_epochs": arguments.search_epochs, "batch_size": arguments.batch_size}
    if "arch_lr" not in takes:  # nothing but weights would move
        return replace(create_recipe(name, **(settings | {"num_epochs": 0})), weight_share=0.9)
    recipe = create_recipe(name, **settings, arch_lr=0.05)
    return replace(recipe, weight_share=0.9, weight_lr=Cosine(0.01))


def run(
    arguments: argparse.Namespace,
    budget: Budget,
    recipe: Recipe,
    name: str,
    *,
    weights: dict[str, Any] | None = None,
    progress: Progress,
) -> SearchResult:
    """Searches in a folder of its own, on a tenth of the images for the architecture."""
    settings = f"epochs{recipe.num_epochs}-batch{recipe.batch_size}-seed{arguments.seed}"
    folder = RunFolder(FOLDER / f"{name}-{settings}")
    folder.path.mkdir(parents=True, exist_ok=True)
    compute = Compute(device=arguments.device, num_workers=arguments.workers)
    return search(
        budget, images(arguments), replace(recipe, weight_share=0.9), folder,
        seed=arguments.seed, compute=compute, weights=weights, progress=progress,
    )  # fmt: skip


def images(arguments: argparse.Namespace) -> ImageData:
    """CIFAR-10; its own test images, which the table's accuracies are of, stay unseen."""
    return load_data(f"npz:{arguments.data}", resolution=32, seed=arguments.seed)


def path_accuracy(arguments: argparse.Namespace, result: SearchResult) -> PathAccuracy:
    """Scores paths on training images that trained no weights."""
    assert result.arch_images is not None
    compute = Compute(device=arguments.device)
    return PathAccuracy(
        result.supernet, result.weight_images, result.arch_images, compute, arguments.seed, max_images=arguments.images
    )


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


def record(row: dict[str, Any]) -> None:
    """Keeps a result and prints it."""
    print(row)  # noqa: T201
    with (FOLDER / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def rows(stage: str) -> list[dict[str, Any]]:
    """The results that were kept."""
    path = FOLDER / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["stage"] == stage]


STAGES = {"supernet": supernet, "ranking": ranking, "search": searches, "summary": summary}

if __name__ == "__main__":
    main()
