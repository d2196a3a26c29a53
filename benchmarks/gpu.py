"""Every check that needs a GPU, in one command of less than nine minutes.

Each part runs in processes of its own under a time limit, so that one that hangs or crashes costs only itself. All that
it writes, and what it prints as PART.log while it runs, comes into the folder $OUT, or else runs/gpu.

    pip install --no-deps --no-build-isolation --editable .
    python benchmarks/gpu.py                 # also writes the table gpu.json
    python benchmarks/gpu.py --parts tables
    python benchmarks/gpu.py --parts engines     # not among the default parts, as all that follow
    python benchmarks/gpu.py --parts nas-bench   # reads scratch/cifar10.npz and scratch/nas_bench_macro.csv
    python benchmarks/gpu.py --parts darts-family   # scratch/cifar10.npz; the methods and the seed of METHODS and SEED
    python benchmarks/gpu.py --dry-run       # the same steps on this processor and the toy space
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from prediction import evaluate

import hwnas
from hwnas.errors import HwnasError
from hwnas.latency.measure import measure
from hwnas.onnx_graph import export_onnx
from hwnas.ops.blocks import build_op
from hwnas.space import OpSignature
from hwnas.tensorrt_engine import FLAVOURS, RTX, EngineBuilder, Flavour, layer_information, logger
from hwnas.testing.contracts import check_profiler
from hwnas.testing.toys import toy_space

ROOT = Path(__file__).parent.parent
TESTS = [
    *("tests/test_profilers_gpu.py", "tests/test_profilers_tensorrt.py"),
    *("tests/test_search_compute.py", "tests/test_metrics.py", "tests/test_deploy_tensorrt.py"),
]
BLOCK = OpSignature.parse("mbconv k5 e6 r1 s1 40x28x28 -> 40x28x28")

Row = tuple[str, str]
"""What was checked, and what came of it."""


def correctness(dry: bool, out: Path) -> Iterator[Row]:
    yield from printed("pytest", ["-m", "pytest", "-m", "gpu", "-rs", "-W", "default", *TESTS], ROOT)


def modes(dry: bool, out: Path) -> Iterator[Row]:
    device = "cpu" if dry else "cuda"
    module = build_op(BLOCK).eval()
    images = np.random.default_rng(0).standard_normal((1, *BLOCK.in_shape), dtype=np.float32)
    with torch.no_grad():
        exact = module.double()(torch.from_numpy(images).double()).numpy()
    module.float()
    for mode in ["eager"] if dry else ["eager", "compile", "cuda-graph"]:
        for precision in ["fp32", "bf16"] if dry else ["fp32", "tf32", "fp16", "bf16"]:
            profiler = hwnas.create_profiler("torch", device=device, mode=mode, precision=precision)
            if precision == "fp32":
                check_profiler(profiler)
            session = profiler.prepare(module, BLOCK.in_shape)
            error = np.abs(session.run(images) - exact).max() / np.abs(exact).max()
            session.close()
            timed = measure(profiler, module, BLOCK.in_shape)
            yield f"torch {mode} {precision}", f"{timed.ms:.4f} ms, spread {timed.spread:.1%}, error {error:.1e}"


def tables(dry: bool, out: Path) -> Iterator[Row]:
    space = toy_space() if dry else hwnas.create_space("proxylessnas")
    options = {"mode": "eager"} if dry else {"device": "cuda", "mode": "cuda-graph", "precision": "fp16"}
    profiler = hwnas.create_profiler("torch", **options)
    plan = {"num_networks": 8, "num_rounds": 3} if dry else {"num_networks": 100, "minutes": 3}
    table = hwnas.profile(space, profiler, output=out / "torch.csv", **plan)
    failed = [str(s) for s, entry in table.entries.items() if not entry.usable]
    yield "table", f"{table.environment}: {len(table.entries)} operators"
    yield "failed operators", ", ".join(failed) or "none"
    yield from evaluate(space, table, 4 if dry else 60).items()


def tensorrt(dry: bool, out: Path) -> Iterator[Row]:
    module = build_op(BLOCK).eval()
    for name in ("tensorrt", "tensorrt-rtx"):
        for mode in ("enqueue", "cuda-graph"):
            try:
                profiler = hwnas.create_profiler(name, mode=mode, precision="fp16")
                check_profiler(profiler)
                timed = measure(profiler, module, BLOCK.in_shape)
            except HwnasError as error:  # what exactly is in the way is a result
                yield f"{name} {mode} fp16", str(error)
            else:
                yield f"{name} {mode} fp16", f"{timed.ms:.4f} ms, spread {timed.spread:.1%}"


def engines(dry: bool, out: Path) -> Iterator[Row]:
    """What engines compute and how fast, then what a table of TensorRT predicts for networks that it has not seen."""
    plan = ["--network", "tiny-mbconv", *(["--quick"] if dry else ["--network", "proxylessnas"])]
    flavours = [f"--exporter={name}" for name in FLAVOURS]
    yield from script("deploy", out, *plan, *flavours, "--output", "engines.txt")
    yield "tensorrt-rtx itself", _loaded(RTX)
    space = toy_space() if dry else hwnas.create_space("tiny-mbconv")
    calibrating, held_out = (4, 4) if dry else (20, 24)
    for name in FLAVOURS:
        try:
            profiler = hwnas.create_profiler(name, mode="cuda-graph", precision="fp16")
        except HwnasError as error:  # what exactly is in the way is a result
            yield f"{name} table", str(error)
            if not dry:
                continue
            profiler = hwnas.create_profiler("onnxruntime")
        rounds = {"num_rounds": 3} if dry else {"minutes": 1}
        table = hwnas.profile(
            space, profiler, output=out / f"{name}.csv", num_networks=calibrating + held_out, **rounds
        )
        yield f"{name} table", f"{table.environment}: {len(table.entries)} operators"
        yield from evaluate(space, table, calibrating).items()


def _loaded(flavour: Flavour) -> str:
    """What TensorRT says of an engine that it built for no GPU in particular, on this one."""
    try:
        built = EngineBuilder(flavour).build(export_onnx(build_op(BLOCK).eval(), BLOCK.in_shape).SerializeToString())
    except HwnasError as error:
        return str(error)
    layers = layer_information(flavour, built.data)
    return " ".join(logger(flavour).errors) if layers is None else f"loads the engine, of {len(layers)} layers"


def printed(name: str, arguments: Sequence[object], folder: Path) -> Iterator[Row]:
    """Runs Python there; the lines that it prints are the result, each as it comes."""
    command = [sys.executable, "-u", *map(str, arguments)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)  # noqa: T201
            if line.strip():
                yield name, line.rstrip()
    if process.returncode:
        raise HwnasError(f"{name} ended with status {process.returncode}")


def script(name: str, out: Path, *arguments: object) -> Iterator[Row]:
    """Runs another benchmark in the folder of results."""
    yield from printed(name, [Path(__file__).with_name(f"{name}.py"), *arguments], out)


def search_cost(dry: bool, out: Path) -> Iterator[Row]:
    plan = ["--dry-run"] if dry else ["--device", "cuda", "--resolution", 224]
    yield from script("search_cost", out, *plan, "--output", "search-cost.txt")


def compilation(dry: bool, out: Path) -> Iterator[Row]:
    plan = ["--device", "cpu" if dry else "cuda", "--candidates", 1 if dry else 6]
    yield from script("compile", out, *plan, "--output", "compile.txt")


def nas_bench(dry: bool, out: Path) -> Iterator[Row]:
    data = ["--data", ROOT / "scratch/cifar10.npz", "--truth", ROOT / "scratch/nas_bench_macro.csv"]
    phases, size, seed = "16:0.02" if dry else "32:30", 256, os.environ.get("SEED", "0")
    steps = ["--steps", 6 if dry else 1000]
    recipes = ["--recipes", "proxylessnas,fbnet,random", "--images", 20 if dry else 4000]
    recipes += ["--limits", 40] if dry else []
    common = [*data, "--phases", phases, "--batch-size", size, "--workers", 0 if dry else 12, "--seed", seed]
    yield from script("nas_bench_macro", out, "ranking", *common, "--networks", 2 if dry else 200)
    yield from script("nas_bench_macro", out, "search", *common, *steps, *recipes)
    yield from script("nas_bench_macro", out, "summary", *common, *steps)
    weights = f"runs/nas-bench-macro/supernet-batch{size}-seed{seed}-{phases.replace(':', 'x')}/search.pt"
    plan = ["--paths", 20, "--steps", 2] if dry else ["--device", "cuda", "--batch-size", 128]
    yield from script("gradients", out, "--data", f"npz:{data[1]}", "--weights", weights, "--seed", seed, *plan)


def darts_family(dry: bool, out: Path) -> Iterator[Row]:
    """Costs at the published size; then searches on S2, with more methods and seeds where calls name others."""
    size = "channels=4,num_cells=3,resolution=16" if dry else "channels=16,num_cells=8"
    batch, device = 4 if dry else 96, "cpu" if dry else "cuda"
    mode = "l2" if dry else "stop"  # which needs 23 epochs
    methods = os.environ.get("METHODS", f"darts,robust_darts:mode={mode},pc_darts,gdas")
    chosen = ["--methods", methods, "--batch-size", batch, "--device", device]
    yield from script(
        "darts_family", out, "costs", "--space", f"darts-cell:{size}", *chosen, "--rounds", 1 if dry else 5
    )
    images = ROOT / "scratch/cifar10.npz"
    data = "digits" if dry and not images.exists() else f"npz:{images}"
    common = [*chosen, "--space", f"robust-darts:subspace=2,{size}", "--data", data]
    common += ["--seed", os.environ.get("SEED", "0"), "--images", 80 if dry else 10000]
    common += ["--epochs", 1, "--train-epochs", 1] if dry else ["--epochs", 25, "--train-epochs", 20]
    yield from script("darts_family", out, "search", *common)
    yield from script("darts_family", out, "summary", *common)


PARTS: dict[str, tuple[Callable[[bool, Path], Iterator[Row]], int]] = {
    "correctness": (correctness, 150),
    "modes": (modes, 80),
    "tensorrt": (tensorrt, 30),
    "engines": (engines, 530),
    "search-cost": (search_cost, 60),
    "tables": (tables, 210),
    "compile": (compilation, 240),
    "nas-bench": (nas_bench, 530),
    "darts-family": (darts_family, 530),
}
"""Name -> function and time limit in seconds."""

NUM_LAST_WORDS = 20
"""Last lines of the log that are shown of a part that failed."""

DEFAULT = ("correctness", "modes", "tensorrt", "search-cost", "tables")


def in_process(name: str, dry: bool, out: Path) -> list[Row]:
    """Runs a part in a process of its own; what it found before it failed is kept."""
    found, log = out / f"{name}.rows", out / f"{name}.log"
    found.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__)), "--inside", name, *(["--dry-run"] if dry else [])]
    failure = ended(command, log, PARTS[name][1])
    rows = [tuple(json.loads(line)) for line in found.read_text().splitlines()] if found.exists() else []
    found.unlink(missing_ok=True)
    last_words = log.read_text(errors="replace").splitlines()[-NUM_LAST_WORDS:] if failure else []
    return rows + [(name, line) for line in ([failure] if failure else []) + last_words]


def ended(command: Sequence[str], log: Path, seconds: float) -> str:
    """Runs a command and all that it starts, for so long at most; returns how it failed, if it did."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OUT": str(log.parent)},
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"FAILED: not done in {seconds:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"FAILED with status {code}" if code else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(DEFAULT), help="comma-separated")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = Path(os.environ.get("OUT", "runs/gpu")).resolve()
    out.mkdir(parents=True, exist_ok=True)

    if arguments.inside:
        with (out / f"{arguments.inside}.rows").open("w") as file:
            for row in PARTS[arguments.inside][0](arguments.dry_run, out):
                file.write(json.dumps(row) + "\n")
                file.flush()
        return
    unknown = set(parts := arguments.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"unknown part '{min(unknown)}'; choose from {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and the part that runs ends, too
    device = "dry run on the processor" if arguments.dry_run else torch.cuda.get_device_name()
    heading = f"{datetime.date.today()} {device}, torch {torch.__version__}"
    print(heading)  # noqa: T201
    found: dict[str, list[Row]] = {}
    for name in parts:
        found[name] = in_process(name, arguments.dry_run, out)
        (out / "gpu.json").write_text(json.dumps({"heading": heading, "parts": found}, indent=1))
        for what, result in found[name]:
            print(f"{what:34s} {result}", flush=True)  # noqa: T201
    sys.exit(any("FAILED" in result for rows in found.values() for _, result in rows))


if __name__ == "__main__":
    main()
