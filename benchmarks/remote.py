"""How long does a device elsewhere keep one waiting? From a connected device to the first latency, and by operator.

    python benchmarks/remote.py --device adb:SERIAL
    python benchmarks/remote.py --device ssh://pi@board --space proxylessnas
    python benchmarks/remote.py --loopback      # this machine, by real adb before a test double and by real OpenSSH
    python benchmarks/remote.py --loopback --quick

The bundle is on the device already, as from the second time on. ``first`` is the time from nothing to the first latency
of the first operator; ``transfer`` that of sending all operators, ``start`` that of starting one job, loading them all
and ending, each divided by the number of operators. Warm-up and timed runs do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import runpy
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hwnas.profilers.remote.jobs import JobModel
from hwnas.profilers.remote.profiler import RemoteProfiler
from hwnas.profilers.remote.records import Block
from hwnas.profilers.remote.session import RemoteSession
from lines import Lines

from hwnas.latency.items import Item, models_for
from hwnas.plugins import create_profiler
from hwnas.space import create_space
from hwnas.testing.toys import toy_space

TESTS = Path(__file__).parents[1] / "tests"
BUDGET_MS = 5.0


@contextlib.contextmanager
def loopback() -> Iterator[list[str]]:
    """Devices that are this machine: by adb and by ssh."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        adb, ssh = (runpy.run_path(str(TESTS / name)) for name in ("adb_device.py", "ssh_server.py"))
        (folder / "ssh").mkdir()
        server = stack.enter_context(ssh["ssh_server"](folder / "ssh"))
        stack.enter_context(adb["adb_server"](folder))
        phone = adb["AdbDevice"]()
        stack.callback(phone.stop)
        yield [f"adb:{phone.serial}", server.target]


def opened(device: str) -> RemoteProfiler:
    """The profiler of a device."""
    profiler = create_profiler("onnxruntime", device=device)
    assert isinstance(profiler, RemoteProfiler)
    return profiler


def first_s(device: str, model: bytes, shape: tuple[int, ...]) -> float:
    """Seconds from nothing to the first latency."""
    begun = time.monotonic()
    session = opened(device).prepare(model, shape)
    visits = session.time_with({}, num_rounds=1, budget_ms=BUDGET_MS)
    next(visits)
    waited = time.monotonic() - begun
    visits.close()
    session.close()
    return waited


def by_operator_ms(profiler: RemoteProfiler, sessions: list[RemoteSession]) -> tuple[float, float]:
    """Milliseconds of transfer and of start, by operator."""
    device, names = profiler._device, [session._name() for session in sessions]
    begun = time.monotonic()
    device.send(names)
    sent = time.monotonic()
    models = tuple(JobModel(number, f"../../models/{name}") for number, name in enumerate(names))
    records = list(device.records(device.job(batches=(models,), warmup_runs=0, warmup_ms=0, block_ms=5)))
    timed = sum(sum(record.ns) / 1e9 for record in records if isinstance(record, Block))
    started = time.monotonic() - sent - timed
    return (sent - begun) / len(names) * 1e3, started / len(names) * 1e3


def main() -> None:
    """Prints a line a device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", action="append", default=[])
    parser.add_argument("--loopback", action="store_true")
    parser.add_argument("--space", default="tiny-mbconv")
    parser.add_argument("--quick", action="store_true", help="the operators of a toy space")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    say = Lines(given.output)
    space = toy_space(resolution=32) if given.quick else create_space(given.space)
    items = [Item.operator(signature) for signature in space.signatures()]
    models = [bytes(model) for model, _ in models_for(items, create_profiler("onnxruntime"))]
    size = sum(map(len, models)) / 2**20
    today = datetime.datetime.now(datetime.UTC).date()
    say(shlex.join(["python", *sys.argv]))
    say(f"{today}, {len(items)} operators of '{space.name}', {size:.1f} MiB")
    with loopback() if given.loopback else contextlib.nullcontext([]) as near:
        for device in [*near, *given.device]:
            profiler = opened(device)  # sends the bundle
            first = first_s(device, models[0], items[0].input_shape)
            sessions = [profiler.prepare(each, item.input_shape) for each, item in zip(models, items, strict=True)]
            transfer, start = by_operator_ms(profiler, sessions)
            for session in sessions:
                session.close()
            say(f"{device}: first {first:.2f} s; by operator: transfer {transfer:.1f} ms, start {start:.1f} ms")
            say(f"  {profiler.environment()}")


if __name__ == "__main__":
    main()
