"""The commands ``hwnas table ...``: look at tables as artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli_options import NumClasses, Resolution, Width, built_space, describe_model, say

tables = typer.Typer(help="Look at latency tables.", no_args_is_help=True, rich_markup_mode=None)


@tables.command("check")
def check(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="CSV of a latency table.")],
    space: Annotated[str | None, typer.Option("--space", help="Also check that it covers this space.")] = None,
    resolution: Resolution = None,
    num_classes: NumClasses = None,
    width: Width = None,
) -> None:
    """Check that a table is whole, plausible, and covers a space."""
    from hwnas.latency.table import LatencyTable

    loaded = LatencyTable.load(table)
    statuses = [entry.status for entry in loaded.entries.values()]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("ok", "unstable", "failed"))
    say(f"{table}: {len(statuses)} operators ({counts})\n{loaded.environment}")
    if space is not None:
        describe_model(built_space(space, resolution, num_classes, width), loaded)
