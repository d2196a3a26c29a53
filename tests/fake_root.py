"""A root folder with the kernel files of an imitated Arm processor, for ``qemu-aarch64-static -L`` and for readers.

Without one, qemu 7.2 shows the host's processor, with which ONNX Runtime's detection of processors crashes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CPUS = "sys/devices/system/cpu"

PARTS = {"a53": 0xD03, "a55": 0xD05, "a510": 0xD46, "a72": 0xD08, "a76": 0xD0B, "a78": 0xD41, "a715": 0xD4D}
PARTS |= {"x1": 0xD44, "x3": 0xD4E}

FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


def write_root(folder: Path, layout: str, *, offline: Iterable[int] = ()) -> Path:
    """Writes the files of a layout such as ``a55:4:1804800,a78:3:2419200,x1:1:2841600``: part, cores, highest kHz."""
    cores = [part for part in layout.split(",") for _ in range(int(part.split(":")[1]))]
    online = [core for core in range(len(cores)) if core not in set(offline)]
    blocks = []
    for core in online:
        part, _, khz = cores[core].split(":")
        blocks.append(
            f"processor\t: {core}\nBogoMIPS\t: 38.40\nFeatures\t: {FEATURES}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {PARTS[part]:#x}\nCPU revision\t: 0\n"
        )
        siblings = [other for other in range(len(cores)) if cores[other] == cores[core]]
        files = {
            "cpufreq/cpuinfo_max_freq": khz,
            "cpufreq/cpuinfo_min_freq": "300000",
            "cpufreq/scaling_cur_freq": khz,
            "topology/physical_package_id": "0",
            "topology/core_id": str(core),
            "topology/cluster_cpus_list": f"{siblings[0]}-{siblings[-1]}",
            "topology/core_siblings_list": f"0-{len(cores) - 1}",
            "topology/thread_siblings_list": str(core),
        }
        for name, content in files.items():
            write(folder / CPUS / f"cpu{core}" / name, content)
    everything = f"0-{len(cores) - 1}"
    for name, content in {"possible": everything, "present": everything, "online": ",".join(map(str, online))}.items():
        write(folder / CPUS / name, content)
    write(folder / "proc/cpuinfo", "\n".join(blocks))
    return folder


def write(path: Path, content: str) -> None:
    """A file as the kernel shows it, with a line end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n")
