"""What the runner does when the clock falls: a build of it whose clock is read from a file."""

from __future__ import annotations

import platform
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from hwnas.profilers.remote import bundle as remote_bundle
from hwnas.profilers.remote.bundle import FLAGS, RUNNER, Bundle, compile_runner
from hwnas.profilers.remote.jobs import JobModel
from hwnas.profilers.remote.records import Block, Bye, Hello

TOOLS = runpy.run_path(str(Path(__file__).with_name("runner_device.py")))
Device, network, needed, only = (TOOLS[name] for name in ("Device", "network", "needed", "only"))

REST_S = 0.5
"""One pause; of ``runner.c``."""


@pytest.fixture(scope="module")
def imitated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle for this machine, with the runner of tests."""
    bundle, folder = needed(platform.machine()), tmp_path_factory.mktemp("bundle")
    for name, path in bundle.paths().items():
        (folder / name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_bundle, "FLAGS", (*FLAGS, "-DIMITATED_CLOCK"))
        runner = compile_runner(platform.machine())
    (folder / RUNNER).unlink()
    (folder / RUNNER).write_bytes(runner)
    (folder / RUNNER).chmod(0o755)
    return replace(bundle, folder=folder)


@pytest.fixture
def device(imitated: Bundle, tmp_path: Path) -> Device:
    return Device(imitated, tmp_path)


def set_clock(device: Device, *mhz: float) -> None:
    """The first is that of the start; every block takes one before and one after, and one after every rest."""
    device.put("clock", " ".join(map(str, mhz)).encode())


def blocks_of(device: Device, **settings: int) -> list[Block]:
    path = device.put("a.onnx", network())
    return only(device.run(device.job(JobModel(1, path), **settings)), Block)


def test_a_slow_block_is_marked_and_repeated(device: Device) -> None:
    set_clock(device, 1000, 971, 2000, 1000, 969, 969, 1000, 1000, 971, 1000, 969, 1000, 969, 969, 1000)
    blocks = blocks_of(device, rounds=3, repeats=2)
    assert [(each.round, each.attempt, each.throttled, each.mhz) for each in blocks] == [
        (0, 0, False, (971, 2000)),  # 3 % are allowed
        (1, 0, True, (1000, 969)),  # fallen in the block
        (1, 1, True, (969, 1000)),  # before it
        (1, 2, False, (1000, 971)),
        (2, 0, True, (1000, 969)),
        (2, 1, True, (1000, 969)),
        (2, 2, True, (969, 1000)),  # the last one stands
    ]
    assert {each.rested for each in blocks} == {0}  # as cool_s is 0


def test_it_rests_until_the_clock_is_back(device: Device) -> None:
    set_clock(device, 1000, 900, 1000, 1000)
    first, second = blocks_of(device, rounds=2, cool_s=3)
    assert (first.rested, first.mhz, first.throttled) == (REST_S, (1000, 1000), False)
    assert first.t >= REST_S
    assert (second.rested, second.mhz) == (0, (1000, 1000))


def test_it_rests_for_a_limited_time(device: Device) -> None:
    """At most so long a block, and a quarter of all time: for 1 s after a warm-up that allows 1.1 s, then hardly."""
    set_clock(device, 1000, 900)
    path = device.put("a.onnx", network())
    hello, *rest = device.run(device.job(JobModel(1, path), warmup_ms=3200, rounds=6, cool_s=1))
    blocks, bye = only(rest, Block), rest[-1]
    assert isinstance(hello, Hello)
    assert isinstance(bye, Bye)
    assert (hello.mhz, bye.mhz) == (1000, 900)
    assert all(each.throttled for each in blocks)
    assert max(each.rested for each in blocks) == blocks[0].rested == 1
    assert sum(each.rested for each in blocks) < 0.25 * bye.t + REST_S  # one that has begun is ended
