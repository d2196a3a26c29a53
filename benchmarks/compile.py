"""Does ``torch.compile`` pay? For the candidates of a supernet one by one, and for a fixed network.

    python benchmarks/compile.py [--space nas-bench-macro] [--batch-size 64] [--device cpu] [--candidates 9]

Times a forward and backward pass in training mode, eager and compiled in turn, and says after how many passes the
compilation has paid for itself.
"""

from __future__ import annotations

import argparse
import datetime
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lines import Lines
from torch import Tensor, nn

import hwnas
from hwnas.ops.blocks import build_op

NUM_ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="nas-bench-macro")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--candidates", type=int, default=9)
    parser.add_argument("--output", type=Path, help="also write there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch._dynamo.config.recompile_limit = 1000
    space = hwnas.create_space(arguments.space)
    signatures = dict.fromkeys(s for layer in space.layers for s in layer.signatures if layer.choices)
    say = Lines(arguments.output)
    say(f"{datetime.date.today()} {arguments}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    rows = []
    for signature in list(signatures)[: arguments.candidates]:
        rows.append(compared(build_op(signature), signature.in_shape, arguments))
        say(described(str(signature), *rows[-1]))
    say(described(f"{len(rows)} candidates", *np.sum(rows, 0)))
    median = space.architecture([count // 2 for count in space.num_options])
    say(described("a fixed network", *compared(hwnas.Network(space, median), space.input_shape, arguments)))


def compared(
    module: nn.Module, shape: tuple[int, int, int], arguments: argparse.Namespace
) -> tuple[float, float, float]:
    """Seconds to compile, of an eager pass and of a compiled one."""
    module.train().to(arguments.device, memory_format=torch.channels_last)
    images = torch.randn(arguments.batch_size, *shape, device=arguments.device)
    images = images.to(memory_format=torch.channels_last).requires_grad_()
    compiled = torch.compile(module, dynamic=False)
    first = seconds(compiled, images)
    times = [(seconds(module, images), seconds(compiled, images)) for _ in range(NUM_ROUNDS)]
    eager, fast = np.median(times, 0)
    return first, float(eager), float(fast)


def seconds(module: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Of one forward and backward pass."""
    started = time.perf_counter()
    module(images).sum().backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def described(name: str, first: float, eager: float, fast: float) -> str:
    """One row."""
    passes = f"pays after {first / (eager - fast):,.0f} passes" if fast < eager else "never pays"
    return (
        f"{name:50s} compile {first:6.1f} s  eager {1e3 * eager:7.1f} ms  compiled {1e3 * fast:7.1f} ms  "
        f"ratio {fast / eager:.2f}  {passes}"
    )


if __name__ == "__main__":
    main()
