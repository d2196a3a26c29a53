"""How devices are named, and what is said where the program that reaches them is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hwnas.profilers.remote.adb import Adb
from hwnas.profilers.remote.targets import create_target, reachable

from hwnas.errors import DeviceLostError, MeasurementError, UsageError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("local", "local"),
        ("ssh://pi@board", "ssh://pi@board"),
        ("ssh://board:2222", "ssh://board:2222"),
        ("ssh://u@[::1]:22/", "ssh://u@[::1]:22"),
        ("adb:1A2B3C", "adb:1A2B3C"),
        ("adb:192.168.1.2:5555", "adb:192.168.1.2:5555"),
    ],
)
def test_names_of_devices(name: str, expected: str) -> None:
    assert create_target(name).transport.name == expected


@pytest.mark.parametrize(
    "name",
    ["", "phone", "adb:", "adb:-d", "adb:a b", "ssh://", "ssh://-oProxyCommand=x", "ssh://h:x", "ssh://h/path",
     "ssh://u:secret@h", "ssh://-l@h", "ssh:h"],
)  # fmt: skip
def test_wrong_names_of_devices(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected|serial"):
        create_target(name)


def test_a_launcher_stands_before_every_program() -> None:
    target = create_target("local", launcher="env 'A=b c'", folder="/tmp/x")
    ended = target.transport.run(target.command(["sh", "-c", "echo $A"]), timeout_s=20)
    assert (ended.out, target.folder) == (b"b c\n", "/tmp/x")
    with pytest.raises(UsageError, match="quote its words"):
        create_target("local", launcher="env 'a")
    with pytest.raises(UsageError, match="no path"):
        create_target("local", folder="-x")


def test_a_missing_tool_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT", "HWNAS_SSH"):
        monkeypatch.delenv(name, raising=False)
    states = {one.target: one for one in reachable(["board"])}
    assert states["adb:"].state == states["ssh://board"].state == "missing"
    assert "apt-get install adb" in states["adb:"].about


def test_a_missing_tool_is_no_lost_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waiting for it would not help."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeasurementError, match="no program 'adb'") as caught:
        Adb("1").run(["true"], timeout_s=5)
    assert not isinstance(caught.value, DeviceLostError)
