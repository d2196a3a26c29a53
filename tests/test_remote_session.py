"""Many networks in one job: what counts, what is visited again, when the work ends, and who else uses the device."""

from __future__ import annotations

import platform
import runpy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hwnas.profilers.remote.device import Connection, Device
from hwnas.profilers.remote.errors import RunnerError
from hwnas.profilers.remote.jobs import Job
from hwnas.profilers.remote.profiler import RemoteProfiler
from hwnas.profilers.remote.records import Block, Bye, Record, Tally
from hwnas.profilers.remote.session import RemoteSession
from hwnas.profilers.remote.topology import Cluster

from hwnas.errors import UsageError
from hwnas.plugins import create_profiler

TOOLS = runpy.run_path(str(Path(__file__).parent / "runner_device.py"))
network, needed = TOOLS["network"], TOOLS["needed"]

SHAPE = (3, 12, 12)

Script = Callable[[Job], Iterator[Record]]


class Scripted:
    """Stands in for a ``Device``; every start of the runner is the next script, which says what is answered."""

    def __init__(self, *scripts: Script, free_bytes: int = 0) -> None:
        self.connection = SimpleNamespace(about=SimpleNamespace(free_bytes=free_bytes))
        self.tally, self.jobs, self._scripts = Tally(), [], iter(scripts)

    def keep(self, model: bytes) -> str:
        return model.decode()

    def drop(self, name: str) -> None:
        pass

    def size(self, name: str) -> int:
        return 0

    def send(self, names: Sequence[str]) -> None:
        pass

    def job(self, **settings: Any) -> Job:
        self.jobs.append(Job(library="", **settings))
        return self.jobs[-1]

    def records(self, job: Job) -> Iterator[Record]:
        for record in next(self._scripts)(job):
            self.tally.add(record)
            yield record

    def session(self, name: str) -> RemoteSession:
        return RemoteSession(
            self,  # type: ignore[arg-type]
            name.encode(), input_shape=SHAPE, input_type="float32", batch=1, metadata={},
        )  # fmt: skip

    def visits(self, *others: str, num_rounds: int = 2) -> list[tuple[str, float]]:
        """Name and time of everything that counts."""
        sessions = {name: self.session(name) for name in others}
        found = self.session("leader").time_with(sessions, num_rounds=num_rounds, budget_ms=1)
        return [(name, samples[0]) for name, _, samples in found if isinstance(samples, list)]


def block(model: int, number: int, ms: float, *, attempt: int = 0, throttled: bool = False) -> Block:
    return Block(model, 1, number, attempt, throttled, 0.0, 0.0, (0, 0), (2000.0, 1900.0), (), 3, 5, (int(1e6 * ms),))


def slow_twice(*slow: int, ms: float = 9) -> Script:
    """A job of two rounds in which the clock is low whenever these are timed."""

    def answers(job: Job) -> Iterator[Record]:
        models = [0, *(each.id for batch in job.batches for each in batch)]
        for number in range(job.rounds):
            for model in models:
                low = model in slow
                for attempt in range(1 + low):
                    yield block(model, number, ms if low else 1, attempt=attempt, throttled=low)
        yield Bye(0, 1, 2000.0, 1.0, 7 * 1024)

    return answers


def test_a_slow_block_does_not_count_and_its_network_is_visited_again() -> None:
    device = Scripted(slow_twice(2), slow_twice())
    assert sorted(device.visits("a", "b")) == [("", 1)] * 4 + [("a", 1)] * 2 + [("b", 1)] * 2
    assert [[model.id for model in job.batches[0]] for job in device.jobs] == [[1, 2], [2]]
    assert device.tally == Tally(12, 4, 0, 36, 60, 1900.0, 7 * 1024)


def test_what_is_slow_again_counts_in_the_end() -> None:
    device = Scripted(slow_twice(2), slow_twice(2, ms=8))
    assert [ms for name, ms in device.visits("a", "b") if name == "b"] == [8, 8]
    assert device.tally.details()["slow_blocks"] == "8 of 14 with a fallen clock, of which 2 count"


def test_the_reference_tells_of_slow_times() -> None:
    device = Scripted(slow_twice(0))
    assert [ms for name, ms in device.visits("a") if not name] == [9, 9]
    assert len(device.jobs) == 1
    alone = Scripted(slow_twice(0))
    assert alone.visits() == [("", 9), ("", 9)]
    assert len(alone.jobs) == 1


def ended(*answered: Record, code: int = 5, model: int = -1) -> Script:
    def answers(job: Job) -> Iterator[Record]:
        yield from answered
        raise RunnerError("its time is over", code=code, model=model)

    return answers


def test_a_job_whose_time_is_over_goes_on_unless_it_gets_nowhere() -> None:
    some = [block(0, 0, 1), block(1, 0, 1)]
    device = Scripted(ended(*some), ended(*some))
    assert [name for name, _ in device.visits("a")] == ["", "a"] * 2
    for scripts in ([ended()] * 3, [ended(*some), *[ended()] * 3]):
        stuck = Scripted(*scripts)
        with pytest.raises(RunnerError, match="its time is over"):
            stuck.visits("a", num_rounds=9)
        assert len(stuck.jobs) <= 3
    with pytest.raises(RunnerError, match="its time is over"):
        Scripted(ended(block(0, 0, 1), code=3)).visits("a")


def test_memory_that_is_free_decides_how_many_are_loaded_together() -> None:
    names = [f"n{number}" for number in range(7)]  # with the leader eight, each of 2 MiB when loaded
    for mib, batches in ((0, 1), (16, 2), (32, 1), (8, 4)):
        device = Scripted(slow_twice(), free_bytes=mib * 2**20)
        device.visits(*names)
        assert len(device.jobs[0].batches) == batches


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    needed(platform.machine())
    monkeypatch.setenv("HWNAS_DEVICE_FOLDER", str(tmp_path / "device"))
    return tmp_path / "device"


def test_one_who_is_done_takes_nothing_from_another(local: Path) -> None:
    connection = Connection.open("local")
    model = network().SerializeToString()
    about = {"input_shape": SHAPE, "input_type": "float32", "batch": 1, "metadata": {}}
    sessions = [RemoteSession(Device(connection, ()), model, **about) for _ in range(2)]
    for session in sessions:
        assert session.time_ms(budget_ms=1)
    sessions[1].close()
    assert sessions[0].time_ms(budget_ms=1)
    sessions[0].close()
    assert list((local / "jobs").iterdir()) == []


def test_caches_are_cold_on_request(local: Path) -> None:
    profiler = create_profiler("onnxruntime", device="local", mode="cold")
    assert isinstance(profiler, RemoteProfiler)
    environment = profiler.environment()
    assert environment.mode.endswith(", cold")
    assert environment.arguments == {"device": "local", "mode": "cold"}
    assert profiler._device.job(batches=()).evict_bytes == 16 * 2**20
    hot = create_profiler("onnxruntime", device="local").environment()
    assert "cold" not in hot.mode
    assert "mode" not in hot.arguments
    with pytest.raises(UsageError, match="mode hot or cold; got 'fp32', 1 and 'tepid'"):
        create_profiler("onnxruntime", device="local", mode="tepid")
    with pytest.raises(UsageError, match="Leave --mode out"):
        create_profiler("onnxruntime", mode="cold")


def test_threads_and_cores_that_do_not_fit_are_named() -> None:
    about = SimpleNamespace(name="Some Phone", clusters=(Cluster((0, 1)), Cluster((2,))))
    target = SimpleNamespace(launcher=(), transport=SimpleNamespace(name="adb:X"))
    connection = Connection(target, about, SimpleNamespace(), "")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"3 threads on cores '0-1' of Some Phone .* are 2 \(0-1\)\. Take 1 to 2"):
        connection.choose("0-1", 3)
    about.clusters = ()
    with pytest.raises(UsageError, match=r"cannot be told: .*'hwnas device doctor adb:X' says more"):
        connection.choose("prime", 1)
