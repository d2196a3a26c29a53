"""Boards over ssh: the system's OpenSSH client, with its configuration, keys and known hosts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hwnas.errors import UsageError

from .client import finish
from .errors import LostError, MissingToolError, TransportError, UnauthorizedError, UnreachableError
from .transport import ShellTransport

OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlMaster": "auto",
    "ControlPersist": "60",
}
"""Never a question, never an unknown host; a dead board is noticed after 15 s; one handshake for all commands."""


class Ssh(ShellTransport):
    """A computer that an OpenSSH or dropbear server makes reachable.

    The program is ``ssh``, or what the variable ``HWNAS_SSH`` says (words as in a shell).

    Args:
        host: Name or address, or a host of the user's ssh configuration.
        user: Who to be there; None for what the configuration says.
        port: None for what the configuration says.

    Raises:
        UsageError: Host or user cannot be one.
    """

    def __init__(self, host: str, *, user: str | None = None, port: int | None = None) -> None:
        for word in (host, user or "x"):
            if not re.fullmatch(r"[\w:.%][\w:.%-]*", word):
                raise UsageError(f"'{word}' is no host or user of ssh; expected ssh://[user@]host[:port].")
        self.host, self.user, self.port = host, user, port
        shown = f"[{host}]" if ":" in host else host
        self.name = f"ssh://{f'{user}@' if user else ''}{shown}{f':{port}' if port else ''}"
        port_words = ["-p", str(port)] if port else []
        self._by_hand = shlex.join([*port_words, f"{user}@{host}" if user else host])
        self._sockets: Path | None = None

    def close(self) -> None:
        """Ends the connection that commands share."""
        if self._sockets is not None:
            end_sharing(self._client("-O", "exit", "--", self.host), self._sockets)
            self._sockets = None

    def _client(self, *rest: str) -> list[str]:
        words = shlex.split(os.environ.get("HWNAS_SSH", "ssh"))
        if not words or not shutil.which(words[0]):
            raise MissingToolError(f"no program '{' '.join(words)}' here; install openssh-client, or set HWNAS_SSH.")
        if self._sockets is None:
            self._sockets = Path(tempfile.mkdtemp(prefix="hwnas-ssh-"))  # short: a socket's path has 104 characters
            weakref.finalize(self, end_sharing, self._client("-O", "exit", "--", self.host), self._sockets)
        for key, value in {**OPTIONS, "ControlPath": f"{self._sockets}/%C"}.items():
            words += ["-o", f"{key}={value}"]
        words += ["-l", self.user] if self.user else []
        words += ["-p", str(self.port)] if self.port else []
        return [*words, "-T", *rest]

    def _words(self, words: Sequence[str]) -> list[str]:
        return self._client("--", self.host, f"exec {shlex.join(words)}")

    def _send(self, paths: Sequence[Path], folder: str, timeout_s: float) -> None:
        with tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT, dereference=True) as tar:
                for path in paths:
                    tar.add(path, path.name, filter=plain)
            archive.seek(0)
            self._must(["env", "LC_ALL=C", "tar", "-x", "-f", "-", "-C", folder], timeout_s, archive)

    def _broken(self, said: str) -> TransportError:
        tail = said.strip()[-300:] or "no message"
        self.close()  # what is shared may be broken, too
        if "Host key verification failed" in said or "IDENTIFICATION HAS CHANGED" in said:
            return UnauthorizedError(
                f"{self.name}: its key is not the known one ({tail}); run 'ssh {self._by_hand}', compare and accept it."
            )
        if "Permission denied (" in said:
            return UnauthorizedError(
                f"{self.name} accepts none of your keys ({tail}); run 'ssh-copy-id {self._by_hand}'. Passwords are "
                "never asked for."
            )
        if self._answered:
            return LostError(f"the connection to {self.name} broke ({tail}); see that it is up, go on.")
        return UnreachableError(f"{self.name} cannot be reached ({tail}); try 'ssh {self._by_hand} true'.")


def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """A file of an archive without the names of its owner here."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def end_sharing(words: list[str], sockets: Path) -> None:
    """Ends a shared connection, if it is up, and removes its socket."""
    if sockets.exists():
        if any(sockets.iterdir()):
            with suppress(TransportError):
                finish(words, timeout_s=5)
        shutil.rmtree(sockets, ignore_errors=True)
