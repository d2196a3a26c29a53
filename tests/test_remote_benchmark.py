"""The benchmark of devices elsewhere runs, and its figures are times."""

from __future__ import annotations

import platform
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = runpy.run_path(str(Path(__file__).parent / "runner_device.py"))


def test_a_device_gets_a_line(
    load_benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TOOLS["needed"](platform.machine())
    monkeypatch.setenv("HWNAS_DEVICE_FOLDER", str(tmp_path / "device"))
    output = tmp_path / "found.txt"
    monkeypatch.setattr(sys, "argv", ["remote.py", "--quick", "--device", "local", "--output", str(output)])
    load_benchmark("remote").main()
    text = output.read_text(encoding="utf-8")
    assert "5 operators of 'toy'" in text
    found = re.search(r"local: first ([\d.]+) s; by operator: transfer ([\d.]+) ms, start ([\d.]+) ms", text)
    assert found is not None
    first_s, transfer_ms, start_ms = map(float, found.groups())
    assert 0 < start_ms / 1e3 < first_s  # the first latency waits for a start and more
    assert 0 < transfer_ms < 1e3
