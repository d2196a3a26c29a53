"""The commands: each parses, calls one public function, and prints.

Nothing heavy is imported before a command needs it, so that help and listings answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from hwnas._version import __version__
from hwnas.cli_options import NumClasses, Resolution, Seed, SpaceName, Width, built_space, describe_model, say
from hwnas.cli_profile import profile
from hwnas.cli_tables import tables
from hwnas.console import Reporter, console, draw, errors, rows
from hwnas.errors import HwnasError, UsageError, VerificationError
from hwnas.plugins import EXPORTERS, PROFILERS, PROOFS, available, load
from hwnas.recipes import recipe_names
from hwnas.space.library import SPACES


class Interrupted(Exception):
    """Ctrl-C, on its way to ``main``."""


class Commands(TyperGroup):
    """Lets ``main`` see Ctrl-C, which Typer would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted from interrupt


app = typer.Typer(
    name="hwnas",
    cls=Commands,
    help="Hardware-aware neural architecture search: profile a device, search under a millisecond limit, deploy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(tables, name="table")

Data = Annotated[str, typer.Option(help="digits, imagefolder:PATH, imagenet:PATH, cifar10:PATH or npz:PATH.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of 'hwnas search'.")]
CheckpointSeconds = Annotated[float, typer.Option(min=0, help="Time between checkpoints.")]


def main() -> None:
    """Runs the command line; exit code 0 done, 1 failed, 2 wrong usage."""
    # Threads that wait should sleep: on a 2-core Xeon with one core busy elsewhere, a search of 5 epochs on digits
    # took 20 s so and 49 s with the default spinning; on the same machine left alone 17 s and 21 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except UsageError as error:
        errors.print(f"error: {error}", markup=False)
        sys.exit(2)
    except HwnasError as error:
        errors.print(f"error: {error}", markup=False)
        sys.exit(1)
    except Interrupted:
        errors.print("interrupted; what is done is kept. Run the same command again (search: with --resume).")
        sys.exit(1)


def _version(show: bool) -> None:
    if show:
        console.print(f"hwnas {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of hwnas itself."""


@app.command("list")
def list_(
    what: Annotated[
        Literal["spaces", "recipes", "profilers", "exporters", "tables", "all"], typer.Argument(help="What to list.")
    ] = "all",
) -> None:
    """List what is here, what is missing and how to get it."""
    listings: dict[str, Callable[[], list[tuple[str, ...]]]] = {
        "spaces": lambda: [(name, _first_line(function.__doc__)) for name, function in SPACES.items()],
        "recipes": lambda: list(recipe_names().items()),
        "profilers": lambda: _plugins(PROFILERS),
        "exporters": lambda: _plugins(EXPORTERS),
        "tables": _shipped_tables,
    }
    for name in listings if what == "all" else [what]:
        rows(name, (name.removesuffix("s"), "what it is"), listings[name]() or [("none", "")])


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the table and the run.")] = Path("runs/demo"),
    data: Data = "digits",
    max_ms: Annotated[float | None, typer.Option(help="Limit; the middle of the reachable range if not given.")] = None,
    seed: Seed = 0,
) -> None:
    """Run the whole loop on this processor, on real images, in minutes."""
    from hwnas.demo import demo as run_demo
    from hwnas.demo import next_folder

    with Reporter() as reporter:
        run_demo(next_folder(output), data=data, max_ms=max_ms, seed=seed, progress=reporter, say=say)


app.command()(profile)


@app.command()
def search(
    space: SpaceName,
    table: Annotated[Path, typer.Option(help="Latency table of the device.")],
    output: Annotated[Path, typer.Option(help="Run folder to create.")],
    max_ms: Annotated[float | None, typer.Option(help="Limit; the middle of the reachable range if not given.")] = None,
    recipe: Annotated[str, typer.Option(help="Method; see 'hwnas list recipes'.")] = "gumbel",
    data: Data = "digits",
    epochs: Annotated[int | None, typer.Option(help="The recipe's own number if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="The recipe's own if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    other_device: Annotated[bool, typer.Option("--other-device", help="Accept a table of another device.")] = False,
    checkpoint_seconds: CheckpointSeconds = 60.0,
    resolution: Resolution = None,
    num_classes: NumClasses = None,
    width: Width = None,
    seed: Seed = 0,
) -> None:
    """Search a space under a hard latency limit."""
    from hwnas.latency.table import LatencyTable
    from hwnas.steps import search_run

    built = built_space(space, resolution, num_classes, width)
    loaded = LatencyTable.load(table)
    describe_model(built, loaded)
    arguments = {"num_epochs": epochs, "batch_size": batch_size}
    with Reporter() as reporter:
        rounds = search_run(
            built, loaded, output, data=data, max_ms=max_ms, recipe=recipe,
            recipe_arguments={name: value for name, value in arguments.items() if value is not None},
            seed=seed, resume=resume, other_device=other_device, checkpoint_seconds=checkpoint_seconds,
            progress=reporter,
        )  # fmt: skip
    for each in rounds:
        say(str(each))
    say(draw(built, rounds[-1].architecture))
    if not rounds[-1].met:
        raise VerificationError(f"no derived network kept the limit in {len(rounds)} rounds; see {output}.")


@app.command()
def train(
    run: RunPath,
    data: Annotated[str | None, typer.Option(help="Another data set than the search's.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    checkpoint_seconds: CheckpointSeconds = 60.0,
) -> None:
    """Train the derived network from scratch; resumes if interrupted."""
    from hwnas.run import RunFolder
    from hwnas.steps import train_run
    from hwnas.training import TrainingOptions

    options_ = TrainingOptions(num_epochs=epochs, batch_size=batch_size)
    with Reporter() as reporter:
        accuracy = train_run(
            RunFolder.open(run), data=data, options=options_, checkpoint_seconds=checkpoint_seconds, progress=reporter
        )
    say(f"top-1 {accuracy:.2%} on held-out images")


@app.command()
def export(
    run: RunPath,
    exporter: Annotated[str, typer.Option(help="Format; see 'hwnas list exporters'.")] = "onnx",
    precision: Annotated[str, typer.Option(help="Number format.")] = "fp32",
) -> None:
    """Write the trained network as a file to deploy."""
    from hwnas.run import RunFolder
    from hwnas.steps import export_run

    say(f"exported {export_run(RunFolder.open(run), exporter=exporter, precision=precision)}")


@app.command()
def verify(run: RunPath) -> None:
    """Prove the exported file: same numbers as PyTorch, and the promised milliseconds."""
    from hwnas.demo import say_proof

    proof = load(PROOFS, "verify")(run)
    say_proof(proof, say)
    if proof["failures"]:
        raise VerificationError(f"{run}: {'; '.join(proof['failures'])}.")


@app.command()
def report(run: RunPath) -> None:
    """Write everything about a run as one HTML page and as JSON."""
    say(f"wrote {load(PROOFS, 'report')(run)}")


def _plugins(group: str) -> list[tuple[str, ...]]:
    return [
        (name, f"needs {', '.join(plugin.missing)}: {plugin.remedy}" if plugin.missing else "ready")
        for name, plugin in available(group).items()
    ]


def _shipped_tables() -> list[tuple[str, ...]]:
    from hwnas.files import read_json
    from hwnas.latency.environment import Environment

    folder = Path(str(resources.files("hwnas.latency_tables")))
    found: list[tuple[str, ...]] = []
    for path in sorted(folder.glob("*.csv")):
        sidecar = read_json(path.with_suffix(".json"))
        spaces = ", ".join(record["space"]["name"] for record in sidecar["calibrations"].values())
        found.append((str(path), f"{spaces}: {Environment.from_dict(sidecar['environment'])}"))
    return found


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().splitlines()[0]
