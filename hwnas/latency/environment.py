"""Where and how a latency was measured."""

from __future__ import annotations

import datetime
import locale
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hwnas._version import __version__
from hwnas.documents import EnvironmentDocument, fitting
from hwnas.errors import TableFormatError


@dataclass(frozen=True)
class Environment:
    """The conditions of a measurement; a latency means nothing without them.

    The fields decide whether two measurements may be compared; ``details`` (clocks, governor, driver,
    versions of bystanders) are recorded but not compared.

    Args:
        device: Name of the processor as the system reports it.
        runtime: What executed the network, such as ``onnxruntime``.
        runtime_version: Its version.
        precision: ``fp32``, ``fp16``, ``bf16``, ``tf32`` or ``int8``.
        batch: Images per run.
        threads: Threads inside one operator; 0 where the notion does not apply.
        mode: Execution mode, such as ``cpu``, ``enqueue`` or ``cuda-graph``.
        arguments: What ``create_profiler`` was told beyond precision, batch and threads (``device``, ``mode``);
            with it a table's profiler is built again. Not compared: an address may change, the device does not.
    """

    device: str
    runtime: str
    runtime_version: str
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1
    mode: str = "cpu"
    arguments: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)
    details: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)

    def differences(self, other: Environment) -> list[str]:
        """Fields in which two environments differ, each as readable text; empty when comparable."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} is '{mine[name]}' here and '{theirs[name]}' there"
            for name in mine
            if name not in ("arguments", "details") and mine[name] != theirs[name]
        ]

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        return (
            f"{self.device}, {self.runtime} {self.runtime_version}, {self.precision}, "
            f"batch {self.batch}{threads}, {self.mode}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "arguments": dict(self.arguments), "details": dict(self.details)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Environment:
        """Reads ``to_dict``.

        Raises:
            TableFormatError: Fields are missing, unknown or of another type.
        """
        try:
            return cls(**fitting(document, EnvironmentDocument))
        except (TypeError, ValueError) as error:
            raise TableFormatError(f"the environment is not complete: {error}.") from error


def cpu_name() -> str:
    """Marketing name of this machine's processor, with its number of usable cores."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return " ".join(name.split()) + f" ({os.cpu_count()} cores)"


def host_details() -> dict[str, str]:
    """Facts of this machine that are recorded beside a measurement; clock, temperature and load of this moment."""
    details = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "locale": locale.setlocale(locale.LC_NUMERIC),
    }
    cpufreq = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    for name in ("scaling_governor", "scaling_cur_freq", "scaling_max_freq"):
        details[name] = _read(cpufreq / name)
    details["temperature"] = _read(Path("/sys/class/thermal/thermal_zone0/temp"))
    supplies = sorted(Path("/sys/class/power_supply").glob("*"))
    states = [f"{s.name} {_read(s / ('status' if (s / 'status').exists() else 'online'))}" for s in supplies]
    details["power"] = ", ".join(states) or "not readable"
    details["load"] = f"{os.getloadavg()[0]:.2f}"
    return details


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return "not readable"


def produced_by() -> dict[str, str]:
    """When, by which command and by which hwnas something is made, for the provenance of a table."""
    program = Path(sys.argv[0]).name
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["hwnas" if program == "__main__.py" else program, *sys.argv[1:]]),
        "hwnas": __version__,
    }
