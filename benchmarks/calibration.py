"""Does what a table says of itself hold for the networks that a search ends with? It depends on what it learned from.

Times every operator of a space, and networks of two kinds, in interleaved rounds: drawn uniformly, and spread over the
multiply-adds that the space can reach. A model learns from either kind; the printed errors are on others of both.

    python benchmarks/calibration.py --space nas-bench-macro
"""

from __future__ import annotations

import argparse
import datetime

import numpy as np
from rounds import timed

import hwnas
from hwnas.latency.items import Item
from hwnas.latency.measurement import summarise
from hwnas.latency.spread import spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="nas-bench-macro")
    parser.add_argument("--profiler", default="onnxruntime")
    parser.add_argument("--networks", type=int, default=60, help="that a model learns from")
    parser.add_argument("--held-out", type=int, default=40, help="of either kind")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--visit-ms", type=float, default=4.0)
    arguments = parser.parse_args()

    space, profiler = hwnas.create_space(arguments.space), hwnas.create_profiler(arguments.profiler)
    learned = {
        "uniform": space.distinct(arguments.networks, seed=0),
        "spread": spread(space, arguments.networks, seed=0),
    }
    known = {architecture for some in learned.values() for architecture in some}
    tested = {
        "uniform": [a for a in space.distinct(4 * arguments.held_out, seed=1) if a not in known],
        "spread": [a for a in spread(space, 2 * arguments.held_out, seed=1) if a not in known],
    }
    tested = {name: some[: arguments.held_out] for name, some in tested.items()}
    networks = [*dict.fromkeys(a for some in (*learned.values(), *tested.values()) for a in some)]
    operators = space.signatures()
    items = [Item.operator(s) for s in operators] + [Item.network(space, a) for a in networks]
    rounds = timed(items, profiler, num_rounds=arguments.rounds, visit_ms=arguments.visit_ms)
    latencies = [summarise(samples).ms for samples in rounds]
    entries = dict(zip(operators, latencies, strict=False))
    ms = dict(zip(networks, latencies[len(operators) :], strict=True))
    table = hwnas.LatencyModel(
        space, tuple(np.asarray([entries[s] for s in layer.signatures]) for layer in space.layers)
    )

    print(f"\n{datetime.date.today()} {profiler.environment()}; {vars(arguments)}")  # noqa: T201
    for name, some in {**learned, **{f"{name}, tested": some for name, some in tested.items()}}.items():
        low, high = min(ms[a] for a in some), max(ms[a] for a in some)
        print(f"  {name:16s} {len(some):3d} networks, {low:.3f} to {high:.3f} ms")  # noqa: T201
    for name, some in learned.items():
        model = table.calibrate([space.indices(a) for a in some], [ms[a] for a in some])
        low, high = hwnas.feasible_range_ms(model)
        print(f"learned from {name}: says of itself {model.error}; reachable {low:.3f} to {high:.3f} ms")  # noqa: T201
        for kind, others in tested.items():
            far = 100 * np.array([abs(model.exact_ms(a) / ms[a] - 1) for a in others])
            print(f"  of {kind:8s} MAPE {far.mean():5.2f} %, 90th percentile {np.quantile(far, 0.9):5.2f} %, "  # noqa: T201
                  f"worst {far.max():5.2f} %")  # fmt: skip


if __name__ == "__main__":
    main()
