"""Options and sentences that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.console import console
from hwnas.space.library import create_space

if TYPE_CHECKING:
    from hwnas.latency.table import LatencyTable
    from hwnas.space import SearchSpace

SpaceName = Annotated[str, typer.Option("--space", help="Search space; see 'hwnas list spaces'.")]
Resolution = Annotated[int | None, typer.Option(help="Height and width of the images; the space's own if not given.")]
NumClasses = Annotated[int | None, typer.Option(help="Classes; the space's own number if not given.")]
Width = Annotated[float | None, typer.Option(help="Multiplier of every channel count.")]
Seed = Annotated[int, typer.Option(help="Decides everything random.")]


def say(line: str) -> None:
    """Prints one line as it is."""
    console.print(line, markup=False)


def built_space(name: str, resolution: int | None, num_classes: int | None, width: float | None) -> SearchSpace:
    """The space that the options describe."""
    given = {"resolution": resolution, "num_classes": num_classes, "width": width}
    return create_space(name, **{key: value for key, value in given.items() if value is not None})


def describe_model(space: SearchSpace, table: LatencyTable) -> None:
    """Says how well a table predicts the networks of a space, and what latencies the space reaches."""
    from hwnas.demo import say_error
    from hwnas.latency.budget import feasible_range_ms
    from hwnas.latency.model import LatencyModel

    model = LatencyModel.from_table(space, table)
    say_error(model, say)
    say("reachable: {:.4g} to {:.4g} ms".format(*feasible_range_ms(model)))
