"""What goes wrong with a device elsewhere, or with this machine, while it measures: what is kept, and what is said."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import runpy
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hwnas.profilers.remote import device as remote_device
from hwnas.profilers.remote import session as remote_session
from hwnas.profilers.remote.errors import RunnerError
from onnx import helper

from hwnas.errors import DeviceLostError, MeasurementError, UsageError

REACHED = runpy.run_path(str(Path(__file__).with_name("reached_devices.py")))
Reached, SPACE, close, sweep = (REACHED[name] for name in ("Reached", "SPACE", "close", "sweep"))
folder, local, adb, phone = (REACHED[name] for name in ("folder", "local", "adb", "phone"))
standing_in, quick = REACHED["standing_in"], REACHED["quick"]
model, network = REACHED["TOOLS"]["model"], REACHED["network"]

SHAPE = (3, 12, 12)


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


def test_a_phone_that_was_emptied_is_filled_again(local: Reached) -> None:
    profiler = local.profiler()
    session = profiler.prepare(network().SerializeToString(), SHAPE)
    images = np.ones((1, *SHAPE), np.float32)
    before = session.run(images)
    shutil.rmtree(local.folder / "jobs")
    profiler._device.reconnected(5)
    np.testing.assert_array_equal(session.run(images), before)
    session.close()
    assert local.left() == []


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
