"""Boots a real arm64 Linux under qemu-system, with no library in its root, and runs the bundle of a phone there.

The nearest thing to a phone without one: a kernel of 4 KiB or 16 KiB pages, a root that holds a static busybox, the
bundle and two networks; as root, then as Android's shell user (2000). Outputs are held against this machine's. Kernels
(about 100 MB each) and busybox are fetched from Debian with a state of apt of its own, and kept under the cache folder;
nothing is installed. Emulated times mean nothing.

    apt-get install qemu-system-arm
    python benchmarks/boot_arm64.py             # both kernels; exit code 1 unless all outputs are right
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hwnas.profilers.onnxruntime import load_runtime
from hwnas.profilers.remote.bundle import cache_folder, create_bundle
from hwnas.profilers.remote.doctor import SHAPE, golden_model
from hwnas.profilers.remote.inputs import fixed_input
from hwnas.profilers.remote.jobs import Job, JobModel
from hwnas.profilers.remote.packages import members
from hwnas.profilers.remote.records import Block, Bye, Hello, read_lines
from lines import Lines

from hwnas.onnx_precision import to_precision

KERNELS = {"4k": "linux-image-arm64", "16k": "linux-image-arm64-16k"}
SUITE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main\n"
BOOT_S = 300.0

INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for u in root shell; do
  $b chown -R $u /work
  echo "user $u"
  $b su $u -c '/d/ld-linux-aarch64.so.1 --library-path /d /d/runner /work/job'
  echo "code $?"
  for f in 1 2; do echo "output $f $($b base64 -w0 /work/$f.0.out)"; $b rm -f /work/$f.0.out; done
done
$b find / -xdev -name 'onnxruntime.db*' -o -xdev -name deviceid
echo finished
$b poweroff -f
"""


def fetch(name: str) -> bytes:
    """The newest arm64 package of a name in Debian 13, by an apt of its own."""
    kept = cache_folder() / "arm64"
    kept.mkdir(parents=True, exist_ok=True)
    if found := sorted(kept.glob(f"{name}_*.deb")):
        return found[-1].read_bytes()
    state = kept / "apt"
    for part in ("lists/partial", "cache/archives/partial", "empty"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text(SUITE)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "root",
        "Dir::State": state, "Dir::State::status": state / "status",
        "Dir::State::lists": state / "lists", "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": state / "empty",
    }  # fmt: skip
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    if not any((state / "lists").glob("*Packages*")):
        subprocess.run(["apt-get", *words, "update", "-qq"], check=True)
    if name in KERNELS.values():  # an empty package that depends on the newest kernel
        said = subprocess.run(["apt-cache", *words, "depends", name], check=True, capture_output=True, text=True).stdout
        (real,) = re.findall(r"Depends: (linux-image-\S+)", said)
        content = fetch(real)
        (kept / f"{name}_{real}.deb").symlink_to(next(kept.glob(f"{real}_*.deb")).name)
        return content
    subprocess.run(["apt-get", *words, "download", "-qq", name], check=True, cwd=kept)
    return next(kept.glob(f"{name}_*.deb")).read_bytes()


def unpacked(deb: bytes, name: str) -> bytes:
    """The file of a package whose path has that in it."""
    packed = next(data for part, data in members(deb) if part.startswith("data.tar"))
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        file = archive.extractfile(next(m for m in archive.getmembers() if m.isfile() and name in m.name))
        assert file is not None
        return file.read()


def newc(files: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """An initial root file system (cpio, "newc"): path -> mode and content."""
    for inode, (path, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        name = path.encode() + b"\0"
        numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
        yield head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def root(networks: dict[int, Any]) -> bytes:
    """The whole file system of the machine."""
    bundle = create_bundle("aarch64")
    models = tuple(JobModel(number, f"{number}.onnx", dump=True) for number in networks)
    job = Job(library=bundle.library("/d"), batches=(models,), rounds=2, warmup_ms=0, block_ms=0, cores=(0,))
    files = dict.fromkeys(("bin", "d", "etc", "work"), (0o040755, b""))
    files["bin/sh"] = (0o120777, b"busybox")
    files["etc/passwd"] = (0o100644, b"root:x:0:0::/:/bin/sh\nshell:x:2000:2000::/:/bin/sh\n")
    files["init"] = (0o100755, INIT.encode())
    files["bin/busybox"] = (0o100755, unpacked(fetch("busybox-static"), "/bin/busybox"))
    files |= {f"d/{name}": (0o100755, path.read_bytes()) for name, path in bundle.paths().items()}
    files |= {f"work/{number}.onnx": (0o100644, each.SerializeToString()) for number, each in networks.items()}
    return b"".join(newc(files | {"work/job": (0o100644, job.text().encode())}))


def booted(kernel: bytes, initial: bytes) -> list[str]:
    """What the machine says from power on to power off."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel").write_bytes(kernel)
        (Path(folder) / "initrd").write_bytes(gzip.compress(initial, 1))
        command = [
            "qemu-system-aarch64",
            "-machine",
            "virt",
            "-cpu",
            "cortex-a76",
            "-m",
            "1024",
            "-nographic",
            "-nic",
            "none",
            "-no-reboot",
        ]
        command += [
            "-kernel",
            f"{folder}/kernel",
            "-initrd",
            f"{folder}/initrd",
            "-append",
            "console=ttyAMA0 quiet panic=-1",
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=BOOT_S, check=False)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def faults(said: list[str], expected: dict[int, np.ndarray], say: Lines) -> list[str]:
    """What is wrong with one boot; says what the runner found."""
    if "finished" not in said:
        return ["it did not come to its end: " + " | ".join(said[-5:])]
    wrong = [f"a file of the telemetry: {line}" for line in said if "onnxruntime.db" in line or "deviceid" in line]
    starts = [i for i, line in enumerate(said) if line.startswith("user ")]
    for start, end in zip(starts, [*starts[1:], len(said)], strict=True):
        part, user = said[start:end], said[start]
        records = list(read_lines(part)) if "code 0" in part else []
        if not records or not isinstance(records[0], Hello) or not isinstance(records[-1], Bye):
            wrong.append(f"{user}: the runner did not end well: {' | '.join(part[:6])}")
            continue
        blocks = sum(isinstance(record, Block) for record in records)
        say(f"   {user}: kernel {records[0].release}, pages of {records[0].page} bytes, {blocks} blocks")
        for number, ours in expected.items():
            _, _, text = next(line for line in part if line.startswith(f"output {number} ")).split(" ", 2)
            theirs = np.frombuffer(base64.b64decode(text), np.float32)
            worst = float(np.abs(theirs - ours.ravel()).max()) if theirs.size == ours.size else np.inf
            say(f"   {user}: network {number} differs from this machine's by {worst:.1e}")
            if not worst <= (1e-5 if number == 1 else 0.0):
                wrong.append(f"{user}: network {number} is off by {worst:.1e}")
    return wrong if len(starts) == 2 else [*wrong, "not both users ran"]


def main() -> int:
    """Boots the kernels that are asked for; how many were not right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", choices=[*KERNELS, "both"], default="both")
    pages, say = parser.parse_args().pages, Lines(None)
    if not shutil.which("qemu-system-aarch64"):
        say("no program qemu-system-aarch64 here; apt-get install qemu-system-arm")
        return 1
    networks = {1: golden_model(), 2: to_precision(golden_model(), "int8")}
    runtime, image = load_runtime(), fixed_input(1, 0, SHAPE)
    expected = {
        number: runtime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": image}
        )[0]
        for number, each in networks.items()
    }
    initial, wrong = root(networks), []
    for name in KERNELS if pages == "both" else [pages]:
        say(f"{name} pages, {KERNELS[name]}")
        wrong += faults(booted(unpacked(fetch(KERNELS[name]), "/boot/vmlinuz-"), initial), expected, say)
    say("\n".join(wrong) or "all right")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(min(1, main()))
