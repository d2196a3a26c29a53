"""What a device says about itself: its name, its processor, its memory, and how warm it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hwnas.errors import MeasurementError

from .topology import CPUS, READ_COMMAND, Cluster, read_clusters, split_files
from .transport import Transport

PROPERTIES = (
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.soc.manufacturer",
    "ro.soc.model",
    "ro.board.platform",
    "ro.build.version.release",
    "ro.build.fingerprint",
)
"""What Android says about a phone; those of the processor since Android 12."""

ABOUT = f"""{READ_COMMAND}
for f in /proc/meminfo /proc/device-tree/model; do [ -r "$f" ] && echo "==> $f" && cat "$f" && echo; done
if command -v getprop >/dev/null; then
  for p in {" ".join(PROPERTIES)}; do echo "==> $p"; getprop "$p"; done
fi
echo "==> pwd"; pwd
echo "==> uname"; uname -m; uname -r; uname -n"""
"""For ``sh -c`` on the device."""

STATE = f"""for f in {CPUS}/cpu[0-9]*/cpufreq/scaling_governor {CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq \\
  /sys/class/thermal/thermal_zone*/temp /sys/class/power_supply/*/capacity /sys/class/power_supply/*/status \\
  /proc/loadavg; do [ -r "$f" ] && echo "==> $f" && cat "$f" 2>/dev/null; done
if command -v dumpsys >/dev/null; then
  echo "==> battery"; dumpsys battery; echo "==> thermal"; dumpsys thermalservice
fi
true"""
"""What changes from minute to minute."""

ANSWER_S = 30.0


@dataclass(frozen=True)
class About:
    """A device.

    Args:
        machine: ``aarch64``, ``x86_64`` or another.
        kernel: Its release.
        name: Of the device, with its processor in parentheses where it says so.
        clusters: Of its cores, the slowest first; empty where the kernel does not say.
        free_bytes: Memory that programs may take; 0 where the kernel does not say.
        folder: Where the shell begins.
        build: Android's version and fingerprint; empty elsewhere.
    """

    machine: str
    kernel: str
    name: str
    clusters: tuple[Cluster, ...]
    free_bytes: int
    folder: str
    build: str


def read_about(transport: Transport) -> About:
    """Asks a device.

    Raises:
        TransportError: It does not answer.
    """
    ended = transport.run(["sh", "-c", ABOUT], timeout_s=ANSWER_S)
    files = split_files(ended.out.decode(errors="replace"))
    machine, kernel, host = (files.get("uname", "").split() + ["unknown"] * 3)[:3]
    try:
        clusters = read_clusters(files)
    except MeasurementError:
        clusters = ()
    free = re.search(r"^MemAvailable:\s*(\d+) kB", files.get("/proc/meminfo", ""), re.MULTILINE)
    said = [files.get(name, "").strip() for name in ("ro.build.version.release", "ro.build.fingerprint")]
    return About(
        machine=machine,
        kernel=kernel,
        name=_name(files, host, clusters),
        clusters=clusters,
        free_bytes=int(free[1]) * 1024 if free else 0,
        folder=files.get("pwd", "/").strip(),
        build=" ".join(word for word in said if word),
    )


def read_state(transport: Transport) -> dict[str, str]:
    """Governor, clock, temperature, battery and load of this moment, as far as the device tells.

    Raises:
        TransportError: It does not answer.
    """
    ended = transport.run(["sh", "-c", STATE], timeout_s=ANSWER_S)
    files = split_files(ended.out.decode(errors="replace"))

    def every(ending: str) -> str:
        found = (content.strip() for path, content in files.items() if path.endswith(ending))
        return ",".join(dict.fromkeys(word for word in found if word)) or "not readable"

    heat = [int(word) for word in every("/temp").split(",") if re.fullmatch(r"-?\d+", word)]
    battery = re.findall(r"^ +((?:level|temperature|AC powered): \S+)", files.get("battery", ""), re.MULTILINE)
    status = re.search(r"Thermal Status: (\d+)", files.get("thermal", ""))
    return {
        "scaling_governor": every("/scaling_governor"),
        "scaling_cur_freq": every("/scaling_cur_freq"),
        "temperature": str(max(heat)) if heat else "not readable",
        "thermal_status": status[1] if status else "not readable",
        "power": " ".join(battery) or f"{every('/capacity')} {every('/status')}",
        "load": every("/loadavg").partition(" ")[0] if "/proc/loadavg" in files else "not readable",
    }


def _name(files: Mapping[str, str], host: str, clusters: tuple[Cluster, ...]) -> str:
    """As its maker calls it: phone and chip, board, or processor."""

    def word(name: str) -> str:
        return " ".join(files.get(name, "").replace("\0", "").split())

    num_cores = sum(len(cluster.cores) for cluster in clusters)
    if model := word("ro.product.model"):
        maker = word("ro.product.manufacturer")
        whole = model if model.lower().startswith(maker.lower()) else f"{maker} {model}"
        chip = f"{word('ro.soc.manufacturer')} {word('ro.soc.model')}".strip() or word("ro.board.platform")
        return f"{whole} ({chip})" if chip else whole
    if board := word("/proc/device-tree/model"):
        return f"{board} ({num_cores} cores)"
    named = re.search(r"^model name\s*:\s*(.+)$", files.get("/proc/cpuinfo", ""), re.MULTILINE)
    return f"{' '.join(named[1].split()) if named else host} ({num_cores} cores)"
