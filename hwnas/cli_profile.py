"""The command ``hwnas profile``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.cli_options import NumClasses, Resolution, Seed, Width, built_space, describe_model, say
from hwnas.console import Reporter, errors, rows
from hwnas.errors import DeviceLostError, UsageError
from hwnas.latency.journal import JOURNAL
from hwnas.plugins import create_profiler

if TYPE_CHECKING:
    from hwnas.plugins import Profiler
    from hwnas.space import SearchSpace


Space = Annotated[str | None, typer.Option(help="Search space; see 'hwnas list spaces'.")]
Output = Annotated[Path | None, typer.Option(help="The table, NAME.csv; an existing one is resumed or extended.")]
Network = Annotated[list[str] | None, typer.Option(help="A fixed network instead of a space; again for more.")]
Runtime = Annotated[str, typer.Option(help="See 'hwnas list profilers'.")]
Device = Annotated[str | None, typer.Option(help="Device of that runtime; its own default if not given.")]
Cores = Annotated[str | None, typer.Option(help="Of a phone or a board: prime, big, little, or numbers as 4-7.")]
Mode = Annotated[str | None, typer.Option(help="How it executes, such as cuda-graph; its own default if not given.")]
Networks = Annotated[int, typer.Option(help="Whole networks to measure, for calibration and error.")]
Minutes = Annotated[float, typer.Option(help="Measuring ends after this long.")]
Timeout = Annotated[
    float, typer.Option(min=0, envvar="HWNAS_TIMEOUT", help="Seconds until a hanging operator is given up; 0: never.")
]


def profile(
    space: Space = None,
    output: Output = None,
    network: Network = None,
    profiler: Runtime = "onnxruntime",
    device: Device = None,
    cores: Cores = None,
    mode: Mode = None,
    precision: Annotated[str, typer.Option(help="Number format.")] = "fp32",
    batch: Annotated[int, typer.Option(help="Images a run.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads inside one operator.")] = 1,
    networks: Networks = 60,
    rounds: Annotated[int, typer.Option(help="Visits to every operator.")] = 64,
    minutes: Minutes = float("inf"),
    timeout: Timeout = 300.0,
    resolution: Resolution = None,
    num_classes: NumClasses = None,
    width: Width = None,
    seed: Seed = 0,
) -> None:
    """Measure a space on a device: a latency table that states its own error; or fixed networks, to compare."""
    target: dict[str, Any] = {"device": device, "cores": cores, "mode": mode}
    target = {name: value for name, value in target.items() if value is not None}
    target |= {"precision": precision, "batch": batch, "threads": threads}
    if network and space is None and output is None:
        _compare(network, create_profiler(profiler, **target), resolution or 224, num_classes or 1000, rounds)
    elif space is not None and output is not None and not network:
        built = built_space(space, resolution, num_classes, width)
        plan = {"num_networks": networks, "num_rounds": rounds, "minutes": minutes, "seed": seed}
        _sweep(built, output, lambda: create_profiler(profiler, **target), plan, timeout)
    else:
        raise UsageError(
            "give --space with --output TABLE.csv to make a table, or --network alone to compare fixed networks; "
            "see 'hwnas profile --help'."
        )


def _sweep(
    space: SearchSpace, output: Path, target: Callable[[], Profiler], plan: dict[str, Any], timeout: float
) -> None:
    """Sweeps in a child process that can be given up, unless this is that child."""
    from hwnas.latency import supervise
    from hwnas.latency.table import csv_path

    watch = supervise.watch_of_parent(csv_path(output).with_suffix(JOURNAL))
    if watch is None and timeout > 0:
        command = [sys.executable, "-m", "hwnas", *sys.argv[1:]]
        raise typer.Exit(supervise.supervised(command, timeout_seconds=timeout, say=say))
    from hwnas.latency import rounds, sweep

    try:
        with Reporter() as reporter:
            watching = watch or rounds.unwatched
            table = sweep.profile(space, target(), output=output, progress=reporter, watch=watching, **plan)
    except DeviceLostError as error:
        if watch is None:
            raise
        errors.print(f"error: {error}", markup=False)
        raise typer.Exit(supervise.DEVICE_LOST) from error
    say(f"{len(table.entries)} operators in {table.path}")
    describe_model(space, table)


def _compare(names: list[str], target: Profiler, resolution: int, num_classes: int, num_rounds: int) -> None:
    from hwnas.latency import networks

    with Reporter() as reporter:
        results = networks.profile_networks(
            names,
            target,
            resolution=resolution,
            num_classes=num_classes,
            num_rounds=num_rounds,
            progress=reporter,
        )
    say(str(target.environment()))
    header = ("network", "parameters", "MACs", "ms", "p50", "p90", "status")
    body = [
        (
            each.name,
            f"{each.parameters / 1e6:.2f} M",
            f"{each.macs / 1e6:.1f} M",
            *(f"{value:.4g}" for value in (each.measurement.ms, each.measurement.p50_ms, each.measurement.p90_ms)),
            each.measurement.error or each.measurement.status,
        )
        for each in results
    ]
    rows(f"{resolution}x{resolution}, {num_classes} classes", header, body)
