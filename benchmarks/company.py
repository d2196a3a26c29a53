"""Do operators timed in company predict networks better than operators timed alone?

Every operator is timed alone, and as what it adds to the operator that comes before it in the space; random networks
are timed with them, all in interleaved rounds. The table shows, for both sets of entries, the held-out error of the
plain sum, of slope and intercept, and of the calibration that hwnas uses.

    python benchmarks/company.py --space proxylessnas --networks 60 --rounds 64
"""

from __future__ import annotations

import argparse
import datetime

import numpy as np
from rounds import timed

import hwnas
from hwnas.latency.calibration import Affine, PredictionError, held_out
from hwnas.latency.items import Item
from hwnas.latency.measurement import summarise
from hwnas.space import OpSignature, SearchSpace, chained


def before(space: SearchSpace) -> dict[OpSignature, OpSignature]:
    """Every operator that has one -> the first option of the layer that feeds it where it first appears."""
    found: dict[OpSignature, OpSignature] = {}
    for layer, sources in zip(space.layers, space.wiring, strict=True):
        if sources[0] >= 0:
            for signature in layer.signatures:
                found.setdefault(signature, space.layers[sources[0]].signatures[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="proxylessnas")
    parser.add_argument("--profiler", default="onnxruntime")
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=64)
    parser.add_argument("--visit-ms", type=float, default=5.0)
    arguments = parser.parse_args()

    space, profiler = hwnas.create_space(arguments.space), hwnas.create_profiler(arguments.profiler)
    architectures = space.distinct(arguments.networks, seed=0)
    earlier = before(space)
    alone = [Item.operator(s) for s in space.signatures()]
    pairs = [Item(f"{a} | {b}", (a, b), chained(2)) for b, a in earlier.items()]
    items = [*alone, *pairs, *(Item.network(space, a) for a in architectures)]
    rounds = timed(items, profiler, num_rounds=arguments.rounds, visit_ms=arguments.visit_ms)
    ms = {item.key: summarise(samples).ms for item, samples in zip(items, rounds, strict=True)}
    least = min(ms.values())
    entries = {
        "alone": {s: ms[str(s)] for s in space.signatures()},
        "in company": {
            s: max(ms[f"{earlier[s]} | {s}"] - ms[str(earlier[s])], least) if s in earlier else ms[str(s)]
            for s in space.signatures()
        },
    }
    indices = np.asarray([space.indices(a) for a in architectures])
    measured = np.asarray([ms[a.id] for a in architectures])
    print(f"{datetime.date.today()} {profiler.environment()}; {vars(arguments)}")  # noqa: T201
    for name, table in entries.items():
        layers = tuple(np.asarray([table[s] for s in layer.signatures]) for layer in space.layers)
        model = hwnas.LatencyModel(space, layers)
        sums = model.exact_ms_many(indices)
        for how, error in (
            ("plain sum", PredictionError.between(sums, measured)),
            ("slope and intercept", held_out(sums, measured, Affine.fit)),
            ("calibrated", model.calibrate(indices, measured).error),
        ):
            print(f"{name:12s}{how:22s}{error}")  # noqa: T201


if __name__ == "__main__":
    main()
