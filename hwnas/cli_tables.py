"""The commands ``hwnas table ...``: look at tables as artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.cli_options import NumClasses, Resolution, Width, built_space, describe_model, say
from hwnas.console import console
from hwnas.errors import UsageError
from hwnas.space.library import create_space

if TYPE_CHECKING:
    from hwnas.latency.comparison import Comparison
    from hwnas.latency.table import LatencyTable
    from hwnas.space import OpSignature, SearchSpace

tables = typer.Typer(help="Look at latency tables.", no_args_is_help=True, rich_markup_mode=None)

TablePath = Annotated[Path, typer.Argument(metavar="TABLE", help="CSV of a latency table.")]
Picture = Annotated[Path | None, typer.Option("--png", help="Also draw it; a name that ends in .png.")]


@tables.command("check")
def check(
    table: TablePath,
    space: Annotated[str | None, typer.Option("--space", help="Also check that it covers this space.")] = None,
    resolution: Resolution = None,
    num_classes: NumClasses = None,
    width: Width = None,
) -> None:
    """Check that a table is whole, plausible, and covers a space."""
    from hwnas.latency.table import LatencyTable

    loaded = LatencyTable.load(table)
    _say_environment(table, loaded)
    if space is not None:
        describe_model(built_space(space, resolution, num_classes, width), loaded)


@tables.command("show")
def show(
    table: TablePath,
    limit: Annotated[int, typer.Option(help="Most operators to show, the slowest first.", min=1)] = 40,
    png: Picture = None,
    space: Annotated[str | None, typer.Option("--space", help="Also say how much of this space it covers.")] = None,
    resolution: Resolution = None,
    num_classes: NumClasses = None,
    width: Width = None,
) -> None:
    """Show where a table is from, how well it predicts, and every operator as a bar."""
    from hwnas.latency.listing import facts, listing
    from hwnas.latency.table import LatencyTable

    loaded = LatencyTable.load(table)
    _say_environment(table, loaded)
    for fact in facts({**loaded.provenance, **loaded.environment.details}):
        say(fact)
    calibrated = _calibrated_spaces(loaded)
    for each in calibrated:
        say(f"networks of space '{each.name}'")
        describe_model(each, loaded)
    if space is not None:
        _say_coverage(loaded, built_space(space, resolution, num_classes, width))
    for line in listing(loaded, limit=limit, width=console.width):
        say(line)
    if png is not None:
        from hwnas.latency.drawing import draw_table
        from hwnas.latency.model import LatencyModel

        say(f"wrote {draw_table(loaded, [LatencyModel.from_table(each, loaded) for each in calibrated], png)}")


@tables.command("compare")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="CSV of a latency table.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="CSV of another one.")],
    limit: Annotated[int, typer.Option(help="Most disagreeing operators to show.", min=0)] = 10,
    png: Picture = None,
) -> None:
    """Put two tables side by side: two devices, or two sweeps of one."""
    from hwnas.latency.comparison import Comparison
    from hwnas.latency.table import LatencyTable

    comparison = Comparison(LatencyTable.load(a), LatencyTable.load(b))
    _say_comparison(comparison, a, b, limit)
    if png is not None:
        from hwnas.latency.drawing import draw_comparison

        say(f"wrote {draw_comparison(comparison, png)}")


@tables.command("merge")
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="A B ...", help="CSVs of tables of one environment.")],
    output: Annotated[Path, typer.Option(help="The merged table, NAME.csv; may be one of those merged.")],
) -> None:
    """Make one table of several from one environment, the best entry for every operator."""
    from hwnas.latency.merging import merge as merged
    from hwnas.latency.merging import num_shared
    from hwnas.latency.table import LatencyTable, csv_path

    if csv_path(output).exists() and csv_path(output).resolve() not in [csv_path(p).resolve() for p in paths]:
        raise UsageError(
            f"{output} exists and is not one of the tables to merge. Choose another output, or name it too."
        )
    loaded = [LatencyTable.load(path) for path in paths]
    table = merged(loaded).save(output)
    _say_environment(output, table)
    say(f"{num_shared(loaded)} operators stood in several tables; the best measurement of each was kept")


@tables.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A published latency table.")],
    file_format: Annotated[
        str, typer.Option("--format", help="csv (named columns), fbnet, nn-meter, proxylessnas or tf-nas.")
    ],
    output: Annotated[Path, typer.Option(help="The new table, NAME.csv.")],
    device: Annotated[str, typer.Option(help="Name of the device that it was measured on.")],
    unit: Annotated[str | None, typer.Option(help="ms, us or s, where the file does not say it.")] = None,
    runtime: Annotated[str, typer.Option(help="What executed the operators.")] = "unknown",
    runtime_version: Annotated[str, typer.Option(help="Its version.")] = "unknown",
    precision: Annotated[str, typer.Option(help="Number format.")] = "fp32",
    batch: Annotated[int, typer.Option(help="Images a run.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Threads inside one operator; 0 where that is unknown.", min=0)] = 0,
) -> None:
    """Read a table that another project published; all of it or nothing."""
    from hwnas.latency.environment import Environment
    from hwnas.latency.foreign import IMPORTED, import_table

    environment = Environment(device, runtime, runtime_version, precision, batch, threads, IMPORTED)
    table = import_table(file, file_format=file_format, output=output, environment=environment, unit=unit)
    _say_environment(output, table)
    say(f"{table.provenance['imported']['statistic']}")


def _say_environment(path: Path, table: LatencyTable) -> None:
    statuses = [entry.status for entry in table.entries.values()]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("ok", "unstable", "failed"))
    say(f"{path}: {len(statuses)} operators ({counts})\n{table.environment}")


def _calibrated_spaces(table: LatencyTable) -> list[SearchSpace]:
    """Spaces whose networks were measured with the table; says which this hwnas cannot build or not predict."""
    spaces = []
    for fingerprint, record in table.calibrations.items():
        name = record["space"]["name"]
        try:
            space = create_space(name, **record["space"]["options"])
        except UsageError:
            space = None
        if space is None or space.fingerprint != fingerprint:
            say(f"networks of space '{name}', which is not one of this hwnas")
        elif table.missing(space.signatures()):
            _say_coverage(table, space)
        else:
            spaces.append(space)
    return spaces


def _say_coverage(table: LatencyTable, space: SearchSpace) -> None:
    needed = space.signatures()
    missing = table.missing(needed)
    lacking = f", lacks {len(missing)} (first: {missing[0]})" if missing else ""
    say(f"covers {len(needed) - len(missing)} of {len(needed)} operators of space '{space.name}'{lacking}")


def _say_comparison(comparison: Comparison, a: Path, b: Path, limit: int) -> None:
    say(f"A: {a}: {comparison.a.environment}\nB: {b}: {comparison.b.environment}")
    for difference in comparison.a.environment.differences(comparison.b.environment):
        say(f"  {difference.replace(' here', ' in A').replace(' there', ' in B')}")
    say(
        f"{len(comparison.signatures)} operators in both{_only('A', comparison.only_in_a)}"
        f"{_only('B', comparison.only_in_b)}"
    )
    say(
        f"median entry differs by {comparison.difference:.2%}; "
        f"by {comparison.difference_in_shape:.2%} after scaling by the median ratio {comparison.overall_ratio:.4g}"
    )
    names = ("least", "10 %", "median", "90 %", "largest")
    ratios = comparison.quantiles(0, 0.1, 0.5, 0.9, 1)
    say("ratio A / B: " + ", ".join(f"{name} {ratio:.4g}" for name, ratio in zip(names, ratios, strict=True)))
    correlations = comparison.rank_correlations()
    if correlations:
        say("rank correlation: " + ", ".join(f"{name} {value:.4f}" for name, value in correlations.items()))
    if limit:
        say(f"they disagree most, after scaling:\n{'A, ms':>12} {'B, ms':>10} {'A / B':>8}  operator")
    for signature, relative in comparison.farthest(limit):
        a_ms, b_ms = (t.entries[signature].ms for t in (comparison.a, comparison.b))
        say(f"{a_ms:>12.4g} {b_ms:>10.4g} {relative:>8.3f}  {signature}")


def _only(name: str, signatures: list[OpSignature]) -> str:
    return f", {len(signatures)} only in {name} (such as {signatures[0]})" if signatures else ""
