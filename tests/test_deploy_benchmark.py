"""``benchmarks/deploy.py`` exports, compares and measures, and says of what it cannot run why."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hwnas.latency.table import LatencyTable


def test_quick_run(
    load_benchmark: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = load_benchmark("deploy")
    tables = [LatencyTable.load(path) for path in script.SHIPPED.glob("*.csv")]
    _, predicted = script.built("proxylessnas", 224, 0, tables)
    assert predicted["onnxruntime", "fp32"] > 0
    options = ["--quick", "--network", "tiny-mbconv", "--exporter", "onnx", "--exporter", "absent"]
    output = tmp_path / "deploy.txt"
    monkeypatch.setattr(sys, "argv", ["deploy.py", *options, "--precision", "fp32", "--output", str(output)])
    script.main()
    assert output.read_text() == capsys.readouterr().out
    _, exported, absent, reason = output.read_text().splitlines()
    figures = re.search(
        r"export +([\d.]+) s, +([\d.]+) MiB, difference (\S+) .* agrees +100.0%, +([\d.]+) ms", exported
    )
    assert figures is not None, exported
    seconds, size, difference, ms = map(float, figures.groups())
    assert min(seconds, ms) > 0
    assert 0 < size < 2
    assert difference < 1e-3  # a network without training magnifies fp32's roundings of 1e-6
    assert absent.endswith("not exported [1]")
    assert reason.startswith("[1] unknown exporter 'absent'")
