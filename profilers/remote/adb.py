"""Android phones over adb: the real client and its server; shell with exit codes (Android 7) or without."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from hwnas.errors import UsageError

from .client import Client, Ended, finish
from .errors import (
    DeadlineError,
    LostError,
    MissingToolError,
    OfflineError,
    TransportError,
    UnauthorizedError,
    UnreachableError,
)
from .running import SINGLE, Running
from .transport import ShellTransport, checked_words

SCRATCH = "/data/local/tmp"
"""The folder of every Android where adb's user may write and execute."""

ANSWER_S = 10.0
"""How long the client and its server may take for a question that needs no device."""

CONNECT_S = 4.0
"""How long a device on the network may take to say hello."""

SAID = {
    "unauthorized": "does not trust this computer; unlock it and accept the dialogue 'Allow USB debugging'",
    "offline": "is listed by adb and does not answer; unplug it and plug it in again, or run 'adb reconnect'",
    "no permissions": "may not be opened by you; install Android's udev rules (android-sdk-platform-tools-common)",
}
"""Why a device that adb lists is not usable, and what to do."""

KINDS = {"unauthorized": UnauthorizedError, "offline": OfflineError, "no permissions": UnauthorizedError}

BROKEN = r"device '.*' not found|closed|protocol fault|[Cc]onnection reset|EOF|Broken pipe|device offline"
"""What the client says when the connection broke and was up again when we looked."""


class Adb(ShellTransport):
    """A phone that adb lists. One at HOST:PORT is connected when it is not listed.

    The program is ``adb`` on the PATH or in ``$ANDROID_HOME/platform-tools``.

    Args:
        serial: As ``adb devices`` prints it.
        scratch: Folder for small files of connections that carry one stream (before Android 7).

    Raises:
        UsageError: The serial cannot be one.
    """

    def __init__(self, serial: str, *, scratch: str = SCRATCH) -> None:
        if not re.fullmatch(r"[^\s-]\S*( \(\d+\))?\S*", serial):
            raise UsageError(f"'{serial}' is no serial of adb; 'adb devices' lists them.")
        self.serial, self.scratch = serial, scratch
        self.name = f"adb:{serial}"
        self._features: set[str] | None = None
        self._refusal = ""

    def close(self) -> None:
        """Forgets what is known of the device; adb's server stays, other programs may use it."""
        self._features = None

    @property
    def features(self) -> set[str]:
        """What the device's side of adb can do; looks whether the device is usable when first asked.

        Raises:
            UnreachableError: It is not; says why.
        """
        if self._features is None:
            states = adb_states()
            if states.get(self.serial, "offline") == "offline" and re.fullmatch(r".+:\d+", self.serial):
                states = self._connected()
            if states.get(self.serial) != "device":
                raise self._unusable(states)
            asked = finish([adb_program(), "-s", self.serial, "features"], timeout_s=ANSWER_S)
            if asked.code:
                raise self._unusable(adb_states())
            self._features = set(asked.out.decode().split())
        return self._features

    def _connected(self) -> dict[str, str]:
        """Connects to a device on the network, anew if it is offline; what adb lists then."""
        self._refusal = "no answer"
        for verb in ("disconnect", "connect"):
            with suppress(DeadlineError):
                ended = finish([adb_program(), verb, self.serial], timeout_s=CONNECT_S)
                self._refusal = f"{ended.out.decode(errors='replace')}{ended.err}".strip()[-300:]
        return adb_states()

    def _unusable(self, states: dict[str, str]) -> TransportError:
        state = states.get(self.serial, "not found")
        listed = ", ".join(f"{serial} ({state})" for serial, state in states.items()) or "none"
        message = f"adb lists no usable device '{self.serial}' (connected: {listed})"
        if self._answered and state in ("not found", "offline"):
            return LostError(f"{message}; it was there before: plug it in again and go on.")
        for word, kind in KINDS.items():
            if state.startswith(word):
                return kind(f"{self.name} {SAID[word]}.")
        if self._refusal:
            return UnreachableError(
                f"{message}; 'adb connect {self.serial}' says: {self._refusal}. See that the phone is in this network, "
                "with wireless debugging on at this port."
            )
        return UnreachableError(f"{message}; plug it in, switch on USB debugging, and see 'adb devices'.")

    def _words(self, words: Sequence[str]) -> list[str]:
        return [adb_program(), "-s", self.serial, "shell", "-T", f"exec {shlex.join(words)}"]

    def _open(
        self, command: Sequence[str], deadline_s: float, stdin: IO[bytes] | None, *, renewed: bool = False
    ) -> Running:
        if "shell_v2" in self.features:
            return super()._open(command, deadline_s, stdin, renewed=renewed)
        token, read = secrets.token_hex(8), "/dev/null"
        said = f"{self.scratch}/.hwnas-{token}.err"
        if stdin is not None:
            read = f"{self.scratch}/.hwnas-{token}.in"
            self._feed(stdin, read, deadline_s)
        script = ["sh", "-c", SINGLE, "sh", token, read, said, *checked_words(command)]
        words = [adb_program(), "-s", self.serial, "exec-out", f"exec {shlex.join(script)}"]
        return Running(
            Client(words, deadline_s=deadline_s, renewed=renewed, grace_s=0), token, self._broken, single=True
        )

    def _feed(self, stdin: IO[bytes], path: str, timeout_s: float) -> None:
        with tempfile.NamedTemporaryFile() as file:
            shutil.copyfileobj(stdin, file)
            file.flush()
            self._copy([file.name], path, timeout_s)

    def _send(self, paths: Sequence[Path], folder: str, timeout_s: float) -> None:
        self._copy([str(path) for path in paths], f"{folder}/", timeout_s)

    def _copy(self, paths: Sequence[str], to: str, timeout_s: float) -> None:
        ended = finish([adb_program(), "-s", self.serial, "push", *paths, to], timeout_s=timeout_s)
        if ended.code:
            said = f"{ended.err}{ended.out.decode(errors='replace')}"
            if adb_states().get(self.serial) != "device" or re.search(BROKEN, said):
                raise self._broken(said)
            raise self._refused(Ended(ended.code, b"", said), f"adb push to {to}")

    def _broken(self, said: str) -> TransportError:
        self.close()
        states = adb_states()
        if states.get(self.serial) != "device":
            return self._unusable(states)
        tail = said.strip()[-300:] or "no message"
        return LostError(f"the connection to {self.name} broke ({tail}); see that its cable is firm, and go on.")


def adb_program() -> str:
    """Path of the client.

    Raises:
        MissingToolError: It is not installed.
    """
    homes = [os.environ.get(name) for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT")]
    places = [None, *(f"{home}/platform-tools" for home in homes if home)]
    for place in places:
        if found := shutil.which("adb", path=place):
            return found
    raise MissingToolError(
        "no program 'adb' here; install Android's platform-tools (Debian: apt-get install adb), "
        "and put it on the PATH or set ANDROID_HOME."
    )


def adb_states() -> dict[str, str]:
    """Every device that adb knows: serial -> ``device``, ``unauthorized``, ``offline``, ``no permissions...``.

    Starts adb's server if there is none.

    Raises:
        TransportError: The server does not start.
    """
    return dict(line.split("\t", 1) for line in _listed() if "\t" in line)


def adb_models() -> dict[str, str]:
    """Model of every device that says it: serial -> name."""
    return {line.split(" ", 1)[0]: found[1] for line in _listed("-l") if (found := re.search(r"model:(\S+)", line))}


def _listed(*options: str) -> list[str]:
    ended = finish([adb_program(), "devices", *options], timeout_s=ANSWER_S)
    if ended.code:
        raise TransportError(f"'adb devices' failed ({ended.err.strip()[-300:]}); run 'adb kill-server' and try again.")
    return ended.out.decode(errors="replace").splitlines()
