"""Sweeps and single networks on a device elsewhere: this machine, a real ssh server, and the real adb client before a
test double of a phone whose processor qemu imitates."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import runpy
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hwnas.profilers.remote import device as remote_device
from hwnas.profilers.remote import session as remote_session
from hwnas.profilers.remote.errors import RunnerError
from hwnas.profilers.remote.profiler import RemoteProfiler
from hwnas.profilers.remote.records import Block, Loaded
from onnx import helper

from hwnas.errors import DeviceLostError, EnvironmentMismatchError, MeasurementError, UsageError
from hwnas.latency import rounds
from hwnas.latency.device import Device as TimedDevice
from hwnas.latency.items import models_for
from hwnas.latency.measure import time_rounds
from hwnas.latency.rounds import REFERENCE
from hwnas.latency.sweep import profile
from hwnas.latency.table import LatencyTable
from hwnas.plugins import GroupSession, NodeTimer, create_profiler
from hwnas.steps import profiler_of
from hwnas.testing.contracts import check_profiler
from hwnas.testing.toys import toy_space

HERE = Path(__file__).parent
TOOLS = runpy.run_path(str(HERE / "runner_device.py"))
model, network, needed, on_host = (TOOLS[name] for name in ("model", "network", "needed", "on_host"))

SHAPE = (3, 12, 12)
SPACE = toy_space()
CALM: dict[str, Any] = {"num_networks": 3, "num_rounds": 3, "visit_ms": 1.0}


@dataclass
class Reached:
    """A device by name, and where its files are."""

    name: str
    folder: Path
    phone: Any = None

    def profiler(self, **options: Any) -> RemoteProfiler:
        made = create_profiler("onnxruntime", device=self.name, **options)
        assert isinstance(made, RemoteProfiler)
        return made

    def left(self) -> list[str]:
        """Files on the device beside the bundle."""
        kept = [self.folder / name for name in ("models", "jobs")]
        return [str(path) for folder in kept for path in folder.rglob("*")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Home of this module's devices; nothing but what is named here may be written into it."""
    home = tmp_path_factory.mktemp("home")
    (home / ".cache").mkdir()
    cache = os.environ.get("HWNAS_CACHE") or str(Path.home() / ".cache" / "hwnas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWNAS_CACHE", cache)
        patch.setenv("HOME", str(home))
        patch.setenv("HWNAS_DEVICE_FOLDER", str(home / "device"))
        yield home
    telemetry = [path for path in home.rglob("*") if "Microsoft" in path.parts or "onnxruntime.db" in path.name]
    assert telemetry == []


@pytest.fixture(scope="module")
def local(folder: Path) -> Reached:
    needed(platform.machine())
    return Reached("local", folder / "device")


@pytest.fixture(scope="module")
def board(folder: Path, local: Reached) -> Iterator[Reached]:
    server = runpy.run_path(str(HERE / "ssh_server.py"))
    if reason := server["why_not"]():
        pytest.skip(reason)
    (folder / "ssh").mkdir()
    with server["ssh_server"](folder / "ssh") as running:
        yield Reached(running.target, folder / "device")


@pytest.fixture(scope="module")
def adb(folder: Path, local: Reached) -> Iterator[dict[str, Any]]:
    if not shutil.which("adb"):
        pytest.skip("no program adb here (apt-get install adb)")
    double = runpy.run_path(str(HERE / "adb_device.py"))
    with double["adb_server"](folder):
        yield double


@pytest.fixture
def phone(adb: dict[str, Any], folder: Path) -> Iterator[Reached]:
    """A phone with this machine's processor, which is quicker than to imitate another."""
    phone = adb["AdbDevice"]()
    yield Reached(f"adb:{phone.serial}", folder / "device", phone)
    phone.stop()


@pytest.fixture
def arm_phone(phone: Reached, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Reached:
    """A phone: its processor is imitated, its shell and its cores are this machine's."""
    if not shutil.which("qemu-aarch64-static"):
        pytest.skip("no program qemu-aarch64-static here (apt-get install qemu-user-static)")
    needed("aarch64")
    cores = len(os.sched_getaffinity(0))
    write_root = runpy.run_path(str(HERE / "fake_root.py"))["write_root"]
    root = write_root(folder / "root", f"a76:{cores}:2400000")
    monkeypatch.setenv("HWNAS_LAUNCHER", f"qemu-aarch64-static -cpu cortex-a76 -L {root}")
    return phone


@pytest.fixture
def old_phone(phone: Reached) -> Reached:
    """One before Android 7: no exit codes, one stream."""
    phone.phone.shell_v2 = False
    return phone


@pytest.fixture(scope="module")
def standing_in() -> dict[str, bytes]:
    """Models of what a sweep of the toy space asks for, by key: others, as to export them takes longer than a sweep."""
    keys = [REFERENCE.key, *map(str, SPACE.signatures()), *(a.id for a in SPACE.distinct(CALM["num_networks"], seed=0))]
    return {key: network(number).SerializeToString() for number, key in enumerate(keys)}


@pytest.fixture(autouse=True)
def quick(standing_in: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(items: Any, profiler: Any, progress: Any = None) -> Iterator[tuple[bytes, None]]:
        return ((standing_in[item.key], None) for item in items)

    monkeypatch.setattr(rounds, "models_for", kept)
    monkeypatch.setattr(remote_session, "COOL_S", 0)  # a busy machine is not a hot one
    monkeypatch.setattr("hwnas.latency.measure.ROUND_MS", 2.0)


def close(*sessions: Any) -> None:
    for session in sessions:
        session.close()


def sweep(profiler: RemoteProfiler, output: Path, **options: Any) -> LatencyTable:
    return profile(SPACE, profiler, output=output, **{**CALM, **options})


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
    assert {"native_fp16", "system", "bundle", "clusters", "temperature", "slow_blocks"} <= set(here.details)
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


def killed_host(device: Reached, output: Path, after: int) -> int:
    """A sweep in a process of its own that is killed when so many visits are on record; its exit code."""

    def kill(what: str, done: int, total: int) -> None:
        if what == "measuring" and done >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        tempfile.tempdir = str(output.parent)  # what a killed process leaves there is removed with the test's folder
        with contextlib.suppress(BaseException):
            sweep(device.profiler(), output, progress=kill)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kind", ["local", "phone"])
def test_a_killed_host_goes_on_where_it_stopped(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    device: Reached = request.getfixturevalue(kind)
    output = tmp_path / "t.csv"
    assert killed_host(device, output, 11) == -signal.SIGKILL
    kept = [json.loads(line) for line in (tmp_path / "t.partial.jsonl").read_text().splitlines()[1:]]
    assert sum(line["key"] != "reference" for line in kept) == 11
    seen: list[tuple[str, int, int]] = []
    table = sweep(device.profiler(), output, progress=lambda *news: seen.append(news))
    measuring = [done for what, done, _ in seen if what == "measuring" and done > 11]
    assert sorted(set(measuring)) == list(range(12, 25))
    assert set(table.entries) == set(SPACE.signatures())
    assert len(list((device.folder / "jobs").iterdir())) == 1  # of the killed one; a later sweep removes it after a day
    shutil.rmtree(device.folder / "jobs")


def test_bad_models_are_records_and_the_others_go_on(local: Reached) -> None:
    profiler = local.profiler()
    good = [profiler.prepare(network(seed).SerializeToString(), SHAPE) for seed in (0, 1)]
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nowhere")
    bad_model = model([node], {"x": (1, [1, *SHAPE])}, {"y": (1, [1, *SHAPE])})
    bad = profiler.prepare(bad_model.SerializeToString(), SHAPE)
    visits = list(good[0].time_with({"good": good[1], "bad": bad}, num_rounds=2, budget_ms=1))
    (failed,) = [(name, error) for name, _, error in visits if isinstance(error, Exception)]
    assert failed[0] == "bad"
    assert "refuses the model" in str(failed[1])
    assert sorted((name, number) for name, number, found in visits if isinstance(found, list)) == [
        ("", 0), ("", 1), ("good", 0), ("good", 1),
    ]  # fmt: skip
    for call in (lambda: bad.time_ms(budget_ms=1), lambda: bad.run(np.zeros((1, *SHAPE), np.float32))):
        with pytest.raises(MeasurementError, match="refuses the model"):
            call()
    close(*good, bad)
    assert local.left() == []


def endless() -> onnx.ModelProto:
    """A network that counts to 2**60."""
    state = [("i", 7, []), ("c", 9, []), ("s", 1, [1])]
    inputs = [helper.make_tensor_value_info(*each) for each in state]
    outputs = [helper.make_tensor_value_info("c2", 9, []), helper.make_tensor_value_info("s2", 1, [1])]
    nodes = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["s", "s"], ["s2"])]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    values = [
        helper.make_tensor("trip", 7, [], [2**60]),
        helper.make_tensor("go", 9, [], [True]),
        helper.make_tensor("zero", 1, [1], [0.0]),
    ]
    loop = helper.make_node("Loop", ["trip", "go", "zero"], ["y"], body=body)
    return model([loop], {"x": (1, [1, *SHAPE])}, {"y": (1, [1])}, values)


def test_a_network_that_hangs_is_given_up(local: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_device, "STEP_S", 1)
    profiler = local.profiler()
    good = profiler.prepare(network().SerializeToString(), SHAPE)
    others = {"hangs": profiler.prepare(endless().SerializeToString(), SHAPE), "good": good}
    visits = list(good.time_with(others, num_rounds=1, budget_ms=1))
    assert [(name, "took too long" in str(found)) for name, _, found in visits if name] == [
        ("hangs", True),
        ("good", False),
    ]
    close(good, *others.values())


def test_groups_that_do_not_fit_into_memory_take_turns(local: Reached) -> None:
    profiler = local.profiler()
    profiler._connection.about.__dict__["free_bytes"] = 2 * 2 * 2**21  # two networks in half of it
    sessions = {str(i): profiler.prepare(network(i).SerializeToString(), SHAPE) for i in range(4)}
    visits = list(sessions["0"].time_with({k: s for k, s in sessions.items() if k != "0"}, num_rounds=2, budget_ms=1))
    numbers = {name: {number for who, number, _ in visits if who == name} for name in ("1", "2", "3")}
    assert [len(numbers[name]) for name in numbers] == [2, 2, 2]
    assert numbers["1"].isdisjoint(numbers["2"]), "drift in another group's rounds is another drift"
    assert {number for who, number, _ in visits if not who} >= set.union(*numbers.values())
    close(*sessions.values())


KILLER = """#!/bin/sh
"$@" &
if [ ! -e "$0.done" ]; then touch "$0.done"; sleep 0.5; kill -9 $!; fi
wait $!
"""
"""A kernel that ends the first program, as for lack of memory."""


def test_a_runner_that_is_killed_tries_fewer_networks_at_once(
    local: Reached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = tmp_path / "killer"
    killer.write_text(KILLER)
    killer.chmod(0o755)
    profiler = local.profiler()
    profiler._connection.target.__dict__["launcher"] = (str(killer),)
    sessions = {str(i): profiler.prepare(network(i).SerializeToString(), SHAPE) for i in range(3)}
    visits = list(sessions["0"].time_with({"1": sessions["1"], "2": sessions["2"]}, num_rounds=200, budget_ms=1))
    counts = {name: sum(who == name for who, _, _ in visits) for name in ("1", "2")}
    assert min(counts.values()) >= 200
    assert not [found for _, _, found in visits if isinstance(found, Exception)]
    assert killer.with_suffix(".done").exists()
    close(*sessions.values())


def test_a_pulled_cable_is_survived_and_a_lost_phone_keeps_what_was_measured(
    phone: Reached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HWNAS_DEVICE_FOLDER", str(phone.folder / "lost"))
    monkeypatch.setattr(remote_session, "RECONNECT_S", 0.5)
    cut: list[int] = []

    def pull(what: str, done: int, total: int) -> None:
        if what == "measuring" and done == 7 and not cut:
            cut.append(done)
            phone.phone.cut()
        if what == "measuring" and done == 15:
            phone.phone.stop()

    with pytest.raises(DeviceLostError, match="What was measured is kept"):
        sweep(phone.profiler(), tmp_path / "t.csv", progress=pull)
    assert cut == [7]
    lines = [json.loads(line) for line in (tmp_path / "t.partial.jsonl").read_text().splitlines()[1:]]
    assert sum(line["key"] != "reference" for line in lines) >= 15


def test_two_jobs_at_once_wait_and_are_refused(local: Reached) -> None:
    device = local.profiler()._device
    with (local.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunnerError, match="another job is running"):
            list(device.records(device.job(batches=(), rounds=0, lock_s=0)))
    assert list(device.records(device.job(batches=(), rounds=0, lock_s=0)))
    device.clean()


def test_other_processors_are_refused(local: Reached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uname").write_text("#!/bin/sh\necho armv7l\n")
    (tmp_path / "uname").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UsageError, match="no bundle for 'armv7l'"):
        local.profiler()


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
    session = profiler.prepare(standing_in[SPACE.distinct(3, seed=0)[0].id], SPACE.input_shape)
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
