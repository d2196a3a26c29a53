"""Is the target met, in one run, without tuning? Five targets across the range, one search each.

    python benchmarks/target_sweep.py                                    # tiny-mbconv on digits, this processor
    python benchmarks/target_sweep.py --space fbnet-cifar --data npz:cifar10.npz --table cifar.csv
    python benchmarks/target_sweep.py --dry-run

Between the searches nothing changes but the target. Every derived network is exported and, when all searches are
done, measured anew on the device of the table, which is what is judged: at most 1.01 and at least 0.95 of the target.
As in a search, what is above the target is timed again, and then beside networks of the sweep, which show by how much
the device is slower than it was; ``once`` is a single measurement before that, as it came. Beside it stands whether
the space has any network that the table predicts there. Leave the machine alone while this runs.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np
import torch
from lines import Lines

import hwnas
from hwnas.console import Reporter
from hwnas.latency.budget import solve
from hwnas.latency.device import Device
from hwnas.search.target import DerivationRound
from hwnas.steps import profiler_of, search_run

POSITIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the targets, between the fastest network (0) and the slowest (1)."""

ABOVE, BELOW = 1.01, 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny-mbconv")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--table", type=Path, help="measured first if not given")
    parser.add_argument("--recipe", default="gates")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/target-sweep"), help="folder of runs and results.txt")
    parser.add_argument("--dry-run", action="store_true", help="one epoch, a short table")
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.output, arguments.epochs = arguments.output / "dry-run", 1

    space = hwnas.create_space(arguments.space)
    table = table_of(space, arguments)
    model = hwnas.LatencyModel.from_table(space, table)
    low, high = hwnas.feasible_range_ms(model)
    targets = [float(f"{low + position * (high - low):.4g}") for position in POSITIONS]
    found = [searched(space, table, target, arguments) for target in targets]
    device, say = Device(profiler_of(table), table), Lines(arguments.output / "results.txt")
    say(
        f"{datetime.date.today()} {table.environment}; space {space.name}, data {arguments.data}, recipe "
        f"{arguments.recipe}, {arguments.epochs} epochs, seed {arguments.seed}, torch {torch.__version__}"
    )
    say(f"reachable {low:.4g} to {high:.4g} ms; table: {model.error}")
    say(f"target ms  predicted      once  measured  /target  derivations  slowdown  judged    in {BELOW} to 1 of it")
    ratios = []
    for target, rounds in zip(targets, found, strict=True):
        network = hwnas.Network(space, rounds[-1].architecture).eval()
        once = device.measure(network, space).ms
        timed = device.measure(network, space, limit_ms=target)
        ms = timed.ms
        ratios.append(ms / target)
        judged = "met" if BELOW <= ratios[-1] <= ABOVE else "ABOVE" if ratios[-1] > ABOVE else "BELOW"
        allows = "some network" if has_network(model, BELOW * target, target) else "NO network of the space"
        say(
            f"{target:9.4g}  {rounds[-1].predicted_ms:9.4g}  {once:8.4g}  {ms:8.4g}  {ratios[-1]:7.3f}  "
            f"{len(rounds):11d}  {timed.slowdown:8.2f}  {judged:8s}  {allows}"
        )
    say(f"within {BELOW} to {ABOVE}: {np.mean([BELOW <= r <= ABOVE for r in ratios]):.0%}")


def table_of(space: hwnas.SearchSpace, arguments: argparse.Namespace) -> hwnas.LatencyTable:
    """The table that was given, or one that is measured first."""
    path = arguments.table or arguments.output / "table.csv"
    if not path.exists():
        plan = {"num_networks": 8, "num_rounds": 4} if arguments.dry_run else {}
        with Reporter() as reporter:
            hwnas.profile(space, hwnas.create_profiler("onnxruntime"), output=path, progress=reporter, **plan)
    return hwnas.LatencyTable.load(path)


def searched(
    space: hwnas.SearchSpace, table: hwnas.LatencyTable, target: float, arguments: argparse.Namespace
) -> list[DerivationRound]:
    """The derivations of one search; goes on with one that was interrupted."""
    output = arguments.output / f"target-{target}"
    with Reporter() as reporter:
        return search_run(
            space, table, output, data=arguments.data, max_ms=target, recipe=arguments.recipe, seed=arguments.seed,
            recipe_arguments={"num_epochs": arguments.epochs, "batch_size": arguments.batch_size},
            resume=(output / "run.json").exists(), progress=reporter,
        )  # fmt: skip


def has_network(model: hwnas.LatencyModel, min_ms: float, max_ms: float) -> bool:
    """Whether some network is predicted to take that long."""
    scores = np.zeros((len(model.space.choices), max(model.space.num_options)))
    return next(solve(model, scores, min_ms=min_ms, max_ms=max_ms), None) is not None


if __name__ == "__main__":
    main()
