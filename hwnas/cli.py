"""The commands: each parses, calls one public function, and prints.

Nothing heavy is imported before a command needs it, so that help and listings answer at once.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from hwnas._version import __version__
from hwnas.cli_devices import device, devices
from hwnas.cli_options import (
    Data,
    RunPath,
    Seed,
    is_first_rank,
    say,
)
from hwnas.cli_profile import profile
from hwnas.cli_search import adopt, search
from hwnas.cli_tables import tables
from hwnas.cli_train import train
from hwnas.console import Reporter, console, errors, rows, say_proof
from hwnas.errors import HwnasError, UsageError, VerificationError
from hwnas.plugins import EXPORTERS, PROFILERS, PROOFS, available, load
from hwnas.recipes import recipe_arguments, recipe_names
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
app.add_typer(device, name="device")


def main() -> None:
    """Runs the command line; exit code 0 done, 1 failed, 2 wrong usage."""
    # Threads that wait should sleep: on a 2-core Xeon with one core busy elsewhere, a search of 5 epochs on digits
    # took 20 s so and 49 s with the default spinning; on the same machine left alone 17 s and 21 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console.quiet = not is_first_rank()  # of several processes the first one speaks for all; errors are each one's own
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
    taken = {name: ", ".join(arguments) for name, arguments in recipe_arguments().items()}
    listings: dict[str, Callable[[], list[tuple[str, ...]]]] = {
        "spaces": lambda: [(name, f"{_first_line(make.__doc__)}\n{_options(make)}") for name, make in SPACES.items()],
        "recipes": lambda: [(name, f"{line}\n--set {taken[name]}") for name, line in recipe_names().items()],
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


app.command()(devices)


app.command()(profile)


app.command()(search)


app.command()(adopt)


app.command()(train)


@app.command()
def export(
    run: RunPath,
    exporter: Annotated[str, typer.Option(help="Format; see 'hwnas list exporters'.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    batch: Annotated[int | None, typer.Option(help="Images a run; those of the latency table if not given.")] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Take any number of images a run.")] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX: version of its operators, for older runtimes.")] = None,
    half_io: Annotated[bool, typer.Option("--half-io", help="ONNX in fp16: inputs and outputs too.")] = False,
    signed: Annotated[bool, typer.Option("--signed", help="ONNX in int8: as TensorRT takes it.")] = False,
    flavour: Annotated[str | None, typer.Option(help="TensorRT: tensorrt, or tensorrt-rtx without a GPU.")] = None,
    capability: Annotated[list[str] | None, typer.Option(help="tensorrt-rtx: GPUs to build for, as 8.9.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="TensorRT: most images a run; 1 if not given.")] = None,
    workspace_mib: Annotated[int | None, typer.Option(help="TensorRT: scratch memory of the engine, at most.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="tensorrt: file that keeps kernel times.")] = None,
) -> None:
    """Write the trained network as a file to deploy."""
    from hwnas.run import RunFolder
    from hwnas.steps import export_run

    given: dict[str, Any] = {"batch": batch, "dynamic_batch": dynamic_batch, "opset": opset, "half_io": half_io}
    given |= {"signed": signed, "flavour": flavour, "capabilities": capability, "max_batch": max_batch}
    given |= {"workspace_mib": workspace_mib, "timing_cache": timing_cache}
    options = {name: value for name, value in given.items() if value is not None and value is not False}
    path = export_run(RunFolder.open(run), exporter=exporter, precision=precision, **options)
    say(f"exported {path} ({path.stat().st_size / 2**20:.2f} MiB)")


@app.command()
def verify(
    run: RunPath,
    images: Annotated[int, typer.Option(min=1, help="Held-out images to compare; all if there are fewer.")] = 256,
) -> None:
    """Prove the exported files: same numbers as PyTorch, and the promised milliseconds."""
    proof = load(PROOFS, "verify")(run, num_images=images)
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


def _options(make: Callable[..., object]) -> str:
    """Options of a space, with their defaults, as ``--space`` takes them."""
    return ", ".join(f"{each.name}={each.default}" for each in inspect.signature(make).parameters.values())


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().splitlines()[0]
