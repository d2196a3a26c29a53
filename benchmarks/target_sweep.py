"""Is the target met, in one run, without tuning? Five targets across the range, one search each.

    python benchmarks/target_sweep.py                                    # tiny-mbconv on digits, this processor
    python benchmarks/target_sweep.py --space fbnet-cifar --data npz:cifar10.npz --table cifar.csv
    python benchmarks/target_sweep.py --dry-run

Between the searches nothing changes but the target. Every derived network is exported and, when all searches are
done, measured once more on the device of the table, which is what is judged: at most 1.01 and at least 0.95 of the
target. Leave the machine alone while this runs.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np
import torch

import hwnas
from hwnas.console import Reporter
from hwnas.latency.device import Device
from hwnas.steps import profiler_of, search_run

POSITIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the targets, between the fastest network (0) and the slowest (1)."""

ABOVE, BELOW = 1.01, 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny-mbconv")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--table", type=Path, help="measured first if not given")
    parser.add_argument("--recipe", default="gumbel")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/target-sweep"))
    parser.add_argument("--dry-run", action="store_true", help="one epoch, a short table")
    arguments = parser.parse_args()

    arguments.output = arguments.output / "dry-run" if arguments.dry_run else arguments.output
    space = hwnas.create_space(arguments.space)
    path = arguments.table or arguments.output / "table.csv"
    with Reporter() as reporter:
        if not path.exists():
            plan = {"num_networks": 8, "num_rounds": 4} if arguments.dry_run else {}
            hwnas.profile(space, hwnas.create_profiler("onnxruntime"), output=path, progress=reporter, **plan)
        table = hwnas.LatencyTable.load(path)
        model = hwnas.LatencyModel.from_table(space, table)
        low, high = hwnas.feasible_range_ms(model)
        targets = [float(f"{low + position * (high - low):.4g}") for position in POSITIONS]
        epochs = 1 if arguments.dry_run else arguments.epochs
        found = [
            search_run(
                space, table, arguments.output / f"target-{target}", data=arguments.data, max_ms=target,
                recipe=arguments.recipe, seed=arguments.seed, progress=reporter,
                recipe_arguments={"num_epochs": epochs, "batch_size": arguments.batch_size},
                resume=(arguments.output / f"target-{target}" / "run.json").exists(),
            )
            for target in targets
        ]  # fmt: skip
    device = Device(profiler_of(table), table)
    print(f"{datetime.date.today()} {table.environment}; space {space.name}, data {arguments.data}, recipe "  # noqa: T201
          f"{arguments.recipe}, {epochs} epochs, seed {arguments.seed}, torch {torch.__version__}")  # fmt: skip
    print(f"reachable {low:.4g} to {high:.4g} ms; table: {model.error}")  # noqa: T201
    print("target ms  predicted  measured  measured/target  derivations  judged")  # noqa: T201
    ratios = []
    for target, rounds in zip(targets, found, strict=True):
        architecture = rounds[-1].architecture
        network = hwnas.Network(space, architecture).eval()
        ms = device.measure(network, space, limit_ms=target).ms
        ratios.append(ms / target)
        judged = "met" if BELOW <= ratios[-1] <= ABOVE else "ABOVE" if ratios[-1] > ABOVE else "BELOW"
        print(  # noqa: T201
            f"{target:9.4g}  {rounds[-1].predicted_ms:9.4g}  {ms:8.4g}  {ratios[-1]:15.3f}  {len(rounds):11d}  {judged}"
        )
    print(f"within {BELOW} to {ABOVE}: {np.mean([BELOW <= r <= ABOVE for r in ratios]):.0%}")  # noqa: T201


if __name__ == "__main__":
    main()
