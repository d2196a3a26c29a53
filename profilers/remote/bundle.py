"""What a device is sent: ONNX Runtime's public library, the runner, and the C library a phone does not have.

It is assembled on this machine out of public packages, checked, and kept under the user's cache folder; nothing but the
runner's source comes with hwnas.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hwnas.errors import MeasurementError, MissingPackageError, OutputError, RunError, UsageError
from hwnas.files import read_json, write_json

from .elf import MACHINES, faults, read_elf
from .packages import fetch_glibc, fetch_wheel, installed_library, library_files, runtime_version, wheel_library

RUNNER, LIBRARY, LOADER = "runner", "libonnxruntime.so.1", "ld-linux-aarch64.so.1"
GLIBC = (
    LOADER,
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libstdc++.so.6",
    "libgcc_s.so.1",
)
"""What the library and the runner need of the system, by file name."""

SOURCES = ("runner.c", "job.c", "lines.c", "device.c", "ort.c", "model.c", "tensor.c")
HEADERS = ("job.h", "lines.h", "device.h", "ort.h", "ort_slots.h", "model.h", "tensor.h")
FLAGS = ("-O2", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-fPIE", "-pie", "-s")
GLIBC_VERSION = "2.28"
"""The oldest the runner starts with; ONNX Runtime's wheels ask for the same."""

MANIFEST = "manifest.json"
COMPILE_S = 300.0


@dataclass(frozen=True)
class Bundle:
    """Files for one kind of machine, and how they are started.

    Args:
        folder: Where they lie on this machine.
        machine: ``aarch64`` or ``x86_64``.
        runtime_version: ONNX Runtime's.
        files: File name -> sha256.
        compiler: What compiled the runner.
    """

    folder: Path
    machine: str
    runtime_version: str
    files: Mapping[str, str]
    compiler: str

    @property
    def digest(self) -> str:
        """One sha256 for all files."""
        listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(listed.encode()).hexdigest()

    def paths(self) -> dict[str, Path]:
        """File name -> path on this machine."""
        return {name: self.folder / name for name in self.files}

    def library(self, folder: str) -> str:
        """What a job names as its library where the bundle lies in ``folder`` of the device."""
        return f"{folder}/{LIBRARY}"

    def command(self, folder: str, job: str) -> list[str]:
        """Starts a job where the bundle lies in ``folder`` of the device."""
        start = [f"{folder}/{RUNNER}", job]
        return [f"{folder}/{LOADER}", "--library-path", folder, *start] if LOADER in self.files else start


def cache_folder() -> Path:
    """``HWNAS_CACHE``, else ``hwnas`` in the user's cache folder, which is ``~/.cache`` or ``XDG_CACHE_HOME``."""
    chosen = os.environ.get("HWNAS_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwnas"


def create_bundle(
    machine: str = "aarch64",
    *,
    wheel: Path | None = None,
    sysroot: Path | None = None,
    debs: Sequence[Path] = (),
) -> Bundle:
    """The bundle for a kind of machine, out of the cache or made anew.

    Args:
        machine: ``aarch64`` (brings its own C library), or ``x86_64`` (uses that of the system).
        wheel: onnxruntime's wheel for that machine; without it, the version installed here is fetched.
        sysroot: Folder with an arm64 glibc; without it, Debian's packages are fetched.
        debs: Those packages, where they cannot be fetched.

    Raises:
        UsageError: No such machine, or a file given is not what it should be.
        MissingPackageError: The compiler or onnxruntime is not installed.
        MeasurementError: Something cannot be fetched or compiled; names the command.
        OutputError: The cache folder cannot be written to.
    """
    if machine not in MACHINES.values():
        raise UsageError(
            f"there is no bundle for '{machine}', only for {' and '.join(MACHINES.values())}: ONNX Runtime publishes "
            "no library for other machines. A 64-bit processor may need a 64-bit operating system."
        )
    key = _key(machine, wheel, sysroot, debs)
    folder = cache_folder() / "bundles" / f"{machine}-{key[:16]}"
    kept = _load(folder)
    if kept is not None:
        return kept
    files = {RUNNER: compile_runner(machine), LIBRARY: _runtime(machine, wheel)}
    if machine == "aarch64":
        packed = [path.read_bytes() for path in debs] or ([] if sysroot else fetch_glibc())
        files |= library_files(GLIBC, sysroot=sysroot, debs=packed)
    check_files(files, machine)
    return _store(folder, machine, runtime_version(), files)


def given_parts() -> dict[str, Any]:
    """Arguments of ``create_bundle`` for a machine without a network, out of the environment.

    ``HWNAS_WHEEL`` and ``HWNAS_SYSROOT`` are paths, ``HWNAS_DEBS`` several with colons in between.
    """
    parts: dict[str, Any] = {
        name: Path(os.environ[f"HWNAS_{name.upper()}"])
        for name in ("wheel", "sysroot")
        if os.environ.get(f"HWNAS_{name.upper()}")
    }
    debs = os.environ.get("HWNAS_DEBS")
    return parts | ({"debs": [Path(each) for each in debs.split(os.pathsep)]} if debs else {})


def compile_runner(machine: str) -> bytes:
    """The runner for a machine; the same bytes for the same sources and compiler.

    Raises:
        MissingPackageError: The compiler is not installed.
        MeasurementError: It fails.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise MissingPackageError(
            "the runner for the device has to be compiled, and the package ziglang is not installed. Run: "
            "pip install 'hwnas[remote]'"
        )
    with tempfile.TemporaryDirectory() as folder:
        for name in (*SOURCES, *HEADERS):
            shutil.copy(_source(name), folder)
        target = f"{machine}-linux-gnu.{GLIBC_VERSION}"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *FLAGS, "-o", RUNNER, *SOURCES, "-ldl"]
        cache = cache_folder() / "zig"
        environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=COMPILE_S, check=False
            )
            fault = done.stderr if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            fault = str(error)
        if fault:
            raise MeasurementError(f"the runner cannot be compiled with '{' '.join(command)}': {fault[-2000:]}")
        return (Path(folder) / RUNNER).read_bytes()


def check_files(files: Mapping[str, bytes], machine: str) -> None:
    """Whether a device of that machine would load the files and finds all libraries among them.

    Raises:
        UsageError: It would not; names every fault.
    """
    found: list[str] = []
    for name, content in files.items():
        try:
            elf = read_elf(content)
        except UsageError as error:
            found.append(f"{name}: {error}")
            continue
        found += [f"{name}: {fault}" for fault in faults(elf, machine)]
        lacking = [needed for needed in elf.needed if needed not in files] if LOADER in files else []
        found += [f"{name}: it needs {needed}, which the bundle lacks" for needed in lacking]
    if found:
        raise UsageError(
            f"the bundle for {machine} cannot be used. {'; '.join(found)}. Give another wheel, sysroot or packages."
        )


def _runtime(machine: str, wheel: Path | None) -> bytes:
    if wheel is not None:
        return wheel_library(wheel)
    version = runtime_version()
    here = installed_library(version) if machine == os.uname().machine else None
    return here if here is not None else fetch_wheel(version, machine)


def _source(name: str) -> Path:
    return Path(__file__).with_name("runner") / name


def _key(machine: str, wheel: Path | None, sysroot: Path | None, debs: Sequence[Path]) -> str:
    """What a bundle depends on: another compiler alone does not make a new one."""
    sources = [_source(name).read_bytes() for name in (*SOURCES, *HEADERS)]
    parts = [machine.encode(), repr((FLAGS, GLIBC_VERSION, GLIBC)).encode(), *sources]
    try:
        parts += [runtime_version().encode(), *(path.read_bytes() for path in (*debs, *([wheel] if wheel else ())))]
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}. Give the path of a file.") from error
    if sysroot is not None:
        parts += [content for _, content in sorted(library_files(GLIBC, sysroot=sysroot).items())]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _load(folder: Path) -> Bundle | None:
    """What is kept in a folder; None if it is not there or not what was stored."""
    try:
        stored: dict[str, Any] = read_json(folder / MANIFEST)
        bundle = Bundle(folder, stored["machine"], stored["runtime_version"], stored["files"], stored["compiler"])
        sound = all(
            hashlib.sha256(path.read_bytes()).hexdigest() == bundle.files[n] for n, path in bundle.paths().items()
        )
    except (RunError, OSError, KeyError, TypeError, AttributeError):
        return None
    return bundle if sound else None


def _store(folder: Path, machine: str, version: str, files: Mapping[str, bytes]) -> Bundle:
    """Writes beside the folder, then renames: two processes may do so at once."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    bundle = Bundle(folder, machine, version, digests, f"ziglang {metadata.version('ziglang')}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as temporary:
            making = Path(temporary) / "bundle"
            making.mkdir()
            for name, content in files.items():
                (making / name).write_bytes(content)
                (making / name).chmod(0o755)
            stored = {"machine": machine, "runtime_version": version, "compiler": bundle.compiler}
            write_json(making / MANIFEST, stored | {"digest": bundle.digest, "files": digests})
            quicker = _load(folder)
            if quicker is not None:
                return quicker
            if folder.exists():  # spoilt
                folder.rename(Path(temporary) / "old")
            making.rename(folder)
    except OSError as error:
        raise OutputError(
            f"the bundle cannot be kept in {folder} ({error.strerror or error}). Set HWNAS_CACHE to another folder."
        ) from error
    return bundle
