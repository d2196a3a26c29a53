"""Fixtures: devices elsewhere that are this machine, reached by each way, and a sweep that takes a moment.

A test file takes them by name out of ``runpy.run_path``; homes and servers are then its own.
"""

from __future__ import annotations

import os
import platform
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hwnas.profilers.remote import session as remote_session
from hwnas.profilers.remote.profiler import RemoteProfiler

from hwnas.latency import rounds
from hwnas.latency.rounds import REFERENCE
from hwnas.latency.spread import spread
from hwnas.latency.sweep import profile
from hwnas.latency.table import LatencyTable
from hwnas.plugins import create_profiler
from hwnas.testing.toys import toy_space

HERE = Path(__file__).parent
TOOLS = runpy.run_path(str(HERE / "runner_device.py"))
network, needed = TOOLS["network"], TOOLS["needed"]

SPACE = toy_space()
CALM: dict[str, Any] = {"num_networks": 3, "num_rounds": 3, "visit_ms": 1.0}


@dataclass
class Reached:
    """A device by name, and where its files are."""

    name: str
    folder: Path
    phone: Any = None

    def profiler(self, **options: Any) -> RemoteProfiler:
        made = create_profiler("onnxruntime", device=self.name, **options)
        assert isinstance(made, RemoteProfiler)
        return made

    def left(self) -> list[str]:
        """Files on the device beside the bundle."""
        return [str(path) for path in (self.folder / "jobs").rglob("*")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Home of this module's devices; nothing but what is named here may be written into it."""
    home = tmp_path_factory.mktemp("home")
    (home / ".cache").mkdir()
    cache = os.environ.get("HWNAS_CACHE") or str(Path.home() / ".cache" / "hwnas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWNAS_CACHE", cache)
        patch.setenv("HOME", str(home))
        patch.setenv("HWNAS_DEVICE_FOLDER", str(home / "device"))
        yield home
    telemetry = [path for path in home.rglob("*") if "Microsoft" in path.parts or "onnxruntime.db" in path.name]
    assert telemetry == []


@pytest.fixture(scope="module")
def local(folder: Path) -> Reached:
    needed(platform.machine())
    return Reached("local", folder / "device")


@pytest.fixture(scope="module")
def board(folder: Path, local: Reached) -> Iterator[Reached]:
    server = runpy.run_path(str(HERE / "ssh_server.py"))
    if reason := server["why_not"]():
        pytest.skip(reason)
    (folder / "ssh").mkdir()
    with server["ssh_server"](folder / "ssh") as running:
        yield Reached(running.target, folder / "device")


@pytest.fixture(scope="module")
def adb(folder: Path, local: Reached) -> Iterator[dict[str, Any]]:
    if not shutil.which("adb"):
        pytest.skip("no program adb here (apt-get install adb)")
    double = runpy.run_path(str(HERE / "adb_device.py"))
    with double["adb_server"](folder):
        yield double


@pytest.fixture
def phone(adb: dict[str, Any], folder: Path) -> Iterator[Reached]:
    """A phone with this machine's processor, which is quicker than to imitate another."""
    phone = adb["AdbDevice"]()
    yield Reached(f"adb:{phone.serial}", folder / "device", phone)
    phone.stop()


@pytest.fixture
def arm_phone(phone: Reached, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Reached:
    """A phone: its processor is imitated, its shell and its cores are this machine's."""
    if not shutil.which("qemu-aarch64-static"):
        pytest.skip("no program qemu-aarch64-static here (apt-get install qemu-user-static)")
    needed("aarch64")
    cores = len(os.sched_getaffinity(0))
    write_root = runpy.run_path(str(HERE / "fake_root.py"))["write_root"]
    root = write_root(folder / "root", f"a76:{cores}:2400000")
    monkeypatch.setenv("HWNAS_LAUNCHER", f"qemu-aarch64-static -cpu cortex-a76 -L {root}")
    return phone


@pytest.fixture
def old_phone(phone: Reached) -> Reached:
    """One before Android 7: no exit codes, one stream."""
    phone.phone.shell_v2 = False
    return phone


@pytest.fixture(scope="module")
def standing_in() -> dict[str, bytes]:
    """Models of what a sweep of the toy space asks for, by key: others, as to export them takes longer than a sweep."""
    keys = [REFERENCE.key, *map(str, SPACE.signatures()), *(a.id for a in spread(SPACE, CALM["num_networks"], seed=0))]
    return {key: network(number).SerializeToString() for number, key in enumerate(keys)}


@pytest.fixture(autouse=True)
def quick(standing_in: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(items: Any, profiler: Any, progress: Any = None) -> Iterator[tuple[bytes, None]]:
        return ((standing_in[item.key], None) for item in items)

    monkeypatch.setattr(rounds, "models_for", kept)
    monkeypatch.setattr(remote_session, "COOL_S", 0)  # a busy machine is not a hot one
    monkeypatch.setattr(remote_session, "DROP_PERCENT", 100)
    monkeypatch.setattr("hwnas.latency.measure.ROUND_MS", 2.0)


def close(*sessions: Any) -> None:
    for session in sessions:
        session.close()


def sweep(profiler: RemoteProfiler, output: Path, **options: Any) -> LatencyTable:
    return profile(SPACE, profiler, output=output, **{**CALM, **options})
