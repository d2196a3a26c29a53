"""What does export cost, and what does it change? A network of a space and a common one, in every format that is here.

    python benchmarks/deploy.py                                 # every exporter and precision, at 224 pixels
    python benchmarks/deploy.py --exporter onnx --precision int8 --network mobilenet_v2
    python benchmarks/deploy.py --exporter tensorrt --table trt.csv      # on a GPU, with a table of it
    python benchmarks/deploy.py --quick                         # small images: whether it runs

A random network of space ``proxylessnas`` and torchvision's MobileNetV2, both with random weights and with batch-norm
statistics from real photographs: random parts of the two that scikit-learn ships. They are compared on other parts. A
network that was not trained magnifies small differences, and its classes are nearly equal; what trained ones keep is
said in ``deploy/numerics.py``. Measured on one thread of this processor, or where the format runs; predicted for the
runtimes and precisions of the tables that ship with hwnas (ONNX Runtime in fp32) or are given. MobileNetV2 is
predicted as the network of space ``mobilenetv2`` that it is.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from hwnas.deploy.loading import LoadedNetwork, load
from hwnas.deploy.numerics import compare
from lines import Lines
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.transforms.v2 import functional

import hwnas
from hwnas.errors import HwnasError, MissingSignatureError
from hwnas.latency.environment import cpu_name
from hwnas.latency.measurement import summarise
from hwnas.onnx_precision import PRECISIONS
from hwnas.plugins import EXPORTERS, PROFILERS, available, create_exporter
from hwnas.supernet.supernet import recalibrate_batchnorm
from hwnas.tensorrt_engine import FLAVOURS

SHIPPED = Path(hwnas.__file__).parents[1] / "latency_tables"
RUNTIMES = {"onnx": "onnxruntime"}
"""Exporter -> runtime of its files; a flavour of TensorRT is its own."""

NETWORKS = ("proxylessnas", "mobilenet_v2")
SPACE_OF = {"mobilenet_v2": "mobilenetv2"}
"""A network of torchvision -> the space in which it is ``k3_e6`` everywhere."""
NUM_MOMENTS, PAUSE_SECONDS = 6, 2.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", help="mobilenet_v2, or a space")
    parser.add_argument("--exporter", action="append", help="or a flavour of TensorRT; all that are installed")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--table", type=Path, action="append", default=[], help="that predicts, too")
    parser.add_argument("--images", type=int, default=64, help="to calibrate with, and as many to compare on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, help="also write there")
    arguments = parser.parse_args()
    resolution, num_images = (64, 8) if arguments.quick else (224, arguments.images)
    tables = [hwnas.LatencyTable.load(path) for path in (*sorted(SHIPPED.glob("*.csv")), *arguments.table)]
    rng = np.random.default_rng(arguments.seed)
    calibration, images = (torch.stack([*parts_of_photographs(resolution, num_images, rng)]) for _ in range(2))
    say = Lines(arguments.output)
    say(f"{datetime.date.today()} {cpu_name()}, torch {torch.__version__}, {resolution} pixels, seed {arguments.seed}")
    reasons: list[str] = []
    for name in arguments.network or NETWORKS:
        torch.manual_seed(arguments.seed)
        network, predicted = built(name, resolution, arguments.seed, tables)
        recalibrate_batchnorm(network, torch.split(calibration, 16))
        network.eval()
        for exporter in arguments.exporter or installed():
            for precision in arguments.precision or PRECISIONS:
                ms = predicted.get((RUNTIMES.get(exporter, exporter), precision))
                said = tried(network, exporter, precision, calibration, images, ms, reasons)
                say(f"{name:13s} {exporter:12s} {precision:5s} {said}")
    for number, reason in enumerate(reasons, 1):
        say(f"[{number}] {reason}")


def installed() -> list[str]:
    """Exporters, TensorRT by flavour, that need nothing more."""
    others = [name for name, plugin in available(EXPORTERS).items() if not plugin.missing and name not in FLAVOURS]
    return others + [name for name, plugin in available(PROFILERS).items() if name in FLAVOURS and not plugin.missing]


def parts_of_photographs(side: int, number: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Random squares of the two photographs, of at least a quarter of their height, normalised, ``(3, side, side)``."""
    photographs = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    for index in range(number):
        image = photographs[index % len(photographs)]
        size = int(rng.integers(image.shape[1] // 4, image.shape[1] + 1))
        top, left = (int(rng.integers(0, length - size + 1)) for length in image.shape[1:])
        part = functional.resized_crop(image, top, left, size, size, [side, side], antialias=True)
        yield functional.normalize(part.float() / 255, MEAN, STD)


def built(
    name: str, resolution: int, seed: int, tables: Sequence[hwnas.LatencyTable]
) -> tuple[nn.Module, dict[tuple[str, str], float]]:
    """A network with random weights; by runtime and precision, the latency in ms that a table predicts for it."""
    space = hwnas.create_space(SPACE_OF.get(name, name), resolution=resolution)
    if name in SPACE_OF:
        architecture = space.architecture(dict.fromkeys(space.choice_names, "k3_e6"))
    else:
        (architecture,) = space.distinct(1, seed=seed)
    predicted = {}
    for table in tables:
        with contextlib.suppress(MissingSignatureError):  # a table of another space
            ms = hwnas.LatencyModel.from_table(space, table).exact_ms(architecture)
            predicted[table.environment.runtime, table.environment.precision] = ms
    return mobilenet_v2(weights=None) if name in SPACE_OF else hwnas.Network(space, architecture), predicted


def tried(
    network: nn.Module,
    exporter: str,
    precision: str,
    calibration: Tensor,
    images: Tensor,
    predicted_ms: float | None,
    reasons: list[str],
) -> str:
    """Figures of one file, or the number of the reason why there are none."""
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        try:
            flavour = {"flavour": exporter} if exporter in FLAVOURS else {}
            plugin = create_exporter("tensorrt" if flavour else exporter, precision=precision, **flavour)
            path = plugin.export(
                network, Path(folder) / f"model{plugin.suffix}", input_shape=shape, metadata={},
                calibration=[each.numpy() for each in calibration[:, None]],
            )  # fmt: skip
        except HwnasError as error:
            return f"not exported {noted(reasons, str(error))}"
        written = f"export {time.perf_counter() - started:5.1f} s, {path.stat().st_size / 2**20:6.2f} MiB"
        try:
            return f"{written}, {measured(path, network, precision, images, predicted_ms)}"
        except HwnasError as error:
            return f"{written}, not run {noted(reasons, str(error).replace(str(path), path.name))}"


def noted(reasons: list[str], reason: str) -> str:
    """Its number; the same reason gets the same one."""
    if reason not in reasons:
        reasons.append(reason)
    return f"[{reasons.index(reason) + 1}]"


def measured(path: Path, network: nn.Module, precision: str, images: Tensor, predicted_ms: float | None) -> str:
    """Differences from PyTorch, and latency."""
    with torch.no_grad():
        ours = torch.cat([network(part) for part in torch.split(images, 16)]).numpy()
    with load(path) as session:
        theirs = np.concatenate([session.run(each.numpy()) for each in images[:, None]])
        latency = summarise(list(rounds_over_time(session)))
    found = compare(ours, theirs, ours.argmax(1), precision=precision)
    predicted = "" if predicted_ms is None else f", predicted {predicted_ms:.2f} ({predicted_ms / latency.ms - 1:+.1%})"
    return (
        f"difference {found['max_relative_difference']:.1e} of the largest, cosine {found['mean_cosine']:.5f}, agrees "
        f"{found['top1_agreement']:6.1%}, {latency.ms:7.2f} ms (p50 {latency.p50_ms:.2f}, p90 {latency.p90_ms:.2f})"
        f"{predicted}"
    )


def rounds_over_time(session: LoadedNetwork) -> Iterator[list[float]]:
    """Rounds with pauses in between: a table's sweep, too, judges by the quieter of many moments."""
    for moment in range(NUM_MOMENTS):
        time.sleep(PAUSE_SECONDS if moment else 0)
        yield from session.time_rounds()


if __name__ == "__main__":
    main()
