"""What goes wrong while a device is measured: every fault is told apart, recorded or survived."""

from __future__ import annotations

import fcntl
import json
import locale
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hwnas.errors import DeviceLostError, MeasurementError, OutputError, UsageError
from hwnas.latency.drift import Drift
from hwnas.latency.journal import record_failure
from hwnas.latency.supervise import supervised
from hwnas.latency.sweep import profile
from hwnas.latency.table import LatencyTable
from hwnas.space import Shape
from hwnas.testing.toys import AnalyticProfiler, AnalyticSession, analytic_ms, toy_space

K5 = next(s for s in toy_space().signatures() if s.attribute("k") == 5)


class Scripted(AnalyticProfiler):
    """A device that does something of its own at every timing: ``act(number, is_k5, samples)``."""

    def __init__(self, act: Callable[[int, bool, list[float]], list[float]]) -> None:
        super().__init__()
        self.count, self._act = 0, act

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> AnalyticSession:
        assert isinstance(model, nn.Sequential)
        session, outer = super().prepare(model, input_shape), self
        is_k5 = len(model) == 1 and any(isinstance(m, nn.Conv2d) and m.kernel_size == (5, 5) for m in model.modules())

        class Acting(AnalyticSession):
            def __init__(self) -> None:
                pass

            def time_ms(self, *, budget_ms: float) -> list[float]:
                outer.count += 1
                return outer._act(outer.count, is_k5, session.time_ms(budget_ms=budget_ms))

        return Acting()


def sweep(profiler: AnalyticProfiler, folder: Path, **options: Any) -> LatencyTable:
    return profile(toy_space(), profiler, output=folder / "t.csv", **{"num_networks": 3, "num_rounds": 4} | options)


def test_memory_that_runs_out_for_one_operator_is_a_record(tmp_path: Path) -> None:
    def act(number: int, is_k5: bool, samples: list[float]) -> list[float]:
        if is_k5:
            raise MemoryError
        return samples

    entry = sweep(Scripted(act), tmp_path).entries[K5]
    assert (entry.status, entry.error) == ("failed", "MemoryError")


def test_a_device_that_vanishes_is_no_fault_of_the_operators(tmp_path: Path) -> None:
    def vanish(number: int, is_k5: bool, samples: list[float]) -> list[float]:
        if number > 20:
            raise MeasurementError("no such device")
        return samples

    with pytest.raises(DeviceLostError, match=r"does not answer: '.*' failed \(no such device\)"):
        sweep(Scripted(vanish), tmp_path)
    back = sweep(AnalyticProfiler(), tmp_path)  # the same command again, with the device back
    assert {entry.status for entry in back.entries.values()} == {"ok"}


def test_an_unstable_operator_is_visited_again(tmp_path: Path) -> None:
    visits = 0

    def act(number: int, is_k5: bool, samples: list[float]) -> list[float]:
        nonlocal visits
        visits += is_k5
        # Of the first four visits one is fast: the quartile lies far above. Then it calms down.
        return [s * (1.5 if is_k5 and visits in (1, 2, 4) else 1.0) for s in samples]

    table = sweep(Scripted(act), tmp_path)
    assert visits == 5, "four rounds, and one more until it was stable"
    assert table.entries[K5].status == "ok"
    assert table.entries[K5].ms == pytest.approx(analytic_ms(K5), abs=1e-6)


def test_an_operator_that_stays_unstable_says_so(tmp_path: Path) -> None:
    def act(number: int, is_k5: bool, samples: list[float]) -> list[float]:
        return [s * (1 + number) if is_k5 else s for s in samples]

    assert sweep(Scripted(act), tmp_path).entries[K5].status == "unstable"


def test_a_budget_of_minutes_ends_the_sweep_after_two_rounds_at_least(tmp_path: Path) -> None:
    def act(number: int, is_k5: bool, samples: list[float]) -> list[float]:
        time.sleep(0.002)
        return samples

    profiler = Scripted(act)
    table = sweep(profiler, tmp_path, num_rounds=10_000, minutes=0.3 / 60)
    # 5 operators and 3 networks a round; 0.3 s hold at most 150 visits of 2 ms.
    assert 2 * 8 <= profiler.count <= 170
    assert all(entry.num_samples >= 10 for entry in table.entries.values())
    assert not (tmp_path / "t.partial.jsonl").exists()
    with pytest.raises(UsageError, match="more than 0 minutes"):
        sweep(profiler, tmp_path, minutes=0.0)


def test_a_lower_clock_is_seen_recorded_and_corrected(tmp_path: Path) -> None:
    # 8 items and the reference make 9 timings a round; rounds 2 and 3 run at half the clock. One operator is
    # disturbed in both fast rounds, so that only the slow ones know it.
    def act(number: int, is_k5: bool, samples: list[float]) -> list[float]:
        if is_k5 and number <= 18:
            return [s * 3 for s in samples]  # disturbed in both fast rounds
        return [s * (2 if number > 18 else 1) for s in samples]

    table = sweep(Scripted(act), tmp_path)
    reference = table.provenance["reference"]
    assert reference["num_throttled_rounds"] == 2
    assert reference["slowest_round"] == pytest.approx(2.0, rel=1e-4)
    assert table.entries[K5].ms == pytest.approx(analytic_ms(K5), rel=1e-4)


def test_disturbance_within_a_round_is_not_taken_for_a_lower_clock() -> None:
    drift = Drift.of({0: [1.0, 1.02], 1: [1.5, 1.05, 9.0], 2: [9.0, 9.0, 1.04], 3: [1.2, 1.2]})
    assert drift.num_throttled == 1
    assert drift.corrected({1: [2.0], 3: [2.4]}) == [[2.0], [pytest.approx(2.0)]]


def test_a_full_disk_keeps_what_was_measured(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*t\.partial\.jsonl.*Free some space"):
            sweep(AnalyticProfiler(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 0 < (tmp_path / "t.partial.jsonl").stat().st_size <= 2000
    assert sweep(AnalyticProfiler(), tmp_path).missing(toy_space().signatures()) == []


def test_a_locale_with_a_decimal_comma_changes_nothing(tmp_path: Path) -> None:
    before = locale.setlocale(locale.LC_NUMERIC)
    for name in ("de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "nl_NL.UTF-8"):
        try:
            locale.setlocale(locale.LC_NUMERIC, name)
            break
        except locale.Error:
            continue
    else:
        pytest.skip("no locale with a decimal comma is installed")
    try:
        assert locale.localeconv()["decimal_point"] == ","
        table = sweep(AnalyticProfiler(), tmp_path)
        assert LatencyTable.load(tmp_path / "t.csv") == table
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)


# A sweep of three operators that dies at the second, in the way that its argument says, unless that one has failed.
DYING = """
import os, signal, sys, time
from pathlib import Path
from hwnas.latency.environment import Environment
from hwnas.latency.journal import Journal
from hwnas.latency.supervise import DEVICE_LOST, watch_of_parent

path, way = Path(sys.argv[1]), sys.argv[2]
watch = watch_of_parent(path)
with Journal(path, Environment("d", "r", "1"), {}) as journal:
    for key in ("first", "second", "third"):
        if journal.done(key, 0):
            continue
        watch(key)
        if key == "second":
            {"hangs": lambda: time.sleep(60), "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
             "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV), "poisons": lambda: sys.exit(DEVICE_LOST),
             "fails": lambda: sys.exit(3)}[way]()
        journal.add(key, 0, [1.0])
        watch("")
"""


@pytest.mark.parametrize(
    ("way", "code", "reason"),
    [
        ("hangs", 0, "no answer for 2 s"),
        ("killed", 0, "the process was killed while it ran, most likely for lack of memory"),
        ("crashes", 0, "the process ended by SIGSEGV while it ran"),
        ("poisons", 0, "the device was lost"),
        ("fails", 3, None),
    ],
)
def test_an_operator_that_takes_the_process_with_it_is_given_up(
    tmp_path: Path, way: str, code: int, reason: str | None
) -> None:
    path, said = tmp_path / "t.partial.jsonl", list[str]()
    command = [sys.executable, "-c", DYING, str(path), way]
    assert supervised(command, timeout_seconds=2, say=said.append) == code
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    if reason is None:  # it ended by itself: nobody's fault but its own
        assert [line["key"] for line in lines] == ["first"]
        return
    assert {line["key"]: line.get("failed") for line in lines} == {"first": None, "second": reason, "third": None}
    assert f"gave up 'second': {reason}; the sweep goes on without it." in said


HANGS = """
import time
from torch import nn
from hwnas.testing.toys import AnalyticProfiler

class Hangs(AnalyticProfiler):
    def prepare(self, model, input_shape):
        session = super().prepare(model, input_shape)
        bad = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (5, 5)]
        if len(model) == 1 and bad and (bad[0].stride[0], bad[0].in_channels, *input_shape) == (2, 24, 8, 8, 8):
            session.time_ms = lambda *, budget_ms: time.sleep(600)
        return session
"""


def test_a_hanging_operator_costs_the_command_line_a_timeout_and_no_more(
    packages: Any, hwnas: Any, small: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path
) -> None:
    packages.add("hanging", {"hangs": "hanging:Hangs"}, source=HANGS)
    monkeypatch.setenv("PYTHONPATH", str(packages.folder))  # of the process that sweeps
    plan = ["--networks", 3, "--rounds", 2, "--timeout", 3, "--output", tmp_path / "t.csv"]
    ended = hwnas("profile", *small, "--profiler", "hangs", *plan)
    hanging = "mbconv k5 e3 s2 8x8x8 -> 16x4x4"
    entries = LatencyTable.load(tmp_path / "t.csv").entries
    assert [str(s) for s, entry in entries.items() if not entry.usable] == [hanging]
    assert f"gave up '{hanging}': no answer for 3 s" in ended.out
    assert ended.code == 1
    assert f"lacks 1 of {len(entries)} signatures" in capfd.readouterr().err


SLOW = """
import os
import time
from hwnas.testing.toys import AnalyticProfiler

class Slow(AnalyticProfiler):
    def prepare(self, model, input_shape):
        session = super().prepare(model, input_shape)
        inner = session.time_ms

        def slowly(*, budget_ms):
            time.sleep(float(os.environ.get("SLOW_SECONDS", 0)))
            return inner(budget_ms=budget_ms)

        session.time_ms = slowly
        return session
"""


def test_a_sweep_whose_parent_is_killed_ends_and_can_be_resumed(
    packages: Any, hwnas: Any, start_process: Any, small: list[str], wait_for: Callable[[Callable[[], bool]], None],
    tmp_path: Path,
) -> None:  # fmt: skip
    packages.add("slowly", {"slow": "slowly:Slow"}, source=SLOW)
    arguments = ["profile", *small, "--profiler", "slow", "--networks", 3, "--rounds", 10]
    arguments += ["--output", tmp_path / "t.csv"]
    journal = tmp_path / "t.partial.jsonl"
    environment = {"PYTHONPATH": str(packages.folder), "SLOW_SECONDS": "0.02"}
    parent = start_process("parent", environment, *arguments, "--timeout", 60)
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 20)
    parent.kill(signal.SIGKILL)
    wait_for(lambda: not _locked(journal))
    kept = journal.read_bytes().count(b"\n")
    assert kept < 10 * 26
    hwnas(*arguments).done()
    table = LatencyTable.load(tmp_path / "t.csv")
    assert {entry.num_samples for entry in table.entries.values()} == {5 * 10}


def _locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_failure_written_from_outside_replaces_a_torn_line(tmp_path: Path) -> None:
    journal = tmp_path / "j"
    journal.write_text('{"a": 1}\n{"torn')
    record_failure(journal, "conv", "no answer")
    assert journal.read_text() == '{"a": 1}\n{"key": "conv", "failed": "no answer"}\n'


def test_a_device_that_times_groups_by_itself(tmp_path: Path) -> None:
    """Refusals and impossible times are records; a reference without a time is a lost device."""

    class Grouping(AnalyticProfiler):
        spoilt, lost = str(K5), False

        def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> AnalyticSession:
            session, outer = super().prepare(model, input_shape), self

            class Group(AnalyticSession):
                def __init__(self) -> None:
                    pass

                def time_with(self, others: dict[str, Any], *, num_rounds: int, budget_ms: float) -> Any:
                    for number in range(num_rounds):
                        yield "", number, MeasurementError("gone") if outer.lost else [1.0]
                        yield from ((name, number, [0.0 if name == outer.spoilt else 2.0]) for name in others)

                def close(self) -> None:
                    session.close()

            return Group()

    profiler = Grouping()
    table = sweep(profiler, tmp_path)
    assert table.entries[K5].status == "failed"
    assert "positive and finite" in table.entries[K5].error
    assert {entry.ms for key, entry in table.entries.items() if key != K5} == {2.0}
    profiler.lost = True
    with pytest.raises(DeviceLostError, match=r"'reference' failed \(gone\)"):
        sweep(profiler, tmp_path / "lost")
