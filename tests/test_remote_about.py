"""What a device says of its state, out of the kernel's files and Android's services."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hwnas.profilers.remote.about import STATE, read_state
from hwnas.profilers.remote.client import Ended
from hwnas.profilers.remote.transport import Local

ZONE, SUPPLY = "/sys/class/thermal/thermal_zone", "/sys/class/power_supply"
NOT_READABLE = "not readable"

BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  level: 87
  voltage: 4213
  temperature: 291
"""


class Answers:
    """Stands in for a device whose files are these."""

    def __init__(self, files: Mapping[str, object]) -> None:
        self.files = files

    def run(self, command: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> Ended:
        assert list(command) == ["sh", "-c", STATE]
        return Ended(0, "".join(f"==> {path}\n{content}\n" for path, content in self.files.items()).encode(), "")


def state(files: Mapping[str, object]) -> dict[str, str]:
    answers: Any = Answers(files)
    return read_state(answers)


def heat(zones: Sequence[tuple[str, object]]) -> str:
    """The temperature of zones, each of a type and with a number; those without a type have no such file."""
    files = {f"{ZONE}{i}/type": kind for i, (kind, _) in enumerate(zones) if kind}
    return state(files | {f"{ZONE}{i}/temp": number for i, (_, number) in enumerate(zones)})["temperature_celsius"]


@pytest.mark.parametrize(
    ("zones", "expected"),
    [
        ([], NOT_READABLE),
        ([("cpu-thermal", "")], NOT_READABLE),
        ([("cpu-thermal", "rubbish")], NOT_READABLE),
        ([("cpu-thermal", 45277)], "45.277"),
        ([("cpu-thermal", 45), ("gpu-thermal", 38500)], "45"),
        ([("cpu-thermal", 38500), ("gpu-thermal", 45000)], "45"),
        ([("cpu-thermal", 45000), ("gpu-thermal", 38500)], "45"),
        ([("outdoors", -12000), ("freezer", -30)], "-12"),
        ([("", 51000), ("cpu-thermal", 45000)], "51"),  # of an unknown kind
        ([("a", 150_000)], "150"),
        ([("a", 150_001), ("b", 40_000)], "40"),
        ([("a", 151), ("b", 1000), ("c", 40)], "40"),
        ([("mmw0", -273_000)], NOT_READABLE),  # as sensors say that are off
    ],
)
def test_the_highest_temperature_in_degrees(zones: list[tuple[str, object]], expected: str) -> None:
    assert heat(zones) == expected


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("vbat", 4150), ("pm8150b-vbat-lvl0", 98), ("pm8350b-ibat-lvl1", 93), ("pm8150b-bcl-lvl0", 100), ("soc", 87),
        ("socd", 100), ("cpu-hw-trip-0", 95000), ("batoilo", 5000), ("vdroop1", 1100), ("ocp_cpu1", 60_000),
        ("VBAT", 90), ("soft_ocp_tpu", 8900), ("battery_cycle", 120), ("pmic_120c", 120_000), ("smpl_warn", 1100),
    ],
)  # fmt: skip
def test_zones_of_other_kinds_are_left_out(kind: str, number: int) -> None:
    assert heat([(kind, number), ("cpu-1-0-usr", -5)]) == "-5"


@pytest.mark.parametrize("kind", ["soc-thermal", "soc_thermal", "battery", "cpu-1-0-lowf", "pm8150_tz", "BIG"])
def test_zones_that_are_called_alike_stay(kind: str) -> None:
    assert heat([(kind, 47_000), ("other", 30_000)]) == "47"


def test_power_of_phones_and_boards() -> None:
    assert state({"battery": BATTERY})["power"] == "AC powered: false USB powered: true level: 87 temperature: 291"
    assert state({f"{SUPPLY}/BAT0/capacity": 80, f"{SUPPLY}/BAT0/status": "Full"})["power"] == "80 Full"
    assert state({f"{SUPPLY}/usb/status": "Charging"})["power"] == "Charging"


def test_what_cannot_be_read_is_said_once() -> None:
    assert set(state({}).values()) == {NOT_READABLE}
    found = state({"/proc/loadavg": "0.52 0.58 0.59 1/467 12345", "thermal": "Thermal Status: 2"})
    assert (found["load"], found["thermal_status"], found["power"]) == ("0.52", "2", NOT_READABLE)


def test_a_device_is_asked_for_each_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell's own part, on folders of ours."""
    for i, (kind, number) in enumerate([("cpu-thermal", 61_000), ("vbat", 90)]):
        zone = tmp_path / f"thermal_zone{i}"
        zone.mkdir()
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{number}\n")
    asked = re.sub("/sys/class/thermal", str(tmp_path), STATE)
    monkeypatch.setattr("hwnas.profilers.remote.about.STATE", asked)
    assert read_state(Local())["temperature_celsius"] == "61"
