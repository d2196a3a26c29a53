"""The whole loop on this machine's processor, on real images, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwnas.console import Say, draw, say_error, say_proof
from hwnas.errors import VerificationError
from hwnas.latency.budget import feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.latency.sweep import profile
from hwnas.metrics import Progress
from hwnas.onnx_precision import PRECISIONS
from hwnas.plugins import PROFILERS, PROOFS, available, create_profiler, load
from hwnas.run import RunFolder
from hwnas.search.target import MAX_ROUNDS
from hwnas.space import create_space
from hwnas.steps import default_target_ms, export_run, search_run, tighten_run, train_run
from hwnas.training import TrainingOptions

SPACE = "tiny-mbconv"
NUM_NETWORKS = 30
SEARCH_EPOCHS = 30
TRAINING_EPOCHS = 16


def demo(output: Path, *, data: str, max_ms: float | None, seed: int, progress: Progress, say: Say) -> dict[str, Any]:
    """Profiles, searches under a limit, trains, exports and proves; see the README.

    Args:
        output: Folder of the table and the run; an interrupted demo goes on there.
        data: A data set of ten classes.
        max_ms: The limit; the middle of the reachable range if not given.
        seed: Decides everything random.
        progress: Told about every step.
        say: Prints one line.

    Returns:
        The verification document.

    Raises:
        VerificationError: The exported network breaks a bound, after at most three derivations.
    """
    space = create_space(SPACE)
    say(f"1. profile: {len(space.signatures())} operators of space '{SPACE}' ({space.size:,} networks)")
    table = profile(
        space, create_profiler("onnxruntime"), output=output / "table.csv", num_networks=NUM_NETWORKS, progress=progress
    )
    say(f"   {table.environment}")
    model = LatencyModel.from_table(space, table)
    say("2. calibrate: sums of operators against whole networks, measured in the same sweep")
    say_error(model, say)
    low, high = feasible_range_ms(model)
    target = max_ms if max_ms is not None else default_target_ms(model)
    say(f"3. reachable: {low:.3f} to {high:.3f} ms; target {target:.3f} ms")
    say("4. search: two-path binary gates, one path in memory, latency multiplier adapts")
    rounds = search_run(
        space, table, output, data=data, max_ms=target, seed=seed,
        recipe_arguments={"num_epochs": SEARCH_EPOCHS, "batch_size": 32},
        resume=(output / "run.json").exists(), progress=progress,
    )  # fmt: skip
    run = RunFolder.open(output)
    tried = len(rounds)
    while True:
        say("5. derive: most probable architecture under the limit, exactly")
        for each in rounds:
            say(f"   {each}")
        say(draw(space, run.architecture()))
        accuracy = train_run(run, options=TrainingOptions(num_epochs=TRAINING_EPOCHS), progress=progress)
        say(f"6. train: {accuracy:.1%} on held-out images")
        _export(run, say)
        proof: dict[str, Any] = load(PROOFS, "verify")(output)
        say_proof(proof, say)
        if proof["latency"]["met"] or tried >= MAX_ROUNDS:
            break
        say("   the exported file misses the target: tighten and derive again")
        missed = {name: proof["latency"][name] for name in ("measured_ms", "slowdown")}
        rounds = tighten_run(run, **missed, num_rounds=MAX_ROUNDS - tried, progress=progress)
        tried += len(rounds)
        if not rounds:
            break
    say(f"7. report: {load(PROOFS, 'report')(output)}")
    if proof["failures"]:
        raise VerificationError(f"{output}: {'; '.join(proof['failures'])}.")
    return proof


def _export(run: RunFolder, say: Say) -> None:
    """ONNX in every precision, and an engine for GPUs that need not be here."""
    for precision in PRECISIONS:
        say(f"   exported {export_run(run, precision=precision)}")
    if not available(PROFILERS)["tensorrt-rtx"].missing:
        engine = export_run(run, exporter="tensorrt", flavour="tensorrt-rtx", precision="fp16")
        say(f"   exported {engine}, which runs on the GPUs that {engine.name}.json names")


def next_folder(output: Path) -> Path:
    """The folder itself, or with a number behind it where a finished demo is kept."""
    number, folder = 1, output
    while (folder / "report.html").exists():
        number += 1
        folder = output.with_name(f"{output.name}-{number}")
    return folder
