"""The commands that begin a run: ``hwnas search`` and ``hwnas adopt``."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.cli_options import (
    Accumulate,
    ChannelsLast,
    CheckpointActivations,
    CheckpointSeconds,
    Data,
    Device,
    Precision,
    Resolution,
    Seed,
    SpaceName,
    Width,
    Workers,
    built_space,
    compute,
    describe_model,
    numbers,
    say,
)
from hwnas.console import Reporter, draw
from hwnas.errors import UsageError, VerificationError
from hwnas.space.genotype import printed

if TYPE_CHECKING:
    from hwnas.latency.table import LatencyTable
    from hwnas.search.target import DerivationRound
    from hwnas.space import SearchSpace

TablePath = Annotated[Path, typer.Option("--table", help="Latency table of the device.")]
Output = Annotated[Path, typer.Option(help="Run folder to create.")]
OtherDevice = Annotated[bool, typer.Option("--other-device", help="Accept a table of another device.")]
Network = Annotated[
    str,
    typer.Argument(help="architecture.json or genotype.json of a run, 'Genotype(...)', or '|name|' in NAS-Bench-201."),
]
MaxMs = Annotated[float | None, typer.Option(help="Limit; the middle of the reachable range if not given.")]
RecipeName = Annotated[str, typer.Option(help="Method; see 'hwnas list recipes', or FILE.py:FUNCTION of your own.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Argument of the recipe; may be repeated.")
]
Classes = Annotated[
    int | None,
    typer.Option("--classes", "--num-classes", help="Search on this many of the data set's classes, always the same."),
]
Proxy = Annotated[
    str, typer.Option(help="Options of the space in which the supernet differs, such as channels=16,num_cells=8.")
]
WeightsFrom = Annotated[Path | None, typer.Option(help="Run of this space whose supernet to start from.")]


def search(
    space: SpaceName,
    table: TablePath,
    output: Output,
    max_ms: MaxMs = None,
    recipe: RecipeName = "gates",
    settings: Settings = None,
    data: Data = "digits",
    epochs: Annotated[int | None, typer.Option(help="The recipe's own number if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="The recipe's own if not given.")] = None,
    proxy: Proxy = "",
    weights_from: WeightsFrom = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    other_device: OtherDevice = False,
    device: Device = "auto",
    precision: Precision = "fp32",
    accumulate: Accumulate = 1,
    checkpoint_activations: CheckpointActivations = False,
    channels_last: ChannelsLast = True,
    workers: Workers = 0,
    checkpoint_seconds: CheckpointSeconds = 60.0,
    resolution: Resolution = None,
    classes: Classes = None,
    width: Width = None,
    seed: Seed = 0,
) -> None:
    """Search a space under a hard latency limit; under torchrun, on several devices."""
    from hwnas.steps import search_run

    built, loaded = _opened(space, table, resolution, classes, width)
    given = {name: value for name, value in (("num_epochs", epochs), ("batch_size", batch_size)) if value is not None}
    with Reporter() as reporter:
        rounds = search_run(
            built, loaded, output, data=data, classes=classes, max_ms=max_ms, recipe=recipe,
            recipe_arguments=_parsed(settings or [], given), seed=seed,
            compute=compute(device, precision, accumulate, checkpoint_activations, False, channels_last, workers),
            proxy=numbers(proxy), weights_from=weights_from, resume=resume, other_device=other_device,
            checkpoint_seconds=checkpoint_seconds, progress=reporter, say=say,
        )  # fmt: skip
    if rounds:  # only on rank 0
        _show(built, rounds)
        if not rounds[-1].met:
            raise VerificationError(f"no derived network kept the limit in {len(rounds)} rounds; see {output}.")


def adopt(
    network: Network,
    space: SpaceName,
    table: TablePath,
    output: Output,
    max_ms: Annotated[float | None, typer.Option(help="Limit; 5 % above what the network takes if not given.")] = None,
    data: Data = "digits",
    other_device: OtherDevice = False,
    resolution: Resolution = None,
    classes: Annotated[
        int | None, typer.Option("--classes", "--num-classes", help="Train on this many of the data set's classes.")
    ] = None,
    width: Width = None,
    seed: Seed = 0,
) -> None:
    """Take a network that is known already, as published: predict and measure it, and train it like a derived one."""
    from hwnas.steps import adopt_run

    built, loaded = _opened(space, table, resolution, classes, width)
    found = adopt_run(
        built, loaded, output, network=network, data=data, classes=classes, max_ms=max_ms, seed=seed,
        other_device=other_device,
    )  # fmt: skip
    _show(built, [found])
    if not found.met:
        raise VerificationError(f"the network does not keep the limit; see {output}. Search for one that does.")


def _opened(
    space: str, table: Path, resolution: int | None, classes: int | None, width: float | None
) -> tuple[SearchSpace, LatencyTable]:
    """The space and the table that a run is of; says how well one predicts the other."""
    from hwnas.latency.table import LatencyTable

    built, loaded = built_space(space, resolution, classes, width), LatencyTable.load(table)
    describe_model(built, loaded)
    return built, loaded


def _show(space: SearchSpace, rounds: list[DerivationRound]) -> None:
    for each in rounds:
        say(str(each))
    say(draw(space, rounds[-1].architecture))
    if cells := printed(rounds[-1].architecture):
        say(cells)


def _parsed(settings: list[str], given: dict[str, Any]) -> dict[str, Any]:
    values = dict(given)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--set {setting}: expected NAME=VALUE, such as --set arch_lr=0.01.")
        if name in values:
            raise UsageError(f"--set {setting}: {name} is given twice, {values[name]!r} before. Give it once.")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values
