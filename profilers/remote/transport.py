"""One small interface to every device: run, start, push, pull, remove, wait."""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from hwnas.errors import DeviceLostError, UsageError

from .client import Client, Ended
from .errors import DeadlineError, NoSpaceError, NotExecutableError, TransportError
from .running import FED, WATCHED, Running

FILE_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+.-]*")
"""What a pushed file may be called: nothing that a shell, tar or adb reads in another way."""

FULL = r"No space left|quota exceeded|Wrote only|[Ss]hort write"
"""What cp, adb and the tars of GNU and busybox say when a file system is full."""

PREPARE = """export LC_ALL=C
d=$1 i=$1/$2
mkdir -p "$i" || exit 3
command -v sha256sum >/dev/null || exit 5
find "$d" -maxdepth 1 -name '.incoming-*' -mmin +1440 -exec rm -rf {} + 2>/dev/null
if [ "$3" = 755 ]; then
  printf '#!/bin/sh\\n' >"$i/probe" && chmod 755 "$i/probe" || exit 3
  "$i/probe" >/dev/null 2>&1 </dev/null
  [ $? != 126 ] || { rm -rf "$i"; exit 4; }
fi
n=0
while read -r hash mode name; do
  s=; [ ! -f "$d/$name" ] || s=$(sha256sum <"$d/$name")
  if [ "${s%% *}" = "$hash" ]; then chmod "$mode" "$d/$name"; else n=1; echo "$name"; fi
done
[ $n = 1 ] || rm -rf "$i"
exit 0"""
"""Names the files that the folder lacks. 3: cannot write, 4: cannot execute, 5: no sha256sum."""

COMMIT = """export LC_ALL=C
case $1 in /*) d=$1;; *) d=$PWD/$1;; esac
cd "$d/$2" || exit 3
set -- "$2"
e= run=
while read -r hash mode name; do
  e="$e$hash  $name
"
  [ "$mode" != 755 ] || run="$run $name"
  set -- "$@" "$name"
done
i=$1; shift
s="$(sha256sum "$@")
"
while [ "$s" != "$e" ]; do
  [ "${s%%
*}" = "${e%%
*}" ] || { e=${e%%
*}; echo "${e##* }"; exit 6; }
  s=${s#*
} e=${e#*
}
done
chmod 644 "$@" && { [ -z "$run" ] || chmod 755 $run; } && mv -f "$@" "$d" || exit 3
rm -rf "$d/$i\""""
"""Renames what arrived whole, all at once: a program that is started for each file takes longer than its transfer.

6: the named file did not arrive whole.
"""


class Transport(Protocol):
    """A way to a device. Everything ends by a deadline; folders are made when something is pushed."""

    name: str

    def run(self, command: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> Ended:
        """Runs a command to its end; without ``stdin`` its input is empty.

        Raises:
            DeadlineError: It took longer. Without ``stdin`` the command has been killed on the device.
            LostError: The connection broke, and what the command did is unknown.
            UnreachableError: There was no connection.
        """

    def start(self, command: Sequence[str], *, silence_s: float) -> Running:
        """Starts a command without input. It is killed on the device when this process goes away.

        Reading its lines raises ``DeadlineError`` when none has come for ``silence_s``.
        """

    def push(self, files: Mapping[str, Path | bytes], folder: str, *, timeout_s: float = 600) -> tuple[str, ...]:
        """Puts files into a folder, each whole or not at all; the names of those that had to be sent.

        A file that is there with the same sha256 is not sent. Paths keep their executable bit, bytes have none.

        Raises:
            NoSpaceError: The file system is full.
            NotExecutableError: One of the files is executable and the folder lies on a noexec file system.
            UsageError: A name is not that of a plain file, or a path is no file.
        """

    def pull(self, path: str, *, timeout_s: float = 600) -> bytes:
        """The content of a file."""

    def remove(self, folder: str, *, timeout_s: float = 60) -> None:
        """Removes a folder and everything in it; no error if there is none."""

    def wait(self, timeout_s: float) -> None:
        """Waits until the device answers, and connects again if the connection broke."""

    def close(self) -> None:
        """Ends what is kept open between commands."""


@dataclass(frozen=True)
class Outgoing:
    """A file on its way: what it is called there, where it is here, and what must arrive."""

    name: str
    path: Path
    sha256: str
    mode: str

    @property
    def line(self) -> bytes:
        """As the device reads it."""
        return f"{self.sha256} {self.mode} {self.name}\n".encode()


class ShellTransport(ABC):
    """All of a transport but the connection: everything is done by ``sh`` on the device."""

    name: str
    _answered = False

    def run(self, command: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> Ended:
        """See ``Transport.run``."""
        if not stdin:
            return self._run(command, timeout_s, None)
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            return self._run(command, timeout_s, file)

    def start(self, command: Sequence[str], *, silence_s: float) -> Running:
        """See ``Transport.start``."""
        return self._open(command, silence_s, None, renewed=True)

    def push(self, files: Mapping[str, Path | bytes], folder: str, *, timeout_s: float = 600) -> tuple[str, ...]:
        """See ``Transport.push``."""
        until = time.monotonic() + timeout_s
        with tempfile.TemporaryDirectory(prefix="hwnas-") as stage:
            going = [outgoing(name, source, Path(stage)) for name, source in files.items()]
            incoming = f".incoming-{secrets.token_hex(8)}"
            arguments = [checked_folder(folder), incoming]
            try:
                probe = "755" if any(file.mode == "755" for file in going) else "644"
                told = self._script(PREPARE, [*arguments, probe], going, until)
                missing = set(told.out.decode().split())
                going = [file for file in going if file.name in missing]
                if going:
                    self._send([file.path for file in going], f"{folder}/{incoming}", until - time.monotonic())
                    self._script(COMMIT, arguments, going, until)
            except BaseException:
                with suppress(TransportError):
                    self._run(["rm", "-rf", f"{folder}/{incoming}"], 2, None)
                raise
        return tuple(file.name for file in going)

    def pull(self, path: str, *, timeout_s: float = 600) -> bytes:
        """See ``Transport.pull``."""
        return self._must(["cat", checked_folder(path)], timeout_s).out

    def remove(self, folder: str, *, timeout_s: float = 60) -> None:
        """See ``Transport.remove``."""
        parts = [part for part in checked_folder(folder).split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            raise UsageError(f"will not remove '{folder}'; give a folder below the root, without '..'.")
        self._must(["rm", "-rf", folder], timeout_s)

    def wait(self, timeout_s: float) -> None:
        """See ``Transport.wait``."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                self._must(["true"], min(10.0, max(1.0, until - time.monotonic())))
                return
            except (DeviceLostError, DeadlineError):
                if time.monotonic() >= until:
                    raise
            time.sleep(0.3)

    @abstractmethod
    def close(self) -> None:
        """See ``Transport.close``."""

    @abstractmethod
    def _words(self, words: Sequence[str]) -> list[str]:
        """The program of this computer that runs these words there."""

    @abstractmethod
    def _send(self, paths: Sequence[Path], folder: str, timeout_s: float) -> None:
        """Copies files into a folder that exists."""

    @abstractmethod
    def _broken(self, said: str) -> TransportError:
        """The error for a command that ended without a mark, after the client said something."""

    def _open(
        self, command: Sequence[str], deadline_s: float, stdin: IO[bytes] | None, *, renewed: bool = False
    ) -> Running:
        token, script = secrets.token_hex(8), WATCHED if stdin is None else FED
        words = self._words(["sh", "-c", script, "sh", token, *checked_words(command)])
        return Running(Client(words, deadline_s=deadline_s, renewed=renewed, stdin=stdin), token, self._broken)

    def _run(self, command: Sequence[str], timeout_s: float, stdin: IO[bytes] | None) -> Ended:
        with self._open(command, timeout_s, stdin) as running:
            out = b"".join(running.pieces())
            self._answered = True
            return Ended(running.end(), out, running.err)

    def _must(self, command: Sequence[str], timeout_s: float, stdin: IO[bytes] | None = None) -> Ended:
        ended = self._run(command, timeout_s, stdin)
        if ended.code:
            raise self._refused(ended, shlex.join(command))
        return ended

    def _script(self, script: str, arguments: list[str], files: Sequence[Outgoing], until: float) -> Ended:
        listed = b"".join(file.line for file in files)
        ended = self.run(["sh", "-c", script, "sh", *arguments], timeout_s=until - time.monotonic(), stdin=listed)
        if ended.code == 4:
            raise NotExecutableError(
                f"{self.name}: nothing may be executed in '{arguments[0]}' (noexec); on a phone take a folder in "
                "/data/local/tmp, elsewhere one in your home."
            )
        if ended.code == 5:
            raise TransportError(f"{self.name} has no 'sha256sum'; install busybox or coreutils there.")
        if ended.code == 6:
            name = ended.out.decode().strip()
            raise TransportError(f"{self.name}: '{name}' arrived damaged (another sha256); push again.")
        if ended.code:
            raise self._refused(ended, f"push to {arguments[0]}")
        return ended

    def _refused(self, ended: Ended, what: str) -> TransportError:
        """The error for a failed command."""
        said = ended.err.strip()[-300:]
        if re.search(FULL, said):
            return NoSpaceError(
                f"{self.name} has no space left ({what}: {said}); make room there, or take another folder."
            )
        return TransportError(
            f"{self.name}: '{what}' failed with code {ended.code} ({said or 'no message'}); "
            "check that the folder exists there and may be written."
        )


class Local(ShellTransport):
    """This computer."""

    name = "local"

    def close(self) -> None:
        """Nothing is kept open."""

    def _words(self, words: Sequence[str]) -> list[str]:
        return list(words)

    def _send(self, paths: Sequence[Path], folder: str, timeout_s: float) -> None:
        self._must(["cp", "--", *map(str, paths), folder], timeout_s)

    def _broken(self, said: str) -> TransportError:
        return TransportError(
            f"a command of this computer was stopped from outside ({said.strip()[-200:]}); run it again."
        )


def checked_folder(folder: str) -> str:
    """A path of a device, as given.

    Raises:
        UsageError: It is empty, looks like an option, or holds control characters.
    """
    if not folder or folder.startswith("-") or not folder.isprintable():
        raise UsageError(f"'{folder}' is no path of a device; expected something like /data/local/tmp/hwnas.")
    return folder


def checked_words(words: Sequence[str]) -> Sequence[str]:
    """The words of a command, as given.

    Raises:
        UsageError: There is none, or one holds a null character.
    """
    if not words or any("\0" in word for word in words):
        raise UsageError(f"cannot run {list(words)!r}; expected words without null characters.")
    return words


def outgoing(name: str, source: Path | bytes, stage: Path) -> Outgoing:
    """Prepares one file; it then has its device's name in the folder ``stage``.

    Raises:
        UsageError: The name is not that of a plain file, or the path is no file.
    """
    if not FILE_NAME.fullmatch(name):
        raise UsageError(f"cannot push a file named '{name}'; expected letters, digits and any of _ + . - in between.")
    if isinstance(source, Path) and not source.is_file():
        raise UsageError(f"cannot push '{source}': it is no file; make it first.")
    path = stage / name
    if isinstance(source, bytes):
        path.write_bytes(source)
    else:
        path.symlink_to(source.resolve())
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    executable = isinstance(source, Path) and source.stat().st_mode & 0o111
    return Outgoing(name, path, sha256, "755" if executable else "644")
