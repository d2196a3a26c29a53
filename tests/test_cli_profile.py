"""The command line and sweeps: operators that fail, outputs, two sweeps at once, journals."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hwnas._version import __version__ as hwnas_version
from hwnas.latency.journal import Journal
from hwnas.latency.spread import spread
from hwnas.latency.table import LatencyTable
from hwnas.plugins import create_profiler
from hwnas.space import OpSignature, create_space
from hwnas.space.cost import expanded_channels
from hwnas.testing.toys import AnalyticProfiler, analytic_ms

Run = Callable[..., Any]

# A device that refuses, or cannot time, every network with a 5x5 convolution of so many channels.
PICKY = """
from torch import nn
from hwnas.errors import MeasurementError
from hwnas.testing.toys import AnalyticProfiler

class Picky(AnalyticProfiler):
    refused, untimed = set(), set()

    def prepare(self, model, input_shape):
        channels = {m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (5, 5)}
        if channels & self.refused:
            raise MeasurementError("the device has no\\n  such kernel")
        session = super().prepare(model, input_shape)
        if channels & self.untimed:
            session.time_ms = self.fail
        return session

    def fail(self, *, budget_ms):
        raise MeasurementError("the device fell over")

class Refuses(Picky):
    refused = {96}

class FallsOver(Picky):
    untimed = {96}

class Dead(AnalyticProfiler):
    def prepare(self, model, input_shape):
        raise MeasurementError("no device is attached")

class Broken(AnalyticProfiler):
    def prepare(self, model, input_shape):
        session = super().prepare(model, input_shape)
        session.time_ms = lambda *, budget_ms: [0.0, 1.0]
        return session
"""
POINTS = {name.lower(): f"picky:{name}" for name in ("Refuses", "FallsOver", "Dead", "Broken")}


def refused_by_picky(signatures: Iterable[OpSignature]) -> list[str]:
    """Expanded to 96 channels, with a kernel of 5."""
    return [str(s) for s in signatures if expanded_channels(s) == 96 and s.attribute("k") == 5]


@pytest.fixture
def profile(hwnas: Run, packages: Any, small: list[str], tmp_path: Path) -> Run:
    """Profiles the small space into ``tmp_path / "t.csv"``; later options win over earlier ones."""
    packages.add("picky", POINTS, source=PICKY)
    fixed = ["profile", *small, "--networks", 4, "--rounds", 2, "--output", tmp_path / "t.csv"]
    return lambda name, *arguments: hwnas(*fixed, "--profiler", name, *arguments)


def test_table_holds_what_the_device_says(profile: Run, tmp_path: Path) -> None:
    out = profile("analytic").done()
    assert f"26 operators in {tmp_path}/t.csv" in out
    assert "held-out error of the table: MAPE 0.0 %" in out, "the device adds up exactly"
    table, space = LatencyTable.load(tmp_path / "t.csv"), create_space("tiny-mbconv", resolution=16, width=0.25)
    assert set(table.entries) == set(space.signatures())
    for signature, entry in table.entries.items():
        assert entry.ms == pytest.approx(analytic_ms(signature), abs=1e-6)  # a journal keeps nanoseconds
    assert sorted(path.name for path in tmp_path.glob("t.*")) == ["t.csv", "t.json"], "no journal is left"


@pytest.mark.parametrize(
    ("name", "reason"), [("refuses", "the device has no such kernel"), ("fallsover", "the device fell over")]
)
def test_operator_that_fails_is_recorded_and_the_sweep_goes_on(
    profile: Run, hwnas: Run, small: list[str], tmp_path: Path, name: str, reason: str
) -> None:
    failing = refused_by_picky(create_space("tiny-mbconv", resolution=16, width=0.25).signatures())
    profile(name).failed(1, f"lacks {len(failing)} of 26 signatures", f"(first: {failing[0]})")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = {row["signature"]: row for row in csv.DictReader(file)}
    assert len(rows) == 26
    assert {key for key, row in rows.items() if row["status"] == "failed"} == set(failing)
    assert {(rows[key]["ms"], rows[key]["error"]) for key in failing} == {("nan", reason)}

    search = ["search", *small, "--table", tmp_path / "t.csv", "--epochs", 1, "--output", tmp_path / "run"]
    hwnas(*search).failed(1, f"lacks {len(failing)} of 26 signatures", f"(first: {failing[0]})")
    assert not (tmp_path / "run").exists()
    assert "26 operators" in profile("analytic").done(), "a device that works measures what failed again"
    hwnas("table", "check", tmp_path / "t.csv", *small).done()


@pytest.mark.parametrize(
    ("name", "reason"), [("dead", "no device is attached"), ("broken", "each positive and finite")]
)
def test_no_operator_can_be_measured(profile: Run, tmp_path: Path, name: str, reason: str) -> None:
    profile(name).failed(1, "the device does not answer: 'reference' failed", reason)
    assert list(tmp_path.glob("t.*")) == []
    profile("analytic").done()


def test_few_measured_networks_give_no_error_and_no_crash(
    profile: Run, hwnas: Run, small: list[str], tmp_path: Path
) -> None:
    space = create_space("tiny-mbconv", resolution=16, width=0.25)
    measurable = [a for a in spread(space, 4, seed=1) if not refused_by_picky(space.operators(a))]
    assert 0 < len(measurable) < 3
    profile("refuses", "--seed", 1)
    assert json.loads((tmp_path / "t.json").read_text())["calibrations"] == {}
    profile("analytic", "--seed", 1).done()
    assert "MAPE" in hwnas("table", "check", tmp_path / "t.csv", *small).done()


# A device on which networks take what no sum of operators can tell.
MOODY = """
import hashlib
from hwnas.testing.toys import AnalyticProfiler

class Moody(AnalyticProfiler):
    def prepare(self, model, input_shape):
        session = super().prepare(model, input_shape)
        if len(model) > 1:
            session._ms *= 1 + int(hashlib.sha256(str(model).encode()).hexdigest(), 16) % 100 / 100
        return session
"""


def test_poor_predictions_are_said_loudly_wherever_the_table_is_used(
    packages: Any, hwnas: Run, small: list[str], noise: str, tmp_path: Path
) -> None:
    packages.add("moody", {"moody": "moody:Moody"}, source=MOODY)
    loud = "WARNING: this table predicts whole networks poorly."
    table = tmp_path / "t.csv"
    profiling = ["profile", *small, "--profiler", "moody", "--networks", 10, "--rounds", 2, "--output", table]
    assert loud in hwnas(*profiling).done()
    assert loud in hwnas("table", "check", table, *small).done()
    assert loud in hwnas("table", "show", table).done()
    search = ["search", *small, "--table", table, "--data", noise, "--epochs", 0, "--output", tmp_path / "run"]
    assert loud in hwnas(*search).out


def test_a_table_without_networks_of_the_space_says_how_to_add_some(hwnas: Run, small: list[str], table: Path) -> None:
    bare = table.with_name("bare.csv")
    replace(LatencyTable.load(table), calibrations={}).save(bare)
    said = hwnas("table", "check", bare, *small).done()
    assert "corrected by no network of this space" in said
    assert "Close other programs" not in said
    assert "corrected by no network" not in hwnas("table", "check", table, *small).done()


def test_without_tensorrt_nothing_is_measured_in_its_place(hwnas: Run, small: list[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    for name in ("tensorrt", "tensorrt-rtx"):
        ended = hwnas("profile", *small, "--profiler", name, "--output", tmp_path / "t.csv")
        assert ended.code in (1, 2)
        assert "which is not installed" in ended.err or "finds no CUDA device" in ended.err
    assert list(tmp_path.glob("t.*")) == []


def test_sidecar_says_where_when_and_how(profile: Run, small: list[str], tmp_path: Path) -> None:
    profile("analytic", "--seed", 3).done()
    sidecar = json.loads((tmp_path / "t.json").read_text())
    provenance = sidecar["provenance"]
    assert provenance["command"].startswith("hwnas profile --space tiny-mbconv")
    assert provenance["command"].endswith("--seed 3")
    assert provenance["date"].startswith(str(datetime.datetime.now(datetime.UTC).year))
    assert provenance["hwnas"] == hwnas_version
    assert 0 <= provenance["minutes"] < 5
    assert provenance["statistic"] == "5% quantile over rounds of the rounds' 10% quantiles"
    assert provenance["reference"]["noise_grade"] == "quiet"
    assert provenance["reference"]["num_throttled_rounds"] == 0
    assert provenance["changed_by_the_end"] == {}
    profile("analytic", "--resolution", 32).done()
    extended = json.loads((tmp_path / "t.json").read_text())["provenance"]
    assert extended["earlier"] == [provenance]


def test_onnxruntime_records_the_state_of_the_machine() -> None:
    details = create_profiler("onnxruntime").environment().details
    expected = {"system", "python", "scaling_governor", "scaling_cur_freq", "temperature", "power", "load"}
    assert expected | {"cores", "provider", "transfers"} <= set(details)
    assert float(details["load"]) >= 0


@pytest.mark.parametrize("below", ["file/t.csv", "/proc/hwnas/t.csv"])
def test_output_that_cannot_be_written(profile: Run, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    output = tmp_path / below  # an absolute path stays what it is
    profile("analytic", "--output", output).failed(1, f"cannot write {output.with_suffix('')}", "you can write to")
    assert (tmp_path / "file").read_text() == "kept"


def test_output_that_is_no_table_name(profile: Run, tmp_path: Path) -> None:
    profile("analytic", "--output", tmp_path / "t").failed(1, f"'{tmp_path}/t' is not a table name", ".csv")
    assert list(tmp_path.glob("t*")) == []


def test_two_sweeps_never_write_one_table(profile: Run, tmp_path: Path) -> None:
    journal = tmp_path / "t.partial.jsonl"
    with Journal(journal, AnalyticProfiler().environment(), {"of": "another sweep"}) as held:
        held.add("conv", 0, [1.0])
        before = journal.read_bytes()
        profile("analytic").failed(1, f"another sweep is writing {journal}", "Wait for it, or choose another output")
        assert journal.read_bytes() == before
        held.remove()
    profile("analytic").done()


def test_journal_of_something_else(profile: Run, tmp_path: Path) -> None:
    journal = tmp_path / "t.partial.jsonl"
    with Journal(journal, AnalyticProfiler().environment(), {"of": "another sweep"}):
        pass
    before = journal.read_bytes()
    remedy = f"Delete {journal} to start over"
    profile("analytic").failed(1, f"{journal} is an interrupted sweep of something else", remedy)
    assert journal.read_bytes() == before
    plan = {"space": create_space("tiny-mbconv", resolution=16, width=0.25).fingerprint, "items": 30, "rounds": 2}
    journal.unlink()
    with Journal(journal, AnalyticProfiler(threads=2).environment(), plan | {"seed": 0}):
        pass
    ended = profile("analytic")
    ended.failed(1, "interrupted sweep from another environment", "threads is '1' here and '2' there", remedy)
    journal.write_text("not a journal\n")
    profile("analytic").failed(1, f"{journal}:1: ", remedy)
    journal.unlink()
    profile("analytic").done()


def test_killed_between_sidecar_and_rows(profile: Run, table: Path, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(table.with_suffix(".json").read_bytes())
    profile("analytic").failed(1, f"{tmp_path}/t.csv: cannot be read")  # not ours: no journal says so
    (tmp_path / "t.partial.jsonl").touch()
    profile("analytic").done()
    assert LatencyTable.load(tmp_path / "t.csv").entries
