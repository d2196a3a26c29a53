"""What a user calls a device: ``local``, ``ssh://[user@]host[:port]``, ``adb:SERIAL``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hwnas.errors import UsageError

from .adb import SAID, SCRATCH, Adb, adb_models, adb_states
from .errors import MissingToolError, TransportError, UnauthorizedError
from .ssh import Ssh
from .transport import Local, Transport, checked_folder

EXPECTED = "expected local, ssh://[user@]host[:port] or adb:SERIAL ('hwnas devices' lists what is reachable)"


@dataclass(frozen=True)
class Target:
    """A device and how programs are started there.

    Args:
        transport: The way to it.
        launcher: Words put before every program, for example of an emulator.
        folder: Where files are kept there.
    """

    transport: Transport
    launcher: tuple[str, ...]
    folder: str

    def command(self, words: Sequence[str]) -> list[str]:
        """The words with the launcher before them."""
        return [*self.launcher, *words]


@dataclass(frozen=True)
class Reachable:
    """A device that could be named as a target.

    Args:
        target: As ``create_target`` takes it.
        state: ``ready``, ``unauthorized``, ``offline``, ``unreachable``, ``missing`` (a tool), or adb's own word.
        about: Its model, or what is wrong and what to do.
    """

    target: str
    state: str
    about: str


def create_target(name: str, *, launcher: str = "", folder: str | None = None) -> Target:
    """Reads the name of a device; connects to nothing.

    Args:
        name: ``local``, ``ssh://[user@]host[:port]`` or ``adb:SERIAL``.
        launcher: Words put before every program, quoted as in a shell.
        folder: Where files are kept there; None for the usual place.

    Raises:
        UsageError: The name, the launcher or the folder cannot be read.

    Example:
        >>> create_target("adb:1A2B", launcher="taskset 80").command(["./runner"])
        ['taskset', '80', './runner']
    """
    try:
        words = tuple(shlex.split(launcher))
    except ValueError as error:
        raise UsageError(f"cannot read the launcher '{launcher}' ({error}); quote its words as in a shell.") from error
    transport, usual = _transport(name)
    if isinstance(transport, Adb) and folder:
        transport.scratch = os.path.dirname(folder)
    return Target(transport, words, checked_folder(folder or usual))


def _transport(name: str) -> tuple[Transport, str]:
    """The way to a device, and where files are usually kept there."""
    if name == "local":
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Local(), f"{cache}/hwnas/device"
    if name.startswith("adb:"):
        return Adb(name.removeprefix("adb:")), f"{SCRATCH}/hwnas"
    if not name.startswith("ssh://"):
        raise UsageError(f"unknown device '{name}'; {EXPECTED}.")
    try:
        parts = urlsplit(name)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"cannot read the device '{name}' ({error}); {EXPECTED}.") from error
    if parts.password is not None:
        raise UsageError(
            f"the device 'ssh://{parts.username}:...@{host}' has a password in its name; expected a board that knows "
            f"your key. Run 'ssh-copy-id {parts.username}@{host}' once, and leave the password out."
        )
    if not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(f"cannot read the device '{name}'; {EXPECTED}.")
    return Ssh(host, user=parts.username, port=port), ".cache/hwnas/device"


def reachable(ssh_hosts: Sequence[str] = (), *, timeout_s: float = 15) -> list[Reachable]:
    """This computer, what adb lists, and the given hosts.

    Args:
        ssh_hosts: As ``[user@]host[:port]``, with or without ``ssh://``.
        timeout_s: For each host.

    Raises:
        UsageError: A host cannot be read.
    """
    found = [Reachable("local", "ready", " ".join(os.uname()[i] for i in (1, 4)))]
    try:
        models = adb_models()
        for serial, state in adb_states().items():
            wrong = [f"it {said}" for word, said in SAID.items() if state.startswith(word)]
            about = "; ".join([*filter(None, [models.get(serial)]), *wrong])
            found.append(Reachable(f"adb:{serial}", "ready" if state == "device" else state, about))
    except TransportError as error:
        found.append(Reachable("adb:", _state(error), str(error)))
    for host in ssh_hosts:
        transport, _ = _transport(host if host.startswith("ssh://") else f"ssh://{host}")
        try:
            said = transport.run(["uname", "-nm"], timeout_s=timeout_s)
            found.append(Reachable(transport.name, "ready", said.out.decode(errors="replace").strip()))
        except TransportError as error:
            found.append(Reachable(transport.name, _state(error), str(error)))
        finally:
            transport.close()
    return found


def _state(error: TransportError) -> str:
    if isinstance(error, MissingToolError):
        return "missing"
    return "unauthorized" if isinstance(error, UnauthorizedError) else "unreachable"
