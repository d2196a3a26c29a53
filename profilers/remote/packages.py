"""Public packages that a bundle is made of: ONNX Runtime's wheel and Debian's cross libraries, fetched and unpacked."""

from __future__ import annotations

import fnmatch
import importlib.util
import io
import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from hwnas.errors import MeasurementError, MissingPackageError, UsageError

GLIBC_PACKAGES = ("libc6-arm64-cross", "libstdc++6-arm64-cross", "libgcc-s1-arm64-cross")
"""Debian's packages of the libraries of an arm64 Linux, for use on any machine."""

PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_34", "manylinux2014")
"""Tags under which ONNX Runtime's wheels are published."""

LIBRARY_PATH = "onnxruntime/capi/libonnxruntime.so"
"""In a wheel; the version follows."""

FETCH_S = 300.0


def runtime_version() -> str:
    """Version of the ONNX Runtime installed here.

    Raises:
        MissingPackageError: None is installed.
    """
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise MissingPackageError("onnxruntime is not installed here. Run: pip install onnxruntime")


def installed_library(version: str) -> bytes | None:
    """ONNX Runtime's library of the package installed here; None if it has none beside its Python module."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "capi" / f"libonnxruntime.so.{version}"
    return path.read_bytes() if path.is_file() else None


def wheel_library(wheel: Path) -> bytes:
    """ONNX Runtime's library out of a wheel of the version installed here.

    Raises:
        UsageError: The file is no wheel, or has no such library, or that of another version.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = fnmatch.filter(archive.namelist(), f"{LIBRARY_PATH}.[0-9]*")
            if len(names) == 1:
                found, here = names[0].removeprefix(f"{LIBRARY_PATH}."), runtime_version()
                if found != here:
                    raise UsageError(
                        f"{wheel} holds ONNX Runtime {found}; here is {here}, and the device must run the same. Give "
                        f"the wheel of {here}, or install onnxruntime=={found} here."
                    )
                return archive.read(names[0])
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{wheel} cannot be read as a wheel ({error}). Download it again.") from error
    raise UsageError(f"{wheel} has no {LIBRARY_PATH}; use an onnxruntime wheel of 1.23 or later.")


def fetch_wheel(version: str, machine: str) -> bytes:
    """ONNX Runtime's library for another machine, out of the public wheel.

    Raises:
        MeasurementError: It cannot be downloaded; names the command and what to do without a network.
    """
    with tempfile.TemporaryDirectory() as folder:
        tags = [word for platform in PLATFORMS for word in ("--platform", f"{platform}_{machine}")]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--implementation", "cp", *tags, f"onnxruntime=={version}"]
        _fetch(command, folder, f"the wheel of onnxruntime {version} for {machine}", "HWNAS_WHEEL to its path")
        return wheel_library(next(Path(folder).glob("*.whl")))


def fetch_glibc() -> list[bytes]:
    """Debian's cross libraries of arm64; nothing is installed.

    Raises:
        MeasurementError: They cannot be downloaded; names the command and the other ways.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["apt-get", "download", *GLIBC_PACKAGES]
        other = "HWNAS_DEBS to their paths, or HWNAS_SYSROOT to a folder with an arm64 glibc, as copied from a board"
        _fetch(command, folder, "the C library for arm64", other)
        return [path.read_bytes() for path in sorted(Path(folder).glob("*.deb"))]


def deb_files(content: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """Files of a Debian package by their last name; links are followed.

    Raises:
        UsageError: It is no Debian package, or packed in a way that this Python cannot read.
    """
    try:
        packed = next(data for name, data in members(content) if name.startswith("data.tar"))
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            wanted = [member for member in archive.getmembers() if Path(member.name).name in names]
            # A folder of locale data may hold the name, too; libraries are files or links to files.
            found = {Path(m.name).name: archive.extractfile(m) for m in wanted if m.isfile() or m.issym()}
            return {name: file.read() for name, file in found.items() if file is not None}
    except (StopIteration, KeyError, ValueError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UsageError(
            f"a .deb file cannot be unpacked ({error or 'it is no Debian package'}). Download it again: "
            f"apt-get download {' '.join(GLIBC_PACKAGES)}"
        ) from error


def sysroot_files(sysroot: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Files of those names in the folder or its ``lib`` folders, the first found of each."""
    places = [sysroot / place for place in (".", "lib", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib64")]
    found: dict[str, bytes] = {}
    for path in (place / name for name in names for place in places):
        if path.name not in found and path.is_file():
            found[path.name] = path.read_bytes()
    return found


def library_files(
    names: Sequence[str], *, sysroot: Path | None = None, debs: Sequence[bytes] = ()
) -> Mapping[str, bytes]:
    """Libraries out of a folder or out of packages.

    Raises:
        UsageError: Some are not there; names them.
    """
    found = sysroot_files(sysroot, names) if sysroot is not None else {}
    for deb in debs:
        found |= deb_files(deb, names)
    missing = [name for name in names if name not in found]
    if missing:
        place = str(sysroot) if sysroot is not None else "the packages"
        raise UsageError(
            f"{place} lacks {', '.join(missing)}; needed are the libraries of an arm64 Linux. Get them with: "
            f"apt-get download {' '.join(GLIBC_PACKAGES)}"
        )
    return found


def _fetch(command: Sequence[str], folder: str, what: str, otherwise: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_S, check=False)
        fault = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        fault = [str(error)]
    if fault is not None:
        raise MeasurementError(
            f"{what} cannot be fetched ({' '.join(fault) or 'the command failed'}). Where there is a network, run "
            f"'{' '.join(command)}', then set {otherwise}."
        )


def members(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an ``ar`` archive: a header of 60 bytes each, aligned to 2.

    Raises:
        ValueError: It is none.
    """
    if content[:8] != b"!<arch>\n":
        raise ValueError("it is no Debian package")
    at = 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16].decode().strip().rstrip("/"), int(content[at + 48 : at + 58])
        yield name, content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
