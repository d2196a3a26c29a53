"""Clusters of equal cores, read from a device's kernel files, and the cores a user asks for by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hwnas.errors import MeasurementError, UsageError

CPUS = "/sys/devices/system/cpu"

READ_COMMAND = (
    "for f in /proc/cpuinfo "
    f"{CPUS}/possible {CPUS}/present {CPUS}/online {CPUS}/cpu[0-9]*/cpu_capacity "
    f"{CPUS}/cpu[0-9]*/cpufreq/cpuinfo_max_freq {CPUS}/cpu[0-9]*/regs/identification/midr_el1; "
    'do [ -r "$f" ] && echo "==> $f" && cat "$f"; done; true'
)
"""For ``sh -c`` on the device; ``split_files`` takes what it prints."""


@dataclass(frozen=True)
class Cluster:
    """Cores that are alike.

    Args:
        cores: Their numbers, ascending; only those online.
        part: Who designed them and which design, as ``0x41:0xd05``; empty where the kernel does not say.
        max_khz: Highest clock; None where the kernel does not say.
        capacity: Computing power as the kernel's scheduler rates it, 1024 for the fastest; None where it does not.
    """

    cores: tuple[int, ...]
    part: str = ""
    max_khz: int | None = None
    capacity: int | None = None

    def __str__(self) -> str:
        clock = f" at {self.max_khz / 1e6:.2f} GHz" if self.max_khz else ""
        return f"{format_cores(self.cores)}{f' ({self.part})' if self.part else ''}{clock}"


def split_files(output: str) -> dict[str, str]:
    """Path -> content, from what ``READ_COMMAND`` printed."""
    parts = re.split(r"^==> (\S+)[ \r]*\n", output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def read_clusters(files: Mapping[str, str]) -> tuple[Cluster, ...]:
    """Clusters of the cores that are online, the slowest first.

    Rated by capacity if the kernel gives it for all of them, else by their highest clock.

    Args:
        files: Path -> content of the kernel's files; those missing are not asked for.

    Raises:
        MeasurementError: They do not tell which cores there are.

    Source:
        Linux, Documentation/ABI/testing/sysfs-devices-system-cpu; Documentation/scheduler/sched-capacity.rst.
    """
    parts = _parts(files.get("/proc/cpuinfo", ""))
    listed = files.get(f"{CPUS}/online", "").strip()
    online = _parse_list(listed) if listed else tuple(sorted(parts))
    if not online:
        raise MeasurementError(
            f"the device does not tell which cores it has: neither {CPUS}/online nor /proc/cpuinfo can be read. "
            "Name the cores by number, such as --cores 4-7."
        )
    alike: dict[tuple[str, int | None, int | None], list[int]] = {}
    for core in online:
        khz = _number(files.get(f"{CPUS}/cpu{core}/cpufreq/cpuinfo_max_freq"))
        capacity = _number(files.get(f"{CPUS}/cpu{core}/cpu_capacity"))
        midr = _number(files.get(f"{CPUS}/cpu{core}/regs/identification/midr_el1"))
        part = parts.get(core, "") if midr is None else f"0x{midr >> 24 & 0xFF:02x}:0x{midr >> 4 & 0xFFF:03x}"
        alike.setdefault((part, khz, capacity), []).append(core)
    found = [Cluster(tuple(cores), *key) for key, cores in alike.items()]
    rated = all(each.capacity is not None for each in found)
    return tuple(sorted(found, key=lambda c: ((rated and c.capacity) or 0, c.max_khz or 0, c.cores)))


def select_cores(wanted: str, clusters: tuple[Cluster, ...]) -> tuple[int, ...]:
    """Cores by word or number.

    Args:
        wanted: ``prime`` (the fastest cluster), ``big`` (the second fastest of three or more, else the fastest),
            ``little`` (the slowest), or numbers and ranges such as ``4-7`` or ``0,5``.
        clusters: From ``read_clusters``.

    Raises:
        UsageError: No such word, a core that is not online, or ``little`` where all cores are alike.
    """
    there = "; ".join(map(str, clusters))
    if wanted in ("prime", "big"):
        return clusters[-2 if wanted == "big" and len(clusters) > 2 else -1].cores
    if wanted == "little":
        if len(clusters) == 1:
            raise UsageError(
                f"the device has no little cores: all are alike ({there}). Use numbers, such as --cores 0."
            )
        return clusters[0].cores
    try:
        cores = _parse_list(wanted)
    except ValueError as error:
        raise UsageError(
            f"cores '{wanted}' are not understood; expected prime, big, little, or numbers such as 4-7 or 0,5."
        ) from error
    online = {core for cluster in clusters for core in cluster.cores}
    missing = [core for core in cores if core not in online]
    if missing or len(set(cores)) < len(cores):
        fault = f"core {missing[0]} is not online" if missing else "a core is named twice"
        raise UsageError(f"cores '{wanted}' cannot be used: {fault}. The device has {there}.")
    return cores


def clusters_of(cores: tuple[int, ...], clusters: tuple[Cluster, ...]) -> tuple[Cluster, ...]:
    """Clusters these cores lie in; more than one means that threads wait for the slowest."""
    return tuple(each for each in clusters if set(each.cores) & set(cores))


def format_cores(cores: tuple[int, ...]) -> str:
    """Numbers with ranges, as the kernel writes them.

    Example:
        >>> format_cores((0, 1, 2, 5))
        '0-2,5'
    """
    ranges: list[list[int]] = []
    for core in sorted(cores):
        if ranges and ranges[-1][1] == core - 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _parse_list(text: str) -> tuple[int, ...]:
    cores: list[int] = []
    for word in text.strip().split(","):
        if not re.fullmatch(r"[0-9]{1,4}(-[0-9]{1,4})?", word):
            raise ValueError(f"'{word}' is no number or range")
        low, _, high = word.partition("-")
        if int(high or low) < int(low):
            raise ValueError(f"'{word}' runs backwards")
        cores.extend(range(int(low), int(high or low) + 1))
    return tuple(cores)


def _parts(cpuinfo: str) -> dict[int, str]:
    """Core -> designer and part; the parts are empty on x86."""
    parts: dict[int, str] = {}
    for block in re.split(r"\n\s*\n", cpuinfo):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if fields.get("processor", "").isdigit():
            names = (fields.get("CPU implementer"), fields.get("CPU part"))
            parts[int(fields["processor"])] = ":".join(name for name in names if name)
    return parts


def _number(text: str | None) -> int | None:
    try:
        return int((text or "").strip(), 0)
    except ValueError:
        return None
