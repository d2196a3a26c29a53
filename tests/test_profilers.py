"""Profilers and sweeps: contracts, interleaving, resuming, failures as records."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.errors import (
    EnvironmentMismatchError,
    MeasurementError,
    MissingSignatureError,
    RunError,
    TableFormatError,
    UsageError,
)
from hwnas.latency.environment import Environment
from hwnas.latency.journal import Journal
from hwnas.latency.measure import measure
from hwnas.latency.measurement import failure, summarise
from hwnas.latency.model import LatencyModel
from hwnas.latency.sweep import profile
from hwnas.latency.table import LatencyTable
from hwnas.plugins import PROFILERS, available, create_profiler
from hwnas.space import OpSignature, Shape, create_space
from hwnas.steps import profiler_of
from hwnas.testing.contracts import check_profiler, check_table
from hwnas.testing.toys import AnalyticProfiler, AnalyticSession, analytic_ms, toy_space, toy_table


@pytest.mark.parametrize("name", available(PROFILERS))
@pytest.mark.parametrize("batch", [1, 3])
def test_registered_profilers_keep_the_contract(name: str, batch: int) -> None:
    if missing := available(PROFILERS)[name].missing:
        pytest.skip(f"needs {', '.join(missing)}")
    try:
        profiler = create_profiler(name, batch=batch)
    except UsageError as error:
        if "finds no CUDA device" not in str(error):
            raise
        pytest.skip(str(error))
    check_profiler(profiler)


@pytest.mark.parametrize(
    ("name", "options"),
    [("onnxruntime", {"batch": 2, "precision": "int8"}), ("torch", {"mode": "compile", "precision": "bf16"})],
)
def test_a_table_knows_the_profiler_that_made_it(name: str, options: dict[str, Any]) -> None:
    environment = create_profiler(name, **options).environment()
    again = Environment.from_dict(json.loads(json.dumps(environment.to_dict())))
    assert profiler_of(LatencyTable(again, {})).environment() == environment


def test_the_command_that_adds_operators_names_device_and_mode() -> None:
    arguments = {"device": "cuda:1", "mode": "cuda-graph"}
    environment = Environment("H100", "torch", "2", "fp16", 8, 0, "cuda-graph", arguments)
    command = "--device cuda:1 --mode cuda-graph --precision fp16 --batch 8 --threads 0 --profiler torch"
    with pytest.raises(MissingSignatureError, match=command):
        LatencyTable(environment, {}).require(create_space("tiny-mbconv"))
    with pytest.raises(
        MissingSignatureError, match=f"--space fbnet --resolution 224 --num-classes 1000 --width 1.0 {command}"
    ):
        LatencyTable(environment, {}).require(create_space("fbnet"))
    cells = "--space darts-cell:channels=8,num_cells=5 --resolution 64 --num-classes 10"
    with pytest.raises(MissingSignatureError, match=f"'hwnas profile {cells} {command}"):
        LatencyTable(environment, {}).require(create_space("darts-cell", channels=8, num_cells=5, resolution=64))


def test_analytic_profiler_keeps_the_contract() -> None:
    check_profiler(AnalyticProfiler())


class CountingProfiler(AnalyticProfiler):
    """Counts visits; operators named in ``broken`` are refused or fail while they run."""

    def __init__(self, *, refused: str = "?", failing: str = "?", device: str = "formula") -> None:
        super().__init__(device=device)
        self.order: list[float] = []
        self._refused, self._failing = refused, failing

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> AnalyticSession:
        assert isinstance(model, nn.Module)
        kernels = [m.kernel_size[0] for m in model.modules() if isinstance(m, nn.Conv2d)]
        text = f"k{max(kernels)}" if kernels and len(model) == 1 else ""
        if text == self._refused:
            raise MeasurementError("this device has no such kernel")
        session, outer, fails = super().prepare(model, input_shape), self, text == self._failing

        class Counted(AnalyticSession):
            def __init__(self) -> None:
                self._inner = session

            def run(self, images: np.ndarray) -> np.ndarray:
                return self._inner.run(images)

            def time_ms(self, *, budget_ms: float) -> list[float]:
                if fails:
                    raise MeasurementError("device lost")
                outer.order.append(self._inner.time_ms(budget_ms=budget_ms)[0])
                return self._inner.time_ms(budget_ms=budget_ms)

        return Counted()


def test_sweep_measures_each_signature_once_a_round_and_predicts_exactly(tmp_path: Path) -> None:
    space, profiler = toy_space(), CountingProfiler()
    table = profile(space, profiler, output=tmp_path / "t.csv", num_networks=4, num_rounds=3)
    assert {s: e.ms for s, e in table.entries.items()} == pytest.approx({s: analytic_ms(s) for s in space.signatures()})
    # 5 signatures and 4 networks, 3 rounds, and a reference visit for every 8 of those 27.
    assert len(profiler.order) == 27 + 4
    model = LatencyModel.from_table(space, table)
    assert model.error is not None
    assert model.error.mape < 1e-6
    assert table.provenance["reference"]["spread"] == 0
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["t.csv", "t.json"]
    check_table(table, tmp_path)


def test_sweep_is_interleaved(tmp_path: Path) -> None:
    profiler = CountingProfiler()
    profile(toy_space(), profiler, output=tmp_path / "t.csv", num_networks=3, num_rounds=4)
    times = [ms for ms in profiler.order if ms in Counter(profiler.order)]
    slow = max(times)
    positions = [i for i, ms in enumerate(times) if ms == slow]
    assert np.diff(positions).max() > 1


def test_interrupted_sweep_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    space, visited = toy_space(), 0

    def stop(what: str, done: int, total: int) -> None:
        nonlocal visited
        if what == "measuring" and done == 11:
            visited = done
            raise KeyboardInterrupt

    first, second = CountingProfiler(), CountingProfiler()
    with pytest.raises(KeyboardInterrupt):
        profile(space, first, output=tmp_path / "t.csv", num_networks=4, num_rounds=3, progress=stop)
    assert visited == 11
    assert not (tmp_path / "t.csv").exists()
    journal = tmp_path / "t.partial.jsonl"
    with journal.open("a") as file:
        file.write('{"key": "torn')
    profile(space, second, output=tmp_path / "t.csv", num_networks=4, num_rounds=3)
    assert len(first.order) + len(second.order) == 27 + 4
    whole = profile(space, CountingProfiler(), output=tmp_path / "whole.csv", num_networks=4, num_rounds=3)
    assert LatencyTable.load(tmp_path / "t.csv").entries == whole.entries
    assert not journal.exists()


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "measuring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(toy_space(), AnalyticProfiler(), output=tmp_path / "t.csv", progress=stop)
    with pytest.raises(RunError, match="interrupted sweep of something else"):
        profile(toy_space(), AnalyticProfiler(), output=tmp_path / "t.csv", num_rounds=5)
    with pytest.raises(EnvironmentMismatchError, match="device is 'other' here and 'formula' there"):
        profile(toy_space(), AnalyticProfiler(device="other"), output=tmp_path / "t.csv")


def test_two_sweeps_never_write_one_table(tmp_path: Path) -> None:
    environment = AnalyticProfiler().environment()
    with (
        Journal(tmp_path / "t.partial.jsonl", environment, {}),
        pytest.raises(RunError, match="another sweep is writing"),
    ):
        profile(toy_space(), AnalyticProfiler(), output=tmp_path / "t.csv")


@pytest.mark.parametrize("how", ["refused", "failing"])
def test_a_failed_operator_is_a_record_and_never_a_number(tmp_path: Path, how: str) -> None:
    space = toy_space()
    arguments: dict[str, Any] = {how: "k5"}
    table = profile(space, CountingProfiler(**arguments), output=tmp_path / "t.csv", num_networks=4, num_rounds=2)
    (failed,) = [s for s, entry in table.entries.items() if entry.status == "failed"]
    assert failed.attribute("k") == 5
    assert table.entries[failed].error in ("this device has no such kernel", "device lost")
    loaded = LatencyTable.load(tmp_path / "t.csv")
    assert not loaded.entries[failed].usable
    with pytest.raises(MissingSignatureError, match=r"lacks 1 of 5 .*first: mbconv k5"):
        LatencyModel.from_table(space, loaded)
    again = profile(space, AnalyticProfiler(), output=tmp_path / "t.csv", num_networks=4, num_rounds=2)
    assert again.entries[failed].ms == pytest.approx(analytic_ms(failed))


def test_a_table_is_extended_and_its_entries_kept(tmp_path: Path) -> None:
    small, large = toy_space(resolution=8), toy_space(resolution=16)
    first = profile(small, AnalyticProfiler(), output=tmp_path / "t.csv", num_networks=3, num_rounds=2)
    profiler = CountingProfiler()
    both = profile(large, profiler, output=tmp_path / "t.csv", num_networks=3, num_rounds=2)
    assert set(both.entries) == set(small.signatures()) | set(large.signatures())
    assert all(both.entries[s] == first.entries[s] for s in small.signatures())
    assert set(both.calibrations) == {small.fingerprint, large.fingerprint}
    profiler.order.clear()
    assert profile(large, profiler, output=tmp_path / "t.csv", num_networks=3, num_rounds=2) == both
    assert profiler.order == []
    with pytest.raises(EnvironmentMismatchError, match="Profile this device"):
        profile(large, AnalyticProfiler(device="other"), output=tmp_path / "t.csv")


@pytest.mark.parametrize("extends", [False, True])
def test_a_kill_between_the_two_files_of_a_table_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extends: bool
) -> None:
    path, space = tmp_path / "t.csv", toy_space(resolution=16)
    if extends:
        before = profile(toy_space(resolution=8), AnalyticProfiler(), output=path, num_networks=3, num_rounds=2)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hwnas.latency.table.write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            profile(space, AnalyticProfiler(), output=path, num_networks=3, num_rounds=2)
    assert path.with_suffix(".json").exists()
    if extends:
        assert LatencyTable.load(path) == before
    counting = CountingProfiler()
    after = profile(space, counting, output=path, num_networks=3, num_rounds=2)
    assert counting.order == []
    assert after.missing(space.signatures()) == []
    assert LatencyTable.load(path) == after
    assert "previous" not in path.with_suffix(".json").read_text()


def test_measurements_survive_outliers_and_report_instability() -> None:
    steady = summarise([[1.0, 1.01, 1.02, 9.0]] * 4)
    assert steady.ms < 1.02
    assert steady.status == "ok"
    assert summarise([[1.0] * 5, [1.3] * 5, [1.5] * 5, [1.6] * 5]).status == "unstable"
    for bad in ([], [[]], [[float("nan")]], [[0.0]], [[-1.0]]):
        with pytest.raises(MeasurementError):
            summarise(bad)
    record = failure("out of\nmemory")
    assert (record.status, record.error, record.usable) == ("failed", "out of memory", False)


@pytest.mark.parametrize("name", ["table.txt", "table", "table.csv.gz"])
def test_a_table_needs_the_right_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(TableFormatError, match=r"end in \.csv"):
        toy_table(toy_space()).save(tmp_path / name)


def test_onnxruntime_in_int8_keeps_the_contract() -> None:
    profiler = create_profiler("onnxruntime", precision="int8")
    assert profiler.environment().precision == "int8"
    check_profiler(profiler)


def test_onnxruntime_never_calls_widened_half_precision_fp16() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        check_profiler(create_profiler("onnxruntime", precision="fp16"))
        return
    with pytest.raises(UsageError, match="would compute in fp32 between conversions"):
        create_profiler("onnxruntime", precision="fp16")


def test_onnxruntime_with_two_threads_pins_each_and_gives_the_cores_back() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one core only")
    profiler = create_profiler("onnxruntime", threads=2)
    assert profiler.environment().details["cores"] == ",".join(map(str, sorted(allowed)[-2:]))
    check_profiler(profiler)
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "CUDA"}, "no device 'CUDA'; the installed package has cpu"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"threads": 10_000}, "threads 1 to"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_onnxruntime_refuses_what_it_cannot_measure(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_profiler("onnxruntime", **options)


def test_onnxruntime_times_more_work_as_more_milliseconds() -> None:
    profiler = create_profiler("onnxruntime")
    texts = ("conv k3 s1 8x8x8 -> 8x8x8", "conv k3 s1 64x32x32 -> 64x32x32")
    small, large = (measure(profiler, nn.Sequential(build(text)), OpSignature.parse(text).in_shape) for text in texts)
    # 1024 times the multiply-adds; a factor of 5 leaves room for any call overhead and any noise.
    assert large.ms > 5 * small.ms
    assert large.p50_ms <= large.p90_ms


def test_onnxruntime_refuses_a_broken_model() -> None:
    with pytest.raises(MeasurementError, match="refuses the model"):
        create_profiler("onnxruntime").prepare(b"not a model", (3, 8, 8))


def test_loading_onnxruntime_leaves_no_telemetry_file(tmp_path: Path) -> None:
    code = "from hwnas.plugins import create_profiler; create_profiler('onnxruntime')"
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert not [p for p in tmp_path.rglob("*") if "icrosoft" in str(p)]


def build(text: str) -> nn.Module:
    from hwnas.ops.blocks import build_op

    torch.manual_seed(0)
    return build_op(OpSignature.parse(text))
