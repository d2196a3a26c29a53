"""Options and sentences that several commands share."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hwnas.console import console, say_error
from hwnas.errors import ESCAPES, UsageError
from hwnas.space.library import create_space

if TYPE_CHECKING:
    from hwnas.compute import Compute
    from hwnas.latency.table import LatencyTable
    from hwnas.space import SearchSpace

SpaceName = Annotated[
    str, typer.Option("--space", help="Search space; see 'hwnas list spaces'. More of its options: NAME:channels=36.")
]
Resolution = Annotated[int | None, typer.Option(help="Height and width of the images; the space's own if not given.")]
NumClasses = Annotated[int | None, typer.Option(help="Classes; the space's own number if not given.")]
Width = Annotated[float | None, typer.Option(help="Multiplier of every channel count.")]
Data = Annotated[str, typer.Option(help="digits, imagefolder:PATH, imagenet:PATH, cifar10:PATH or npz:PATH.")]
Seed = Annotated[int, typer.Option(help="Decides everything random.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of 'hwnas search' or 'hwnas adopt'.")]
CheckpointSeconds = Annotated[float, typer.Option(min=0, help="Time between checkpoints.")]

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: CUDA where there is one.")]
Precision = Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16 computes in mixed precision.")]
Accumulate = Annotated[int, typer.Option(help="Parts that a batch is cut into, to save memory.")]
CheckpointActivations = Annotated[
    bool, typer.Option("--checkpoint-activations", help="Compute activations twice, to save memory.")
]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last/--channels-first", help="How images lie in memory; the first is mostly faster.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")]
Workers = Annotated[int, typer.Option(help="Processes that prepare batches ahead.")]


def say(line: str) -> None:
    """Prints one line as it is; control characters, which may be from files, as escapes."""
    console.print(line.translate(ESCAPES), markup=False)


def built_space(name: str, resolution: int | None, num_classes: int | None, width: float | None) -> SearchSpace:
    """The space that the options describe; the name may bring more, as in ``darts-cell:channels=36,num_cells=20``."""
    name, _, more = name.partition(":")
    given = {"resolution": resolution, "num_classes": num_classes, "width": width}
    named, flags = numbers(more), {key: value for key, value in given.items() if value is not None}
    for twice in named.keys() & flags.keys():
        raise UsageError(f"{twice} is given twice, with the space and as an option. Give it once.")
    return create_space(name, **named, **flags)


def numbers(text: str) -> dict[str, float]:
    """What ``NAME=NUMBER,NAME=NUMBER`` says.

    Raises:
        UsageError: It is something else, or names something twice.
    """
    found: dict[str, float] = {}
    for each in filter(None, text.split(",")):
        name, _, number = each.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name in found or not name.isidentifier() or not math.isfinite(value):
            raise UsageError(f"'{each}' of '{text}' is not NAME=NUMBER, or is there twice. Write channels=36, say.")
        found[name] = int(value) if value.is_integer() and "." not in number else value
    return found


def describe_model(space: SearchSpace, table: LatencyTable) -> None:
    """Says how well a table predicts the networks of a space, and what latencies the space reaches."""
    from hwnas.latency.budget import feasible_range_ms, rounded_up
    from hwnas.latency.model import LatencyModel

    model = LatencyModel.from_table(space, table)
    say_error(model, say)
    low, high = feasible_range_ms(model)
    say(f"reachable: {rounded_up(low):.4g} to {high:.4g} ms")


def compute(
    device: str,
    precision: Literal["fp32", "bf16"],
    accumulate: int,
    checkpoint_activations: bool,
    compile_: bool,
    channels_last: bool,
    workers: int,
) -> Compute:
    """What the options say about how networks are computed."""
    from hwnas.compute import Compute

    return Compute(
        device=device,
        precision=precision,
        accumulate=accumulate,
        checkpoint_activations=checkpoint_activations,
        compile=compile_,
        channels_last=channels_last,
        num_workers=workers,
    )


def is_first_rank() -> bool:
    """Whether this process prints: the only one, or rank 0 of those that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"
