"""Whether reading images or training on them is the bottleneck here.

Prints images/s of the loader alone for every number of workers, and of training steps on images that are already in
memory; the slower of the two is what a training waits for. If it is the loader, use the fewest workers that are fast
enough, or smaller files. On a device that is the processor both share its cores: a training is slower than either.

    python benchmarks/loader.py imagenet:/data/imagenet --workers 0,4,8,16 --device cuda --precision bf16
    python benchmarks/loader.py imagenet:/data/imagenet --network fbnet       # the median network of a space
    python benchmarks/loader.py imagenet:/data/imagenet --dry-run             # one batch of each
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import time
from pathlib import Path

import torch
from lines import Lines
from torch import nn
from torch.nn.functional import cross_entropy

import hwnas
from hwnas.compute import Compute
from hwnas.data import BatchStream, ImageData, randaugment
from hwnas.latency.environment import cpu_name
from hwnas.latency.networks import NETWORKS
from hwnas.space.cost import macs
from hwnas.space.library import SPACES
from hwnas.supernet.supernet import Network

NUM_SAMPLED = 101  # architectures of a space, of which the one with the median number of multiply-adds is trained


def network_of(name: str, resolution: int, num_classes: int) -> nn.Module:
    """A network of torchvision, or the median one of a space."""
    if name in NETWORKS:
        return NETWORKS[name](num_classes=num_classes)
    space = hwnas.create_space(name, resolution=resolution, num_classes=num_classes)
    by_cost = sorted(space.distinct(NUM_SAMPLED, seed=0), key=lambda a: sum(map(macs, space.operators(a))))
    return Network(space, by_cost[len(by_cost) // 2])


def loader_speed(stream: BatchStream, seconds: float) -> float:
    """Images/s of the loader alone, once its workers have started."""
    with contextlib.closing(stream.batches(0)) as batches:
        for _ in range(1 + 2 * stream.num_workers):  # what was prepared while nobody waited is not counted
            next(batches)
        start, count = time.perf_counter(), 0
        for _, labels in batches:
            count += len(labels)
            if (elapsed := time.perf_counter() - start) > seconds:
                return count / elapsed
    raise AssertionError("the stream is endless")


def step_speed(network: nn.Module, compute: Compute, batch_size: int, data: ImageData, seconds: float) -> float:
    """Images/s of forward, backward and SGD on one batch of random images on the device."""
    images = torch.randn(batch_size, 3, data.resolution, data.resolution)
    ((images, labels),) = compute.micro_batches((images, torch.arange(batch_size) % len(data.classes)))
    compute.move(network.train())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    start, count = 0.0, 0
    for step in itertools.count():
        optimizer.zero_grad(set_to_none=True)
        with compute.autocast():
            loss = cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device
        if step == 0:  # allocates memory and chooses algorithms
            start = time.perf_counter()
        else:
            count += batch_size
            if (elapsed := time.perf_counter() - start) > seconds:
                return count / elapsed
    raise AssertionError("the loop is endless")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="for example imagenet:/data/imagenet")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--workers", default="0,1,2", help="comma-separated numbers of processes")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--network", default="mobilenet_v2", help=", ".join([*NETWORKS, *SPACES]))
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, auto")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16")
    parser.add_argument("--randaugment", action="store_true", help="augment with RandAugment, too")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--output", type=Path, help="also write there")
    parser.add_argument("--dry-run", action="store_true", help="one batch of each, to see that it runs")
    arguments = parser.parse_args()
    seconds = 0.0 if arguments.dry_run else arguments.seconds
    compute = Compute(device=arguments.device, precision=arguments.precision)
    data = hwnas.load_data(arguments.data, resolution=arguments.resolution)
    network = network_of(arguments.network, arguments.resolution, len(data.classes))
    device = cpu_name()
    if compute.place.type == "cuda":
        device = f"{torch.cuda.get_device_name(compute.place)}, {device}"
    images = f"{arguments.data}: {len(data.train)} images at {data.resolution}, batch {arguments.batch_size}"
    say = Lines(arguments.output)
    say(f"{datetime.date.today()} {device}, torch {torch.__version__}; {images}")
    speeds: dict[int, float] = {}
    for workers in map(int, arguments.workers.split(",")):
        extra = randaugment() if arguments.randaugment else None
        stream = BatchStream(data.train, arguments.batch_size, seed=0, extra=extra, num_workers=workers)
        speeds[workers] = loader_speed(stream, seconds)
        say(f"loader, {workers} workers: {speeds[workers]:.0f} images/s")
    step = step_speed(network, compute, arguments.batch_size, data, seconds)
    say(f"training step, {arguments.network}, {arguments.precision}: {step:.0f} images/s")
    best = max(speeds, key=lambda workers: speeds[workers])
    slower, ratio = ("loader", step / speeds[best]) if speeds[best] < step else ("training step", speeds[best] / step)
    say(f"bottleneck: the {slower}, {ratio:.1f} times slower than the other (loader at its best, {best} workers)")


if __name__ == "__main__":
    main()
