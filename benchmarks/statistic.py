"""Which statistic of noisy run times predicts whole networks best.

Times every operator of a space and random networks in interleaved rounds, then, for each statistic, fits sums of
operators to networks and prints the leave-one-out error. The machine's own noise is part of the experiment: run it
as your machine usually is.

    python benchmarks/statistic.py --networks 30 --rounds 64
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable

import numpy as np
from rounds import timed

import hwnas
from hwnas.latency.calibration import Affine, held_out
from hwnas.latency.items import Item

Rounds = list[np.ndarray]


def quantile(q: float) -> Callable[[Rounds], float]:
    return lambda rounds: float(np.quantile(np.concatenate(rounds), q))


def of_rounds(within: float, across: float) -> Callable[[Rounds], float]:
    return lambda rounds: float(np.quantile([np.quantile(r, within) for r in rounds], across))


STATISTICS = {
    "minimum": quantile(0.0),
    "pooled 1 % quantile": quantile(0.01),
    "pooled 10 % quantile": quantile(0.1),
    "pooled 25 % quantile": quantile(0.25),
    "pooled median": quantile(0.5),
    "least of rounds' 10 % quantiles": of_rounds(0.1, 0.0),
    "5 % quantile of rounds' 10 % quantiles": of_rounds(0.1, 0.05),
    "10 % quantile of rounds' 10 % quantiles": of_rounds(0.1, 0.1),
    "lower quartile of rounds' 10 % quantiles": of_rounds(0.1, 0.25),
    "median of rounds' 10 % quantiles": of_rounds(0.1, 0.5),
    "least of rounds' medians": of_rounds(0.5, 0.0),
    "lower quartile of rounds' medians": of_rounds(0.5, 0.25),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="tiny-mbconv")
    parser.add_argument("--profiler", default="onnxruntime")
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=64)
    parser.add_argument("--visit-ms", type=float, default=5.0)
    arguments = parser.parse_args()

    space, profiler = hwnas.create_space(arguments.space), hwnas.create_profiler(arguments.profiler)
    architectures = space.distinct(arguments.networks, seed=0)
    items = [Item.operator(s) for s in space.signatures()] + [Item.network(space, a) for a in architectures]
    rounds = timed(items, profiler, num_rounds=arguments.rounds, visit_ms=arguments.visit_ms)
    samples = [[np.asarray(runs) for runs in item] for item in rounds]

    print(f"{datetime.date.today()} {profiler.environment()}; {vars(arguments)}")  # noqa: T201
    operators = space.signatures()
    for name, statistic in STATISTICS.items():
        ms = np.asarray([statistic(rounds) for rounds in samples])
        entries = dict(zip(operators, ms, strict=False))
        layers = tuple(np.asarray([entries[s] for s in layer.signatures]) for layer in space.layers)
        model = hwnas.LatencyModel(space, layers)
        sums = model.exact_ms_many([space.indices(a) for a in architectures])
        print(f"{name:42s} {held_out(sums, ms[len(operators) :], Affine.fit)}")  # noqa: T201


if __name__ == "__main__":
    main()
