"""Shared fixtures: running the command line, and a fast device that another package brings."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hwnas.cli import main

# Before anything imports torch, and for every process the tests start: on a busy machine two threads that wait
# for each other took 83 s for a search of 18 s (2 cores, 2 other programs); and the same bits come out.
os.environ["OMP_NUM_THREADS"] = "1"

# Sweeps run in the process that asks for them, except where a test is about the child process.
os.environ["HWNAS_TIMEOUT"] = "0"


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until something holds, for at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.005)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def failed(self, code: int, *parts: object) -> None:
        """Asserts the exit code and that the one-line message holds every part."""
        assert self.code == code, self
        assert self.err.startswith("error: "), self
        missing = [part for part in parts if str(part) not in self.err]
        assert not missing, f"{missing} not in: {self.err}"

    def done(self) -> str:
        """Asserts success; returns what was printed."""
        assert self.code == 0, self
        assert self.err == ""
        return self.out


@dataclass(frozen=True)
class Packages:
    """A folder of installed packages, as other people write them."""

    folder: Path

    def add(
        self,
        name: str,
        entry_points: dict[str, str],
        *,
        group: str = "hwnas.profilers",
        requires: Sequence[str] = (),
        source: str | None = None,
    ) -> None:
        """Installs a package that declares profilers or others, with ``NAME.py`` if there is source."""
        info = self.folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        points = [f"{point} = {target}" for point, target in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *points]) + "\n")
        if source is not None:
            (self.folder / f"{name}.py").write_text(source)


def run_main(arguments: Sequence[object], folders: Sequence[Path]) -> Ended:
    """Runs ``hwnas ARGUMENTS`` in this process, with the packages of the folders installed."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["hwnas", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        for folder in folders:
            patch.syspath_prepend(folder)
        with pytest.raises(SystemExit) as end:
            main()
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(tuple(f"{folder}/" for folder in folders)):
            del sys.modules[name]  # another test may install another package of that name
    code = end.value.code
    return Ended(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def toyprof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a package that brings the profiler ``analytic``."""
    packages = Packages(tmp_path_factory.mktemp("toyprof"))
    packages.add("toyprof", {"analytic": "hwnas.testing.toys:AnalyticProfiler"})
    return packages.folder


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    """Where a test installs packages of its own."""
    (tmp_path / "packages").mkdir()
    return Packages(tmp_path / "packages")


@pytest.fixture(scope="session")
def hwnas_once(toyprof: Path) -> Callable[..., Ended]:
    """Runs a command in this process, for fixtures that live longer than a test."""
    return lambda *arguments: run_main(arguments, [toyprof])


@pytest.fixture
def hwnas(toyprof: Path, packages: Packages) -> Callable[..., Ended]:
    """Runs a command in this process."""
    return lambda *arguments: run_main(arguments, [toyprof, packages.folder])


@dataclass(frozen=True)
class Started:
    """A command that runs in a process of its own; ``folder`` is described in ``fork_commands.py``."""

    folder: Path

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return (self.folder / "code").exists()

    def kill(self, number: signal.Signals) -> tuple[int, str]:
        """Sends a signal; returns exit code and messages."""
        os.kill(int((self.folder / "pid").read_text()), number)
        return self.end()

    def end(self) -> tuple[int, str]:
        """Waits for its end; returns exit code and messages."""
        wait_until(lambda: self.over)
        return int((self.folder / "code").read_text()), (self.folder / "err").read_text()


@pytest.fixture(scope="session")
def forks() -> Iterator[subprocess.Popen[str]]:
    """See ``fork_commands.py``."""
    command = [sys.executable, Path(__file__).with_name("fork_commands.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def start_process(
    forks: subprocess.Popen[str], toyprof: Path, packages: Packages, tmp_path: Path
) -> Iterator[Callable[..., Started]]:
    """Starts commands in processes of their own, each with a name and environment variables."""
    begun: list[Started] = []

    def begin(name: str, environment: dict[str, str], *arguments: object) -> Started:
        started = Started(tmp_path / name)
        started.folder.mkdir()
        request = {
            "arguments": [*map(str, arguments)],
            "folders": [str(toyprof), str(packages.folder)],
            "folder": str(started.folder),
            "environment": environment,
        }
        assert forks.stdin is not None
        forks.stdin.write(json.dumps(request) + "\n")
        forks.stdin.flush()
        wait_until((started.folder / "pid").exists)
        begun.append(started)
        return started

    yield begin
    for started in begun:
        if not started.over:
            started.kill(signal.SIGKILL)


@pytest.fixture
def start(start_process: Callable[..., Started]) -> Callable[..., Started]:
    """Starts a command in a process of its own, one a test."""
    return lambda *arguments: start_process("started", {}, *arguments)


@pytest.fixture
def start_ranks(start_process: Callable[..., Started]) -> Callable[..., list[Started]]:
    """Starts two ranks of one command, as ``torchrun`` does."""

    def begin(*arguments: object) -> list[Started]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        ranks = ("0", "1")
        return [start_process(f"rank{r}", {**common, "RANK": r, "LOCAL_RANK": r}, *arguments) for r in ranks]

    return begin


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of ``benchmarks/`` by its name, with its neighbours, without running it."""

    def loaded(name: str) -> ModuleType:
        path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setitem(sys.modules, spec.name, script)  # where its dataclasses look
        spec.loader.exec_module(script)
        return script

    return loaded


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Waits until something holds, for at most a minute."""
    return wait_until


@pytest.fixture(scope="session")
def small() -> list[str]:
    """The space of most tests: 26 operators."""
    return ["--space", "tiny-mbconv", "--resolution", "16", "--width", "0.25"]


@pytest.fixture(scope="session")
def profiled(tmp_path_factory: pytest.TempPathFactory, hwnas_once: Callable[..., Ended], small: list[str]) -> Path:
    """A table of the small space; to be copied, not changed."""
    path = tmp_path_factory.mktemp("profiled") / "formula.csv"
    hwnas_once("profile", *small, "--profiler", "analytic", "--networks", 4, "--rounds", 2, "--output", path).done()
    return path


@pytest.fixture
def table(profiled: Path, tmp_path: Path) -> Path:
    """A copy of that table, to be changed."""
    for file in (profiled, profiled.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return tmp_path / profiled.name


@pytest.fixture(scope="session")
def searched(
    tmp_path_factory: pytest.TempPathFactory, hwnas_once: Callable[..., Ended], small: list[str], profiled: Path
) -> Path:
    """A finished search of one epoch; to be copied, not changed."""
    path = tmp_path_factory.mktemp("searched") / "run"
    hwnas_once("search", *small, "--table", profiled, "--epochs", 1, "--output", path).done()
    return path


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(searched, tmp_path / "run"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was searched, trained and verified; to be copied, not changed."""
    make = runpy.run_path(str(Path(__file__).with_name("finished_run.py")))["finished_run"]
    return Path(make(tmp_path_factory.mktemp("finished")))


@pytest.fixture
def noise(tmp_path: Path) -> str:
    """64 noisy images of ten classes, and 30 held out."""
    rng, labels = np.random.default_rng(0), np.arange(64) % 10
    images = rng.integers(0, 256, (64, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", x_train=images, y_train=labels, x_test=images[:30], y_test=labels[:30])
    return f"npz:{tmp_path / 'noise.npz'}"
