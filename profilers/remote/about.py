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
  /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp \\
  /sys/class/power_supply/*/capacity /sys/class/power_supply/*/status /proc/loadavg
do [ -r "$f" ] && echo "==> $f" && cat "$f" 2>/dev/null; done
if command -v dumpsys >/dev/null; then
  echo "==> battery"; dumpsys battery; echo "==> thermal"; dumpsys thermalservice
fi
true"""
"""What changes from minute to minute."""

NO_TEMPERATURE = re.compile(
    r"vbat|ibat|bcl|lvl|batoilo|battery_cycle|vdroop|smpl|ocp_|pmic_1\d0c|pmic_overheat|hw-trip|^socd?$"
)
"""Types of phones' thermal zones that hold volts, amperes, the battery's charge, or a limit.

Source:
    Battery current limits of Qualcomm's and Google's kernels (bcl_pmic5.c, google_bcl.c).
"""

HEAT = (-40.0, 150.0)
"""Degrees in which processors work; sensors that are off say less, zones of other kinds mostly more."""

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
    """Governor, clock, highest temperature, battery and load of this moment, as far as the device tells.

    Raises:
        TransportError: It does not answer.
    """
    ended = transport.run(["sh", "-c", STATE], timeout_s=ANSWER_S)
    files = split_files(ended.out.decode(errors="replace"))

    def every(ending: str) -> str:
        found = (content.strip() for path, content in files.items() if path.endswith(ending))
        return ",".join(dict.fromkeys(word for word in found if word))

    heat = _celsius(files)
    powers = r"^ +((?:level|temperature|AC powered|USB powered): \S+)"
    battery = re.findall(powers, files.get("battery", ""), re.MULTILINE)
    status = re.search(r"Thermal Status: (\d+)", files.get("thermal", ""))
    state = {
        "scaling_governor": every("/scaling_governor"),
        "scaling_cur_freq": every("/scaling_cur_freq"),
        "temperature_celsius": f"{max(heat):g}" if heat else "",
        "thermal_status": status[1] if status else "",
        "power": " ".join(battery) or f"{every('/capacity')} {every('/status')}".strip(),
        "load": every("/loadavg").partition(" ")[0],
    }
    return {name: value or "not readable" for name, value in state.items()}


def _celsius(files: Mapping[str, str]) -> list[float]:
    """Temperatures of all thermal zones; the kernel counts in thousandths, some drivers in whole degrees."""
    found = []
    for path, content in files.items():
        zone, _, name = path.rpartition("/")
        is_number = name == "temp" and re.fullmatch(r"-?\d+", content.strip())
        if is_number and not NO_TEMPERATURE.search(files.get(f"{zone}/type", "").strip().lower()):
            value = float(content)
            found.append(value / 1000 if abs(value) > 1000 else value)
    return [value for value in found if HEAT[0] <= value <= HEAT[1]]


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
