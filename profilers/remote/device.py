"""A device that was reached, looked at, and given its bundle: it takes models and runs jobs."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.errors import DeviceLostError, UsageError

from .about import About, read_about
from .bundle import Bundle, create_bundle, given_parts
from .elf import MACHINES
from .errors import TransportError
from .jobs import Job
from .records import Failure, Hello, Record, Tally, ended_well, read_lines
from .targets import Target, create_target
from .topology import clusters_of, format_cores, select_cores

LOGGER = logging.getLogger("hwnas")

LAUNCHER = "HWNAS_LAUNCHER"
"""Environment variable: words before every program on the device, such as an emulator. Never read from a table, since
it is executed."""

FOLDER = "HWNAS_DEVICE_FOLDER"
"""Environment variable: folder for our files on the device, in place of the usual one."""

STEP_S = 120
"""Longest time for loading a model or timing it once."""

SILENCE_S = STEP_S + 30.0

DEADLINE_S = 12 * 3600
"""When a runner ends that nobody has ended."""

CLEAN = """cd "$1" || exit 1
rm -rf "$2"
find jobs -mindepth 1 -maxdepth 1 -mmin +1440 -exec rm -rf {} + 2>/dev/null
true"""
"""Removes a folder, and what a killed program left behind a day ago."""


@dataclass(frozen=True)
class Connection:
    """A device, and what was learnt about it.

    Args:
        target: The way to it.
        about: What it says about itself.
        bundle: What it was sent.
        folder: Where everything of ours is kept there, an absolute path.
    """

    target: Target
    about: About
    bundle: Bundle
    folder: str

    @classmethod
    def open(cls, name: str) -> Connection:
        """Reaches a device and sends what it lacks of the bundle.

        Raises:
            UsageError: No such kind of device, or one without a bundle.
            TransportError: It cannot be reached or written to.
        """
        target = create_target(name, launcher=os.environ.get(LAUNCHER, ""), folder=os.environ.get(FOLDER))
        about = read_about(target.transport)
        # An emulator is called after the machine it imitates.
        imitated = [machine for machine in MACHINES.values() if any(machine in word for word in target.launcher[:1])]
        bundle = create_bundle(*(imitated or [about.machine]), **given_parts())
        folder = os.path.join(about.folder, target.folder)
        target.transport.push(bundle.paths(), f"{folder}/{bundle.digest[:16]}")
        return cls(target, about, bundle, folder)

    @property
    def name(self) -> str:
        """What is measured: the device, and what stands between it and the runner."""
        return self.about.name + (f" through {Path(self.target.launcher[0]).name}" if self.target.launcher else "")

    def choose(self, wanted: str, threads: int) -> tuple[int, ...]:
        """As many cores as threads, the last of those wanted: interrupts are served by the first.

        Raises:
            UsageError: There are too few, or they cannot be told.
        """
        if not self.about.clusters:
            raise UsageError(
                f"the cores of {self.name} cannot be told: its kernel does not say, in /sys/devices/system/cpu, which "
                f"are online. 'hwnas device doctor {self.target.transport.name}' says more."
            )
        there = select_cores(wanted, self.about.clusters)
        if not 1 <= threads <= len(there):
            raise UsageError(
                f"{threads} threads on cores '{wanted}' of {self.name} are not possible: each has a core of its own, "
                f"and these are {len(there)} ({format_cores(there)}). Take 1 to {len(there)} threads, or other cores "
                f"of {'; '.join(map(str, self.about.clusters))}."
            )
        cores = there[-threads:]
        if len(clusters_of(cores, self.about.clusters)) > 1:
            LOGGER.warning("cores %s are of several kinds: threads wait for the slowest", format_cores(cores))
        return cores


class Device:
    """Runs jobs on chosen cores of a device, one at a time.

    Args:
        connection: The device.
        cores: One for each thread.
        evict_bytes: Memory written to before every timed run.

    Attributes:
        hello: The processor as the runner found it, after the first job.
        tally: What the jobs were like so far.
    """

    def __init__(self, connection: Connection, cores: Sequence[int], *, evict_bytes: int = 0) -> None:
        self.connection, self.cores, self._evict_bytes = connection, tuple(cores), evict_bytes
        self.transport = connection.target.transport
        self.hello: Hello | None = None
        self.tally = Tally()
        self._jobs = f"{connection.folder}/jobs/{secrets.token_hex(8)}"
        self._kept = Path(tempfile.mkdtemp(prefix="hwnas-models-"))
        weakref.finalize(self, shutil.rmtree, self._kept, ignore_errors=True)
        self._used: Counter[str] = Counter()
        self._sent: set[str] = set()

    def job(self, **settings: Any) -> Job:
        """A job on these cores; see ``Job`` for its settings."""
        library = f"../../{self.connection.bundle.digest[:16]}"
        common = {"cores": self.cores, "threads": max(1, len(self.cores)), "lock": "../../lock"}
        limits = {"deadline_s": DEADLINE_S, "step_s": STEP_S, "evict_bytes": self._evict_bytes}
        return Job(**{"library": self.connection.bundle.library(library), **common, **limits, **settings})

    def keep(self, model: bytes) -> str:
        """Keeps a model here until the device needs it; its name as jobs call it."""
        name = f"{hashlib.sha256(model).hexdigest()[:32]}.onnx"
        path = self._kept / name
        if not path.exists():
            path.write_bytes(model)
        self._used[name] += 1
        return name

    def size(self, name: str) -> int:
        """Bytes of a kept model."""
        return (self._kept / name).stat().st_size

    def drop(self, name: str) -> None:
        """Ends one use of a model; after the last one of all it is cleaned."""
        self._used[name] -= 1
        if self._used[name] <= 0:
            del self._used[name]
            (self._kept / name).unlink(missing_ok=True)
        if not self._used:
            self.clean()

    def clean(self) -> None:
        """Leaves nothing of ours but the bundle on the device, if it can be reached."""
        with contextlib.suppress(TransportError):
            self.transport.run(["sh", "-c", CLEAN, "sh", self.connection.folder, self._jobs], timeout_s=60)
        self._sent.clear()

    def send(self, names: Sequence[str]) -> None:
        """Puts kept models on the device, all at once."""
        going = {name: self._kept / name for name in names if name not in self._sent}
        if going:
            self.transport.push(going, f"{self._jobs}/models")
            self._sent |= set(going)

    def records(self, job: Job, files: Mapping[str, Path | bytes] | None = None) -> Generator[Record]:
        """Runs a job; what the runner says, as it says it.

        Args:
            job: Its models are ``models/NAME`` of those sent.
            files: More files for the folder of the job.

        Raises:
            RunnerError: The runner gave up.
            DeviceLostError: The device went away.
            TransportError: Another way in which it refuses.
        """
        self.put({**(files or {}), "job": job.text().encode()})
        folder = f"{self.connection.folder}/{self.connection.bundle.digest[:16]}"
        words = self.connection.target.command(self.connection.bundle.command(folder, f"{self._jobs}/job"))
        failure, lost = None, None
        with self.transport.start(words, silence_s=SILENCE_S) as running:
            try:
                for record in read_lines(running.lines()):
                    if isinstance(record, Hello):
                        self.hello = record
                    failure = record if isinstance(record, Failure) and record.fatal else None
                    self.tally.add(record)
                    yield record
            except TransportError:
                raise
            except DeviceLostError as error:
                lost = error
            ended_well(running.end(), failure, running.err)
            if lost is not None:
                raise lost

    def put(self, files: Mapping[str, Path | bytes]) -> None:
        """Writes files into the folder of the jobs."""
        self.transport.push(files, self._jobs)

    def pull(self, name: str) -> bytes:
        """A file of the folder of the jobs."""
        return self.transport.pull(f"{self._jobs}/{name}")

    def reconnected(self, timeout_s: float) -> None:
        """Waits for a device that went away; what it was sent is sent again if it is not there.

        Raises:
            TransportError: It does not come back.
        """
        self.transport.wait(timeout_s)
        self._sent.clear()
