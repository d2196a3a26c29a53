"""How well a table predicts whole networks that it has not seen, and how well a second sweep repeats it.

One sweep measures every operator of a space, the networks that calibrate the model and other random networks that do
not; the printed table is about the latter. Beside the default model stand what simpler ones say of the same networks.

    python benchmarks/prediction.py --space proxylessnas --output one.csv --again two.csv

A table that exists and holds enough networks is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import hwnas
from hwnas.console import Reporter
from hwnas.latency.calibration import Affine, PredictionError, measured_networks
from hwnas.latency.comparison import Comparison
from hwnas.space import macs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="proxylessnas")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--profiler", default="onnxruntime")
    parser.add_argument("--device")
    parser.add_argument("--mode")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--networks", type=int, default=60, help="that calibrate")
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=64)
    parser.add_argument("--output", type=Path, required=True, help="the table; made if it is not there")
    parser.add_argument("--again", type=Path, help="a second table, to see how well the first repeats")
    arguments = parser.parse_args()

    space = hwnas.create_space(
        arguments.space, **({"resolution": arguments.resolution} if arguments.resolution else {})
    )
    options = {name: getattr(arguments, name) for name in ("device", "mode", "precision")}
    profiler = hwnas.create_profiler(arguments.profiler, **{k: v for k, v in options.items() if v is not None})
    results = []
    paths = [path for path in (arguments.output, arguments.again) if path is not None]
    for path in paths:
        with Reporter() as reporter:
            table = hwnas.profile(
                space, profiler, output=path, num_networks=arguments.networks + arguments.held_out,
                num_rounds=arguments.rounds, progress=reporter,
            )  # fmt: skip
        results.append(evaluate(space, table, arguments.networks))
    if arguments.again:
        results.append(repeatability(space, *(hwnas.LatencyTable.load(path) for path in paths)))
    print(f"\n{datetime.date.today()} {table.environment}")  # noqa: T201
    for result in results:
        for name, value in result.items():
            print(f"  {name:34s} {value}")  # noqa: T201


def evaluate(space: hwnas.SearchSpace, table: hwnas.LatencyTable, num_networks: int) -> dict[str, str]:
    """Errors on the networks after the first ``num_networks``, by models that saw only the first."""
    indices, measured = measured_networks(table.calibrations[space.fingerprint])
    seen, unseen = slice(None, num_networks), slice(num_networks, None)
    plain = hwnas.LatencyModel(
        space, tuple(np.asarray([table.entries[s].ms for s in layer.signatures]) for layer in space.layers)
    )
    flops = hwnas.LatencyModel(
        space, tuple(np.asarray([float(macs(s)) for s in layer.signatures]) for layer in space.layers)
    )
    fitted = plain.calibrate(indices[seen], measured[seen])
    sums, counts = plain.exact_ms_many(indices), flops.exact_ms_many(indices)
    predictions = {
        "hwnas": fitted.exact_ms_many(indices),
        "sum, slope and intercept": Affine.fit(sums[seen], measured[seen])(sums),
        "plain sum": sums,
        "fit to MACs": Affine.fit(counts[seen], measured[seen])(counts),
    }
    return {
        "calibrating networks": str(len(measured[seen])),
        "measured networks, ms": f"{measured.min():.3f} to {measured.max():.3f}",
        "sweeps of the table": "; ".join(map(_sweep, [table.provenance, *table.provenance.get("earlier", [])])),
        "error as reported by the model": str(fitted.error),
        **{
            f"held out: {name}": str(PredictionError.between(p[unseen], measured[unseen]))
            for name, p in predictions.items()
        },
    }


def _sweep(provenance: Mapping[str, Any]) -> str:
    return f"'{provenance['command']}', {provenance['minutes']} min, {provenance['reference']['noise_grade']}"


def repeatability(space: hwnas.SearchSpace, first: hwnas.LatencyTable, second: hwnas.LatencyTable) -> dict[str, str]:
    """How far two sweeps differ, in their entries and in what they predict."""
    networks = [space.indices(a) for a in space.distinct(1000, seed=1)]
    one, two = (hwnas.LatencyModel.from_table(space, table).exact_ms_many(networks) for table in (first, second))
    entries = Comparison(first, second)
    return {
        "two sweeps: median entry": f"{entries.difference:.2%} apart, {entries.difference_in_shape:.2%} after scaling",
        "two sweeps: predictions differ": f"median {100 * np.median(np.abs(one / two - 1)):.2f} %",
    }


if __name__ == "__main__":
    main()
