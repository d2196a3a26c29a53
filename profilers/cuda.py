"""What profilers on NVIDIA devices share: facts of the device, times by events, captured graphs.

Runs are enqueued back to back and timed by events on one stream; the host waits only at the end of a burst. Where
the device is the slower side, an interval is the time of the kernels. Where the host is (eager operators at batch 1),
the device waits for launches inside the interval, as it does inside a network. One untimed run leads every burst, so
that no interval starts on an idle device. Inputs and weights stay in the device's cache between runs, as activations
do between the operators of a network.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import subprocess
import time
import warnings
from collections.abc import Callable

import torch

from hwnas.errors import UsageError

BURST = 5
"""Timed intervals between two waits of the host; a time budget is kept to this granularity."""

MIN_INTERVAL_MS = 0.2
"""Shorter runs are repeated between two events: recording an event costs the host microseconds."""

MAX_REPEATS = 64

RESOLUTION_MS = 0.0005
"""Events resolve about half a microsecond (CUDA runtime API, ``cudaEventElapsedTime``); a shorter interval reads 0."""

WARM_UP_MS = 1.0

CLOCKS = ("pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu")
THROTTLING = "clocks_event_reasons.active"


def cuda_device(name: str, *, profiler: str) -> torch.device:
    """The device that ``cuda`` or ``cuda:N`` names.

    Raises:
        UsageError: Another text, or no such device on this machine.
    """
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise UsageError(f"profiler '{profiler}' has no device '{name}'; it takes cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match[1] or 0)
    if index >= count:
        raise UsageError(
            f"profiler '{profiler}' finds no CUDA device '{name}' here: PyTorch {torch.__version__} sees {count}. "
            "Run this on a machine with an NVIDIA GPU, a driver and a CUDA build of PyTorch."
        )
    return torch.device("cuda", index)


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which everything is timed; one, because libraries keep a workspace for each they meet."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call, no-any-return, unused-ignore]


def device_name(device: torch.device) -> str:
    """Marketing name with the number of multiprocessors, which tells variants and partitions apart."""
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} ({properties.multi_processor_count} SMs)"


def device_details(device: torch.device) -> dict[str, str]:
    """What is recorded beside a measurement; clocks and power state are those of this moment."""
    properties = torch.cuda.get_device_properties(device)
    details = {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_mib": str(properties.total_memory // 2**20),
        "cuda": str(torch.version.cuda),
        "transfers": "none (input and output stay on the device)",
        "timing": f"CUDA events, {BURST} intervals in flight, runs under {MIN_INTERVAL_MS} ms repeated in an interval",
    }
    fields = ["driver_version", *CLOCKS, THROTTLING]
    values = query_smi(str(properties.uuid), fields) or ["not readable"] * len(fields)
    return details | dict(zip(fields, values, strict=True))


def query_smi(uuid: str, fields: list[str]) -> list[str] | None:
    """Fields that nvidia-smi tells of one device; None where it is absent or does not know them."""
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in answer.strip().split(",")]
    return values if len(values) == len(fields) else None


def time_on_stream(run: Callable[[], object], *, budget_ms: float, repeats: int = 1) -> list[float]:
    """Milliseconds of every interval on the current stream, for about ``budget_ms`` after a warm-up.

    Args:
        run: Enqueues work on the current stream and does not wait for it.
        budget_ms: Ends the measurement, to the granularity of a burst.
        repeats: How many runs of the network one call of ``run`` stands for; times are divided by it.
    """
    stream = torch.cuda.current_stream()
    warm = time.perf_counter() + WARM_UP_MS / 1e3
    while True:
        run()
        stream.synchronize()
        if time.perf_counter() >= warm:
            break
    events = [torch.cuda.Event(enable_timing=True) for _ in range(BURST + 1)]  # type: ignore[no-untyped-call]
    samples: list[float] = []
    deadline = time.perf_counter() + budget_ms / 1e3
    while not samples or time.perf_counter() < deadline:
        run()
        events[0].record(stream)
        for event in events[1:]:
            run()
            event.record(stream)
        stream.synchronize()
        intervals = (start.elapsed_time(end) for start, end in itertools.pairwise(events))
        samples += [max(ms, RESOLUTION_MS) / repeats for ms in intervals]
    return samples


def repeats_for(run: Callable[[], object]) -> int:
    """How often a run goes into one interval, so that the interval is long against its events."""
    ms = min(time_on_stream(run, budget_ms=0.0))
    return min(MAX_REPEATS, math.ceil(MIN_INTERVAL_MS / ms))


def capture(run: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph to replay on the current stream, and how many runs in a row it holds.

    The first run outside a graph sets libraries up, so ``run`` must have run before. Short operators are captured
    several times in a row: a kernel then follows a kernel as in a network's graph, without the launch of a graph
    for each operator.
    """
    graph = _captured(run, 1)
    repeats = repeats_for(graph.replay)
    return (graph, 1) if repeats == 1 else (_captured(run, repeats), repeats)


def _captured(run: Callable[[], object], repeats: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        # An operator that only passes its input on launches nothing; its graph is rightly empty.
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for _ in range(repeats):
                run()
    return graph
