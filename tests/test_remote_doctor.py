"""The commands that list devices and examine one: sound devices pass, each fault is named and counts."""

from __future__ import annotations

import os
import platform
import runpy
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hwnas.profilers.remote import doctor
from hwnas.profilers.remote.records import Tally

from hwnas.errors import MeasurementError

HERE = Path(__file__).parent
needed = runpy.run_path(str(HERE / "runner_device.py"))["needed"]

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = os.environ.get("HWNAS_CACHE") or str(Path.home() / ".cache" / "hwnas")
    monkeypatch.setenv("HWNAS_CACHE", cache)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HWNAS_DEVICE_FOLDER", str(tmp_path / "device"))
    monkeypatch.setattr(doctor, "LOAD_S", 0.1)
    monkeypatch.setattr(doctor, "LOAD_MS", 5.0)
    return tmp_path


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[str]:
    if not shutil.which("adb"):
        pytest.skip("no program adb here (apt-get install adb)")
    needed(platform.machine())
    tools = runpy.run_path(str(HERE / "adb_device.py"))
    with ExitStack() as stack:
        stack.enter_context(tools["adb_server"](tmp_path))
        device = tools["AdbDevice"]()
        stack.callback(device.stop)
        yield f"adb:{device.serial}"


SPOILER = """#!/bin/sh
"$@"
c=$?
for f in "$(dirname "$2")"/*.out; do
  [ ! -e "$f" ] || { head -c 40 /dev/zero; tail -c +41 "$f"; } >"$f.x" && mv "$f.x" "$f"
done
exit $c
"""


def verdicts(report: str) -> dict[str, str]:
    """What was checked -> ``ok``, ``no`` or ``FAILED``."""
    lines = [line.split() for line in report.splitlines() if line.startswith(("ok ", "no ", "FAILED "))]
    return {words[1]: words[0] for words in lines}


def test_a_sound_phone_passes(hwnas: Run, phone: str, home: Path) -> None:
    report = hwnas("device", "doctor", phone).done()
    found = verdicts(report)
    assert {found.pop("all"), found.pop("steady")} <= {"ok", "no"}
    assert found.pop("fp16") == ("no" if platform.machine() == "x86_64" else "ok")
    assert set(found.values()) == {"ok"}
    assert {"answers", "bundle", "core", "fp32", "int8", "transfer", "timing", "telemetry", "hang-up"} <= set(found)
    assert "int8         outputs differ from this machine's by 0.0e+00" in report
    assert [str(p) for p in (home / "device").rglob("*") if p.parent.name == "jobs"] == []
    assert "ready" in next(line for line in hwnas("devices").done().splitlines() if phone in line)


def test_telemetry_is_found(hwnas: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed(platform.machine())
    spy = home / "spy"
    spy.write_text(
        '#!/bin/sh\nmkdir -p "$HOME/.cache/Microsoft/x"\necho >"$HOME/.cache/Microsoft/x/deviceid"\nexec "$@"\n'
    )
    spy.chmod(0o755)
    monkeypatch.setenv("HWNAS_LAUNCHER", str(spy))
    ended = hwnas("device", "doctor", "local")
    assert ended.code == 1
    assert verdicts(ended.out)["telemetry"] == "FAILED"
    assert [name for name, verdict in verdicts(ended.out).items() if verdict == "FAILED"] == ["telemetry"]
    ended.failed(1, "1 of the checks that measuring needs failed on local", "docs/phone.md")


def test_wrong_numbers_are_found(hwnas: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner whose outputs are spoilt after it ended."""
    needed(platform.machine())
    spoiler = home / "spoiler"
    spoiler.write_text(SPOILER)
    spoiler.chmod(0o755)
    monkeypatch.setenv("HWNAS_LAUNCHER", str(spoiler))
    found = verdicts(hwnas("device", "doctor", "local").out)
    assert (found["fp32"], found["int8"], found["bundle"]) == ("FAILED", "FAILED", "ok")


@pytest.mark.parametrize(("last", "verdict"), [(1.0, "ok"), (1.3, "no")])
def test_what_load_makes_slower_is_found(last: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    examination = doctor.Doctor("local", lines.append)
    monkeypatch.setattr(examination, "_rounds", lambda *_: np.array([1.0] * 12 + [last] * 4))
    device = SimpleNamespace(tally=Tally())
    examination.checked("steady", lambda: examination.steady(device), essential=False)  # type: ignore[arg-type]
    assert verdicts("\n".join(lines)) == {"steady": verdict}
    assert f"{last - 1:+.1%} slower" in lines[0]
    assert examination.num_failed == 0


def test_a_file_that_comes_back_changed_is_found() -> None:
    device = SimpleNamespace(put=lambda files: None, pull=lambda name: b"other")
    with pytest.raises(MeasurementError, match="another content"):
        doctor.Doctor("local", print).transfer(device)  # type: ignore[arg-type]


def test_what_is_not_there(hwnas: Run, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    gone = hwnas("device", "doctor", "ssh://127.0.0.1:1")
    gone.failed(1, "1 of the checks")
    assert verdicts(gone.out) == {"answers": "FAILED"}
    hwnas("device", "doctor", "phone").failed(2, "unknown device 'phone'")
    (home / "file").touch()
    monkeypatch.setenv("HWNAS_DEVICE_FOLDER", str(home / "file" / "folder"))
    assert verdicts(hwnas("device", "doctor", "local").out) == {"answers": "ok", "bundle": "FAILED"}
    listed = hwnas("devices", "--ssh", "127.0.0.1:1").done()
    assert "unreachable" in next(line for line in listed.splitlines() if "ssh://127.0.0.1:1" in line)
