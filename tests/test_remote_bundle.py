"""What a device is sent: fetched, unpacked, compiled, checked and kept."""

from __future__ import annotations

import importlib.util
import io
import os
import platform
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hwnas.profilers.remote import bundle, packages
from hwnas.profilers.remote.bundle import GLIBC, HEADERS, LIBRARY, LOADER, RUNNER, SOURCES, Bundle, create_bundle
from hwnas.profilers.remote.elf import faults, read_elf

from hwnas.errors import HwnasError, MeasurementError, MissingPackageError, OutputError, UsageError

RUNNER_SOURCES = Path(bundle.__file__).with_name("runner")

HEADER = Path(os.environ.get("HWNAS_ORT_HEADERS", "/usr/include/onnxruntime"))


def needed(machine: str) -> Bundle:
    """The bundle for a machine; skips where its parts cannot be had."""
    try:
        return create_bundle(machine)
    except HwnasError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def native() -> Bundle:
    """The bundle for this machine."""
    return needed(platform.machine())


def elf(machine: int = 183, align: int = 65536, needs: tuple[str, ...] = (), *, stack: int = 6, tag: int = 0) -> bytes:
    """A library with one loaded segment, as little of it as is read; ``tag`` adds an entry with value 4."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in needs)
    offsets = [1 + sum(len(name) + 1 for name in needs[:i]) for i in range(len(needs))]
    start = 64 + 3 * 56
    entries = [(1, offset) for offset in offsets] + [(5, 0x1000 + start)] + ([(tag, 4)] if tag else []) + [(0, 0)]
    size = len(names) + 16 * len(entries)
    segments = [
        struct.pack("<IIQQQQQQ", 1, 5, 0, 0x1000, 0, start + size, start + size, align),
        struct.pack("<IIQQQQQQ", 2, 6, start + len(names), 0, 0, 16 * len(entries), 0, 8),
        struct.pack("<IIQQQQQQ", 0x6474E551, stack, 0, 0, 0, 0, 0, 16),
    ]
    head = b"\x7fELF\x02\x01" + bytes(10)
    head += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    return head + b"".join(segments) + names + b"".join(struct.pack("<qQ", *entry) for entry in entries)


def deb(files: dict[str, bytes], links: dict[str, str] | None = None, kind: str = "xz") -> bytes:
    """A Debian package of files and symbolic links."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{kind}") as archive:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{kind}": packed.getvalue()}
    padded = (
        f"{n:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(c):<10}`\n".encode() + c + b"\n" * (len(c) % 2)
        for n, c in parts.items()
    )
    return b"!<arch>\n" + b"".join(padded)


def test_a_sound_library_has_no_faults() -> None:
    read = read_elf(elf(needs=("libc.so.6", "libm.so.6")))
    assert (read.machine, read.alignment, read.needed) == ("aarch64", 65536, ("libc.so.6", "libm.so.6"))
    assert faults(read, "aarch64") == []


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (elf(machine=62), "it is for x86_64"),
        (elf(machine=40), "it is for 40"),
        (elf(align=4096), "aligned to 4096 bytes"),
        (elf(tag=22), "text relocations"),
        (elf(tag=30), "text relocations"),  # the flag 4
        (elf(stack=7), "executable stack"),
    ],
)
def test_each_fault_is_found(content: bytes, part: str) -> None:
    assert [part in fault for fault in faults(read_elf(content), "aarch64")] == [True]


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", elf()[:100], elf(needs=("libc.so.6",))[:250]])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(UsageError, match="ELF"):
        read_elf(content)


def test_every_library_must_be_there() -> None:
    sound = dict.fromkeys(GLIBC, elf())
    bundle.check_files(sound | {RUNNER: elf(needs=("libc.so.6",))}, "aarch64")
    with pytest.raises(
        UsageError, match=r"runner: it needs libgomp\.so\.1, which the bundle lacks.*libc.*is for x86_64"
    ):
        bundle.check_files({RUNNER: elf(needs=("libgomp.so.1",))} | sound | {"libc.so.6": elf(machine=62)}, "aarch64")


def test_libraries_out_of_packages() -> None:
    lib = "./usr/aarch64-linux-gnu/lib/"
    content = deb(
        {f"{lib}libc.so.6": b"c", f"{lib}libstdc++.so.6.0.30": b"cc"}, {f"{lib}libstdc++.so.6": "libstdc++.so.6.0.30"}
    )
    assert packages.deb_files(content, GLIBC) == {"libc.so.6": b"c", "libstdc++.so.6": b"cc"}
    assert packages.deb_files(deb({f"{lib}libc.so.6": b"odd"}, kind="gz"), GLIBC) == {"libc.so.6": b"odd"}
    with pytest.raises(UsageError, match=r"lacks ld-linux-aarch64.so.1, libm.so.6.*apt-get download"):
        packages.library_files(GLIBC, debs=[content])


@pytest.mark.parametrize(
    "content", [b"", b"no package", deb({})[:150], deb({"a": b"x" * 99}).replace(b"data.tar", b"nope.tar")]
)
def test_spoilt_packages(content: bytes) -> None:
    with pytest.raises(UsageError, match="cannot be unpacked"):
        packages.deb_files(content, GLIBC)


def test_libraries_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    for name in GLIBC:
        (tmp_path / "lib" / name).write_bytes(name.encode())
    assert packages.library_files(GLIBC, sysroot=tmp_path) == {name: name.encode() for name in GLIBC}
    (tmp_path / "lib" / LOADER).unlink()
    with pytest.raises(UsageError, match=rf"lacks {LOADER}"):
        packages.library_files(GLIBC, sysroot=tmp_path)


def test_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "any name.whl"
    for names, part in [(["onnxruntime/capi/other.so"], "has no onnxruntime/capi/libonnxruntime.so"), ([], "has no")]:
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
        with pytest.raises(UsageError, match=part):
            packages.wheel_library(wheel)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("onnxruntime/capi/libonnxruntime.so.1.0.9", b"library")
        archive.writestr("onnxruntime/capi/libonnxruntime_providers_shared.so", b"x")
    with pytest.raises(UsageError, match=r"holds ONNX Runtime 1\.0\.9; here is .* install onnxruntime==1\.0\.9"):
        packages.wheel_library(wheel)
    monkeypatch.setattr(packages, "runtime_version", lambda: "1.0.9")
    assert packages.wheel_library(wheel) == b"library"
    wheel.write_bytes(b"no archive")
    with pytest.raises(UsageError, match="cannot be read as a wheel"):
        packages.wheel_library(wheel)


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        MeasurementError, match=r"pip download .*manylinux_2_28_aarch64.* onnxruntime==1\.31\.1'.*HWNAS_WHEEL"
    ):
        packages.fetch_wheel("1.31.1", "aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MeasurementError, match=r"No such file.*apt-get download libc6-arm64-cross .*HWNAS_DEBS.*HWNAS_SYSROOT"
    ):
        packages.fetch_glibc()


def test_other_machines_are_refused() -> None:
    with pytest.raises(UsageError, match="no bundle for 'armv7l', only for x86_64 and aarch64"):
        create_bundle("armv7l")
    with pytest.raises(UsageError, match=r"missing\.whl cannot be read"):
        create_bundle("aarch64", wheel=Path("missing.whl"))


def test_a_kept_bundle_is_used_again_unless_it_is_spoilt(
    native: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = Path(shutil.copytree(native.folder, tmp_path / "bundles" / native.folder.name))
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path))
    compiled: list[str] = []
    runner = (kept / RUNNER).read_bytes()
    monkeypatch.setattr(bundle, "compile_runner", lambda machine: compiled.append(machine) or runner)
    first = create_bundle(native.machine)
    assert (first.folder, first.digest, compiled) == (kept, native.digest, [])
    assert set(first.paths()) == {RUNNER, LIBRARY}
    for spoilt in (RUNNER, LIBRARY, bundle.MANIFEST):
        compiled.clear()
        (kept / spoilt).write_bytes(b"{}")
        assert create_bundle(native.machine).digest == native.digest
        assert compiled == [native.machine]
        assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert os.access(kept / RUNNER, os.X_OK)


def test_a_cache_that_cannot_be_written(native: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(bundle, "compile_runner", lambda machine: (native.folder / RUNNER).read_bytes())
    with pytest.raises(OutputError, match="Set HWNAS_CACHE"):
        create_bundle(native.machine)


def test_without_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else real(name))
    with pytest.raises(MissingPackageError, match=r"pip install 'hwnas\[remote\]'"):
        create_bundle(platform.machine())


def test_the_runner_is_the_same_from_an_empty_cache(
    native: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compiled in other folders, with nothing kept from before."""
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path))
    assert bundle.compile_runner(native.machine) == (native.folder / RUNNER).read_bytes()


def test_all_sources_are_named() -> None:
    assert {path.name for path in RUNNER_SOURCES.iterdir()} == {*SOURCES, *HEADERS, "abi_check.c"}


def test_the_bundle_of_a_phone() -> None:
    """Its own loader starts the runner; every file would be loaded by a kernel with pages of 16 KiB."""
    phone = needed("aarch64")
    assert set(phone.files) == {RUNNER, LIBRARY, *GLIBC}
    assert phone.command("/d", "/j/job") == [f"/d/{LOADER}", "--library-path", "/d", "/d/runner", "/j/job"]
    assert phone.library("/d") == f"/d/{LIBRARY}"
    contents = {name: path.read_bytes() for name, path in phone.paths().items()}
    bundle.check_files(contents, "aarch64")
    assert all(read_elf(content).alignment >= 16384 for content in contents.values())
    assert phone.runtime_version == packages.runtime_version()


def check_abi(folder: Path) -> subprocess.CompletedProcess[str]:
    """Compiles the comparison with the official header."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.28", "-std=c11", f"-I{HEADER}"]
    cache = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(bundle.cache_folder() / "zig"))
    command += ["-c", "abi_check.c", "-o", "abi_check.o"]
    return subprocess.run(
        command, cwd=folder, env=os.environ | cache, capture_output=True, text=True, timeout=60, check=False
    )


def test_slots_agree_with_the_official_header(tmp_path: Path) -> None:
    if not (HEADER / "onnxruntime_c_api.h").exists() or importlib.util.find_spec("ziglang") is None:
        pytest.skip(
            f"no onnxruntime_c_api.h in {HEADER} (Debian: libonnxruntime-dev; HWNAS_ORT_HEADERS), or no ziglang"
        )
    folder = Path(shutil.copytree(RUNNER_SOURCES, tmp_path / "runner"))
    done = check_abi(folder)
    assert done.returncode == 0, done.stderr
    slots = (folder / "ort_slots.h").read_text()
    for right, wrong in [
        ("SLOT(133,", "SLOT(134,"),
        ("SetIntraOpNumThreads, (OrtSessionOptions *, int)", "SetIntraOpNumThreads, (int)"),
    ]:
        assert right in slots
        (folder / "ort_slots.h").write_text(slots.replace(right, wrong))
        assert "static assertion failed" in check_abi(folder).stderr
