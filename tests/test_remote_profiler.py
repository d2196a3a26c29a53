"""Sweeps and single networks on a device elsewhere: this machine, a real ssh server, and the real adb client before a
test double of a phone whose processor qemu imitates."""

from __future__ import annotations

import os
import platform
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hwnas.profilers.remote.records import Block, Loaded

from hwnas.errors import EnvironmentMismatchError, UsageError
from hwnas.latency import rounds
from hwnas.latency.device import Device as TimedDevice
from hwnas.latency.items import models_for
from hwnas.latency.measure import time_rounds
from hwnas.latency.spread import spread
from hwnas.latency.sweep import profile
from hwnas.latency.table import LatencyTable
from hwnas.plugins import GroupSession, NodeTimer, create_profiler
from hwnas.steps import profiler_of
from hwnas.testing.contracts import check_profiler
from hwnas.testing.toys import toy_space

REACHED = runpy.run_path(str(Path(__file__).with_name("reached_devices.py")))
Reached, SPACE, CALM, close, sweep = (REACHED[name] for name in ("Reached", "SPACE", "CALM", "close", "sweep"))
folder, local, board, adb, phone = (REACHED[name] for name in ("folder", "local", "board", "adb", "phone"))
arm_phone, old_phone, standing_in, quick = (REACHED[n] for n in ("arm_phone", "old_phone", "standing_in", "quick"))
network, on_host = REACHED["network"], REACHED["TOOLS"]["on_host"]

SHAPE = (3, 12, 12)


@pytest.mark.parametrize("options", [{}, {"precision": "int8", "batch": 2}])
def test_it_keeps_the_contract(local: Reached, options: dict[str, Any]) -> None:
    profiler = local.profiler(**options)
    assert isinstance(profiler, NodeTimer)
    check_profiler(profiler)
    assert local.left() == []


def test_a_table_names_the_device_and_is_refused_on_others(local: Reached, tmp_path: Path) -> None:
    last = max(os.sched_getaffinity(0))
    here = local.profiler(cores=str(last)).environment()
    assert (here.runtime, here.mode, here.threads) == ("onnxruntime", f"linux build, cores {last}", 1)
    assert here.arguments == {"device": "local", "cores": str(last)}
    assert {"native_fp16", "system", "bundle", "clusters", "temperature_celsius", "slow_blocks"} <= set(here.details)
    assert profiler_of(LatencyTable(here, {})).environment() == here
    with pytest.raises(EnvironmentMismatchError, match="device is"):
        profiler_of(LatencyTable(replace(here, device="Some Phone (SoC)"), {}))
    away = replace(here, arguments={"device": "ssh://127.0.0.1:1"})
    with pytest.raises(EnvironmentMismatchError, match=r"cannot be (measured|reached)"):
        profiler_of(LatencyTable(away, {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "cores": "1"}, "chosen on a device elsewhere"),
        ({"device": "local", "cores": "977"}, "core 977 is not online"),
        ({"device": "local", "threads": 99}, "99 threads on cores 'prime'"),
        ({"device": "local", "precision": "bf16"}, "precision is fp32"),
        ({"device": "local", "batch": 0}, "batch at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(local: Reached, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_profiler("onnxruntime", **options)


def test_half_precision_needs_a_processor_that_has_it(local: Reached, arm_phone: Reached) -> None:
    session = arm_phone.profiler(precision="fp16").prepare(network().SerializeToString(), SHAPE)
    assert session._type == "float16"
    session.close()
    if platform.machine() == "x86_64":
        os.environ.pop("HWNAS_LAUNCHER")
        with pytest.raises(UsageError, match="no arithmetic in fp16"):
            local.profiler(precision="fp16")


@pytest.mark.parametrize("kind", ["local", "board", "old_phone", "arm_phone"])
def test_a_sweep_is_one_job_and_makes_a_table(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SPACE
    if kind == "board":  # with the operators themselves, large enough for a clock
        space = toy_space(resolution=32)
        monkeypatch.setattr(rounds, "models_for", models_for)
    device: Reached = request.getfixturevalue(kind)
    profiler = device.profiler()
    seen: list[tuple[str, int, int]] = []
    before = len(device.phone.opened) if device.phone else 0
    table = profile(space, profiler, output=tmp_path / "t.csv", progress=lambda *news: seen.append(news), **CALM)
    assert set(table.entries) == set(space.signatures())
    assert {entry.status for entry in table.entries.values()} <= {"ok", "unstable"}
    assert len(next(iter(table.calibrations.values()))["networks"]) == 3
    assert ("measuring", 24, 24) in seen  # 5 operators and 3 networks, 3 rounds
    assert table.environment == profiler.environment()
    assert LatencyTable.load(tmp_path / "t.csv").environment.arguments["device"] == device.name
    assert device.left() == []
    if device.phone and device.phone.shell_v2:
        again = "measuring the unstable again" in {what for what, _, _ in seen}
        assert sum("/runner" in service for service in device.phone.opened[before:]) == 1 + again
        assert table.environment.device.endswith(" through qemu-aarch64-static")
        assert table.environment.details["system"].endswith("aarch64, pages of 4096 bytes")


def test_groups_that_do_not_fit_into_memory_take_turns(local: Reached) -> None:
    profiler = local.profiler()
    profiler._connection.about.__dict__["free_bytes"] = 2 * 2 * 2**21  # two networks in half of it
    sessions = {str(i): profiler.prepare(network(i).SerializeToString(), SHAPE) for i in range(4)}
    visits = list(sessions["0"].time_with({k: s for k, s in sessions.items() if k != "0"}, num_rounds=2, budget_ms=1))
    numbers = {name: {number for who, number, _ in visits if who == name} for name in ("1", "2", "3")}
    assert [len(numbers[name]) for name in numbers] == [2, 2, 2]
    assert len(set.union(*numbers.values())) == 3 * 2, "drift in another group's rounds is another drift"
    assert {number for who, number, _ in visits if not who} >= set.union(*numbers.values())
    close(*sessions.values())


def test_minutes_end_a_sweep_after_its_least_rounds(local: Reached, tmp_path: Path) -> None:
    table = sweep(local.profiler(), tmp_path / "t.csv", num_rounds=100_000, minutes=0.02)
    assert set(table.entries) == set(SPACE.signatures())
    assert 2 <= table.provenance["reference"]["num_rounds"] < 10_000


def test_many_images_are_one_job_and_equal_the_host(phone: Reached) -> None:
    profiler = phone.profiler()
    content = network(batch="n")
    session = profiler.open(content.SerializeToString())
    images = np.random.default_rng(0).standard_normal((5, *SHAPE), np.float32)
    before = len(phone.phone.opened)
    found = session.run(images)
    assert sum("/runner" in service for service in phone.phone.opened[before:]) == 1
    np.testing.assert_allclose(found, on_host(content, {"x": images})[0], atol=1e-5)
    with pytest.raises(UsageError, match="got 0"):
        session.run(images[:0])
    session.close()
    assert phone.left() == []


def test_a_network_is_timed_in_one_job_and_node_by_node(phone: Reached) -> None:
    profiler = phone.profiler()
    content = network().SerializeToString()
    session = profiler.prepare(content, SHAPE)
    assert isinstance(session, GroupSession)
    before = len(phone.phone.opened)
    assert len(time_rounds(session)) == 24
    assert sum("/runner" in service for service in phone.phone.opened[before:]) == 1
    session.close()
    nodes = profiler.node_ms(content, budget_ms=50)
    assert len(nodes) >= 3
    assert min(nodes.values()) > 0


def test_a_miss_is_held_against_networks_of_the_sweep(
    local: Reached, standing_in: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.latency.device.NUM_TRIES", 1)
    monkeypatch.setattr("hwnas.latency.device.models_for", rounds.models_for)
    profiler = local.profiler()
    timer = TimedDevice(profiler, sweep(profiler, tmp_path / "t.csv"))
    session = profiler.prepare(standing_in[spread(SPACE, 3, seed=0)[0].id], SPACE.input_shape)
    before = profiler._device.tally.num_blocks
    timed = timer.time(session, SPACE, limit_ms=1e-6)
    assert profiler._device.tally.num_blocks - before >= 24 + 4 * 24  # alone, then with three networks of the sweep
    assert timed.ms > 0
    assert timed.slowdown >= 1
    session.close()


def test_blocks_are_counted(local: Reached) -> None:
    profiler = local.profiler()
    session = profiler.prepare(network().SerializeToString(), SHAPE)
    time_rounds(session)
    assert profiler._device.tally.num_blocks >= 24
    assert f"of {profiler._device.tally.num_blocks} " in profiler.environment().details["slow_blocks"]
    records = list(profiler._device.records(session.job(1)))
    assert [type(each) for each in records[1:3]] == [Loaded, Block]
    session.close()
