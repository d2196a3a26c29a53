"""The command line: help, listings, names, missing packages, wrong usage."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwnas import __version__

Run = Callable[..., Any]
TOYS = "hwnas.testing.toys:AnalyticProfiler"


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["search", "--help"], ["--version"]])
def test_help_and_listings_are_quick_and_import_no_torch(arguments: list[str]) -> None:
    seconds = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "hwnas", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        with process.stderr:
            imported = {line.split("|")[-1].strip() for line in process.stderr}
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert "typer" in imported
        assert not imported & {"torch", "numpy", "onnx", "onnxruntime", "scipy", "pandas"}
        seconds.append(usage.ru_utime)
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5  # of processor time, so that other programs do not count


def test_version(hwnas: Run) -> None:
    assert hwnas("--version").done() == f"hwnas {__version__}\n"


def test_list_shows_everything_that_is_installed(hwnas: Run) -> None:
    out = hwnas("list").done()
    for name in ("tiny-mbconv", "gates", "analytic", "onnxruntime", "onnx"):
        assert f" {name} " in out
    told = " ".join(out.replace("│", " ").split())
    assert "num_cells=8, stem_stride=1, inputs=2, with_none=1" in told  # of darts-cell
    assert "--set num_epochs, batch_size, arch_lr, order, criterion, back" in told  # of darts_plus


def test_list_shows_what_is_missing_and_how_to_get_it(hwnas: Run, packages: Any) -> None:
    requires = ['not-a-package>=2 ; extra == "fancy"', "also-not ; extra == 'plain'", "rich"]
    packages.add("fancyprof", {"fancy": f"{TOYS} [fancy]", "plain": TOYS}, requires=requires)
    lines = {line.split()[1]: line for line in hwnas("list", "profilers").done().splitlines() if "│" in line}
    assert "needs not-a-package: pip install 'fancyprof[fancy]'" in lines["fancy"]
    assert "ready" in lines["plain"]
    assert "ready" in lines["analytic"]


def test_profiler_whose_package_is_missing(hwnas: Run, packages: Any, small: list[str], tmp_path: Path) -> None:
    packages.add("fancyprof", {"fancy": f"{TOYS} [fancy]"}, requires=['not-a-package ; extra == "fancy"'])
    ended = hwnas("profile", *small, "--profiler", "fancy", "--output", tmp_path / "t.csv")
    ended.failed(1, "profiler 'fancy' needs not-a-package, which is not installed", "pip install 'fancyprof[fancy]'")
    assert list(tmp_path.glob("t.*")) == []


def test_profiler_that_cannot_be_imported(hwnas: Run, packages: Any, small: list[str], tmp_path: Path) -> None:
    packages.add("brokenprof", {"broken": "brokenprof:Device"}, source="import not_a_module\n")
    ended = hwnas("profile", *small, "--profiler", "broken", "--output", tmp_path / "t.csv")
    ended.failed(1, "profiler 'broken' (brokenprof:Device) cannot be imported: No module named 'not_a_module'")


def test_onnxruntime_missing(hwnas: Run, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what Python itself does to make an import fail
    ended = hwnas("profile", *small, "--output", tmp_path / "t.csv")
    ended.failed(1, "profiler 'onnxruntime' needs the package onnxruntime", "Run: pip install onnxruntime")
    assert list(tmp_path.glob("t.*")) == []


def test_unknown_space(hwnas: Run, table: Path, tmp_path: Path) -> None:
    parts = ("unknown space 'tiny-mbcov'", "available: darts-cell, fbnet, ", "Did you mean 'tiny-mbconv'?")
    hwnas("profile", "--space", "tiny-mbcov", "--output", tmp_path / "t.csv").failed(2, *parts)
    hwnas("search", "--space", "tiny-mbcov", "--table", table, "--output", tmp_path / "run").failed(2, *parts)
    hwnas("table", "check", table, "--space", "tiny-mbcov").failed(2, *parts)


def test_unknown_recipe(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    ended = hwnas("search", *small, "--table", table, "--recipe", "gatse", "--output", output)
    ended.failed(2, "unknown recipe 'gatse'", "available: ", "gates", "Did you mean 'gates'?")
    assert not output.exists()


def test_unknown_profiler(hwnas: Run, small: list[str], tmp_path: Path) -> None:
    ended = hwnas("profile", *small, "--profiler", "onxruntime", "--output", tmp_path / "t.csv")
    ended.failed(2, "unknown profiler 'onxruntime'", "analytic, ", "onnxruntime", "Did you mean 'onnxruntime'?")
    ended = hwnas("profile", *small, "--profiler", "zzz", "--output", tmp_path / "t.csv")
    ended.failed(2, "unknown profiler 'zzz'", "analytic, ", "onnxruntime")
    assert "Did you mean" not in ended.err
    assert list(tmp_path.glob("t.*")) == []


def test_unknown_exporter(hwnas: Run, run: Path) -> None:
    before = sorted(run.iterdir())
    hwnas("export", run, "--exporter", "onx").failed(2, "unknown exporter 'onx'", "onnx", "Did you mean 'onnx'?")
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["profile", "--space", "tiny-mbconv"], "--output"),
        (["profile", "--space", "tiny-mbconv", "--output", "t.csv", "--batch", "one"], "--batch"),
        (["search", "--spaces", "tiny-mbconv"], "--spaces"),
        (["train", "run", "--checkpoint-seconds", "-1"], "--checkpoint-seconds"),
        (["list", "cats"], "cats"),
        (["serch"], "serch"),
    ],
)
def test_wrong_usage(hwnas: Run, arguments: list[str], part: str) -> None:
    ended = hwnas(*arguments)
    assert ended.code == 2
    assert part in ended.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--resolution", "15"], ["resolution >= 16", "got resolution 15"]),
        (["--num-classes", "1"], ["at least 2 classes", "1 classes"]),
        (["--width", "nan"], ["takes width as float of at most 1,000,000", "got nan"]),
        (["--device", "gpu"], ["profiler 'onnxruntime' has no device 'gpu'", "cpu"]),
        (["--precision", "fp12"], ["profiler 'onnxruntime' has no precision 'fp12'", "fp32"]),
        (["--batch", "0"], ["batch must be at least 1", "got 0"]),
        (["--threads", "0"], ["threads 1 to", "and 0"]),
        (["--networks", "2"], ["at least 3 networks, 2 rounds and more than 0 minutes", "got 2, 64 and inf."]),
        (["--rounds", "1"], ["at least 3 networks, 2 rounds and more than 0 minutes", ", 1 and inf."]),
    ],
)
def test_profile_refuses_what_it_cannot_measure(
    hwnas: Run, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    hwnas("profile", "--space", "tiny-mbconv", *arguments, "--output", tmp_path / "t.csv").failed(2, *parts)
    assert list(tmp_path.glob("t.*")) == []
